"""A prepared document <-> bytes that show when they are damaged.

Owns: the record's format (safetensors, with a schema version and a CRC-32). Not: files
of records (source.py), what the numbers of an image mean (manifest.py).

  8 bytes  length of the header, little-endian
  header   {"__metadata__":{"crc32":"0123abcd","format":...,"schema":...,"id":...,
           "spans":...,"weights":...},"lengths":{...},"tokens":{...},...}, padded
           with spaces to a multiple of 8
  data     the tensors, in the header's order

The safetensors package does not write them: it orders metadata by a hash map, so that
even two calls in one process differ, and shards must be the same bytes each time.
"""

import dataclasses
import functools
import itertools
import json
import math
import re
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

SCHEMA = 1  # of records and manifests; older ones cannot be read once it is raised
FORMAT = "tfusion.record"
TEXT, IMAGES = "t", "ijklmnopqrs"  # letters of `spans`; images have one for each kind
IMAGE = IMAGES[0]

# Every schema begins like this, so that damage is told from another schema.
_PREFIX = b'{"__metadata__":{"crc32":"'
_CRC = slice(8 + len(_PREFIX), 16 + len(_PREFIX))
_NO_CRC = b"00000000"
# An id apart from the rest of a header, which is nearly the same for many records.
_ID = re.compile(rb'"id":"((?:[^"\\]|\\.)*)"')

# Kind of image -> its fields; field -> dtype and dimensions, the images' own included.
KINDS = {
  "pixels": ("pixels",),
  "mean": ("mean",),
  "mean_logvar": ("mean", "logvar"),
  "codes": ("codes",),
}
FIELDS = {
  "pixels": (np.dtype(np.uint8), 4),
  "mean": (np.dtype(ml_dtypes.bfloat16), 4),
  "logvar": (np.dtype(ml_dtypes.bfloat16), 4),
  "codes": (np.dtype(np.int32), 2),
}
_NAMES = {"I32": np.dtype("<i4"), "U8": FIELDS["pixels"][0], "BF16": FIELDS["mean"][0]}
_KIND_OF = {frozenset(fields): kind for kind, fields in KINDS.items()}
_NAME_OF = {dtype: name for name, dtype in _NAMES.items()}


class Damaged(ValueError):
  """Bytes that are no longer what was written; a run may skip a few such records."""


class OtherSchema(ValueError):
  """A record or manifest that is whole, but of a version that this one cannot read."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One document: token ids and images in order."""

  id: str  # unique in its source
  # A letter per span in order: t text, i image; j, k and so on images of other shapes,
  # in the order of the kinds in the manifest.
  spans: str
  texts: tuple[np.ndarray, ...]  # i32[length] of each t
  # By field, stacked over the i's; empty without one. The fields are those of a kind:
  # pixels u8[n, h, w, c], mean (and logvar) bf16[n, h, w, c], codes i32[n, codes].
  # Those of the j's are called mean.1 and so on (`field_of`).
  images: dict[str, np.ndarray]
  weights: tuple[float, ...]  # per span; 0: read, not learned

  @property
  def kind(self) -> str | None:
    """What the images are, one of KINDS; None without images."""
    return _KIND_OF.get(frozenset(name.partition(".")[0] for name in self.images))


def field_of(name: str, shape: int) -> str:
  """What a field is called for images of a shape: by its letter's place in IMAGES."""
  return f"{name}.{shape}" if shape else name


def encode(record: Record) -> bytes:
  """Returns the bytes of a record, which are the same on every machine.

  Raises:
    ValueError: the parts of the record do not fit each other.
  """
  _check(record)
  lengths = np.asarray([len(text) for text in record.texts], np.int32)
  tokens = np.concatenate([np.zeros(0, np.int32), *record.texts])
  tensors = {"lengths": lengths, "tokens": tokens}
  names = [field_of(name, n) for n in range(len(IMAGES)) for name in FIELDS]
  tensors |= {name: record.images[name] for name in names if name in record.images}
  header: dict[str, dict[str, Any]] = {
    "__metadata__": {
      "crc32": _NO_CRC.decode(),
      "format": FORMAT,
      "schema": str(SCHEMA),
      "id": record.id,
      "spans": record.spans,
      "weights": json.dumps([float(weight) for weight in record.weights]),
    }
  }
  start = 0
  for name, tensor in tensors.items():
    header[name] = {
      "dtype": _NAME_OF[tensor.dtype],
      "shape": list(tensor.shape),
      "data_offsets": [start, start + tensor.nbytes],
    }
    start += tensor.nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the data is aligned, as is all of a bytes object
  parts = [len(text).to_bytes(8, "little"), text]
  data = b"".join(parts + [tensor.tobytes() for tensor in tensors.values()])
  return data[: _CRC.start] + b"%08x" % zlib.crc32(data) + data[_CRC.stop :]


