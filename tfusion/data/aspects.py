"""Images of several aspects: which kind takes a picture, and which kinds suit pictures.

Owns: the shapes, the choice among them. Not: what a kind is (kinds.py), cropping and
resizing (images.py).

An aspect-ratio bucket, as the field calls it, is a kind that has the layers of another
and as many pixels or a few less, in another shape.
"""

import math
from collections.abc import Sequence

# A picture of more than this times the aspect of every kind would lose a third of what
# it shows at its edges, so it is none of them.
NEAR = 1.5
WIDEST = 4.0  # of the kinds that are chosen
EDGE = 1e-9  # a ratio that is NEAR itself counts as near, however it is rounded


def nearest(
  size: tuple[int, int], shapes: Sequence[tuple[int, ...]], *, near: float = NEAR
) -> int | None:
  """Which shape shows most of a picture; None: none of them shows enough.

  Args:
    size: width and height of the picture, in pixels.
    shapes: height and width of each, and perhaps more.
    near: how many times an aspect may be that of the other.
  """
  width, height = size
  apart = [_apart(height / width, shape) for shape in shapes]
  best = min(range(len(shapes)), key=apart.__getitem__)
  return best if apart[best] <= math.log(near) + EDGE else None


def choose(
  sizes: Sequence[tuple[int, int]], *, side: int, cell: int, count: int
) -> list[tuple[int, int]]:
  """Shapes of about side x side pixels by which pictures lose the least at their edges.

  They are chosen one after the other: each time the one that saves most.

  Args:
    sizes: width and height of the pictures, in pixels.
    side: of a square with as many pixels as a shape may have.
    cell: pixels that heights and widths are multiples of; it divides `side`.
    count: shapes, at most: fewer if another one would save nothing.

  Returns:
    Height and width of each, that of most pictures first.
  """
  open_ = _candidates(side, cell)
  aspects = [height / width for width, height in sizes]
  chosen: list[tuple[int, int]] = []
  lost = [math.inf] * len(aspects)

  def with_(shape: tuple[int, int]) -> list[float]:
    return [
      min(old, _cropped(aspect, shape))
      for old, aspect in zip(lost, aspects, strict=True)
    ]

  while open_ and len(chosen) < count:
    best = min(open_, key=lambda shape: (sum(with_(shape)), abs(shape[0] - shape[1])))
    now = with_(best)
    if chosen and sum(now) >= sum(lost):
      break
    lost = now
    chosen.append(best)
    open_.remove(best)
  found = [nearest(size, chosen, near=math.inf) for size in sizes]
  return sorted(chosen, key=lambda shape: -found.count(chosen.index(shape)))


def _candidates(side: int, cell: int) -> list[tuple[int, int]]:
  """Of every height the widest shape of no more pixels."""
  shapes = []
  for height in range(cell, int(side * WIDEST**0.5) + 1, cell):
    width = side * side // height // cell * cell
    if width and max(height / width, width / height) <= WIDEST:
      shapes.append((height, width))
  return shapes


def _apart(aspect: float, shape: Sequence[int]) -> float:
  return abs(math.log(aspect * shape[1] / shape[0]))


def _cropped(aspect: float, shape: tuple[int, int]) -> float:
  """The share of a picture that does not fit a shape, when its shorter side does."""
  return 1 - math.exp(-_apart(aspect, shape))
