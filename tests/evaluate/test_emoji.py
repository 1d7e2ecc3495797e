"""Is the right emoji drawn and named?"""

import json
import types

import numpy as np
import PIL.Image
import pytest
import tiny
import tiny_emoji

import tfusion
from tfusion.config_file import with_knobs
from tfusion.data import emoji as source_lib
from tfusion.data.emoji import open_emoji, to_float
from tfusion.evaluate import emoji
from tfusion.evaluate.emoji import Known

CHARACTERS = "\U0001f408\U0001f415\U0001f600\U0001f603\U0001f44b"


@pytest.fixture
def font(monkeypatch):
  draw = tiny_emoji.Draw(CHARACTERS, tones="\U0001f44b")
  monkeypatch.setattr(source_lib, "_open", lambda _: draw)
  source_lib.load.cache_clear()
  yield
  source_lib.load.cache_clear()


def test_the_nearest_of_all_is_the_one_whose_pixels_are(font):
  drawn = source_lib.load("all", 32)
  every = Known(drawn.emoji, to_float(drawn.images))
  numbers = np.arange(len(drawn.emoji))
  rng = np.random.default_rng(0)
  noisy = every.images + 0.2 * rng.normal(size=every.images.shape)
  assert (every.nearest(every.images) == numbers).all()
  assert (every.nearest(noisy.astype(np.float32)) == numbers).all()
  brute = [
    np.argmin([np.sum((image - one) ** 2) for one in every.images]) for image in noisy
  ]
  assert (every.nearest(noisy) == brute).all()


def test_the_classifier_is_measured_on_blurred_originals(font):
  drawn = source_lib.load("all", 32)
  every = Known(drawn.emoji, to_float(drawn.images))
  assert emoji.blurred_right(every, 0.5) == 1.0
  grey = Known(every.emoji, np.zeros_like(every.images))
  assert emoji.blurred_right(grey, 0.5) == pytest.approx(1 / len(every.emoji))


def test_both_splits_are_known_and_each_part_is_spread(font):
  splits = [
    open_emoji("all", split=split, image_shape=(32, 32, 3))
    for split in ("train", "test")
  ]
  corpus = types.SimpleNamespace(train=splits[:1], test=splits[1:])
  every = emoji.known(corpus)
  assert len(every.emoji) == len(every.images) == 5 + 5
  assert emoji._some(every, True, 10).tolist() == [9]
  seen = emoji._some(every, False, 3)
  assert seen.tolist() == [0, 4, 8]


@pytest.mark.parametrize(
  "said,right",
  [
    ("cat", True),
    (" cat", True),
    ("an emoji: cat", True),
    ("cats", False),
    ("", False),
  ],
)
def test_a_name_is_right_to_the_letter(said, right):
  assert emoji._is_name(said, "cat") is right


@pytest.mark.slow
def test_a_run_draws_and_names_them(font, tmp_path):
  config = with_knobs(
    tiny.experiment("emoji", "smoke"),
    {"model.layers": 1, "model.unroll": 1},
    section="train",
  )
  tfusion.train(config, tmp_path / "run")
  found = json.loads((tmp_path / "run" / "eval.json").read_text())
  assert found["emoji_seen"] == 4 and found["emoji"] > 4
  for part in ("seen", "held_out"):
    assert 0 <= found[f"emoji_{part}_right"] <= 1
    assert 0 <= found[f"emoji_{part}_named"] <= 1
  assert found["emoji_classifier_right_blurred_0.5"] == 1.0
  with PIL.Image.open(tmp_path / "run" / "eval" / "emoji.png") as sheet:
    width, height = sheet.size
  # Of each part the originals, and the drawings below them.
  assert (height - 1) / 4 == (width - 1) / emoji.COLUMNS
