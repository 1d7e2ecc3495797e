"""The operations of a training step, counted as this project and as others do.

Owns: a row like those of the paper's mix, the counts. Not: what a compiled program does
(hlo.py), the count of a real batch (training/flops.py), on which this one rests.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tfusion.config import Config
from tfusion.model.transfusion import parameter_count
from tfusion.sequence import Batch, Slots
from tfusion.training.flops import batch_flops

CAPTION = 32  # elements of a caption, with BOS and EOS
TEXT = 1024  # elements of a document of text
TILE = 512  # side of a tile of the attention kernels


class Counts(NamedTuple):
  """Floating-point operations of a step, forward and backward, and live tiles."""

  exact: float  # of the pairs that see each other, as training/flops.py counts
  tiles: float  # of the live tiles of attention, which are computed whole
  square: float  # 6 N T with the embedding as a matmul, attention of all pairs
  full_tiles: int  # of a row and a head
  masked_tiles: int


def count(config: Config) -> Counts:
  """The counts of a batch of `typical_row`s.

  BAGEL and Megatron-Bridge count as `square` does: 6 operations for every parameter
  and element, the embedding table among the parameters, and 12 layers x width x
  length^2 for the attention of a row, as if everything saw everything.
  """
  rows, length, model = config.train.batch_rows, config.data.row_length, config.model
  lo_l, hi_l, patch_l = typical_row(config)
  starts = np.zeros((1, config.data.image_slots), np.int32)
  others = [np.zeros((1, 0), np.int32) for _ in model.kinds]  # the row has none
  none: Any = None  # what is not counted
  slots = tuple(Slots(none, own, none, none) for own in (starts, *others))
  row: Batch = Batch(
    none, none, none, none, lo_l[None], hi_l[None], patch_l[None], slots
  )
  exact = batch_flops(model, row)
  full, masked = live_tiles(lo_l, hi_l)
  pairs = int(np.sum(hi_l - lo_l + 1))
  each = 12.0 * model.layers * model.heads * model.head_dim  # of a pair
  # Of weights that are untied an element meets one.
  tied = dataclasses.replace(model, untied="none")
  square = 6.0 * parameter_count(tied) * length
  square += 12.0 * model.layers * model.width * length**2
  tiles = exact + each * ((full + masked) * min(TILE, length) ** 2 - pairs)
  return Counts(exact * rows, tiles * rows, square * rows, full, masked)


def typical_row(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """lo, hi and patches of a row that is half captioned images and half text; or of
  text alone, with `model.patches=none`.

  The paper mixes elements 1:1 (arXiv 2408.11039, section 4.1). A caption of 32 elements
  and documents of 1,024 are ours: how long these are decides little but the pairs.
  """
  length, patches = config.data.row_length, config.model.patches_per_image
  image = CAPTION + 2 + patches
  lo_l, hi_l = np.zeros(length, np.int32), np.arange(length, dtype=np.int32)
  patch_l = np.full(length, -1, np.int32)
  at = slot = text = 0
  while at < length:
    due = slot * image <= text and length - at >= image
    own = image if due and config.model.patches != "none" else TEXT
    end = min(at + own, length)
    lo_l[at:end] = at
    if own == image:
      first = at + CAPTION
      if config.model.image_attention == "bidirectional":
        hi_l[first : first + patches] = first + patches - 1
      patch_l[first : first + patches] = slot * patches + np.arange(patches)
      slot += 1
    else:
      text += end - at
    at = end
  return lo_l, hi_l, patch_l


def farthest(config: Config) -> int:
  """How many shards of `mesh.context` behind its own the farthest is that a query of
  `typical_row` sees, as attention/ring.py counts: at least 1."""
  lo_l, _, _ = typical_row(config)
  shard = len(lo_l) // config.mesh.context
  behind = np.arange(len(lo_l)) // shard - lo_l // shard
  return max(min(int(behind.max()), config.mesh.context - 2), 1)


def live_tiles(lo_l: np.ndarray, hi_l: np.ndarray) -> tuple[int, int]:
  """How many tiles of queries x keys of a row are seen whole, and in part."""
  side = min(TILE, len(lo_l))
  full = masked = 0
  for start in range(0, len(lo_l), side):
    lo, hi = lo_l[start : start + side], hi_l[start : start + side]
    for key in range(0, len(lo_l), side):
      if hi.max() >= key and lo.min() < key + side:
        whole = lo.max() <= key and hi.min() >= key + side - 1
        full, masked = full + int(whole), masked + int(not whole)
  return full, masked