def decode(data: bytes) -> Record:
  """Reads a record; its arrays are views of `data` and must not be written to.

  Raises:
    Damaged: the bytes are not those that were written, with the reason.
    OtherSchema: they are, but by another version.
  """
  if data[8 : _CRC.start] != _PREFIX:
    raise Damaged("does not begin like a record")
  crc = zlib.crc32(data[: _CRC.start])
  crc = zlib.crc32(memoryview(data)[_CRC.stop :], zlib.crc32(_NO_CRC, crc))
  if data[_CRC] != b"%08x" % crc:
    written = data[_CRC].decode("latin-1")
    raise Damaged(f"CRC-32 is {crc:08x}, written was {written!r}{_id_of(data)}")
  # From here on the bytes are what somebody wrote.
  start = 8 + int.from_bytes(data[:8], "little")
  try:
    found = _ID.search(data, _CRC.stop, start)
    if not found:
      raise KeyError("id")
    own_id = found[1].decode()
    if "\\" in own_id:
      own_id = json.loads(f'"{own_id}"')
    header = _header(data[_CRC.stop : found.start(1)] + data[found.end(1) : start])
    tensors = {
      name: np.ndarray(shape, dtype, data, start + first)
      for name, shape, dtype, first in header.tensors
    }
    ends = list(itertools.accumulate(tensors.pop("lengths").tolist()))
    tokens = tensors.pop("tokens")
    return Record(
      id=own_id,
      spans=header.spans,
      texts=tuple(tokens[a:b] for a, b in zip([0, *ends], ends)),
      images=tensors,
      weights=header.weights,
    )
  except OtherSchema as error:
    raise OtherSchema(f"record {own_id!r} {error}") from None
  except Damaged:
    raise
  except (KeyError, TypeError, ValueError) as error:
    raise Damaged(f"its header is not that of a record: {error!r}") from error


class _Header(NamedTuple):
  """What a header says, but for the id."""

  spans: str
  weights: tuple[float, ...]
  # Name, shape, dtype and first byte behind the header of each.
  tensors: tuple[tuple[str, tuple[int, ...], np.dtype, int], ...]


@functools.lru_cache(1024)  # documents of a source hardly differ in it
def _header(rest: bytes) -> _Header:
  """Reads what follows the CRC-32 of a header, the characters of its id taken out."""
  header = json.loads(_PREFIX + rest)
  metadata = header.pop("__metadata__")
  if metadata["format"] != FORMAT:
    raise Damaged(f"is a {metadata['format']!r}, not a {FORMAT!r}")
  if metadata["schema"] != str(SCHEMA):
    raise OtherSchema(
      f"has schema {metadata['schema']}, this version of tfusion reads schema"
      f" {SCHEMA}: prepare the data again with this version, or read it with the one"
      " that wrote it"
    )
  tensors = []
  for name, tensor in header.items():
    shape, dtype = tuple(tensor["shape"]), _NAMES[tensor["dtype"]]
    first, end = tensor["data_offsets"]
    if end - first != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{name} of {shape} in {end - first} bytes")
    tensors.append((name, shape, dtype, first))
  weights = tuple(json.loads(metadata["weights"]))
  return _Header(metadata["spans"], weights, tuple(tensors))


def _id_of(data: bytes) -> str:
  """Names a damaged record, if its header can still be read."""
  try:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return f"; its id reads {header['__metadata__']['id']!r}"
  except (KeyError, TypeError, ValueError):
    return ""


def _is_unicode(text: str) -> bool:
  return not any("\ud800" <= character <= "\udfff" for character in text)


def _check(record: Record) -> None:
  def require(holds: bool, what: str) -> None:
    if not holds:
      raise ValueError(f"record {record.id!r}: {what}")

  texts = record.spans.count(TEXT)
  by_letter = [record.spans.count(letter) for letter in IMAGES]
  images = sum(by_letter)
  require(record.id != "" and _is_unicode(record.id), "id: expected a Unicode name")
  require(texts + images == len(record.spans), f"spans={record.spans!r}: only t and i")
  require(len(record.texts) == texts, f"{len(record.texts)} texts for {texts} spans")
  weights = record.weights
  require(len(weights) == len(record.spans), f"{len(weights)} weights for its spans")
  finite = all(math.isfinite(weight) and weight >= 0 for weight in weights)
  require(finite, f"weights={weights}: expected finite numbers from 0 on")
  for text in record.texts:
    fits = text.dtype == np.int32 and text.ndim == 1
    require(fits, f"a text is {text.dtype}{list(text.shape)}, expected int32[length]")
  require((record.kind is not None) == (images > 0), f"fields {[*record.images]}")
  own = KINDS[record.kind] if record.kind else ()
  wanted = {
    field_of(name, n) for n, count in enumerate(by_letter) if count for name in own
  }
  require(
    wanted == set(record.images), f"fields {[*record.images]} of {record.spans!r}"
  )
  for name, stacked in record.images.items():
    base, _, shape = name.partition(".")
    (dtype, dimensions), count = FIELDS[base], by_letter[int(shape or 0)]
    fits = stacked.dtype == dtype and stacked.ndim == dimensions
    require(
      fits and len(stacked) == count,
      f"{name} is {stacked.dtype}{list(stacked.shape)}, expected {dtype} of"
      f" {dimensions} dimensions, the first {count}",
    )
