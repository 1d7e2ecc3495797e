"""Given elements as arrays: what a prompt puts into the cache at once.

Owns: Block, lengths that programs are compiled for. Not: the cache (store.py), what is
computed of it (feeding.py).

b batch  l queries  n image slots  h w c latent height, width, channels
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple

import numpy as np

from tfusion.config import ModelConfig
from tfusion.sequence import (
  A,
  Elements,
  KindSizes,
  count_positions,
  number_patches,
  position_steps,
)

LEAST = 16  # positions: no program is compiled for fewer


class Block(NamedTuple, Generic[A]):
  """Elements to put into the cache; ragged rows are padded at their ends."""

  tokens_bl: A  # i32
  patch_bl: A | None  # i32, as in sequence.Batch; None: no row has an image
  hi_bl: A  # i32, the last cache position seen
  latents: tuple[A, ...]  # of every kind f32[b, n, h, w, c], clean
  at_b: A  # i32, cache position of the first element
  count_b: A  # i32, elements of the row
  positions_bl: A | None = None  # i32, of RoPE; None: those of the cache


def round_up(length: int) -> int:
  """The length that a program is compiled for: of those between two powers of two
  there are four, so that few are compiled and a fifth at most is padding."""
  step = 1 << max(length - 1, LEAST).bit_length() - 3
  step = max(LEAST, step)
  return -(-length // step) * step


def round_rows(rows: int, *, least: int = 1) -> int:
  """The number of rows that a program is compiled for: the next power of two."""
  return max(least, 1 << (rows - 1).bit_length())


def make_block(
  config: ModelConfig,
  laid: Sequence[Elements],
  *,
  at: Sequence[int] | np.ndarray,
  length: int,
  first: Sequence[int] | np.ndarray | None = None,
) -> Block[np.ndarray]:
  """Pads rows of elements, which go to the cache positions `at`, to one length.

  `first` are the positions, of RoPE, of their first elements; None: `at`.
  """
  b, kinds = len(laid), config.every_kind
  counts = [[image.kind for image in e.images] for e in laid]
  most = [max(own.count(k) for own in counts) for k in range(len(kinds))]
  slots = [round_rows(n) if n else 0 for n in most]
  block: Block[np.ndarray] = Block(
    tokens_bl=np.zeros((b, length), np.int32),
    patch_bl=np.full((b, length), -1, np.int32),
    hi_bl=np.asarray(at, np.int32)[:, None] + np.arange(length, dtype=np.int32),
    latents=tuple(
      np.zeros((b, n, *kind.shape), np.float32)
      for kind, n in zip(kinds, slots, strict=True)
    ),
    at_b=np.asarray(at, np.int32),
    count_b=np.asarray([len(e.tokens_l) for e in laid], np.int32),
  )
  assert block.patch_bl is not None
  for row, e in enumerate(laid):
    own = len(e.tokens_l)
    block.tokens_bl[row, :own] = e.tokens_l
    block.patch_bl[row, :own] = e.patch_l
    block.hi_bl[row, :own] = at[row] + e.hi_l
    number_patches(block.patch_bl[row], e.images, sizes(config, slots))
    used = [0] * len(kinds)
    for image in e.images:
      block.latents[image.kind][row, used[image.kind]] = image.latent
      used[image.kind] += 1
  if config.positions != "sequence":
    first_b = np.asarray(at if first is None else first, np.int32)
    counted = [count_positions(own_l, sizes(config, slots)) for own_l in block.patch_bl]
    block = block._replace(positions_bl=first_b[:, None] + np.stack(counted))
  return block if any(slots) else block._replace(patch_bl=None, latents=())


def sizes(config: ModelConfig, slots: Sequence[int]) -> list[KindSizes]:
  """Of every kind, in rows of so many slots."""
  return [
    KindSizes(n, kind.shape, kind.patches, position_steps(config.positions, kind.grid))
    for kind, n in zip(config.every_kind, slots, strict=True)
  ]
