"""ArrayRecord files of records: written whole, read in any order, a source of a run.

Owns: writing a shard, reading records by index, naming what is damaged, a record's
spans. Not: its bytes (records.py), what a folder of shards holds (manifest.py), copies
of a bucket's shards (fetch.py), what shards decide for a run (prepared.py).
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from tfusion import files, sequence
from tfusion.data.balance import Balance
from tfusion.data.contents import Contents, hash_of
from tfusion.data.shards import fetch
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records as records_lib
from tfusion.data.shards.manifest import Manifest, Shard
from tfusion.data.shards.records import Damaged, Record
from tfusion.data.source import Prepared, Source, Span
from tfusion.data.tokenizer import OF_SHARDS, Tokenizer
from tfusion.kinds import FIRST, Kind

# A record to a chunk: random access decompresses nothing else. zstd takes 23 % off bf16
# latents (0.774 of their bytes, at every level) and 18 us more to read one of 17 kB, of
# which a worker process needs a few thousand a second at most.
WRITE_OPTIONS = "group_size:1,zstd:1"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READ_BUFFER_BYTES = 1 << 15  # array_record's default is 1 MiB for every open file
# Opening a file takes 0.3 ms for 2,000 records and 5 ms for 100,000, on a local disk:
# ten and more records' worth. While it is open it takes 8 bytes for each. So every file
# stays open that may, up to half of what the system lets a process have.
OPEN_FILES = 4096
_ALLOWED = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
if _ALLOWED != resource.RLIM_INFINITY:
  OPEN_FILES = min(OPEN_FILES, _ALLOWED // 2)
CHECK_THREADS = 16
# Of every shape, what its fields are called.
NAMES = [
  [records_lib.field_of(name, n) for name in ("pixels", "mean", "logvar")]
  for n in range(len(records_lib.IMAGES))
]
SURVEYED = 2000  # documents that a survey reads, at most
EXAMPLES, EXAMPLE_WORDS = 8, 12  # texts that a survey quotes, at most


def write_shard(path: str | Path, records: Iterable[Record], *, split: str) -> Shard:
  """Writes a shard that is there whole or not at all, a power cut included.

  The same records give the same bytes.

  Args:
    path: folder/name of the shard; replaced if it is there.
    records: in order; at least one.
    split: "train" or "test".

  Returns:
    What the manifest says of the shard.

  Raises:
    ValueError: no record, an id that occurs twice, or a record that does not add up.
    OSError: it cannot be written, as when the disk is full.
  """
  path = files.to_path(path)
  ids, tokens, images = set(), 0, 0
  try:
    with files.whole(path) as aside:
      writer = array_record_module.ArrayRecordWriter(str(aside), WRITE_OPTIONS)
      for record in records:
        if record.id in ids:
          raise ValueError(f"{path}: two records of the id {record.id!r}")
        ids.add(record.id)
        tokens += sum(map(len, record.texts))
        images += len(record.spans) - record.spans.count(records_lib.TEXT)
        writer.write(records_lib.encode(record))
      if not ids:
        raise ValueError(f"{path}: no records to write")
      writer.close()
      size, digest = aside.stat().st_size, manifest_lib.sha256(aside)
  except RuntimeError as error:  # whatever array_record meets
    raise OSError(f"{path}: cannot be written: {error}") from error
  return Shard(path.name, split, len(ids), size, tokens, images, digest)


def read_shard(path: str | Path) -> Iterator[Record | Damaged]:
  """Reads a shard in order; a damaged record comes as its error.

  Raises:
    ValueError: not a shard, or one without its end.
    records.OtherSchema: a record is of another version.
  """
  path = Path(path)
  reader = _open(path)
  for index in range(reader.num_records()):
    try:
      yield _read(reader, path, index)
    except Damaged as error:
      yield error


class Reader:
  """Records of some shards of a folder by index; for one thread, and picklable.

  A file is opened when it is first read from; at most OPEN_FILES are open at a time.
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
    path = self._folder / shard.name
    try:
      return _read(self._reader(shard), path, own)
    except Damaged:
      # A disk may fail once, as over a network; damage shows again.
      self._open.pop(shard.name).close()
      return _read(self._reader(shard), path, own)

  def several(self, indices: Sequence[int]) -> list[Record]:
    """Returns records, and raises, as [] does."""
    try:
      read = []
      for index in indices:
        shard, own = self.locate(index)
        read += self._reader(shard).read(own, own + 1)
      return [records_lib.decode(data) for data in read]
    except (RuntimeError, Damaged):
      return [self[index] for index in indices]  # tries again, and names the record

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
      # Closed at once: results wait for the slowest shard, and open files are few.
      for _ in pool.map(lambda s: self._open_shard(s).close(), self._shards):
        pass

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


