"""The floating-point operations that a training step needs.

Owns: their count for a batch. Not: how many a machine can do (machine.py).
"""

import numpy as np

from tfusion.config import ModelConfig
from tfusion.kinds import Kind
from tfusion.sequence import Batch


def batch_flops(config: ModelConfig, batch: Batch[np.ndarray]) -> float:
  """Floating-point operations that a training step needs for the live elements.

  Forward and backward matmuls, 6 per parameter and element, and attention over the
  pairs that see each other; not padding, not recomputation, not the embedding lookup.
  """
  d, k = config.width, config.head_dim
  attention = d * k * (2 * config.heads + 2 * config.kv_heads)
  block = attention + 3 * d * config.mlp
  live_bl = batch.hi_bl >= batch.lo_bl
  by_kind = _patches_by_kind(config, batch)
  patches = sum(by_kind)
  text = int(np.sum(live_bl)) - patches
  pairs = int(np.sum(np.where(live_bl, batch.hi_bl - batch.lo_bl + 1, 0)))
  matmul = (text + patches) * config.layers * block
  heads = text * d * config.vocab_size
  for kind, own in zip(config.every_kind, by_kind, strict=True):
    if kind.layers == "unet":
      heads += own // kind.patches * unet_multiplications(config, kind)
    else:
      heads += own * 2 * d * kind.patch_numbers
  return 6.0 * (matmul + heads) + 12.0 * config.layers * config.heads * k * pairs


def _patches_by_kind(config: ModelConfig, batch: Batch[np.ndarray]) -> list[int]:
  """Patches of every kind in a batch."""
  slots = [kind.starts.shape[1] for kind in batch.slots]
  of_slots = [
    n * kind.patches for n, kind in zip(slots, config.every_kind, strict=True)
  ]
  firsts = [0, *np.cumsum(of_slots)[:-1], np.inf]
  return np.histogram(batch.patch_bl, bins=firsts)[0].tolist()


def unet_multiplications(config: ModelConfig, kind: Kind) -> int:
  """Multiplications of both halves of the U-Net for one image, forward.

  Convolutions count as if the border were image; the time vector counts too.
  """
  widths, (h, w, channels) = config.levels_of(kind.patch[0]), kind.shape
  time = 4 * widths[-1]
  total = 256 * time + time * time

  def residual(cells: int, inputs: int, outputs: int) -> int:
    skip = 0 if inputs == outputs else inputs * outputs
    return cells * (9 * (inputs + outputs) * outputs + skip) + time * outputs

  cells, width = h * w, widths[0]
  total += 2 * cells * 9 * channels * width  # the first and the last convolution
  skips = [width]
  for level, to in enumerate(widths):
    for _ in range(2):
      total += residual(cells, width, to)
      width = to
      skips.append(width)
    if level + 1 < len(widths):
      cells //= 4
      total += cells * 9 * width * width
      skips.append(width)
  total += 2 * residual(cells, width, width)
  total += cells * (4 * width * width + 2 * cells * width)  # attention among cells
  total += 2 * cells * width * config.width
  for level in reversed(range(len(widths))):
    for _ in range(3):
      total += residual(cells, width + skips.pop(), widths[level])
      width = widths[level]
    if level:
      cells *= 4
      total += cells * 9 * width * width
  return total
