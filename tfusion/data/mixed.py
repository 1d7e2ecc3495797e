"""The source `mixed`: discs on pictures of two shapes, and sine waves, with captions.

Owns: what is drawn, how it is read back. Not: how well a model does on them
(evaluate/mixed.py).

It shows several kinds in one run (kinds.py) on data so simple that an exact rule reads
them: the colour and the side of a disc, the number of waves.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from tfusion.data.source import TRAIN, Source
from tfusion.kinds import Kind

SQUARE, WIDE, WAVE = (16, 16, 3), (8, 24, 3), (64, 1)  # shapes
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230)}
GREY = 235  # of what is behind the discs
SIDES = ("left", "right")
WAVES = (1, 2, 3, 4, 5)
FINE = 8  # as many times as fine discs are drawn, and then made smaller
COPIES = {"train": 22, "test": 2}  # of every caption, each drawn a little differently


def captions() -> list[tuple[str, tuple[int, ...]]]:
  """All captions, each with the shape of what it says."""
  discs = [f"a {colour} disc, {side}" for colour in COLOURS for side in SIDES]
  both = [(caption, shape) for shape in (SQUARE, WIDE) for caption in discs]
  return [*both, *((f"a wave of {waves}", WAVE) for waves in WAVES)]


@dataclasses.dataclass(frozen=True)
class Mixed(Source):
  """Document i is caption i, modulo their number, in another drawing each time."""

  split: str

  def __len__(self) -> int:
    return len(captions()) * COPIES[self.split]

  def __getitem__(self, index: int) -> tuple[str | np.ndarray, ...]:
    caption, shape = captions()[index % len(captions())]
    rng = np.random.default_rng([self.split == TRAIN, index])
    return caption, draw(caption, shape, rng)

  def texts(self) -> Iterable[str]:
    return (captions()[i % len(captions())][0] for i in range(len(self)))


def open_mixed(
  *, split: str, image_shape: tuple[int, ...], others: Sequence[Kind]
) -> Mixed:
  """Opens a split.

  Raises:
    ValueError: the run lacks a kind of one of the shapes.
  """
  shapes = {tuple(image_shape), *(kind.shape for kind in others)}
  if lacking := [shape for shape in (SQUARE, WIDE, WAVE) if shape not in shapes]:
    raise ValueError(
      f"model.kinds: data.sources='mixed' has images of {lacking}, which no kind of the"
      " run is; see experiments/kinds.py"
    )
  return Mixed("mixed", split)


def draw(caption: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  """Draws what a caption says, f32 in [-1, 1]."""
  words = caption.split()
  if shape == WAVE:
    at, phase = np.arange(WAVE[0]) / WAVE[0], rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * int(words[-1]) * at + phase)
    return (rng.uniform(0.6, 0.95) * wave[:, None]).astype(np.float32)
  pixels = _disc(shape, COLOURS[words[1]], words[-1], rng)
  return pixels.astype(np.float32) / 127.5 - 1


def is_right(caption: str, drawn: np.ndarray) -> bool:
  """Whether what was drawn, f32 in [-1, 1], is what a caption says."""
  words = caption.split()
  if drawn.shape == WAVE:
    strength = np.abs(np.fft.rfft(drawn[:, 0] - drawn.mean()))
    return int(np.argmax(strength[1:])) + 1 == int(words[-1])
  return read_disc(drawn) == (words[1], words[-1])


def read_disc(image: np.ndarray) -> tuple[str, str]:
  """The colour and the side of what is not grey in f32[h, w, 3]."""
  pixels = (np.clip(image, -1, 1) + 1) * 127.5
  far = np.linalg.norm(GREY - pixels, axis=-1)
  far[far < 60] = 0  # the noise of a sample; a disc is 190 and more away
  mass = max(far.sum(), 1e-9)
  colour = (pixels * far[..., None]).sum((0, 1)) / mass
  nearest = min(COLOURS, key=lambda n: float(np.linalg.norm(colour - COLOURS[n])))
  middle = (far.sum(0) * np.arange(far.shape[1])).sum() / mass
  return nearest, SIDES[int(middle > (far.shape[1] - 1) / 2)]


def _disc(shape, colour, side: str, rng: np.random.Generator) -> np.ndarray:
  """A disc in one half of a grey picture, u8[h, w, 3]."""
  height, width, _ = shape
  radius = min(height, width) * rng.uniform(0.22, 0.3)
  x = width * (0.27 if side == "left" else 0.73) + rng.uniform(-0.5, 0.5)
  y = height / 2 + rng.uniform(-0.5, 0.5)
  image = Image.new("RGB", (FINE * width, FINE * height), (GREY,) * 3)
  box = [FINE * at for at in (x - radius, y - radius, x + radius, y + radius)]
  ImageDraw.Draw(image).ellipse(box, fill=colour)
  return np.asarray(image.resize((width, height), Image.Resampling.BOX))
