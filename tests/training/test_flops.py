"""Promises of tfusion/training/flops.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.model.unet import UNetPatches
from tfusion.training.flops import batch_flops, unet_multiplications
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


def test_causal_patches_take_the_pairs_of_as_much_text():
  rng = np.random.default_rng(0)
  document = tiny.text(rng, 3), tiny.image(rng)
  causal = tiny.config(model__image_attention="causal")
  one, other = (
    batch_flops(c.model, sequence.stack([tiny.pack([document], c)]))
    for c in (CONFIG, causal)
  )
  # Of the four patches at 5 to 8 of 10 positions, 3, 2, 1 and 0 keys are not seen.
  assert one - other == 3 * 2 * 2 * (3 + 2 + 1) * 2 * 4 * 8


@pytest.mark.slow
@pytest.mark.parametrize("patch, widths", [(2, (8, 24)), (4, (8, 16, 24))])
def test_operations_of_a_unet_are_those_of_its_compiled_program(mesh, patch, widths):
  how = dict(model__patches="unet", model__patch=patch, model__unet_widths=widths)
  how |= dict(model__image_shape=(8, 8, 2), data__row_length=64)
  model = tiny.config(**how).model
  patches = tiny.fill(lambda rngs: UNetPatches(model, rngs=rngs))

  def there_and_back(x, t):
    return patches.decode(*patches.encode(x, t, dtype=jnp.float32))

  x, t = np.zeros((1, 1, 8, 8, 2), np.float32), np.ones((1, 1), np.int32)
  lowered = jax.jit(there_and_back).lower(*tiny.put((x, t)))
  total = 0
  for line in lowered.as_text().splitlines():
    if "stablehlo.dot_general" in line:
      contracted = re.search(r"contracting_dims = \[(.*?)\]", line)[1]
      shapes = re.findall(r"tensor<([\dx]*)xf32>", line)
      left, out = (list(map(int, s.split("x"))) for s in (shapes[0], shapes[2]))
      depth = np.prod([left[int(i)] for i in contracted.split(",")])
      total += int(depth * np.prod(out))
  assert total == unet_multiplications(model)


def test_padding_and_neighbours_in_a_row_cost_nothing():
  rng = np.random.default_rng(0)
  documents = (tiny.text(rng, 3), tiny.image(rng)), (tiny.image(rng), tiny.text(rng, 2))
  rows = [[documents[0]], [documents[1]], list(documents), []]
  alone, other, together, empty = (
    batch_flops(CONFIG.model, sequence.stack([tiny.pack(row, CONFIG)])) for row in rows
  )
  assert together == alone + other and empty == 0
