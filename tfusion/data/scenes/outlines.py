"""The outlines that drawn things may have, and how much of a pixel they cover.

Owns: the shapes' geometry, exact areas of pixels under them. Not: where things stand
(scene.py), colours (render.py).

k shapes  n things

An outline lies in the square [-1, 1]^2, x to the right, y down. A table counts the
cells of a fine grid inside it, so that four lookups give the part of a pixel that it
covers. Only + - * / and comparisons of doubles are used, here and in render.py: every
machine draws the same bytes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

CELLS = 512  # of the fine grid, along a side; 19 or more to a pixel of 1/64 image

# Corners by hand: sine and cosine differ in the last bit between libraries.
_POLYGONS = {
  "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
  "triangle": ((0.0, -0.8), (0.95, 0.8454483), (-0.95, 0.8454483)),  # equilateral
  "diamond": ((0.0, -0.95), (0.76, 0.0), (0.0, 0.95), (-0.76, 0.0)),
  "cross": (
    *((-0.32, -0.9), (0.32, -0.9), (0.32, -0.32), (0.9, -0.32), (0.9, 0.32)),
    *((0.32, 0.32), (0.32, 0.9), (-0.32, 0.9), (-0.32, 0.32), (-0.9, 0.32)),
    *((-0.9, -0.32), (-0.32, -0.32)),
  ),
  "star": (  # five points; inner corners at 0.45 of the outer ones
    *((0.0, -0.95), (0.2512772, -0.3458534), (0.9035037, -0.2935661)),
    *((0.4065750, 0.1321043), (0.5583960, 0.7685661), (0.0, 0.4275)),
    *((-0.5583960, 0.7685661), (-0.4065750, 0.1321043), (-0.9035037, -0.2935661)),
    (-0.2512772, -0.3458534),
  ),
}


def _inside_polygon(corners: Sequence[tuple[float, float]]) -> Callable:
  """Even-odd rule: a ray to the right crosses the outline an odd number of times."""

  def inside(x, y):
    odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0])):
      if y0 != y1:
        crosses = (y0 > y) != (y1 > y)
        odd ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return odd

  return inside


def _inside_heart(x, y):
  """A square on its corner, with half a disc on each upper side."""
  half = 0.46  # of a side; the discs' radius
  up = half / math.sqrt(2)
  low = y - 0.2
  square = np.abs(x) + np.abs(low) <= half * math.sqrt(2)
  discs = [(x - s * up) ** 2 + (low + up) ** 2 <= half**2 for s in (-1, 1)]
  return square | discs[0] | discs[1]


_INSIDE: dict[str, Callable] = {
  "circle": lambda x, y: x * x + y * y <= 0.81,
  "ring": lambda x, y: (x * x + y * y <= 0.81) & (x * x + y * y >= 0.2025),
  "heart": _inside_heart,
} | {name: _inside_polygon(corners) for name, corners in _POLYGONS.items()}

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")


@dataclasses.dataclass(frozen=True)
class Outlines:
  """Tables of all SHAPES. A thing of radius 1 has the area of a disc of radius 1, so
  things of one size look equally large, and its position is its centre of mass."""

  counts_kyx: np.ndarray  # i32, cells inside among the first y rows and x columns
  centre_kx: np.ndarray  # f64[k, 2], x and y of the centre of mass in the table
  scale_k: np.ndarray  # f64, what radius 1 is in the table
  reach_kb: np.ndarray  # f64[k, 4], left, top, right, bottom at radius 1, all positive


@functools.cache
def outlines() -> Outlines:
  """Makes the tables once in a process; 8 MiB, a few hundredths of a second."""
  line = (np.arange(CELLS) + 0.5) * (2 / CELLS) - 1
  counts, centres, scales, reaches = [], [], [], []
  for name in SHAPES:
    mask_yx = _INSIDE[name](line[None, :], line[:, None])
    columns, rows = mask_yx.sum(0), mask_yx.sum(1)
    cells = int(mask_yx.sum())
    centre = np.asarray([_mean(columns, cells), _mean(rows, cells)])
    scale = math.sqrt(cells * (2 / CELLS) ** 2 / math.pi)
    edges = [np.flatnonzero(counted)[[0, -1]] for counted in (columns, rows)]
    low = [centre[i] - (edges[i][0] * 2 / CELLS - 1) for i in (0, 1)]
    high = [((edges[i][1] + 1) * 2 / CELLS - 1) - centre[i] for i in (0, 1)]
    table_yx = np.zeros((CELLS + 1, CELLS + 1), np.int32)
    table_yx[1:, 1:] = mask_yx.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    counts.append(table_yx)
    centres.append(centre)
    scales.append(scale)
    reaches.append(np.asarray([*low, *high]) / scale)
  return Outlines(
    np.stack(counts), np.stack(centres), np.asarray(scales), np.stack(reaches)
  )


def coverage(
  shape_n: np.ndarray,
  x_n: np.ndarray,
  y_n: np.ndarray,
  radius_n: np.ndarray,
  *,
  left_n: np.ndarray,
  top_n: np.ndarray,
  size: int,
) -> np.ndarray:
  """Returns the covered parts of the pixels of windows, f64[n, size, size] in [0, 1].

  Args:
    shape_n: indices into SHAPES.
    x_n: centres of mass, in pixels from the left.
    y_n: centres of mass, in pixels from the top.
    radius_n: of the discs of the same area, in pixels, > 0.
    left_n: first columns of the windows; they may reach beyond the image.
    top_n: first rows.
    size: pixels along a side of every window.
  """
  table = outlines()
  scale_n = table.scale_k[shape_n] / radius_n
  start_n2 = np.stack([left_n - x_n, top_n - y_n], -1)
  place_n2s = (start_n2[..., None] + np.arange(size + 1)) * scale_n[:, None, None]
  place_n2s += table.centre_kx[shape_n][..., None] + 1
  cell_n2s = np.floor(place_n2s * (CELLS / 2) + 0.5).astype(np.int64)
  in_n2s = np.clip(cell_n2s, 0, CELLS)
  rows, columns = in_n2s[:, 1, :, None], in_n2s[:, 0, None, :]
  counted = table.counts_kyx[shape_n[:, None, None], rows, columns]
  above = counted[:, 1:] - counted[:, :-1]
  inside = above[:, :, 1:] - above[:, :, :-1]
  wide_n2s = cell_n2s[..., 1:] - cell_n2s[..., :-1]
  return inside / (wide_n2s[:, 1, :, None] * wide_n2s[:, 0, None, :])


def reach(shape: int, radius: float) -> tuple[float, float, float, float]:
  """How far a thing reaches to the left, top, right and bottom, in units of radius."""
  left, top, right, bottom = (outlines().reach_kb[shape] * radius).tolist()
  return left, top, right, bottom


def _mean(counted: np.ndarray, cells: int) -> float:
  # In whole numbers: the order in which a library adds floats is its own.
  twice = int(((2 * np.arange(CELLS) + 1 - CELLS) * counted).sum())
  return twice / (cells * CELLS)
