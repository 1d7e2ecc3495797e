"""Manifests: nothing lacking, nothing unknown, nothing that does not add up."""

import dataclasses
import json

import pytest
import tiny_shards

from tfusion.data import balance
from tfusion.data.balance import Amount, Rejected
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records
from tfusion.inspect import shards


@pytest.mark.parametrize("kind", [*records.KINDS, None])
def test_a_manifest_comes_back(tmp_path, kind):
  shape = (16,) if kind == "codes" else (4, 4, 3)
  made = tiny_shards.make(tmp_path, kind=kind, shape=shape)
  assert manifest_lib.load(tmp_path) == made
  manifest_lib.check_files(made, tmp_path, shards=made.shards)
  assert sum(shard.records for shard in made.of("train")) == 12
  assert sum(shard.records for shard in made.of("test")) == 4
  assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def edited(folder, change) -> None:
  path = folder / manifest_lib.MANIFEST
  values = json.loads(path.read_text())
  change(values)
  path.write_text(json.dumps(values))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: m.pop("vocabulary"), "it: .*missing .'vocabulary'"),
    (lambda m: m.update(colour=1), "it: unknown .'colour'"),
    (lambda m: m.update(vocabulary="320"), "vocabulary='320': expected int"),
    (lambda m: m.update(vocabulary=True), "vocabulary=True: expected int"),
    (lambda m: m["images"].pop("scale"), "images: .*missing .'scale'"),
    (lambda m: m["images"].update(scale=[1.0]), "images.scale=.* per channel"),
    (lambda m: m["images"].update(scale=[1.0, 0.0]), "images.scale="),
    (lambda m: m["images"].update(kind="jpeg"), "images.kind='jpeg': none of"),
    (lambda m: m["images"].update(shape=[16]), "images.shape="),
    (lambda m: m["images"].update(codebook=9), "images.codebook=9"),
    (lambda m: m["shards"][1].update(split="valid"), "shards: 'valid'"),
    (lambda m: m["shards"][1].update(name="../x"), "shards: '../x' is not the name"),
    (lambda m: m["shards"][1].update(name=m["shards"][0]["name"]), "occurs twice"),
    (lambda m: m["shards"][1].update(records="5"), r"shards\[1\].records='5'"),
    (lambda m: m["shards"].pop(), "do not add up"),
    (lambda m: m["counts"].update(read=20), "do not add up"),
    (lambda m: m["counts"]["rejected"].update({"empty caption": 1}), "do not add up"),
  ],
)
def test_a_manifest_that_was_edited_is_refused_by_its_key(tmp_path, change, message):
  tiny_shards.make(tmp_path)
  edited(tmp_path, change)
  with pytest.raises(ValueError, match=message) as refusal:
    manifest_lib.load(tmp_path)
  assert str(tmp_path / manifest_lib.MANIFEST) in str(refusal.value)


def with_balances(folder) -> manifest_lib.Manifest:
  """A manifest that says what became of images and texts too."""
  made = tiny_shards.make(folder)
  splits = {}
  for split in manifest_lib.SPLITS:
    own = made.of(split)
    used = Amount(sum(s.records for s in own), sum(s.images for s in own), 16)
    # All 3 that tiny_shards calls rejected are of the training split.
    lost = [Rejected(f"{i}", "empty caption", "", Amount(1, 1)) for i in range(3)]
    splits[split] = balance.settle(used, lost if split == "train" else [])
  counts = dataclasses.replace(made.counts, splits=splits)
  made = dataclasses.replace(made, counts=counts)
  manifest_lib.save(made, folder)
  return made


def test_balances_come_back_and_are_shown(tmp_path):
  made = with_balances(tmp_path)
  assert manifest_lib.load(tmp_path) == made
  said = "\n".join(shards.manifest_lines(tmp_path))
  assert "train:    15 documents = 12 used + 3 skipped; " in said
  assert "skipped, empty caption: 3 documents, 3 images" in said
  assert (
    "held out: 4 documents = 4 used + 0 skipped; " in said and "unknown" not in said
  )