@dataclasses.dataclass(frozen=True)
class Shards(Source):
  """The documents of one split of a folder of shards, tokenised and encoded already.

  What preparing left out is counted in the manifest, and listed in a file beside it.
  """

  leaves_out = True

  folder: Path
  manifest: Manifest
  split: str
  kinds: tuple[int, ...] = (0,)  # of the run, which its shapes are
  _reader: Reader = dataclasses.field(init=False, repr=False, compare=False)
  # Of latents of every shape: shift and scale.
  _normal: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(
    init=False, repr=False, compare=False
  )

  def __post_init__(self):
    super().__post_init__()
    reader = Reader(self.folder, self.manifest.of(self.split))
    object.__setattr__(self, "_reader", reader)
    images = self.manifest.images
    if images is None or not images.latents:
      return
    # Of the full shapes: numpy is four times slower where it repeats channels.
    normal = [
      (
        np.full(shape, images.shift, np.float32),
        np.full(shape, images.scale, np.float32),
      )
      for shape in images.shapes
    ]
    object.__setattr__(self, "_normal", normal)

  def __len__(self) -> int:
    return len(self._reader)

  @functools.cached_property
  def digest(self) -> str:
    """A hash of all documents, from those of the shards in the manifest."""
    own = "".join(shard.sha256 for shard in self.manifest.of(self.split))
    return hashlib.sha256(own.encode()).hexdigest()

  @property
  def balance(self) -> Balance | None:
    """What became of all that the source held of this split; None: not known."""
    return (self.manifest.counts.splits or {}).get(self.split)

  def contents(self) -> Contents:
    """A hash of what the manifest says of the records and of how they were made."""
    own, images = self.manifest, self.manifest.images
    made = [own.tokenizer_sha256, own.autoencoder_sha256, images and images.to_json()]
    sha256 = hash_of([self.digest, json.dumps(made)])
    return Contents(sha256, len(self))

  def __getitem__(self, index: int) -> tuple[Span, ...]:
    """Returns the spans of a document.

    Latents are (z - shift) / scale per channel, pixels u8 / 127.5 - 1; codes lie above
    the ids of the text.

    Raises:
      records.Damaged: names the shard, the record's index in it and what is wrong.
      ValueError: what is written there is not what the manifest says.
    """
    return self._document(index, self._reader[index])

  def several(self, indices: Sequence[int]) -> list[tuple[Span, ...]]:
    """Returns documents, and raises, as [] does, in three quarters of the time.

    The code that reads a document does not fit a processor's first cache; this runs a
    part of it for all documents, and then the next part.
    """
    found = self._reader.several(indices)
    return [self._document(i, record) for i, record in zip(indices, found)]

  def _document(self, index: int, record: Record) -> tuple[Span, ...]:
    fault = _misfit(record, self.manifest)
    if fault:
      shard, own = self._reader.locate(index)
      raise ValueError(
        f"{self.folder / shard.name}: record {own}, id {record.id!r}: {fault}; the"
        " shard is not of this manifest: prepare the data again"
      )
    texts = iter(record.texts)
    images = [itertools.count() for _ in self.kinds]
    spans: list[Span] = []
    for letter, weight in zip(record.spans, record.weights, strict=True):
      if letter == records_lib.TEXT:
        spans.append(sequence.Text(next(texts), weight))
      else:
        shape = records_lib.IMAGES.index(letter)
        spans.append(self._image(record.images, shape, next(images[shape]), weight))
    return tuple(spans)

  def texts(self) -> Iterable[str]:
    raise ValueError(f"{self.name}: shards bring a tokenizer, none is trained on them")

  @property
  def prepared(self) -> Prepared:
    """The folder and its manifest."""
    return Prepared(self.folder, self.manifest)

  def normalised(self, images: manifest_lib.ImageFormat) -> "Shards":
    """The same documents, latents scaled and shifted like those of other shards."""
    own = self.manifest.images
    if own is not None:
      own = dataclasses.replace(own, scale=images.scale, shift=images.shift)
    manifest = dataclasses.replace(self.manifest, images=own)
    return dataclasses.replace(self, manifest=manifest)

  def _image(
    self, images: dict[str, np.ndarray], shape: int, n: int, weight: float
  ) -> sequence.Image | sequence.Codes:
    """Image n among those of a shape."""
    if "codes" in images:
      ids = images["codes"][n] + np.int32(self.manifest.vocabulary)
      return sequence.Codes(ids, weight)
    kind, (pixels_name, mean_name, logvar_name) = self.kinds[shape], NAMES[shape]
    if (stacked := images.get(pixels_name)) is not None:
      pixels = stacked[n].astype(np.float32) / np.float32(127.5) - 1
      return sequence.Image(pixels, weight, kind=kind)
    shift_hwc, scale_hwc = self._normal[shape]
    latent = images[mean_name][n].astype(np.float32)
    latent -= shift_hwc
    latent /= scale_hwc
    if (logvar := images.get(logvar_name)) is None:
      return sequence.Image(latent, weight, kind=kind)
    std = np.exp(logvar[n].astype(np.float32) / 2) / scale_hwc
    return sequence.Image(latent, weight, std=std, kind=kind)


