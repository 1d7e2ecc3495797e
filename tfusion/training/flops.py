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
  numbers = config.patch**2 * config.image_shape[2]
  matmul = (text + patches) * config.layers * block
  heads = text * d * config.vocab_size + patches * 2 * d * numbers
  return 6.0 * (matmul + heads) + 12.0 * config.layers * config.heads * k * pairs
