"""Shards: whole or not there, always the same bytes, damage named by record."""

import dataclasses
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_shards
from array_record.python import array_record_module
from tiny_sources import changed

from tfusion import sequence
from tfusion.data import sources
from tfusion.data.lanes import Lane
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import source as shards
from tfusion.data.shards.records import Damaged, OtherSchema, Record, encode


def same(a: Record, b: Record) -> bool:
  return encode(a) == encode(b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("shards") / "photos"
  tiny_shards.make(path)
  return path


def test_the_same_records_give_the_same_bytes(folder, tmp_path):
  made = tiny_shards.make(tmp_path)
  assert made == tiny_shards.make(tmp_path)  # written over itself

  def hashes(path):
    return {
      file.name: hashlib.sha256(file.read_bytes()).hexdigest()
      for file in path.iterdir()
    }

  assert hashes(folder) == hashes(tmp_path) and len(hashes(folder)) == 7


def test_a_shard_says_what_it_holds(folder, tmp_path):
  documents = [tiny_shards.record(n) for n in range(4)]
  path = tmp_path / "a.array_record"
  made = shards.write_shard(path, iter(documents), split="test")
  assert (made.name, made.split, made.records) == ("a.array_record", "test", 4)
  assert made.bytes == path.stat().st_size and made.images == 4
  assert made.tokens == sum(len(text) for d in documents for text in d.texts)
  assert all(map(same, shards.read_shard(path), documents))


def test_a_shard_is_replaced_at_once(tmp_path):
  path = tmp_path / "a.array_record"
  before = [tiny_shards.record(n) for n in range(2)]
  shard = shards.write_shard(path, before, split="train")
  reader = shards.Reader(tmp_path, (shard,))
  assert same(reader[0], before[0])
  after = tiny_shards.record(9, shape=(8, 8, 8))
  shards.write_shard(path, [after], split="train")
  assert same(reader[1], before[1])  # who had opened the old one reads on in it
  assert all(map(same, shards.read_shard(path), [after]))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts files in /proc")
def test_few_files_are_open_at_a_time(folder, monkeypatch):
  def count():
    links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    return sum(str(folder) in os.readlink(x) for x in links if os.path.exists(x))

  reader = shards.Reader(folder, manifest_lib.load(folder).of("train"))
  reader.check()
  assert count() == 0  # opened when needed, and those of the check are closed
  for limit in (2, 3):
    monkeypatch.setattr(shards, "OPEN_FILES", limit)
    for index in (0, 5, 10, 1, 6, 11):
      assert same(reader[index], tiny_shards.record(index))
    assert count() == limit


def test_records_are_read_in_any_order_across_shards(folder, monkeypatch):
  manifest = manifest_lib.load(folder)
  monkeypatch.setattr(shards, "OPEN_FILES", 1)  # files are closed and opened again
  reader = shards.Reader(folder, manifest.of("train"))
  reader.check()
  copy = pickle.loads(pickle.dumps(reader))
  assert len(reader) == len(copy) == 12
  for index in np.random.default_rng(0).permutation(12).tolist() * 2:
    assert same(reader[index], tiny_shards.record(index))
    assert same(copy[index], tiny_shards.record(index))
  for index in (-1, 12):
    with pytest.raises(IndexError):
      reader[index]
  test = shards.Reader(folder, manifest.of("test"))
  assert [r.id for r in map(test.__getitem__, range(4))] == [
    f"album/{n:04d}" for n in range(12, 16)
  ]


def test_a_shard_of_nothing_or_of_two_with_one_name_is_not_written(tmp_path):
  path = tmp_path / "a.array_record"
  with pytest.raises(ValueError, match="no records to write"):
    shards.write_shard(path, [], split="train")
  with pytest.raises(ValueError, match="two records of the id 'album/0001'"):
    shards.write_shard(path, [tiny_shards.record(1)] * 2, split="train")

  def broken():
    yield tiny_shards.record(1)
    raise RuntimeWarning("the source failed")

  with pytest.raises(RuntimeWarning):
    shards.write_shard(path, broken(), split="train")
  assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
import tiny_shards
from tfusion.data.shards import source as shards
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
given = 0
def documents():
  global given
  for given in range(10_000):
    yield tiny_shards.record(given, shape=(32, 32, 8))
try:
  shards.write_shard(sys.argv[1], documents(), split="train")
except OSError as error:
  print(given, error)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_no_shard_and_says_so(folder, tmp_path):
  path = tmp_path / "a.array_record"
  done = subprocess.run(
    [sys.executable, "-c", FULL, path],
    env={"PYTHONPATH": ":".join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
  )
  given, _, message = done.stdout.partition(" ")
  assert message.startswith(f"{path}: cannot be written: ")
  assert "File too large" in message
  assert int(given) < 9_999  # it stops on the way, not at the end
  assert list(tmp_path.iterdir()) == []


# Damage. array_record hashes every chunk (one record) and its header.


@pytest.mark.slow
def test_every_flipped_byte_is_harmless_or_named(tmp_path):
  documents = [tiny_shards.record(n) for n in range(3)]
  path = tmp_path / "a.array_record"
  shard = shards.write_shard(path, documents, split="train")
  whole = path.read_bytes()
  last = int(np.flatnonzero(np.frombuffer(whole[:60_000], np.uint8)).max())
  seen = {"harmless": 0, "record": 0, "shard": 0}
  # Behind the records and their index lie zeros, and 200 bytes that find the index.
  footer = range(1 << 16, (1 << 16) + 200)
  assert not any(whole[last + 1 : footer.start] + whole[footer.stop :])
  for place in [*range(0, last, 5), *footer]:
    flipped = bytearray(whole)
    flipped[place] ^= 0x10
    path.write_bytes(flipped)
    reader = shards.Reader(tmp_path, (shard,))
    try:
      reader.check()
    except ValueError as error:
      assert not isinstance(error, Damaged) and str(path) in str(error)
      seen["shard"] += 1
      continue
    named = []
    for index, document in enumerate(documents):
      try:
        assert same(reader[index], document)
      except Damaged as error:
        assert str(error).startswith(f"{path}: record {index} is damaged: ")
        named.append(index)
    assert len(named) <= 1
    seen["record" if named else "harmless"] += 1
    found = [type(item) for item in shards.read_shard(path)]
    assert found == [Damaged if i in named else Record for i in range(3)]
  assert seen["record"] > 100 and seen["shard"] > 50  # all of them were tried


def test_damage_that_array_record_does_not_see_is_seen_by_our_own_sum(tmp_path):
  # As when memory failed between the two: the file's own hashes hold.
  document = tiny_shards.record(0)
  data = bytearray(shards.records_lib.encode(document))
  data[-1] ^= 1
  path = tmp_path / "a.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), shards.WRITE_OPTIONS)
  writer.write(bytes(data))
  writer.close()
  (found,) = shards.read_shard(path)
  assert isinstance(found, Damaged)
  assert f"{path}: record 0 is damaged: CRC-32" in str(found)
  assert "'album/0000'" in str(found)


def test_few_files_are_open_in_the_check_even_behind_a_slow_one(folder, monkeypatch):
  opened, closed, most = [], [], []

  class Slow:
    def __init__(self, path):
      opened.append(path)
      most.append(len(opened) - len(closed))
      time.sleep(0.2 if len(opened) == 1 else 0)

    def num_records(self):
      return 1

    def close(self):
      closed.append(self)

  monkeypatch.setattr(shards, "_open", Slow)
  many = tuple(manifest_lib.Shard(f"{n}", "train", 1, 1, 1, 0, "") for n in range(300))
  shards.Reader(folder, many).check()
  assert len(closed) == 300 and max(most) <= shards.CHECK_THREADS


def test_a_shard_with_other_records_than_listed_or_gone_is_refused(tmp_path):
  made = tiny_shards.make(tmp_path)
  reader = shards.Reader(tmp_path, made.of("train"))
  path = tmp_path / "train-0001.array_record"
  path.unlink()
  with pytest.raises(ValueError, match="train-0001.array_record: is missing; run"):
    reader[7]
  shards.write_shard(path, [tiny_shards.record(0)], split="train")
  with pytest.raises(ValueError, match="holds 1 records, its manifest says 5; run"):
    reader[7]
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="no shard, or damaged at its end"):
    reader[7]
  assert same(reader[11], tiny_shards.record(11))  # the others are read on


# The source.

SHAPES = {"pixels": (4, 4, 3), "mean": (4, 4, 2), "mean_logvar": (4, 4, 2)}


def open_source(folder, split="train", image_shape=(4, 4, 2)):
  (source,) = sources.open_sources(
    [f"shards:{folder}"], split=split, image_shape=image_shape, workdir=folder
  )
  return source


@pytest.mark.parametrize("kind", [*SHAPES, "codes", None])
def test_a_document_is_what_the_model_is_to_see(tmp_path, kind):
  shape = SHAPES.get(kind, (16,))
  tiny_shards.make(tmp_path, kind=kind, shape=shape)
  image_shape = SHAPES.get(kind, (8, 8, 1))  # codes and text have no say in it
  for split, first, count in (("train", 0, 12), ("test", 12, 4)):
    source = pickle.loads(pickle.dumps(open_source(tmp_path, split, image_shape)))
    assert len(source) == count and source.has_images == (kind is not None)
    for index in range(count):
      record = tiny_shards.record(first + index, kind=kind, shape=shape)
      texts, images = iter(record.texts), iter(range(record.spans.count("i")))
      spans = source[index]
      assert len(spans) == len(record.spans)
      for letter, span in zip(record.spans, spans, strict=True):
        if letter == "t":
          assert isinstance(span, sequence.Text)
          np.testing.assert_array_equal(span.ids, next(texts))
        else:
          check_image(span, kind, record, next(images))


def check_image(span, kind, record, n):
  if kind == "codes":
    assert isinstance(span, sequence.Codes) and span.ids.dtype == np.int32
    codes = record.images["codes"][n] + tiny_shards.tokenizer().vocab_size
    np.testing.assert_array_equal(span.ids, codes)
    return
  assert isinstance(span, sequence.Image) and span.latent.dtype == np.float32
  if kind == "pixels":
    expected = record.images["pixels"][n] / 127.5 - 1
  else:
    mean = record.images["mean"][n].astype(np.float64)
    expected = (mean - [1.0, 0.0]) / [2.0, 3.0]  # shift and scale of tiny_shards
  np.testing.assert_allclose(span.latent, expected, atol=1e-6)  # f32 near 1
  if kind == "mean_logvar":
    std = np.exp(record.images["logvar"][n].astype(np.float64) / 2) / [2.0, 3.0]
    assert span.std.dtype == np.float32
    np.testing.assert_allclose(span.std, std, rtol=1e-6)  # f32


def test_weights_reach_every_span(tmp_path):
  made = tiny_shards.make(tmp_path, train=1, test=1)
  record = tiny_shards.record(2)
  weights = (0.0, 0.5, 1.0, 0.25)
  record = dataclasses.replace(record, weights=weights)
  path = tmp_path / made.shards[0].name
  written = shards.write_shard(path, [record], split="train")
  listed = (written, *made.shards[1:])
  manifest_lib.save(dataclasses.replace(made, shards=listed), tmp_path)
  assert tuple(span.weight for span in open_source(tmp_path)[0]) == weights


def test_images_of_another_shape_are_refused_by_both_names(folder):
  with pytest.raises(
    ValueError, match=r"model.image_shape=\(8, 8, 1\): .* are \(4, 4, 2\)"
  ):
    open_source(folder, image_shape=(8, 8, 1))


def test_a_split_without_documents_is_refused(tmp_path):
  tiny_shards.make(tmp_path, test=0)
  with pytest.raises(ValueError, match="holds no shard of the split 'test'"):
    open_source(tmp_path, "test")


def test_what_is_missing_or_cut_is_refused_before_any_work(tmp_path):
  with pytest.raises(ValueError, match="holds no manifest.json"):
    open_source(tmp_path)
  made = tiny_shards.make(tmp_path)
  path = tmp_path / "train-0001.array_record"
  whole = path.read_bytes()
  path.write_bytes(whole[:-7])
  with pytest.raises(ValueError, match="train-0001.* bytes of .* run `tfusion prepare"):
    open_source(tmp_path)
  # Of the right size, but its end is damaged: no record of it could be found.
  path.write_bytes(whole[: 1 << 16] + bytes(len(whole) - (1 << 16)))
  with pytest.raises(ValueError, match="train-0001.*: no shard, or damaged at its end"):
    open_source(tmp_path)
  path.unlink()
  with pytest.raises(ValueError, match="1 of 3 shards .* train-0001.* is missing"):
    open_source(tmp_path)
  open_source(tmp_path, "test")  # each split looks after its own
  assert len(made.of("train")) == 3


def test_a_record_of_another_schema_stops_with_both_versions(tmp_path, monkeypatch):
  made = tiny_shards.make(tmp_path)
  monkeypatch.setattr(shards.records_lib, "SCHEMA", 2)  # as a later version would
  path = tmp_path / made.shards[0].name
  documents = [tiny_shards.record(n) for n in range(5)]
  written = shards.write_shard(path, documents, split="train")
  assert written.bytes == made.shards[0].bytes  # so that the start lets it pass
  monkeypatch.undo()
  with pytest.raises(OtherSchema, match="schema 2, .* reads schema 1"):
    open_source(tmp_path)[0]


@pytest.mark.parametrize(
  ("document", "message"),
  [
    (tiny_shards.record(0, shape=(4, 4, 3)), r"holds mean of \(4, 4, 3\), its mani"),
    (tiny_shards.record(0, kind="mean_logvar"), "holds mean_logvar of"),
    (
      dataclasses.replace(
        tiny_shards.record(0), texts=(np.asarray([3, 320], np.int32),)
      ),
      "has a token id that is none of 320",
    ),
    (
      dataclasses.replace(tiny_shards.record(0), texts=(np.asarray([-1], np.int32),)),
      "has a token id that is none of",
    ),
  ],
)
def test_a_shard_that_is_not_of_the_manifest_is_named(tmp_path, document, message):
  made = tiny_shards.make(tmp_path, train=1, test=1)
  path = tmp_path / made.shards[0].name
  written = shards.write_shard(path, [document], split="train")
  listed = (written, *made.shards[1:])
  manifest_lib.save(dataclasses.replace(made, shards=listed), tmp_path)
  with pytest.raises(ValueError, match=message) as refusal:
    open_source(tmp_path)[0]
  assert f"{path}: record 0, id 'album/0000': " in str(refusal.value)
  assert not isinstance(refusal.value, Damaged)


def test_every_field_of_an_image_must_be_of_the_manifests_shape(tmp_path):
  made = tiny_shards.make(tmp_path, kind="mean_logvar", train=1, test=1)
  record = tiny_shards.record(0, kind="mean_logvar")
  thin = {**record.images, "logvar": record.images["logvar"][..., :1]}
  path = tmp_path / made.shards[0].name
  written = shards.write_shard(
    path, [dataclasses.replace(record, images=thin)], split="train"
  )
  listed = (written, *made.shards[1:])
  manifest_lib.save(dataclasses.replace(made, shards=listed), tmp_path)
  both = r"holds mean_logvar of \(4, 4, 2\) and \(4, 4, 1\), its manifest says mean_l"
  with pytest.raises(ValueError, match=both):
    open_source(tmp_path)[0]


def test_a_disk_that_fails_once_loses_no_record(tmp_path, monkeypatch):
  reader = shards.Reader(tmp_path, tiny_shards.make(tmp_path).of("train"))
  expected = [tiny_shards.record(n) for n in range(12)]
  read, calls = shards._read, []

  def fail(opened, path, index):
    calls.append(index)
    if len(calls) % 2:  # every first try
      raise Damaged(f"{path}: record {index} is damaged: Input/output error")
    return read(opened, path, index)

  monkeypatch.setattr(shards, "_read", fail)
  assert all(same(reader[n], record) for n, record in enumerate(expected))
  assert len(calls) == 24


def test_several_documents_are_those_read_one_by_one(folder):
  source = open_source(folder)
  order = [7, 3, 3, 11, 0]
  for found, index in zip(source.several(order), order, strict=True):
    expected = source[index]
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
      assert type(a) is type(b) and a.weight == b.weight
      for x, y in zip(vars(a).values(), vars(b).values()):
        np.testing.assert_array_equal(x, y)
  assert source.several([]) == []


def test_several_documents_survive_a_disk_that_fails_once(folder, monkeypatch):
  source, decode, calls = open_source(folder), shards.records_lib.decode, []

  def fail(data):
    calls.append(data)
    if len(calls) == 2:
      raise Damaged("CRC-32 is another")
    return decode(data)

  monkeypatch.setattr(shards.records_lib, "decode", fail)
  assert len(source.several([0, 1, 2])) == 3


def make_damaged(folder: pathlib.Path) -> pathlib.Path:
  """Shards of which record 0 of train-0001, document 5, is damaged; its path."""
  tiny_shards.make(folder)
  path = folder / "train-0001.array_record"
  flipped = bytearray(path.read_bytes())
  flipped[120] ^= 1  # behind the file's and the first chunk's headers: the record
  path.write_bytes(flipped)
  return path


def test_of_several_documents_a_lane_loses_the_damaged_one_alone(tmp_path):
  make_damaged(tmp_path)
  source = open_source(tmp_path)
  with pytest.raises(Damaged, match="train-0001.array_record: record 0 is damaged"):
    source.several([4, 5, 6])
  config = changed(
    model=dict(image_shape=(4, 4, 2)),
    data=dict(sources=(source.name,), lanes=1, max_damaged=1),
  )
  lane = Lane([source], tiny_shards.tokenizer(), config, lane=0, repeat=False)
  shown = {lane.document_index(key) for _ in lane for key in lane.last_keys}
  assert shown == {*range(12)} - {5}
  assert lane.state().damaged[source.name].records == (5,)


def test_a_damaged_record_is_named_by_the_source(tmp_path):
  make_damaged(tmp_path)
  source = open_source(tmp_path)
  with pytest.raises(Damaged, match="train-0001.array_record: record 0 is damaged"):
    source[5]
  assert len(source[4]) and len(source[6])


def test_no_tokenizer_is_trained_on_shards(folder):
  with pytest.raises(ValueError, match="shards bring a tokenizer"):
    open_source(folder).texts()


# Choosing sizes.


def test_a_survey_counts_what_a_row_must_hold(tmp_path):
  made = tiny_shards.make(tmp_path, train=100)
  found = shards.survey(tmp_path)
  assert found.manifest == made and found.documents == 100
  assert found.images == sum(shard.images for shard in made.of("train")) == 100
  documents = [tiny_shards.record(n) for n in range(100)]
  tokens = sorted(sum(map(len, d.texts)) for d in documents)
  assert found.document_tokens == tokens[98] and found.document_images == 2
  assert shards._most([*range(98), 700, 900]) == 700
  assert len(found.examples) == 8 and all("picture" in t for t in found.examples)


def test_a_survey_passes_over_damage(tmp_path):
  path = make_damaged(tmp_path)
  assert shards.survey(tmp_path).documents == 12
  path.unlink()
  with pytest.raises(ValueError, match="train-0001.array_record is missing"):
    shards.survey(tmp_path)
