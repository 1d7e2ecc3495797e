"""Sizes chosen from what a folder holds, by the numbers of experiments/folder.py."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import tiny_shards
from PIL import Image

from tfusion import config as config_lib
from tfusion import sizing
from tfusion.data import pipeline
from tfusion.generate.prompt import Mark, split
from tfusion.sizing import ModelSize

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "folder.py"


def add(root: Path, name: str, *, caption="a square", size=(20, 20)):
  """Writes an image in colour and its caption."""
  root.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, (200, 40, 90)).save(root / name)
  (root / name).with_suffix(".txt").write_text(caption)


def load_experiment():
  spec = importlib.util.spec_from_file_location("folder_experiment", EXPERIMENT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.parametrize(
  "side, image, patch, caption, smoke",
  [
    (5, 8, 2, "a", ""),
    (20, 16, 4, "a long story " * 30, ""),
    (300, 64, 8, "a house", ""),
    (20, 16, 4, "a house", ",smoke"),
  ],
)
def test_a_folder_of_images_gives_a_valid_config_that_holds_every_caption(
  tmp_path, capsys, side, image, patch, caption, smoke
):
  for i in range(3):
    add(tmp_path / "photos", f"{i}.png", size=(side, side), caption=caption)
  made = load_experiment().get_config(f"data={tmp_path / 'photos'}{smoke}")
  made.data.workers = 0
  config = config_lib.from_dict(made)
  assert config.model.image_shape == (image, image, 3)
  assert config.model.patch == patch
  assert config.eval.prompts[0].endswith(" <image>")
  assert "3 images of about" in capsys.readouterr().out
  # The chosen rows hold every caption, the chosen vocabulary every character.
  corpus = pipeline.open_corpus(config, tmp_path)
  assert sum(map(len, corpus.train + corpus.test)) == 3
  batches = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  assert next(batches).slots[0].latents.shape[2:] == (image, image, 3)
  batches.close()


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, shape, patch",
  [
    ("pixels", (32, 32, 3), 8),
    ("pixels", (6, 4, 3), 1),
    ("mean", (16, 16, 2), 2),
    ("codes", (16,), None),
    (None, None, None),
  ],
)
@pytest.mark.parametrize("smoke", ["", ",smoke"])
def test_shards_give_a_valid_config_that_holds_every_document(
  tmp_path, capsys, kind, shape, patch, smoke
):
  folder_of = tmp_path / "shards"
  made = tiny_shards.make(folder_of, kind=kind, shape=shape or (1,), train=16)
  chosen = load_experiment().get_config(f"data={folder_of}{smoke}")
  chosen.data.workers = 0
  config = config_lib.from_dict(chosen)
  assert f"16 documents with {sum(s.images for s in made.of('train'))} im" in (
    capsys.readouterr().out
  )
  if patch:
    assert (config.model.image_shape, config.model.patch) == (shape, patch)
  drawn = [" <image>" in prompt for prompt in config.eval.prompts]
  assert all(drawn) == (kind is not None) and bool(drawn)
  # The chosen rows hold every document.
  corpus = pipeline.open_corpus(config, tmp_path)
  data = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  for _ in range(3):
    next(data)
  (counts,) = data.tally().counts().values()
  data.close()
  assert counts["documents"] >= 16 and counts["rejected"] == 0


def test_latents_without_their_autoencoder_are_not_to_be_sampled(tmp_path):
  tiny_shards.make(tmp_path, autoencoder=None)
  assert load_experiment().get_config(f"data={tmp_path}").eval.prompts == ()


def test_captions_with_signs_of_marks_are_prompts_that_say_the_same(tmp_path):
  captions = ["a <b> c", "3 < 4", r"the word <image>", "plain"]
  # The longest of all is no example.
  for number, caption in enumerate([*captions, "long " * 9]):
    add(tmp_path / "photos", f"{number}.png", caption=caption)
  prompts = load_experiment().get_config(f"data={tmp_path / 'photos'}").eval.prompts
  assert sorted(map(split, prompts)) == sorted(
    [caption, Mark()] for caption in captions
  )


def test_the_experiment_asks_for_a_folder():
  with pytest.raises(ValueError, match="folder.py:data=PATH"):
    load_experiment().get_config("")


BOUNDS = sizing.Bounds(
  patch={8: 2, 16: 4},
  patches=16,
  row=128,
  models={
    3: ModelSize(1, 32, 2, 64, 1e-2, 40),
    math.inf: ModelSize(2, 64, 4, 128, 1e-3, 80),
  },
  merges=(16, 64),
  characters_per_merge=2,
  elements=512,
)


@pytest.mark.parametrize("images, layers, times", [(3, 1, 284), (4, 2, 427)])
def test_every_number_comes_from_the_bounds(tmp_path, images, layers, times, capsys):
  for number in range(images):
    add(tmp_path, f"{number}.png", caption=f"{number} abcdefgh", size=(90, 30))
  c = config_lib.defaults()
  sizing.fit(c, str(tmp_path), BOUNDS)
  assert c.model.image_shape == (16, 16, 3) and c.model.patch == 4
  assert c.model.layers == layers and c.train.steps == 40 * layers
  assert c.model.heads == c.model.kv_heads == 2 * layers
  # 262 + 9 letters and a space + digits + a merge of every 2 characters, to 64.
  assert c.model.vocab_size == 320
  # Two images of 16 patches with BOS, BOI and EOI, a caption of 5 tokens and as many.
  assert c.data.row_length == 64 and c.data.image_slots == 3
  assert c.train.batch_rows == 8 and c.eval.prompts[0].endswith("abcdefgh <image>")
  said = capsys.readouterr().out
  assert f"{images} images of about 30 px (colour), {images} captions" in said
  assert f"vocabulary 320, {layers} layers of width {32 * layers}, rows of 64" in said
  # Rows of 64, 8 in an update, of images of 19 elements with captions of 5.
  assert "on two CPU cores about 1 min, in which each image is learned" in said
  assert f"learned about {times} times" in said


def test_how_long_it_takes_goes_with_the_work(tmp_path, capsys):
  add(tmp_path, "a.png")
  minutes = []
  for steps in (300_000, 600_000):
    bounds = dataclasses.replace(
      BOUNDS, models={math.inf: ModelSize(1, 32, 2, 64, 1e-2, steps)}
    )
    sizing.fit(config_lib.defaults(), str(tmp_path), bounds)
    said = capsys.readouterr().out
    minutes.append(int(said.partition("cores about ")[2].split()[0]))
  assert minutes[0] > 5 and minutes[1] == pytest.approx(2 * minutes[0], abs=1)


def test_what_is_given_instead_is_set_and_said(tmp_path, capsys):
  for number in range(3):
    add(tmp_path, f"{number}.png")
  c = config_lib.defaults()
  instead = {"model.layers": 7, "train.steps": 5, "data.workers": 0}
  sizing.fit(c, str(tmp_path), BOUNDS, instead=instead)
  assert (c.model.layers, c.train.steps, c.data.workers) == (7, 5, 0)
  said = capsys.readouterr().out
  assert "7 layers of width 32" in said and "5 steps" in said
