"""ArrayRecord files of records: written whole, read in any order.

Owns: writing a shard, reading records by index, naming what is damaged. Not: a record's
bytes (records.py), what a folder of shards holds (manifest.py).
"""

import bisect
import collections
import concurrent.futures
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from array_record.python import array_record_module

from tfusion.data import manifest as manifest_lib
from tfusion.data import records as records_lib
from tfusion.data.manifest import Shard
from tfusion.data.records import Damaged, Record

# A record to a chunk: random access decompresses nothing else. zstd takes 23 % off bf16
# latents (0.774 of their bytes, at every level) and 16 us more to read one of 17 kB, of
# which a worker process needs a few thousand a second at most.
WRITE_OPTIONS = "group_size:1,zstd:1"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READ_BUFFER_BYTES = 1 << 15  # array_record's default is 1 MiB for every open file
OPEN_FILES = 256  # per process; opening one takes 0.2 ms on a local disk
CHECK_THREADS = 16


def write_shard(path: str | Path, records: Iterable[Record], *, split: str) -> Shard:
  """Writes a shard that is there whole or not at all, a power cut included.

  The same records give the same bytes.

  Args:
    path: folder/name of the shard; replaced if it is there.
    records: in order; at least one.
    split: "train" or "test".

  Returns:
    The shard's line in the manifest.

  Raises:
    ValueError: no record, an id that occurs twice, or a record that does not add up.
    OSError: it cannot be written, as when the disk is full.
  """
  path = Path(path)
  aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  ids, tokens, images = set(), 0, 0
  try:
    writer = array_record_module.ArrayRecordWriter(str(aside), WRITE_OPTIONS)
    for record in records:
      if record.id in ids:
        raise ValueError(f"{path}: two records of the id {record.id!r}")
      ids.add(record.id)
      tokens += sum(map(len, record.texts))
      images += record.spans.count(records_lib.IMAGE)
      writer.write(records_lib.encode(record))
      if not writer.ok():  # write() itself is silent; close() says why
        break
    if not ids:
      raise ValueError(f"{path}: no records to write")
    writer.close()
    size = _sync(aside)
    os.replace(aside, path)
    manifest_lib.sync_folder(path.parent)
  except RuntimeError as error:  # whatever array_record meets
    raise OSError(f"{path}: cannot be written: {error}") from error
  finally:
    aside.unlink(missing_ok=True)
  return Shard(path.name, split, len(ids), size, tokens, images)


def read_shard(path: str | Path) -> Iterator[Record | Damaged]:
  """Reads a shard in order; what is damaged comes as its error.

  Raises:
    ValueError: not a shard, or one without its end.
    records.OtherSchema: a record is of another version.
  """
  reader = _open(Path(path))
  for index in range(reader.num_records()):
    try:
      yield _read(reader, Path(path), index)
    except Damaged as error:
      yield error


class Reader:
  """Records of some shards of a folder by index, for one thread; picklable.

  Files are opened when first read from, and few are open at a time.
  """

  def __init__(self, folder: str | Path, shards: tuple[Shard, ...]):
    """Opens nothing yet.

    Args:
      folder: holds the shards.
      shards: in the order of their records.
    """
    self._folder, self._shards = Path(folder), shards
    self._ends = [0]
    for shard in shards:
      self._ends.append(self._ends[-1] + shard.records)
    self._open: collections.OrderedDict = collections.OrderedDict()

  def __reduce__(self):
    return Reader, (self._folder, self._shards)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    """Returns a record.

    Raises:
      Damaged: names the shard, the record's index in it and what is wrong.
      records.OtherSchema: it is of another version.
      ValueError: the whole shard cannot be read.
    """
    shard, own = self.locate(index)
    return _read(self._reader(shard), self._folder / shard.name, own)

  def locate(self, index: int) -> tuple[Shard, int]:
    """The shard that holds a record, and the record's index in it."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    number = bisect.bisect_right(self._ends, index) - 1
    return self._shards[number], index - self._ends[number]

  def check(self) -> None:
    """Opens every shard once and counts its records.

    Raises:
      ValueError: names a shard that lacks its end or holds another number.
    """
    with concurrent.futures.ThreadPoolExecutor(CHECK_THREADS) as pool:
      for reader in pool.map(self._open_shard, self._shards):
        reader.close()

  def _reader(self, shard: Shard) -> array_record_module.ArrayRecordReader:
    if shard.name in self._open:
      self._open.move_to_end(shard.name)
    else:
      self._open[shard.name] = self._open_shard(shard)
      if len(self._open) > OPEN_FILES:
        self._open.popitem(last=False)[1].close()
    return self._open[shard.name]

  def _open_shard(self, shard: Shard) -> array_record_module.ArrayRecordReader:
    path = self._folder / shard.name
    reader = _open(path)
    if (found := reader.num_records()) != shard.records:
      raise ValueError(
        f"{path}: holds {found} records, its manifest says {shard.records};"
        f" {manifest_lib.AGAIN}"
      )
    return reader


def _open(path: Path) -> array_record_module.ArrayRecordReader:
  if not path.is_file():
    raise ValueError(f"{path}: is missing; {manifest_lib.AGAIN}")
  reader = array_record_module.ArrayRecordReader(
    str(path), READ_OPTIONS, file_reader_buffer_size=READ_BUFFER_BYTES
  )
  if not reader.ok():  # it says 0 records, and nothing else
    raise ValueError(
      f"{path}: no shard, or damaged at its end, so that no record of it can be found;"
      f" remove it and {manifest_lib.AGAIN}"
    )
  return reader


def _read(
  reader: array_record_module.ArrayRecordReader, path: Path, index: int
) -> Record:
  where = f"{path}: record {index}"
  try:
    data = reader.read([index])[0]
  except RuntimeError as error:  # the file's own hashes
    raise Damaged(f"{where} is damaged: {error}") from error
  try:
    return records_lib.decode(data)
  except Damaged as error:
    raise Damaged(f"{where} is damaged: {error}") from error


def _sync(path: Path) -> int:
  with open(path, "rb") as file:
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size
