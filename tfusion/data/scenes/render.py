"""Scene -> image: a background, and things on it with smooth edges.

Owns: pixels. Not: what is drawn (scene.py), the outlines (outlines.py).

h w pixels  n things

As in outlines.py, only + - * / and roundings of doubles: the bytes are the same on
every machine.
"""

import functools
import math

import numpy as np

from tfusion.data.scenes import outlines
from tfusion.data.scenes.scene import Background, Scene, Thing

LATTICE = 4  # knots of clouds along a side


def draw(scene: Scene, px: int) -> np.ndarray:
  """Draws a scene.

  A pixel is the mean of what it covers: edges are exact areas, not samples.

  Args:
    scene: what to draw; later things lie over earlier ones.
    px: pixels along a side.

  Returns:
    u8[px, px, 3], RGB.
  """
  image = draw_background(scene.background, px)
  covers, left_n, top_n = cover(scene.things, px)
  size = covers.shape[1]
  for thing, cover_hw, left, top in zip(scene.things, covers, left_n, top_n):
    rows = slice(max(top, 0), min(top + size, px))
    columns = slice(max(left, 0), min(left + size, px))
    own = cover_hw[rows.start - top : rows.stop - top]
    own = own[:, columns.start - left : columns.stop - left, None]
    part = image[rows, columns]
    part += own * (np.asarray(thing.rgb, np.float64) - part)
  return np.floor(image + 0.5).astype(np.uint8)


def cover(
  things: tuple[Thing, ...], px: int
) -> tuple[np.ndarray, list[int], list[int]]:
  """How much of each pixel each thing covers.

  Returns:
    f64[n, size, size] in [0, 1], and the first column and row of each window.
  """
  kinds = [outlines.SHAPES.index(thing.shape) for thing in things]
  radius_n = np.asarray([thing.radius for thing in things]) * px
  x_n = np.asarray([thing.x for thing in things]) * px
  y_n = np.asarray([thing.y for thing in things]) * px
  far = max(max(outlines.reach(k, r)) for k, r in zip(kinds, radius_n))
  half = math.ceil(far) + 1
  left_n = np.floor(x_n).astype(np.int64) - half
  top_n = np.floor(y_n).astype(np.int64) - half
  covers = outlines.coverage(
    *(np.asarray(kinds), x_n, y_n, radius_n),
    left_n=left_n,
    top_n=top_n,
    size=2 * half + 1,
  )
  return covers, left_n.tolist(), top_n.tolist()


def draw_background(background: Background, px: int) -> np.ndarray:
  """Returns the background alone, f64[px, px, 3] in 0..255."""
  mix_hw = _mix(background.pattern, background.knots, px)
  low, high = np.asarray(background.rgb, np.float64)
  return low + mix_hw[:, :, None] * (high - low)


def _mix(pattern: str, knots: tuple[float, ...], px: int) -> np.ndarray:
  """How far from the first to the second colour each pixel is, f64[px, px]."""
  line = _line(px)
  if pattern == "plain":
    return np.zeros((px, px))
  if pattern == "clouds":
    table = np.asarray(knots).reshape(LATTICE, LATTICE)
    weights = _lattice_weights(px)
    # Term by term: a matrix product may add in any order.
    rows = sum(w[:, None] * table[i] for i, w in enumerate(weights))
    return sum(w * rows[:, i, None] for i, w in enumerate(weights))
  if pattern == "glow":
    x, y = line - knots[0], line - knots[1]
    return np.maximum(1 - (x * x + (y * y)[:, None]) * (1 + knots[2]), 0)
  turn_x, turn_y = 2 * knots[0] - 1, 2 * knots[1] - 1
  if pattern == "gradient":
    span = abs(turn_x) + abs(turn_y) + 1e-3
    return 0.5 + (turn_x * (line - 0.5) + (turn_y * (line - 0.5))[:, None]) / span
  waves = 2 + 3 * knots[2]  # across the image
  if pattern == "stripes":
    return _wave(waves * (turn_x * line + (turn_y * line)[:, None]) + knots[3])
  assert pattern == "checks", pattern
  x, y = _wave(waves * line + knots[3]), _wave(waves * line + knots[4])[:, None]
  return x * y + (1 - x) * (1 - y)


def _wave(x: np.ndarray) -> np.ndarray:
  """A soft square wave of period 1 between 0 and 1."""
  ramp = np.abs((x - np.floor(x)) * 2 - 1)
  return np.clip(2 * ramp - 0.5, 0, 1)


@functools.cache
def _line(px: int) -> np.ndarray:
  return (np.arange(px) + 0.5) / px


@functools.cache
def _lattice_weights(px: int) -> tuple[np.ndarray, ...]:
  """What each knot of a line weighs at each pixel; smooth, and 1 in sum."""
  place = _line(px) * (LATTICE - 1)
  near = [np.maximum(1 - np.abs(place - knot), 0) for knot in range(LATTICE)]
  return tuple(w * w * (3 - 2 * w) for w in near)