@pytest.mark.parametrize("absent", [True, False])
def test_a_manifest_from_before_these_were_counted_opens_and_says_so(tmp_path, absent):
  made = tiny_shards.make(tmp_path)
  change = (lambda m: m["counts"].pop("splits")) if absent else (lambda m: None)
  edited(tmp_path, change)
  assert manifest_lib.load(tmp_path) == made
  assert "found: unknown" in "\n".join(shards.manifest_lines(tmp_path))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s["train"]["found"].update(images=99), "splits.train: .* add up"),
    (lambda s: s["train"]["skipped"]["empty caption"].update(texts=1), "do not add up"),
    (lambda s: s["test"]["used"].update(documents=3), "splits.test: .* add up"),
    (lambda s: s.pop("test"), r"counts.splits: \['train'\]"),
    (lambda s: s["test"]["used"].pop("texts"), "splits.test.used: .*missing .'texts'"),
    (lambda s: s["test"].update(lost=1), "splits.test: unknown .'lost'"),
    (
      lambda s: [s["test"][k].update(documents=5) for k in ("found", "used")],
      "splits.test: .* add up",
    ),
    (
      lambda s: s["test"]["found"].update(documents=True),
      "documents=True: expected int",
    ),
  ],
)
def test_balances_that_do_not_add_up_are_refused(tmp_path, change, message):
  with_balances(tmp_path)
  edited(tmp_path, lambda m: change(m["counts"]["splits"]))
  with pytest.raises(ValueError, match=message):
    manifest_lib.load(tmp_path)


def test_another_schema_is_an_error_of_its_own_that_names_both(tmp_path):
  tiny_shards.make(tmp_path)
  edited(tmp_path, lambda m: m.update(schema=7, something="new"))
  with pytest.raises(records.OtherSchema, match="has schema 7, .* reads schema 1"):
    manifest_lib.load(tmp_path)


def test_a_cut_manifest_and_none_at_all_are_told_apart(tmp_path):
  with pytest.raises(ValueError, match="holds no manifest.json; make one"):
    manifest_lib.load(tmp_path)
  tiny_shards.make(tmp_path)
  path = tmp_path / manifest_lib.MANIFEST
  path.write_text(path.read_text()[:-100])
  with pytest.raises(ValueError, match="manifest.json: damaged"):
    manifest_lib.load(tmp_path)


def test_missing_and_truncated_shards_are_named_with_the_remedy(tmp_path):
  made = tiny_shards.make(tmp_path)
  (tmp_path / "train-0001.array_record").unlink()
  cut = tmp_path / "test-0000.array_record"
  cut.write_bytes(cut.read_bytes()[:-1])
  with pytest.raises(ValueError) as refusal:
    manifest_lib.check_files(made, tmp_path, shards=made.shards)
  message = str(refusal.value)
  assert "2 of 4 shards" in message and "`tfusion prepare` again" in message
  assert "train-0001.array_record is missing" in message
  assert f"test-0000.array_record has {made.shards[-1].bytes - 1:,} bytes" in message


@pytest.mark.parametrize("name", [manifest_lib.TOKENIZER, manifest_lib.AUTOENCODER])
def test_another_tokenizer_or_autoencoder_beside_the_shards_is_refused(tmp_path, name):
  made = tiny_shards.make(tmp_path)
  (tmp_path / name).write_bytes(b"another")
  with pytest.raises(ValueError, match=f"{name}: is another file"):
    manifest_lib.check_files(made, tmp_path, shards=made.shards)
  (tmp_path / name).unlink()
  with pytest.raises(ValueError, match=f"{name}: is missing"):
    manifest_lib.check_files(made, tmp_path, shards=made.shards)


def test_a_manifest_that_does_not_add_up_is_not_written(tmp_path):
  made = tiny_shards.make(tmp_path)
  before = (tmp_path / manifest_lib.MANIFEST).read_bytes()
  wrong = dataclasses.replace(made, shards=made.shards[1:])
  with pytest.raises(ValueError, match="do not add up"):
    manifest_lib.save(wrong, tmp_path)
  assert (tmp_path / manifest_lib.MANIFEST).read_bytes() == before
