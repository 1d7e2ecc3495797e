"""The floating-point operations that a training step needs.

Owns: their count for a batch. Not: how many a machine can do (machine.py).
"""

import numpy as np

from tfusion.config import ModelConfig
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
  patches = int(np.sum(batch.patch_bl >= 0))
  text = int(np.sum(live_bl)) - patches
  pairs = int(np.sum(np.where(live_bl, batch.hi_bl - batch.lo_bl + 1, 0)))
  matmul = (text + patches) * config.layers * block
  heads = text * d * config.vocab_size
  if config.patches == "unet":
    heads += patches // config.patches_per_image * unet_multiplications(config)
  else:
    heads += patches * 2 * d * config.patch**2 * config.image_shape[2]
  return 6.0 * (matmul + heads) + 12.0 * config.layers * config.heads * k * pairs


def unet_multiplications(config: ModelConfig) -> int:
  """Multiplications of both halves of the U-Net for one image, forward.

  Convolutions count as if the border were image; the time vector counts too.
  """
  widths, (h, w, channels) = config.unet_levels, config.image_shape
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
