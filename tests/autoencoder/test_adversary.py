"""Promises of tfusion/autoencoder/adversary.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfusion.autoencoder import adversary
from tfusion.autoencoder_config import LossConfig

pytestmark = pytest.mark.usefixtures("mesh")

TINY = dataclasses.replace(LossConfig(), adversary_width=3, adversary_levels=1)


def shapes(config: LossConfig) -> dict:
  return jax.eval_shape(lambda: adversary.init(config, jax.random.key(0)))


def test_the_default_is_the_patch_discriminator_of_the_reference():
  # 4x4 kernels 3-64-128-256-512-1; biases outside, a scale and a shift with each norm.
  wanted = 4 * 4 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
  wanted += 64 + 2 * (128 + 256 + 512) + 1
  assert sum(x.size for x in shapes(LossConfig()).values()) == wanted == 2_765_633
  x = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)

  def score(params, x):
    return adversary.score(LossConfig(), params, x, dtype=jnp.float32)

  out = jax.eval_shape(score, shapes(LossConfig()), x)
  assert out.shape == (2, 30, 30)  # of 70 x 70 patches, arXiv 1611.07004


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_least_side_leaves_one_score_or_more(levels):
  config = dataclasses.replace(TINY, adversary_levels=levels)

  def sides(side):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)

    def score(params, x):
      return adversary.score(config, params, x, dtype=jnp.float32)

    return jax.eval_shape(score, shapes(config), x).shape[1:]

  least = adversary.least_side(config)
  assert min(sides(least)) >= 1 and min(sides(least - 2**levels)) < 1


@pytest.mark.slow
def test_a_score_depends_on_its_own_image_alone():
  params = adversary.init(TINY, jax.random.key(0))
  x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
  score = jax.jit(lambda x: adversary.score(TINY, params, x, dtype=jnp.float32))
  changed = x.copy()
  changed[1] = -changed[1]
  before, after = np.asarray(score(x)), np.asarray(score(changed))
  assert np.array_equal(before[0], after[0])
  assert not np.array_equal(before[1], after[1])


def test_the_hinge_is_zero_beyond_one_and_the_generator_wants_high_scores():
  scores = [jnp.asarray([[[value]]], jnp.float32) for value in (-2.0, 0.5, 2.0)]
  low, middle, high = scores
  assert float(adversary.discriminator_loss(high, low)) == 0
  assert float(adversary.discriminator_loss(low, high)) == 3  # (1 + 2 + 1 + 2) / 2
  assert float(adversary.discriminator_loss(middle, middle)) == 1  # (0.5 + 1.5) / 2
  assert float(adversary.generator_loss(high)) == -2
