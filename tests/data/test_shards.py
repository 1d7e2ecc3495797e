"""Shards: whole or not there, always the same bytes, damage named by record."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiny_shards
from array_record.python import array_record_module

from tfusion.data import shards
from tfusion.data.records import Damaged, Record


def same(a: Record, b: Record) -> bool:
  from tfusion.data.records import encode

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


def test_records_are_read_in_any_order_across_shards(folder, monkeypatch):
  manifest = shards.manifest_lib.load(folder)
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
from tfusion.data import shards
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
