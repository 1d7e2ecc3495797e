"""Gradients in bfloat16 beside those in float32, leaf by leaf, of many patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tfusion import autoencoder_config, sequence
from tfusion.autoencoder import adversary
from tfusion.autoencoder.network import Conv
from tfusion.training.step import gradients, init_state

ROWS, IMAGES, SHAPE, PATCHES = 24, 3, (16, 16, 4), 64  # 4,608 patches

# Rounding to bfloat16 is 2^-9 relative at worst, 0.2 % at random; a gradient has passed
# a few such roundings in each of its terms. Measured: 0.2 to 0.6 % for every leaf, and,
# while it was summed in bfloat16, 9 % for the bias of the patches over 9,216 of them.
WORST = 0.02


def config(dtype: str):
  return tiny.config(
    model__dtype=dtype,
    model__image_shape=SHAPE,
    model__layers=1,
    data__row_length=256,
    data__image_slots=IMAGES,
    train__batch_rows=ROWS,
  )


def many_patches() -> sequence.Batch:
  rng = np.random.default_rng(0)

  def document():
    ids = rng.integers(tiny.FIRST_TEXT, 32, rng.integers(5, 15)).astype(np.int32)
    image = sequence.Image(rng.normal(size=SHAPE).astype(np.float32))
    return sequence.lay_out(
      (sequence.Text(ids), image), special=tiny.SPECIAL, patches_per_image=(PATCHES,)
    )

  return sequence.pack_rows(
    [[document() for _ in range(IMAGES)] for _ in range(ROWS)],
    row_length=256,
    kinds=(sequence.KindSizes(IMAGES, SHAPE, PATCHES),),
    special=tiny.SPECIAL,
  )


def errors(narrow, wide) -> dict[str, float]:
  """Distance of each leaf from its twin, relative to the length of that."""
  leaves = jax.tree_util.tree_flatten_with_path(wide)[0]
  found = {}
  for (path, x), y in zip(leaves, jax.tree.leaves(narrow), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found[jax.tree_util.keystr(path)] = np.linalg.norm(y - x) / np.linalg.norm(x)
  return found


@pytest.mark.slow
def test_every_gradient_of_the_model_in_bfloat16_is_near_that_in_float32():
  with tiny.one_device():
    batch = tiny.put(many_patches())
    start = init_state(config("float32"), jax.random.key(0)).params
    narrow, wide = (
      jax.jit(lambda p, b, c=config(dtype): gradients(c, p, b, jax.random.key(0))[0])(
        start, batch
      )
      for dtype in ("bfloat16", "float32")
    )
  found = errors(narrow, wide)
  assert len(found) == 20 and max(found.values()) < WORST, found
  assert min(found.values()) > 1e-4, found  # it was computed in bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("net", ["autoencoder", "adversary"])
def test_the_bias_of_a_convolution_is_summed_over_all_pixels_in_float32(net):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
  if net == "autoencoder":
    graphdef, weights = nnx.split(tiny.fill(lambda rngs: Conv(3, 8, rngs=rngs)))
    score = lambda w, x, dtype: nnx.merge(graphdef, w)(x.astype(dtype))  # noqa: E731

  else:
    loss = autoencoder_config.LossConfig(adversary_width=8, adversary_levels=1)
    weights = adversary.init(loss, jax.random.key(0))
    score = lambda w, x, dtype: adversary.score(loss, w, x, dtype=dtype)  # noqa: E731

  def mean(weights, x, dtype):
    return jnp.mean(jnp.square(score(weights, x, dtype).astype(jnp.float32) + 1))

  with tiny.one_device():
    narrow, wide = (
      jax.jit(jax.grad(lambda w, x, d=dtype: mean(w, x, d)))(weights, jnp.asarray(x))
      for dtype in (jnp.bfloat16, jnp.float32)
    )
  found = errors(narrow, wide)
  biases = {name: error for name, error in found.items() if "bias" in name}
  assert biases and max(biases.values()) < WORST, found
