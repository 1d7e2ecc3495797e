"""The source `emoji`: which there are, their names, what is held out."""

import pathlib

import matplotlib
import numpy as np
import pytest
import tiny_emoji

from tfusion.data import emoji
from tfusion.data.emoji import TONES, open_emoji

WAVE, THUMB, CAT, GRIN = "\U0001f44b", "\U0001f44d", "\U0001f408", "\U0001f600"
PLAIN_FONT = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
needs_font = pytest.mark.skipif(
  not emoji.FONT.is_file(), reason="apt install fonts-noto-color-emoji brings the font"
)


@pytest.fixture
def font(monkeypatch):
  draw = tiny_emoji.Draw(WAVE + THUMB + CAT + GRIN, tones=WAVE + THUMB)
  monkeypatch.setattr(emoji, "_open", lambda _: draw)
  emoji.load.cache_clear()
  yield draw
  emoji.load.cache_clear()


def opened(split, argument="all", px=32):
  return open_emoji(argument, split=split, image_shape=(px, px, 3))


def test_every_emoji_has_its_unicode_name_and_its_tone(font):
  names = [one.name for one in emoji.load("all", 32).emoji]
  assert names[:4] == ["cat", "waving hand sign", "thumbs up sign", "grinning face"]
  assert "waving hand sign, medium-dark skin" in names
  assert len(names) == len(set(names)) == 4 + 2 * len(TONES)


def test_of_each_gesture_one_tone_is_held_out_and_is_all_of_the_test_split(font):
  train, test = opened("train"), opened("test")
  held = [one.text for one in test.emoji]
  assert sorted(text[0] for text in held) == sorted([WAVE, THUMB])
  assert all(text[1] in TONES for text in held)
  assert not set(held) & {one.text for one in train.emoji}
  assert len(train.emoji) == 4 + 2 * 4


def test_a_document_is_a_name_and_its_image(font):
  source = opened("train")
  seen = {}
  for index in range(len(source)):
    caption, image = source[index]
    assert image.shape == (32, 32, 3) and image.dtype == np.float32
    assert -1 <= image.min() and image.max() <= 1
    seen.setdefault(index // len(emoji.CAPTIONS), []).append(caption)
  assert seen[0] == [text.format("cat") for text in emoji.CAPTIONS]
  assert set(source.texts()) == {text for texts in seen.values() for text in texts}


def test_the_same_font_is_the_same_contents(font):
  assert opened("train").contents() == opened("train").contents()
  assert opened("train").contents() != opened("test").contents()


@pytest.mark.parametrize(
  "argument,shape,said",
  [
    ("some", (32, 32, 3), "'some' is unknown; write all or few, and font=PATH"),
    ("all", (32, 32, 1), r"image_shape=\(32, 32, 1\)"),
    ("all", (33, 33, 3), "choose one of these"),
    ("font=none.ttf", (32, 32, 3), "none.ttf: there is no such font; install Noto"),
  ],
)
def test_what_cannot_be_is_refused(argument, shape, said):
  with pytest.raises(ValueError, match=said):
    open_emoji(argument, split="train", image_shape=shape)


def test_a_file_that_is_no_font_is_refused(tmp_path):
  path = tmp_path / "a.ttf"
  path.write_text("no font")
  with pytest.raises(ValueError, match="a.ttf: is no font that can be drawn"):
    open_emoji(f"font={path}", split="train", image_shape=(32, 32, 3))


@pytest.mark.slow
def test_a_font_without_colour_is_refused():
  with pytest.raises(ValueError, match="DejaVuSans.ttf: has no emoji in colour"):
    open_emoji(f"few,font={PLAIN_FONT}", split="train", image_shape=(16, 16, 3))


@needs_font
@pytest.mark.slow
def test_few_are_200_and_five_gestures_in_every_tone():
  few = emoji.load("few", 32)
  assert len(few.emoji) == 200 + 5 * len(TONES)
  assert sum(one.held_out for one in few.emoji) == 5
  assert len({one.name for one in few.emoji}) == len(few.emoji)
  assert len({image.tobytes() for image in few.images}) == len(few.emoji)
  grin = next(i for i, one in enumerate(few.emoji) if one.text == GRIN)
  middle = few.images[grin][12:20, 12:20].reshape(-1, 3).mean(0)
  assert middle[0] > 180 and middle[2] < 120  # a yellow face
  assert (few.images[grin][0, 0] == 255).all()  # on white