def open_shards(
  path: str,
  *,
  split: str,
  image_shape: tuple[int, int, int],
  others: Sequence[Kind] = (),
) -> Shards:
  """Opens a split of a folder of shards, and checks that all of it is there.

  Args:
    path: the folder.
    split: "train" or "test".
    image_shape: h, w, c of every image or latent; codes have none.
    others: kinds of the run behind the first.

  Raises:
    records.OtherSchema: the folder is of another version of tfusion.
    ValueError: no folder of shards, images of another shape, or a shard, tokenizer or
      autoencoder that is missing or not what the manifest says.
  """
  folder = files.to_path(path)
  manifest = manifest_lib.load(folder)
  images, own = manifest.images, manifest.of(split)
  if images and images.kind != "codes" and images.shape != tuple(image_shape):
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: the images of shards:{path} are"
      f" {images.shape}; set it to that, or prepare the data in the other shape"
    )
  kinds = _kinds(path, images, others) if images and images.kinds else (0,)
  if not own:
    raise ValueError(
      f"shards:{path}: holds no shard of the split {split!r}; prepare the data again"
      " with documents in both splits"
    )
  folder = fetch.to_local(folder, manifest, own)
  manifest_lib.check_files(manifest, folder, shards=own)
  Reader(folder, own).check()
  shown = any(shard.images for shard in own)
  return Shards(f"shards:{path}", folder, manifest, split, kinds, has_images=shown)


