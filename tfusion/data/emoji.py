"""The source `emoji`: the emoji of a font, each with its Unicode name.

Owns: which emoji there are, how they are drawn, which pairs of a gesture and a skin
tone training never shows. Not: how well a model does on them (evaluate/emoji.py).

The font is Noto Color Emoji, as Debian's package fonts-noto-color-emoji has it. It
holds bitmaps of one size, which Pillow draws on white and makes smaller.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from tfusion.data import heldout
from tfusion.data.contents import Contents, Hashed, hash_of, of_documents
from tfusion.data.source import TEST, Source

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
REMEDY = (
  "install Noto Color Emoji (Debian and Ubuntu: apt install fonts-noto-color-emoji), or"
  " name the font, as in emoji:font=PATH"
)
SIZE = 109  # of the bitmaps of that font; it has no other
SIDES_PX = (16, 24, 32, 48, 64)
BLOCKS = ((0x2190, 0x2C00), (0x1F000, 0x1FB00))  # where emoji stand in Unicode
TONES = tuple(chr(point) for point in range(0x1F3FB, 0x1F400))
TONE_WORDS = ("light", "medium-light", "medium", "medium-dark", "dark")
LETTERS = range(0x1F1E6, 0x1F200)  # halves of flags, which mean nothing alone
# `few`: faces, animals and food, and gestures in every tone.
FACES, ANIMALS, FOOD = (
  (0x1F600, 0x1F645),
  (0x1F400, 0x1F440),
  (0x1F32D, 0x1F380),
)
FEW = {FACES: 68, ANIMALS: 64, FOOD: 68}  # 200 in all
GESTURES = "\U0001f44b\U0001f44d\U0001f44f\u270a\U0001f44c"  # of `few`
GROUPS = ("all", "few")
CAPTIONS = ("{}", "{}", "an emoji: {}")


class Emoji(NamedTuple):
  """One emoji."""

  text: str  # one character, or two with a skin tone
  name: str
  held_out: bool  # a pair of gesture and tone that training never shows


@dataclasses.dataclass(frozen=True)
class EmojiSource(Source):
  """Document i is emoji i // len(CAPTIONS) with caption i % len(CAPTIONS)."""

  emoji: tuple[Emoji, ...]
  images: np.ndarray  # u8[n, px, px, 3]

  def __len__(self) -> int:
    return len(self.emoji) * len(CAPTIONS)

  def __getitem__(self, index: int) -> tuple[str | np.ndarray, ...]:
    number, template = divmod(index, len(CAPTIONS))
    caption = CAPTIONS[template].format(self.emoji[number].name)
    return caption, to_float(self.images[number])

  def texts(self) -> Iterable[str]:
    return (text.format(one.name) for one in self.emoji for text in CAPTIONS)

  def contents(self) -> Contents:
    """Hashes of names and pixels; the emoji is its own id."""
    hashed = [
      Hashed(one.text, hash_of([one.name]), hash_of([image.tobytes()]))
      for one, image in zip(self.emoji, self.images, strict=True)
    ]
    return of_documents(hashed, made_with="Noto Color Emoji")


def open_emoji(argument: str, *, split: str, image_shape: tuple[int, ...]) -> Source:
  """Opens a split.

  Args:
    argument: all, every emoji of the font; few, 200 faces, animals and food and five
      gestures in every tone; behind it, or alone, font=PATH.
    split: train; or test, the pairs of gesture and tone that are held out, one of five.
    image_shape: (px, px, 3) with px of SIDES_PX.

  Raises:
    ValueError: another argument or shape, no font, or one without colour.
  """
  name = f"emoji:{argument}" if argument else "emoji"
  group, font = "all", FONT
  for option in filter(None, argument.split(",")):
    if option.startswith("font="):
      font = Path(option.removeprefix("font="))
    elif option in GROUPS:
      group = option
    else:
      raise ValueError(
        f"data.sources={name!r}: {option!r} is unknown; write all or few, and font=PATH"
      )
  shapes = [(px, px, 3) for px in SIDES_PX]
  if tuple(image_shape) not in shapes:
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: data.sources={name!r} has images of"
      f" {', '.join(map(str, shapes))}; choose one of these"
    )
  try:
    every = load(group, image_shape[0], font)
  except ValueError as error:
    raise ValueError(f"data.sources={name!r}: {error}") from error
  own = [i for i, one in enumerate(every.emoji) if one.held_out == (split == TEST)]
  kept = tuple(every.emoji[i] for i in own)
  return EmojiSource(name, kept, every.images[own])


