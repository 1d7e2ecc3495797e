"""Promises of tfusion/training/flops.py."""

import jax
import numpy as np
import tiny

from tfusion import sequence
from tfusion.training.flops import batch_flops
from tfusion.training.optim import decay_mask

CONFIG = tiny.config()


def test_operations_of_one_row_are_those_counted_by_hand():
  rng = np.random.default_rng(0)
  document = tiny.text(rng, 3), tiny.image(rng)
  batch = sequence.stack([tiny.pack([document], CONFIG)])
  # BOS, 3 tokens, BOI, 4 patches, EOI; what is left of the row is padding.
  text, patches, layers = 6, 4, 2
  # Queries and outputs, keys and values of half as many heads, the three of SwiGLU.
  layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
  # A text element meets the head of 32 tokens, a patch of 8 numbers enters and leaves.
  multiplied = (text + patches) * layers * layer + text * 32 * 32 + patches * 2 * 8 * 32
  # Text sees what is before it and itself, a patch all up to the last patch.
  pairs = (1 + 2 + 3 + 4 + 5) + 4 * 9 + 10
  # Scores and the mean of the values: 4 heads of 8 numbers each time.
  multiplied += layers * pairs * 2 * 4 * 8
  # A product and a sum; forward once, backward twice.
  assert batch_flops(CONFIG.model, batch) == 3 * 2 * multiplied
  # The matrices of a layer are those of the model, none forgotten.
  blocks = tiny.params(CONFIG.model)["transformer"]
  sizes = jax.tree.map(lambda x, matrix: x.size * matrix, blocks, decay_mask(blocks))
  assert sum(jax.tree.leaves(sizes)) == layers * layer


def test_padding_and_neighbours_in_a_row_cost_nothing():
  rng = np.random.default_rng(0)
  documents = (tiny.text(rng, 3), tiny.image(rng)), (tiny.image(rng), tiny.text(rng, 2))
  rows = [[documents[0]], [documents[1]], list(documents), []]
  alone, other, together, empty = (
    batch_flops(CONFIG.model, sequence.stack([tiny.pack(row, CONFIG)])) for row in rows
  )
  assert together == alone + other and empty == 0