def _kinds(
  path: str, images: manifest_lib.ImageFormat, others: Sequence[Kind]
) -> tuple[int, ...]:
  """The kinds of a run that take images of each shape."""
  kin = {kind.shape: n for n, kind in enumerate(others, 1) if kind.like == FIRST}
  lacking = [shape for shape in images.shapes[1:] if shape not in kin]
  if lacking:
    raise ValueError(
      f"model.kinds: shards:{path} hold images of {lacking} too, which no kind with the"
      f" layers of image has; set model.kinds={images.kinds}"
    )
  return (0, *(kin[shape] for shape in images.shapes[1:]))


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a folder of shards holds, as far as choosing sizes needs it."""

  manifest: Manifest
  documents: int  # to train on
  images: int  # in those
  document_tokens: int  # 99 of 100 documents have no more text
  document_images: int  # nor more images
  examples: tuple[str, ...]  # how some of their texts begin


def survey(path: str | Path) -> Survey:
  """Looks at a sample of the training documents of a folder of shards.

  Raises:
    ValueError: no folder of shards, or one that is not whole.
  """
  manifest = manifest_lib.load(path)
  own = manifest.of("train")
  folder = fetch.to_local(files.to_path(path), manifest, own)
  manifest_lib.check_files(manifest, folder, shards=own)
  reader, tokens, images, texts = Reader(folder, own), [], [], set()
  own_tokenizer = folder / manifest_lib.TOKENIZER
  tokenizer = Tokenizer.load(own_tokenizer, key="", remedy=OF_SHARDS)
  for index in range(0, len(reader), max(-(-len(reader) // SURVEYED), 1)):
    try:
      record = reader[index]
    except Damaged:  # counted in training
      continue
    tokens.append(sum(map(len, record.texts)))
    images.append(len(record.spans) - record.spans.count(records_lib.TEXT))
    for text in record.texts[:1]:
      texts.add(" ".join(tokenizer.decode(text).split()[:EXAMPLE_WORDS]))
  if not tokens:
    raise ValueError(f"shards:{path}: holds no document to train on")
  usual = sorted(filter(None, texts))
  return Survey(
    manifest=manifest,
    documents=len(reader),
    images=sum(shard.images for shard in own),
    document_tokens=_most(tokens),
    document_images=_most(images),
    examples=tuple(usual[:: max(-(-len(usual) // EXAMPLES), 1)]),
  )


def _most(counts: list[int]) -> int:
  """The number that 99 of 100 do not exceed."""
  return sorted(counts)[int(0.99 * (len(counts) - 1))]


def _misfit(record: Record, manifest: Manifest) -> str:
  """What a record holds that its manifest does not allow; empty if all is well."""
  images = manifest.images
  if record.images:
    shapes = {name: stacked.shape[1:] for name, stacked in record.images.items()}
    known = _known_fields(images) if images else {}
    if record.kind != (images and images.kind) or not shapes.items() <= known.items():
      found = " and ".join(map(str, dict.fromkeys(shapes.values())))
      expected = f"{images.kind} of {images.shape}" if images else "no images"
      return f"holds {record.kind} of {found}, its manifest says {expected}"
    if (
      images
      and images.codebook
      and not _within(record.images["codes"], images.codebook)
    ):
      return f"has a code that is none of {images.codebook}"
  for text in record.texts:
    if not _within(text, manifest.vocabulary):
      return f"has a token id that is none of {manifest.vocabulary}"
  return ""


@functools.lru_cache(16)
def _known_fields(images: manifest_lib.ImageFormat) -> dict[str, tuple[int, ...]]:
  """The fields that a record may have, and what an image of each is."""
  return {
    records_lib.field_of(name, n): shape
    for n, shape in enumerate(images.shapes)
    for name in records_lib.KINDS[images.kind]
  }


def _within(ids: np.ndarray, count: int) -> bool:
  # As unsigned, a negative id is a large one.
  return ids.size == 0 or np.maximum.reduce(ids.view(np.uint32), None) < count


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
  try:
    # Not read([index]): its time grows with the shard, to 0.3 ms at 100,000 records.
    (data,) = reader.read(index, index + 1)
    return records_lib.decode(data)
  except (RuntimeError, Damaged) as error:  # RuntimeError: the file's own hashes
    raise Damaged(f"{path}: record {index} is damaged: {error}") from error
