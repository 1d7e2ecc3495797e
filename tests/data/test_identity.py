"""Promises of tfusion/data/identity.py: a run goes on with its own data, or not."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest
import tiny
import tiny_shards
from PIL import Image
from tiny_photos import add

from tfusion import workdir as workdir_lib
from tfusion.config import Config
from tfusion.data import digits as digits_lib
from tfusion.data import identity, images, pipeline, prepared, prose
from tfusion.data.scenes import source as shapes
from tfusion.data.tokenizer import Tokenizer

SHAPE = (8, 8, 3)


@pytest.fixture
def photos(tmp_path) -> Path:
  root = tmp_path / "photos"
  for i in range(4):
    add(root, f"train/{i}.png", f"square number {i}", color=(10 * i, 40, 90))
    add(root, f"test/{i}.png", f"unseen square {i}", color=(100 + 10 * i, 40, 90))
  return root


def make(*specs, **changes) -> Config:
  values = dict(model__vocab_size=320, model__image_shape=SHAPE, data__row_length=64)
  values |= dict(data__workers=0, data__lanes=2, train__batch_rows=2)
  return tiny.build(**(values | {"data__sources": specs} | changes))


def begin(config: Config, workdir: Path) -> pipeline.Corpus:
  """What a start does with data."""
  workdir.mkdir(exist_ok=True)
  workdir_lib.check_same_run(config, workdir)
  corpus = pipeline.open_corpus(config, workdir)
  identity.keep(corpus.identity, workdir)
  workdir_lib.save_config(config, workdir)
  return corpus


@pytest.fixture
def run(photos, tmp_path) -> Path:
  workdir = tmp_path / "run"
  begin(make(f"folder:{photos}"), workdir)
  return workdir


def refusal(config: Config, workdir: Path) -> str:
  files = {p: p.read_bytes() for p in workdir.glob("*.*") if p.is_file()}
  with pytest.raises(ValueError) as error:
    begin(config, workdir)
  assert files == {p: p.read_bytes() for p in workdir.glob("*.*") if p.is_file()}
  return str(error.value)


def keep_times(path: Path, change) -> None:
  """Changes a file and sets its times back, as `cp -p` and `touch -r` do."""
  stat = path.stat()
  change(path)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert (path.stat().st_size, path.stat().st_mtime_ns) == (
    stat.st_size,
    stat.st_mtime_ns,
  )


# Folders.


def test_the_same_folder_goes_on_and_nothing_is_said(run, photos, capfd):
  before = (run / "identity.json").read_bytes()
  begin(make(f"folder:{photos}"), run)
  assert capfd.readouterr() == ("", "")
  assert (run / "identity.json").read_bytes() == before


def test_a_photo_replaced_under_its_name_size_and_time_is_refused(run, photos):
  other = photos.parent / "other.bmp"
  for path in (photos / "train/1.bmp", other):
    Image.new("RGB", (20, 20), (200 + len(path.name), 0, 0)).save(path)
  (photos / "train/1.png").unlink()
  shutil.rmtree(run)
  begin(make(f"folder:{photos}"), run)
  keep_times(photos / "train/1.bmp", lambda path: path.write_bytes(other.read_bytes()))
  said = refusal(make(f"folder:{photos}"), run)
  assert f"folder:{photos}: 1 image differs (train/1.bmp)" in said
  assert f"--workdir={run}: the data of this run are not what they were" in said
  assert "restore them, or choose a new workdir" in said


def test_a_photo_that_another_took_the_place_of_by_a_rename_is_refused(run, photos):
  keep = photos / "train/1.png", photos / "train/2.png"
  times = [path.stat() for path in keep]
  aside = photos.parent / "aside"
  os.rename(keep[0], aside), os.rename(keep[1], keep[0]), os.rename(aside, keep[1])
  for path, stat in zip(keep, times):
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert "2 images differ (train/1.png, train/2.png)" in (
    refusal(make(f"folder:{photos}"), run)
  )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_caption_edited_under_its_size_and_time_is_refused(run, photos, split):
  def edit(path):
    path.write_text(path.read_text().replace("square", "circle"))

  keep_times(photos / split / "3.txt", edit)
  said = refusal(make(f"folder:{photos}"), run)
  assert f"1 caption differs ({split}/3.png)" in said
  assert "image" not in said.partition("1 caption")[2].partition("\n")[0]


def test_photos_renamed_so_that_held_out_ones_would_be_trained_on_are_refused(
  run, photos
):
  for suffix in (".png", ".txt"):
    os.rename(photos / f"test/2{suffix}", photos / f"train/9{suffix}")
    os.rename(photos / f"train/0{suffix}", photos / f"test/0b{suffix}")
  said = refusal(make(f"folder:{photos}"), run)
  assert "1 held-out document would now be trained on (train/9.png)" in said
  assert "1 training document would now be held out (test/0b.png)" in said
  assert "document is" not in said


def test_photos_renamed_in_another_order_are_refused(run, photos):
  for suffix in (".png", ".txt"):
    os.rename(photos / f"train/0{suffix}", photos / f"train/9{suffix}")
  assert "their order differs" in refusal(make(f"folder:{photos}"), run)


def test_names_that_change_neither_order_nor_split_may_change(run, photos):
  for suffix in (".png", ".txt"):
    os.rename(photos / f"train/0{suffix}", photos / f"train/00{suffix}")
  begin(make(f"folder:{photos}"), run)


def test_photos_that_came_or_went_are_counted_and_some_are_named(run, photos):
  for i in range(5):
    add(photos, f"train/new{i}.png", f"a new square {i}", color=(200 + i, 40, 90))
  (photos / "test/0.png").unlink()
  said = refusal(make(f"folder:{photos}"), run)
  assert "1 document is gone (test/0.png)" in said
  assert "5 documents are new (train/new0.png, train/new1.png, train/new2.png and" in (
    said
  )


def test_without_the_list_of_documents_the_hashes_still_refuse(run, photos):
  (run / "documents.json").unlink()
  (photos / "test/1.txt").write_text("another")
  said = refusal(make(f"folder:{photos}"), run)
  assert "the held-out documents differ (4, hash" in said and "training" not in said


def test_a_run_that_has_saved_nothing_is_told_how_to_begin_anew(run, photos):
  (photos / "test/1.txt").write_text("another")
  said = refusal(make(f"folder:{photos}"), run)
  assert f"remove {run / 'identity.json'} and {run / 'config.json'}" in said
  (run / "checkpoints" / "3").mkdir(parents=True)
  assert "remove" not in refusal(make(f"folder:{photos}"), run)


# The cache of decoded images.


def cached(run: Path, name: str = "images.npy") -> Path:
  (path,) = run.glob(f"cache/*/{name}")
  return path


def flip_a_bit(path: Path) -> None:
  data = bytearray(path.read_bytes())
  data[-100] ^= 4
  path.write_bytes(data)


def cut(path: Path) -> None:
  path.write_bytes(path.read_bytes()[:-9])


def turn(path: Path) -> None:
  np.save(path, np.load(path).reshape(8, 4, 16, 3))


@pytest.mark.parametrize(
  "name, damage",
  [
    ("images.npy", flip_a_bit),
    ("images.npy", cut),
    ("images.npy", turn),
    ("images.npy", Path.unlink),
    ("index.json", flip_a_bit),
    ("index.json", Path.unlink),
  ],
)
def test_a_cache_that_was_altered_is_made_again_and_it_is_said(
  run, photos, caplog, name, damage
):
  want = cached(run).read_bytes(), cached(run, "index.json").read_bytes()
  damage(cached(run, name))
  corpus = begin(make(f"folder:{photos}"), run)  # the same run: it is not refused
  assert (cached(run).read_bytes(), cached(run, "index.json").read_bytes()) == want
  assert caplog.text.count("the images are decoded again") == 1
  assert str(cached(run).parent) in caplog.text
  assert len(corpus.train[0]) == len(corpus.test[0]) == 4
  assert not list(run.glob("cache/*.part"))


def test_a_whole_cache_is_read_once_for_both_splits(run, photos, monkeypatch):
  images._crc.cache_clear()
  monkeypatch.setattr(images, "decode", None)  # nothing is decoded
  begin(make(f"folder:{photos}"), run)
  assert (images._crc.cache_info().misses, images._crc.cache_info().hits) == (1, 1)


# Moved data.


def batches(corpus, config, n=6) -> tuple[list, dict]:
  data = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  return [next(data) for _ in range(n)], data.lane_states()


def assert_same_run(got, want):
  for a, b in zip(got[0], want[0], strict=True):
    tiny.assert_same_batch(a, b)
  assert got[1] == want[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  "spell", ["{0}/", "{0}/../photos", "{0}/.", "./photos", "photos", "photos//"]
)
def test_a_folder_spelled_otherwise_is_the_same(run, photos, capfd, monkeypatch, spell):
  monkeypatch.chdir(photos.parent)
  config = make(f"folder:{photos}")
  want = batches(begin(config, run), config)
  config = make("folder:" + spell.format(photos))
  assert_same_run(batches(begin(config, run), config), want)
  assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_folder_that_was_moved_goes_on_under_its_name_bit_by_bit(
  run, photos, tmp_path, capfd
):
  weighed = dict(data__weights=(3.0, 1.0), data__epochs=(2, 0))
  shutil.rmtree(run)
  both = (f"folder:{photos}", "pydoc")
  config = make(*both, **weighed, model__vocab_size=600)
  corpus = begin(config, run)
  want = batches(corpus, config)
  shutil.move(photos, tmp_path / "new")
  config = make(f"folder:{tmp_path / 'new'}", "pydoc", **weighed, model__vocab_size=600)
  for line in (
    f"{both[0]}: is read from {tmp_path / 'new'} now; its documents are the same, and"
    " the run goes on calling it so\n",
    "",  # the next start finds it where it was
  ):
    corpus = begin(config, run)
    assert capfd.readouterr().out == line
    assert [source.name for source in corpus.train] == list(both)
    assert_same_run(batches(corpus, config), want)
  saved = workdir_lib.load_config(run)
  assert saved.data.sources[0] == f"folder:{tmp_path / 'new'}"
  # For who only looks, as `tfusion eval`, without a word of where it is.
  assert [s.name for s in pipeline.open_corpus(saved, run).test] == list(both)


def test_a_folder_that_was_moved_and_changed_is_refused(run, photos, tmp_path):
  shutil.move(photos, tmp_path / "new")
  (tmp_path / "new" / "train" / "0.txt").write_text("another")
  said = refusal(make(f"folder:{tmp_path / 'new'}"), run)
  assert f"folder:{photos} (now folder:{tmp_path / 'new'}): 1 caption differs" in said


def test_a_source_of_another_kind_is_still_another_run(run):
  said = refusal(make("pydoc"), run)
  assert "data.sources: ('folder:" in said and "-> ('pydoc',)" in said


def test_one_folder_twice_by_two_names_is_refused(photos, tmp_path):
  with pytest.raises(ValueError, match="name each source once"):
    begin(make(f"folder:{photos}", f"folder:{photos}/"), tmp_path / "run")
  os.symlink(photos, tmp_path / "link")
  with pytest.raises(ValueError, match="name each source once"):
    begin(make(f"folder:{photos}", f"folder:{tmp_path / 'link'}"), tmp_path / "run")


# Shards.


def of_shards(folder: Path, **changes) -> Config:
  values = dict(model__image_shape=(4, 4, 2), model__patch=2, model__vocab_size=320)
  return make(f"shards:{folder}", **(values | changes))


@pytest.mark.slow
def test_shards_that_were_moved_go_on_and_others_are_refused(tmp_path, capfd):
  tiny_shards.make(tmp_path / "a", train=8)
  config = of_shards(tmp_path / "a")
  want = batches(begin(config, tmp_path / "run"), config)
  shutil.move(tmp_path / "a", tmp_path / "b")
  config = of_shards(tmp_path / "b")
  corpus = begin(config, tmp_path / "run")
  assert f"shards:{tmp_path / 'a'}: is read from {tmp_path / 'b'} now" in (
    capfd.readouterr().out
  )
  assert_same_run(batches(corpus, config), want)
  tiny_shards.make(tmp_path / "c", train=9)
  said = refusal(of_shards(tmp_path / "c"), tmp_path / "run")
  assert "the training documents differ (8, hash" in said and "now 9," in said


def test_shards_with_other_held_out_documents_are_refused(tmp_path):
  tiny_shards.make(tmp_path / "a", train=8)
  begin(of_shards(tmp_path / "a"), tmp_path / "run")
  path = tmp_path / "a" / "manifest.json"
  values = json.loads(path.read_text())
  (own,) = [s for s in values["shards"] if s["split"] == "test"]
  own["sha256"] = "0" * 64  # as of a shard prepared from others
  path.write_text(json.dumps(values))
  said = refusal(of_shards(tmp_path / "a"), tmp_path / "run")
  assert "the held-out documents differ" in said and "training" not in said


def test_latents_json_that_went_is_missed_by_sampling_and_put_back_by_training(
  tmp_path,
):
  tiny_shards.make(tmp_path / "a", train=8)
  run = tmp_path / "run"
  begin(of_shards(tmp_path / "a"), run)
  text = (run / "latents.json").read_text()
  assert prepared.kept(run)[0].latents
  for damage in (Path.unlink, lambda path: path.write_text(text.replace("1", "2"))):
    damage(run / "latents.json")
    with pytest.raises(ValueError, match="latents.json: is .*start training again"):
      prepared.kept(run)
    begin(of_shards(tmp_path / "a"), run)
    assert (run / "latents.json").read_text() == text


# Embedded sources.


def test_texts_of_another_python_are_refused_and_both_versions_are_named(
  tmp_path, monkeypatch
):
  config = make("pydoc", model__vocab_size=600)
  begin(config, tmp_path / "run")
  was = json.loads((tmp_path / "run" / "identity.json").read_text())
  assert was["sources"][0]["train"]["made_with"].startswith("Python 3.")
  some = dict(topics.topics, **{"while": topics.topics["while"] + "!"})
  monkeypatch.setattr(topics, "topics", some)
  monkeypatch.setattr(prose.platform, "python_version", lambda: "3.99.0")
  said = refusal(config, tmp_path / "run")
  assert "pydoc: 1 text differs (" in said
  assert (
    f"made with {was['sources'][0]['train']['made_with']}, now with Python 3.99"
    in (said)
  )


@pytest.mark.slow
def test_other_scans_and_other_scenes_are_refused(tmp_path, monkeypatch):
  digits = make("digits", model__image_shape=(8, 8, 1))
  scenes = make("shapes", model__image_shape=(32, 32, 3), data__row_length=512)
  begin(digits, tmp_path / "digits")
  begin(scenes, tmp_path / "scenes")
  begin(dataclasses.replace(scenes, data=scenes.data), tmp_path / "scenes")
  load, render = digits_lib._digits, shapes.render

  def other_scans(split):
    scans, labels = load(split)
    if split == "test":
      scans[3, 0, 0] ^= 1
    return scans, labels

  monkeypatch.setattr(digits_lib, "_digits", other_scans)
  monkeypatch.setattr(shapes, "render", lambda scene, px: render(scene, px) // 2 * 2)
  assert "digits: 1 image differs (3)" in refusal(digits, tmp_path / "digits")
  said = refusal(scenes, tmp_path / "scenes")
  assert "the training documents differ" in said and "the held-out documents" in said


@pytest.mark.slow
def test_drawn_scenes_with_other_options_are_others_and_with_the_same_are_the_same(
  tmp_path, capfd
):
  changes = dict(model__image_shape=(32, 32, 3), data__row_length=512)
  begin(make("shapes", **changes), tmp_path / "run")
  corpus = begin(make("shapes:pairs,seed=0", **changes), tmp_path / "run")
  assert corpus.train[0].name == "shapes"
  assert "shapes: is read from shapes:pairs,seed=0 now" in capfd.readouterr().out
  said = refusal(make("shapes:pairs,seed=1", **changes), tmp_path / "run")
  assert "shapes (now shapes:pairs,seed=1): the training documents differ" in said


# The tokenizer.


def test_a_tokenizer_that_is_missing_or_another_is_refused_not_trained_again(
  run, photos, tmp_path
):
  path = run / "tokenizer.model"
  own, config = path.read_bytes(), make(f"folder:{photos}")
  other = Tokenizer.train(["something else"], vocab_size=300, path=tmp_path / "o.model")
  path.unlink()
  said = refusal(config, run)
  assert f"{path}: is missing, the tokenizer that this run began with" in said
  assert "restore it from a copy of the workdir" in said and not path.exists()
  other.save(path)
  assert f"{path}: is another file than the tokenizer" in refusal(config, run)
  path.write_bytes(own[:-1])
  assert f"{path}: is another file than the tokenizer" in refusal(config, run)
  path.write_bytes(own)
  begin(config, run)


def test_a_tokenizer_is_put_back_from_the_file_it_came_from(tmp_path, photos, capfd):
  given, run = tmp_path / "given.model", tmp_path / "run"
  tokenizer = Tokenizer.train(["square unseen"], vocab_size=300, path=given)
  config = make(f"folder:{photos}", data__tokenizer=str(given))
  begin(config, run)
  capfd.readouterr()
  (run / "tokenizer.model").unlink()
  begin(config, run)
  assert f"is put back from {given}" in capfd.readouterr().out
  assert Tokenizer.load(run / "tokenizer.model").sha256 == tokenizer.sha256
  # It may lie elsewhere, or be gone; it may not be another.
  shutil.move(given, tmp_path / "moved.model")
  moved = make(f"folder:{photos}", data__tokenizer=str(tmp_path / "moved.model"))
  for same in (config, moved, make(f"folder:{photos}")):
    assert begin(same, run).tokenizer.sha256 == tokenizer.sha256
  Tokenizer.train(["other"], vocab_size=290, path=tmp_path / "moved.model")
  assert "is another tokenizer than" in refusal(moved, run)


def test_the_tokenizer_of_shards_is_put_back(tmp_path, capfd):
  tiny_shards.make(tmp_path / "a", train=8)
  run = tmp_path / "run"
  begin(of_shards(tmp_path / "a"), run)
  own = (run / "tokenizer.model").read_bytes()
  (run / "tokenizer.model").write_bytes(b"")
  begin(of_shards(tmp_path / "a"), run)
  assert (run / "tokenizer.model").read_bytes() == own
  assert "is put back from" in capfd.readouterr().out


# Files of the config.


def test_a_file_of_the_config_may_move_but_not_be_another(run, tmp_path):
  (tmp_path / "a").write_bytes(b"weights")
  found = identity.check_file(run, "loss.features", tmp_path / "a")
  path = run / "identity.json"
  values = json.loads(path.read_text())
  values["files"]["loss.features"] = found
  path.write_text(json.dumps(values))
  shutil.move(tmp_path / "a", tmp_path / "b")
  assert identity.check_file(run, "loss.features", tmp_path / "b") == found
  (tmp_path / "b").write_bytes(b"others")
  with pytest.raises(ValueError, match="loss.features: .*b is another file"):
    identity.check_file(run, "loss.features", tmp_path / "b")


# Workdirs of before, and damaged ones.


def make_old(run: Path) -> None:
  """As a run of before the data were remembered has left it."""
  (run / "identity.json").unlink()
  (run / "documents.json").unlink()


def test_a_workdir_of_before_goes_on_and_from_then_on_remembers(run, photos, capfd):
  want = (run / "identity.json").read_bytes(), (run / "documents.json").read_bytes()
  make_old(run)
  begin(make(f"folder:{photos}"), run)
  said = capfd.readouterr().out
  assert said.startswith(f"{run / 'identity.json'}: is written now, as this run began")
  assert said.count("\n") == 1
  got = (run / "identity.json").read_bytes(), (run / "documents.json").read_bytes()
  assert got == want
  (photos / "train/0.txt").write_text("another")
  assert "1 caption differs" in refusal(make(f"folder:{photos}"), run)


def test_a_workdir_of_before_goes_on_where_its_data_were(
  run, photos, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  make_old(run)
  shutil.move(photos, tmp_path / "new")
  said = refusal(make(f"folder:{tmp_path / 'new'}"), run)
  assert "start it once with the data where they were (a link there will do)" in said
  os.symlink(tmp_path / "new", photos)
  corpus = begin(make("folder:./photos/"), run)
  assert corpus.train[0].name == f"folder:{photos}"
  begin(make(f"folder:{tmp_path / 'new'}"), run)


def test_a_workdir_of_before_without_its_tokenizer_is_refused(run, photos):
  make_old(run)
  (run / "tokenizer.model").unlink()
  assert "tokenizer.model: is missing" in refusal(make(f"folder:{photos}"), run)


def test_what_a_refused_start_left_is_no_run(photos, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  corpus = pipeline.open_corpus(make(f"folder:{photos}"), run)
  identity.keep(corpus.identity, run)  # killed before config.json was written
  (photos / "train/0.txt").write_text("another one altogether")
  begin(make(f"folder:{photos}"), run)


def test_checkpoints_without_their_config_are_refused(run, photos):
  (run / "config.json").unlink()
  (run / "checkpoints" / "10").mkdir(parents=True)
  said = refusal(make(f"folder:{photos}"), run)
  assert "has checkpoints, but no config.json" in said


@pytest.mark.parametrize(
  "text",
  [
    "{",
    "[]",
    '{"sources": [{}], "files": {}}',
    '{"sources": [], "files": {}}',
    "[" * 9000,
  ],
)
def test_a_damaged_identity_is_named(run, photos, text):
  (run / "identity.json").write_text(text)
  assert "identity.json: damaged" in refusal(make(f"folder:{photos}"), run)
