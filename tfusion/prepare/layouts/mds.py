"""MosaicML's streaming shards (MDS), version 2.

Owns: index.json, the bytes of a shard, decompressing it. Not: the layouts of a row
(rows.py).

  index.json       {"version": 2, "shards": [{"format": "mds", "column_names": [...],
                   "column_encodings": ["jpeg", "str"], "column_sizes": [null, ...],
                   "raw_data": {"basename", "bytes"}, "zip_data", "compression",
                   "samples"}]}
  shard.00000.mds  u32 samples; u32 where each begins, and the end; JSON; the samples
  a sample         u32 the size of each column that has no fixed one; the columns

Pickled columns are refused: to read one is to run what is in it.
"""

import dataclasses
import io
import posixpath
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tfusion import parsing
from tfusion.data import text as text_lib
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import tables
from tfusion.prepare.look import Look
from tfusion.prepare.raw import Rejected

INDEX = "index.json"
PICKLE = "pkl"
# Compressions, and what pyarrow calls them.
CODECS = dict(br="brotli", bz2="bz2", gz="gzip", snappy="snappy", zstd="zstd")
ENDS = (".mds", *(f".mds.{name}" for name in CODECS))


def _pil(data: bytes) -> bytes:
  """An image file of raw pixels: u32 width, height, length of mode; mode; pixels."""
  width, height, length = struct.unpack_from("<3I", data)
  mode, pixels = data[12 : 12 + length].decode(), data[12 + length :]
  out = io.BytesIO()
  Image.frombytes(mode, (width, height), pixels).save(out, "TIFF")
  return out.getvalue()


def _same(data: bytes) -> bytes:
  return data


def _listed(decode: Callable[[bytes], Any], *, first: int) -> Callable[[bytes], list]:
  """Decodes a list: its length at byte `first`, the size of each item, the items."""

  def decoded(data: bytes) -> list[Any]:
    (count,) = struct.unpack_from("<I", data, first)
    sizes = struct.unpack_from(f"<{count}I", data, first + 4)
    at, items = first + 4 + 4 * count, []
    for size in sizes:
      items.append(decode(data[at : at + size]))
      at += size
    return items

  return decoded


# Encoding -> what makes a value of the bytes. Of others, such as numbers and arrays,
# nothing is read.
DECODE: dict[str, Callable[[bytes], Any]] = {
  "bytes": _same,
  "jpeg": _same,
  "png": _same,
  "pil": _pil,
  "str": text_lib.decode,
  "json": lambda data: parsing.parse_json(text_lib.decode(data)),
  "jpeg_array": _listed(_same, first=0),
  "jpegarray": _listed(_same, first=0),
  "list[jpeg]": _listed(_same, first=4),
  "list[png]": _listed(_same, first=4),
  "list[pil]": _listed(_pil, first=4),
}


@dataclasses.dataclass(frozen=True)
class Shard(tables.Documents):
  """One shard."""

  file: files_lib.File  # raw, or compressed
  compression: str  # empty: raw
  raw_bytes: int  # when it is not compressed
  samples: int
  columns: tuple[tuple[str, str, int | None], ...]  # name, encoding, fixed size

  def rows(self) -> Iterator[tables.Row | Rejected]:
    """Yields each sample; its id holds its number."""
    self.file.require_unchanged()
    name = raw_lib.printable(self.file.name)
    number = 0
    try:
      with self._open() as stream:
        (count,) = struct.unpack("<I", stream.read(4))
        if count != self.samples:
          raise ValueError(f"holds {count} samples, {self.samples} by its index")
        places = struct.unpack(f"<{count + 1}I", stream.read(4 * (count + 1)))
        for number in range(count):
          stream.seek(places[number])
          size = places[number + 1] - places[number]
          data = stream.read(max(size, 0))
          if len(data) != size:
            raise ValueError("is damaged or cut short")
          yield self._row(f"{name}@{number}", data)
    except (struct.error, OSError, ValueError) as error:
      raw_lib.stop_if_of_machine(error)
      for lost in range(number, self.samples):
        id = f"{name}@{lost}"
        test = self.file.holds_out(id)
        yield Rejected(id, raw_lib.UNREADABLE, str(error), test=test)

  def _row(self, id: str, data: bytes) -> tables.Row | Rejected:
    """A sample as a row: the values of its columns."""
    variable = [name for name, _, fixed in self.columns if fixed is None]
    values: dict[str, Any] = {}
    try:
      sizes = dict(zip(variable, struct.unpack_from(f"<{len(variable)}I", data)))
      at = 4 * len(variable)
      for name, encoding, fixed in self.columns:
        own = sizes[name] if fixed is None else fixed
        if encoding in DECODE:
          values[name] = DECODE[encoding](data[at : at + own])
        at += own
    except Exception as error:  # Pillow's raise almost any kind
      raw_lib.stop_if_of_machine(error)
      test = self.file.holds_out(id)
      return Rejected(id, raw_lib.UNREADABLE, str(error), test=test)
    return tables.Row(id, values)

  def _open(self) -> Any:
    if not self.compression:
      return open(self.file.path, "rb")
    return io.BytesIO(_unpacked(self.file.path, self.compression, self.raw_bytes))


