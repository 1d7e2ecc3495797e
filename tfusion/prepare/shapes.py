"""Which shapes the images of a job get, where they may have several.

Owns: the look at the source, what is said of it. Not: the choice itself
(data/aspects.py), decoding (data/images.py).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfusion.data import aspects, images
from tfusion.prepare import raw

SAMPLE_PARTS = 64
SAMPLE_IMAGES = 4096
CELLS = 8  # into which the side of a square is cut, at most: there are few shapes then


def choose(
  parts: Sequence[raw.Part], *, source: str, px: int, factor: int, count: int
) -> list[tuple[int, int]]:
  """Chooses height and width in pixels, that of most images first, and says so.

  Args:
    parts: of the source.
    source: as it was given, for messages.
    px: side of a square with as many pixels as an image may have.
    factor: pixels along the side of a latent's cell; 1 without an autoencoder.
    count: shapes, at most.

  Raises:
    ValueError: none of the documents that were looked at has an image.
  """
  sizes = sample_sizes(parts)
  if not sizes:
    raise ValueError(
      f"--aspects={count}: none of the documents of {source} that were looked at has an"
      " image that can be opened"
    )
  # Two cells at least: a patch of the model is often two of them.
  cell = factor * max(2, px // factor // CELLS)
  chosen = aspects.choose(sizes, side=px, cell=cell, count=count)
  near = aspects.NEAR if len(chosen) > 1 else math.inf  # to one all are cropped
  found = [aspects.nearest(size, chosen, near=near) for size in sizes]
  shares = [
    f"{height}x{width} {found.count(n) / len(found):.1%}"
    for n, (height, width) in enumerate(chosen)
  ]
  lost = found.count(None)
  print(
    f"{source}: aspects of {len(sizes):,} images, height x width in pixels:"
    f" {', '.join(shares)}"
    f"{f', and of none {lost / len(found):.1%}, which are left out' if lost else ''}",
    flush=True,
  )
  return chosen


def sample_sizes(parts: Sequence[raw.Part]) -> list[tuple[int, int]]:
  """Width and height of images from all over a source."""
  step = max(-(-len(parts) // SAMPLE_PARTS), 1)
  each = max(SAMPLE_IMAGES // max(len(parts[::step]), 1), 1)
  return [size for part in parts[::step] for size in _sizes_of(part, each)]


def _sizes_of(part: raw.Part, left: int) -> list[tuple[int, int]]:
  sizes: list[tuple[int, int]] = []
  for document in part.read():
    document = raw.clean(document) if isinstance(document, raw.Raw) else document
    if isinstance(document, raw.Rejected):
      continue
    for span in document.spans:
      if isinstance(span, Path | bytes | images.Page | np.ndarray):
        size = images.size_of(span)
        sizes += [size] if size else []
    if len(sizes) >= left:
      break
  return sizes[:left]
