"""Promises of tfusion/training/flops.py."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.model.unet import UNetPatches
from tfusion.training.flops import batch_flops, unet_multiplications
from tfusion.training.optim import decay_mask
from tfusion.training.step import gradients

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
  (kind,) = model.every_kind
  patches = tiny.fill(lambda rngs: UNetPatches(model, kind, rngs=rngs))

  def there_and_back(x, t):
    return patches.decode(*patches.encode(x, t, dtype=jnp.float32), grid=kind.grid)

  x, t = np.zeros((1, 1, 8, 8, 2), np.float32), np.ones((1, 1), np.int32)
  program = jax.make_jaxpr(there_and_back)(*tiny.put((x, t)))
  assert multiplications(program) == unet_multiplications(model, kind)


# Each switch alone: none of them has matrices of its own, but for the patch layers.
SWITCHES = {
  "plain": {},
  "qk_norm": dict(model__qk_norm="layer"),
  "norms": dict(model__norms="after"),
  "biases": dict(model__attention_bias=True),
  "causal": dict(model__image_attention="causal"),
  "axial": dict(model__positions="axial"),
  "places": dict(model__patch_places="learned"),
  "dropout": dict(model__dropout=0.1),
  "z_loss": dict(train__z_loss=1e-5),
  "flow": dict(diffusion__schedule="linear", diffusion__target="v")
  | dict(sample__sampler="euler"),
  "accumulate": dict(train__accumulate=2),
  "heads": dict(model__kv_heads=4),
  "text": dict(model__patches="none"),
  "unet": dict(model__patches="unet", model__unet_widths=(8, 16)),
  "kinds": dict(model__kinds=("tone:6x1,patch=3,slots=1",)),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_operations_of_a_step_are_those_of_its_program(mesh, switch):
  how = dict(model__attention="dense", model__remat="none", data__image_slots=2)
  config = tiny.config(**how | dict(train__batch_rows=2) | SWITCHES[switch])
  model, length, rng = config.model, config.data.row_length, np.random.default_rng(0)
  # Nothing is padding.
  documents = [
    (tiny.text(rng, 3), tiny.image(rng)),
    (tiny.image(rng), tiny.text(rng, 7)),
  ]
  if switch == "text":
    documents = [(tiny.text(rng, 10),), (tiny.text(rng, 12),)]
  if switch == "kinds":
    tone = tiny.image_of(rng, config, 1)
    documents[1] = tiny.image(rng), tiny.text(rng, 3), tone
  batch = sequence.stack([tiny.pack(documents, config)] * 2)
  assert np.all(batch.hi_bl >= batch.lo_bl)
  program = jax.make_jaxpr(functools.partial(gradients, config))(
    tiny.params(model), *tiny.put((batch,)), jax.random.key(0)
  )
  # What the program does beyond: pairs of which one does not see the other, logits of
  # patches, and the vector of time of linear patches.
  pairs = 2 * length**2 - np.sum(batch.hi_bl - batch.lo_bl + 1)
  beyond = 2 * model.layers * model.heads * model.head_dim * pairs
  if switch != "text":
    beyond += np.sum(batch.patch_bl >= 0) * model.width * model.vocab_size
    slots = sum(kind.starts.size for kind in batch.slots)
    beyond += slots * (256 + model.width) * model.width * (switch != "unet")
  # The U-Net computes the scores of its 4 cells again in the backward pass.
  again = 4 * 4**2 * model.unet_levels[-1] if switch == "unet" else 0
  want = batch_flops(model, batch) + 6 * beyond + 2 * again
  assert 2 * multiplications(program) == want


def multiplications(program) -> int:
  """Of the matmuls of a traced program, in every round of its loops.

  The gradient by the input of the patch layers is among them, which XLA drops.
  """
  program = getattr(program, "jaxpr", program)
  total = 0
  for equation in program.eqns:
    name, params = equation.primitive.name, equation.params
    assert name not in ("while", "cond", "conv_general_dilated"), name
    if name == "dot_general":
      shape, ((contracted, _), _) = (
        equation.invars[0].aval.shape,
        params["dimension_numbers"],
      )
      depth = math.prod(shape[i] for i in contracted)
      total += depth * equation.outvars[0].aval.size
    rounds = params["length"] if name == "scan" else 1
    total += rounds * sum(
      map(multiplications, jax.extend.core.jaxprs_in_params(params))
    )
  return total


def test_padding_and_neighbours_in_a_row_cost_nothing():
  rng = np.random.default_rng(0)
  documents = (tiny.text(rng, 3), tiny.image(rng)), (tiny.image(rng), tiny.text(rng, 2))
  rows = [[documents[0]], [documents[1]], list(documents), []]
  alone, other, together, empty = (
    batch_flops(CONFIG.model, sequence.stack([tiny.pack(row, CONFIG)])) for row in rows
  )
  assert together == alone + other and empty == 0