def _unpacked(path: Path, compression: str, size: int) -> bytes:
  """The bytes of a compressed shard.

  Raises:
    ValueError: it is damaged.
  """
  import pyarrow

  data = path.read_bytes()
  try:
    if compression == "snappy":  # which pyarrow knows in one piece alone
      found = pyarrow.Codec("snappy").decompress(data, size, asbytes=True)
    else:
      stream = pyarrow.BufferReader(data)
      found = pyarrow.CompressedInputStream(stream, CODECS[compression]).read()
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f"cannot be decompressed: {error}") from error
  if len(found) != size:
    raise ValueError(f"has {len(found):,} bytes, {size:,} by its index")
  return found


def recognise(look: Look) -> bool:
  """Whether a directory holds shards of MDS."""
  return INDEX in look.names and bool(look.first(*ENDS))


def plan(spec: str, argument: str, documents: int) -> list[Shard]:
  """One part for each shard of every index.json.

  Raises:
    ValueError: there is none, one is broken or of another version, a column is pickled,
      a shard is not there, or rows hold nothing that is read.
  """
  parts, check = [], tables.Check(spec)
  for index in files_lib.find(spec, argument, INDEX, beside=ENDS):
    for entry in _entries(spec, index):
      shard = _shard(spec, index, entry)
      parts.append(shard)
      if check.is_new(str(shard.columns)):
        rows = (row for row in shard.rows() if isinstance(row, tables.Row))
        check.look(shard.file, (row.values for row in rows))
  check.tell()
  if not parts:
    raise ValueError(f"--source={spec}: its {INDEX} names no shards")
  return parts


@dataclasses.dataclass(frozen=True)
class Data:
  """A file of a shard, as index.json has it."""

  basename: str
  bytes: int


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is read of a shard's entry in index.json."""

  samples: int
  column_names: tuple[str, ...]
  column_encodings: tuple[str, ...]
  column_sizes: tuple[int | None, ...]
  raw_data: Data
  zip_data: Data | None = None
  compression: str | None = None


def _entries(spec: str, index: files_lib.File) -> list[Entry]:
  """The shards that an index.json names.

  Raises:
    ValueError: it is broken, or of another version or format.
  """
  try:
    values = parsing.parse_json(text_lib.decode(index.path.read_bytes()))
    shards = values.get("shards") if isinstance(values, dict) else None
    if not isinstance(shards, list):
      raise ValueError("has no list of shards")
    return [_entry(shard) for shard in shards]
  except ValueError as error:
    raise ValueError(f"--source={spec}: {index.path}: {error}") from error


def _entry(values: Any) -> Entry:
  """One of them; ValueError where it is none, or of another version or format."""
  of = values if isinstance(values, dict) else {}
  if (of.get("version"), of.get("format")) != (2, "mds"):
    raise ValueError(
      f"a shard is of version {of.get('version')!r} and format {of.get('format')!r};"
      " known: version 2 of mds"
    )
  known = {field.name for field in dataclasses.fields(Entry)}
  own = {key: value for key, value in of.items() if key in known}
  for key in ("raw_data", "zip_data"):
    if isinstance(own.get(key), dict):  # beside these, hashes that are not read
      own[key] = {k: v for k, v in own[key].items() if k in ("basename", "bytes")}
  entry = parsing.build(Entry, own, whole="a shard")
  counts = {len(entry.column_names), len(entry.column_encodings)}
  if counts != {len(entry.column_sizes)}:
    raise ValueError("a shard has names, encodings and sizes of unequal number")
  return entry


def _shard(spec: str, index: files_lib.File, entry: Entry) -> Shard:
  """A shard whose file is there.

  Raises:
    ValueError: it is not, or nobody can read it.
  """
  columns = tuple(zip(entry.column_names, entry.column_encodings, entry.column_sizes))
  if pickled := [name for name, encoding, _ in columns if encoding == PICKLE]:
    raise ValueError(
      f"--source={spec}: {index.path}: column {pickled[0]!r} is pickled, and to read it"
      " is to run what is in it; write the shards again without it, or as json or str"
    )
  compression = (entry.compression or "").partition(":")[0]
  if compression and compression not in CODECS:
    raise ValueError(
      f"--source={spec}: {index.path}: compression {entry.compression!r}; known:"
      f" {', '.join(CODECS)}"
    )
  folder = index.name.rpartition("/")[0]
  # Whoever trained from these shards keeps either, or both.
  for data, packed in ((entry.raw_data, ""), (entry.zip_data, compression)):
    name = posixpath.join(folder, data.basename) if data else ""
    if data and (Path(index.root) / name).is_file():
      file = files_lib.file(Path(index.root), name, index.apart)
      return Shard(file, packed, entry.raw_data.bytes, entry.samples, columns)
  raise ValueError(
    f"--source={spec}: {index.path}: its shard {entry.raw_data.basename} is not there;"
    " copy the whole folder"
  )