class Drawn(NamedTuple):
  """A group of emoji with what they look like."""

  emoji: tuple[Emoji, ...]
  images: np.ndarray  # u8[n, px, px, 3]


@functools.lru_cache(4)
def load(group: str, px: int, font: Path = FONT) -> Drawn:
  """Draws a group, held-out pairs too.

  Args:
    group: of GROUPS.
    px: side of an image.
    font: its file.

  Raises:
    ValueError: there is no such font, or it has no emoji in colour.
  """
  draw = _open(font)
  found, images = [], []
  for text, name in _candidates(draw, group):
    image = draw(text, px)
    if image is not None:
      found.append(Emoji(text, name, is_held_out(text)))
      images.append(image)
  coloured = sum(_is_coloured(image) for image in images)
  if not images or 2 * coloured < len(images):
    raise ValueError(f"{font}: has no emoji in colour; {REMEDY}")
  return Drawn(tuple(found), np.stack(images))


def is_held_out(text: str) -> bool:
  """Whether training never shows an emoji: of each gesture one tone, by a hash."""
  if len(text) != 2 or text[1] not in TONES:
    return False
  return min(TONES, key=lambda tone: heldout.place(text[0] + tone)) == text[1]


def name_of(text: str) -> str:
  """The name of an emoji in words: that of Unicode, and its skin tone."""
  name = unicodedata.name(text[0], "").lower()
  if len(text) == 1:
    return name
  return f"{name}, {TONE_WORDS[TONES.index(text[1])]} skin"


def to_float(images: np.ndarray) -> np.ndarray:
  """Pixels u8 as f32 in [-1, 1]."""
  return images.astype(np.float32) / 127.5 - 1


class _Draw:
  """Draws text with a font."""

  def __init__(self, font: Any):
    self._font = font
    self.width = font.getlength("\N{GRINNING FACE}")

  def __call__(self, text: str, px: int) -> np.ndarray | None:
    """u8[px, px, 3] on white; None: the font has no such sign."""
    left, top, right, bottom = (int(x) for x in self._font.getbbox(text))
    if right <= left or bottom <= top:
      return None
    side = max(right - left, bottom - top)
    image = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    at = ((side - right - left) / 2, (side - bottom - top) / 2)
    ImageDraw.Draw(image).text(at, text, font=self._font, embedded_color=True)
    if not np.asarray(image)[..., 3].any():
      return None
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(flat.resize((px, px), Image.Resampling.BOX))

  def has_tones(self, character: str) -> bool:
    """Whether a tone behind it changes it, instead of standing beside it."""
    alone, both = (self._font.getlength(x) for x in (character, character + TONES[0]))
    return alone > 0 and alone == both and character not in TONES


def _open(font: Path) -> _Draw:
  if not font.is_file():
    raise ValueError(f"{font}: there is no such font; {REMEDY}")
  try:
    return _Draw(ImageFont.truetype(str(font), SIZE))
  except (OSError, UnidentifiedImageError) as error:
    raise ValueError(f"{font}: is no font that can be drawn ({error}); {REMEDY}") from (
      error
    )


def _candidates(draw: _Draw, group: str) -> list[tuple[str, str]]:
  """What may be an emoji, with its name."""
  if group == "few":
    plain = [c for block, most in FEW.items() for c in _named(draw, [block])[:most]]
    toned: Sequence[str] = GESTURES
  else:
    plain = _named(draw, BLOCKS)
    toned = [c for c in plain if draw.has_tones(c)]
  found = [*plain, *(c + tone for c in toned for tone in TONES)]
  return [(text, name_of(text)) for text in found]


def _named(draw: _Draw, blocks: Sequence[tuple[int, int]]) -> list[str]:
  """The characters of blocks that have a name and stand in the font."""
  points = (point for first, end in blocks for point in range(first, end))
  characters = (chr(point) for point in points if point not in LETTERS)
  return [c for c in characters if unicodedata.name(c, "") and draw(c, 16) is not None]


def _is_coloured(image: np.ndarray) -> bool:
  return bool(np.ptp(image.astype(int), axis=-1).max() > 24)
