"""Records: what was written comes back, the same bytes each time, or damage is told."""

import dataclasses
import json
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import tiny_shards

from tfusion.data.shards import records
from tfusion.data.shards.records import Damaged, OtherSchema, Record, decode, encode

GOLDEN = Path(__file__).parent / "record.safetensors"


def golden() -> Record:
  """Two texts about two images, the first of them only read; every number is exact."""
  mean = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4) / 16 - 1
  return Record(
    id="album/gr\u00fc\u00dfe 1.jpg",
    spans="itti",
    texts=(np.asarray([5, 6, 70_000], np.int32), np.zeros(0, np.int32)),
    images={
      "mean": mean.astype(ml_dtypes.bfloat16),
      "logvar": (-mean).astype(ml_dtypes.bfloat16),
    },
    weights=(0.0, 1.0, 0.5, 1.0),
  )


def assert_same(a: Record, b: Record):
  assert (a.id, a.spans, a.weights, a.kind) == (b.id, b.spans, b.weights, b.kind)
  assert len(a.texts) == len(b.texts) and list(a.images) == list(b.images)
  for x, y in zip([*a.texts, *a.images.values()], [*b.texts, *b.images.values()]):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", [*records.KINDS, None])
@pytest.mark.parametrize("n", range(4))
def test_a_record_of_every_kind_comes_back(kind, n):
  shape = (16,) if kind == "codes" else (4, 4, 3)
  record = tiny_shards.record(n, kind=kind, shape=shape)
  assert record.kind == (kind if n % 4 != 3 else None)
  data = encode(record)
  assert_same(decode(data), record)
  assert encode(decode(data)) == data


@pytest.mark.parametrize(
  "name",
  ["a.jpg", 'a"b', "a\\", '","id":"b","spans":"', '\\","spans":"tt', "gr\u00fcn"],
)
def test_an_id_may_look_like_a_header(name):
  # Its characters are read apart from the rest of the header, which is remembered.
  for _ in range(2):
    record = dataclasses.replace(golden(), id=name)
    assert_same(decode(encode(record)), record)


def test_an_empty_record_comes_back():
  record = Record("nothing", "", (), {}, ())
  assert_same(decode(encode(record)), record)


def test_the_golden_file_pins_the_format():
  # If you meant to change the format: increment records.SCHEMA, then write the file
  # anew with GOLDEN.write_bytes(encode(golden())).
  assert encode(golden()) == GOLDEN.read_bytes()
  assert_same(decode(GOLDEN.read_bytes()), golden())


def test_the_safetensors_package_reads_our_bytes():
  record = golden()
  tensors = dict(safetensors.deserialize(GOLDEN.read_bytes()))
  assert tensors["lengths"]["dtype"] == tensors["tokens"]["dtype"] == "I32"
  lengths = np.frombuffer(tensors["lengths"]["data"], np.int32)
  assert lengths.tolist() == [3, 0]
  tokens = np.frombuffer(tensors["tokens"]["data"], np.int32)
  np.testing.assert_array_equal(tokens, np.concatenate(record.texts))
  for name, image in record.images.items():
    assert tensors[name]["dtype"] == "BF16"
    values = np.frombuffer(tensors[name]["data"], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(values.reshape(tensors[name]["shape"]), image)
  with safetensors.safe_open(GOLDEN, framework="np") as file:
    metadata = file.metadata()
  assert metadata["id"] == record.id and metadata["spans"] == record.spans
  assert json.loads(metadata["weights"]) == list(record.weights)


def test_arrays_are_views_of_the_bytes_and_aligned():
  data = encode(golden())
  record = decode(data)
  for array in [*record.texts, *record.images.values()]:
    assert not array.flags.writeable and not array.flags.owndata
    assert array.flags.aligned


def test_every_flipped_bit_is_noticed():
  data = encode(dataclasses.replace(golden(), images={}, spans="tt", weights=(1, 1)))
  for place in range(len(data)):
    for bit in range(8):
      flipped = bytearray(data)
      flipped[place] ^= 1 << bit
      with pytest.raises(Damaged):
        decode(bytes(flipped))


def test_every_truncation_is_noticed():
  data = GOLDEN.read_bytes()
  for length in range(len(data)):
    with pytest.raises(Damaged):
      decode(data[:length])
  with pytest.raises(Damaged, match="CRC-32 is .*, written was"):
    decode(data + b"\0")


def test_a_damaged_record_is_named_if_its_name_can_be_read():
  data = bytearray(GOLDEN.read_bytes())
  data[-1] ^= 1
  with pytest.raises(Damaged, match="its id reads 'album/gr\u00fc\u00dfe 1.jpg'"):
    decode(bytes(data))


def rewritten(data: bytes, old: bytes, new: bytes) -> bytes:
  """Replaces bytes and makes the sum right, as another writer would."""
  assert data.count(old) == 1 and len(old) == len(new)
  data = data.replace(old, new)
  start = data.index(b'"crc32":"') + len(b'"crc32":"')
  blank = data[:start] + b"00000000" + data[start + 8 :]
  return data[:start] + f"{zlib.crc32(blank):08x}".encode() + data[start + 8 :]


def test_another_schema_is_an_error_of_its_own_that_names_both():
  data = rewritten(GOLDEN.read_bytes(), b'"schema":"1"', b'"schema":"7"')
  with pytest.raises(OtherSchema, match="has schema 7, .* reads schema 1"):
    decode(data)
  assert not issubclass(OtherSchema, Damaged)  # else a run would skip them all


@pytest.mark.parametrize(
  ("old", "new"),
  [
    (b'"tfusion.record"', b'"another.format"'),
    (b'"lengths"', b'"lenghts"'),
    (b'"shape":[3]', b'"shape":[9]'),
    (b'"id":', b'"ie":'),
    (b'"I32","shape":[3]', b'"I64","shape":[3]'),
    (b'"weights":"[', b'"weights":"]'),
  ],
)
def test_what_another_writer_made_is_refused_with_the_reason(old, new):
  with pytest.raises(Damaged, match="header|is a"):
    decode(rewritten(GOLDEN.read_bytes(), old, new))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"id": ""}, "id: expected"),
    ({"id": "\udce9.jpg"}, "id: expected"),  # a file name that is not UTF-8
    ({"spans": "itxi"}, "only t and i"),
    ({"spans": "iti"}, "2 texts for 1 spans"),
    ({"weights": (1.0,)}, "1 weights"),
    ({"weights": (1.0, 1.0, 1.0, float("nan"))}, "finite"),
    ({"weights": (1.0, 1.0, 1.0, -1.0)}, "finite"),
    ({"texts": (np.zeros(2), np.zeros(2))}, "a text is float64"),
    ({"images": {}}, "fields"),
    ({"images": {"logvar": golden().images["logvar"]}}, "fields"),
    ({"images": {"mean": np.zeros((2, 2, 3, 4), np.float32)}}, "mean is float32"),
    ({"images": {"mean": golden().images["mean"][:1]}}, r"mean is bfloat16\[1,"),
  ],
)
def test_what_does_not_add_up_is_not_written(change, message):
  with pytest.raises(ValueError, match=message):
    encode(dataclasses.replace(golden(), **change))
