"""Promises of tfusion/training/losses.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from tfusion.model.patches import patchify
from tfusion.training.losses import Sum, image_loss, text_loss

pytestmark = pytest.mark.usefixtures("mesh")

B, L, V = 3, 5, 11


def tokens(seed: int = 0):
  rng = np.random.default_rng(seed)
  logits = 3 * rng.normal(size=(B, L, V)).astype(np.float32)
  targets = rng.integers(0, V, (B, L)).astype(np.int32)
  weights = rng.choice([0.0, 0.5, 1.0], (B, L)).astype(np.float32)
  return logits, targets, weights


def images(seed: int = 0, *, slots: int = 4, shape=(4, 4, 2)):
  rng = np.random.default_rng(seed)
  predicted, noise = rng.normal(size=(2, B, slots, *shape)).astype(np.float32)
  weights = rng.choice([0.0, 0.5, 1.0], (B, slots)).astype(np.float32)
  return predicted, noise, weights


@jax.jit
def text(logits, targets, weights) -> Sum:
  return text_loss(logits, targets, weights_bl=weights)


@jax.jit
def image(predicted, noise, weights) -> Sum:
  return image_loss(predicted, noise, weights_bn=weights)


@pytest.mark.slow
def test_text_loss_is_optax_cross_entropy_times_weight():
  logits, targets, weights = tokens()
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  got = text(logits, targets, weights)
  # float32 sums of 15 terms.
  assert float(got.total) == pytest.approx(float(jnp.sum(nats * weights)), rel=1e-5)
  assert float(got.count) == weights.sum() > 0
  assert float(got.mean()) == pytest.approx(float(got.total) / weights.sum(), rel=1e-6)


def test_z_loss_adds_the_square_of_log_z_and_says_how_much():
  logits, targets, weights = tokens()

  @jax.jit
  def both(logits):
    with_z = text_loss(logits, targets, weights_bl=weights, z_loss=0.1)
    plain = text_loss(logits, targets, weights_bl=weights)
    return with_z, plain.total, plain.z

  found, plain, none = both(logits)
  log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
  want = 0.1 * np.sum(log_z**2 * weights)
  assert float(found.z) == pytest.approx(want, rel=1e-5) and none is None
  assert float(found.total) == pytest.approx(float(plain) + want, rel=1e-5)


def test_logits_of_bfloat16_are_reduced_in_float32():
  logits, targets, weights = tokens()
  logits = jnp.asarray(logits, jnp.bfloat16)
  want = text(logits.astype(jnp.float32), targets, weights)
  assert jnp.array_equal(text(logits, targets, weights).total, want.total)


def test_image_loss_is_the_mean_over_an_image_summed_over_images():
  predicted, noise, weights = images()
  want = (((predicted - noise) ** 2).mean((2, 3, 4)) * weights).sum()
  got = image(predicted, noise, weights)
  assert float(got.total) == pytest.approx(want, rel=1e-5)
  assert float(got.count) == weights.sum() > 0


@pytest.mark.slow
def test_an_image_counts_alike_in_any_number_of_slots_and_patches():
  predicted, noise, weights = images(slots=2)
  before = image(predicted, noise, weights)
  empty = ((0, 0), (1, 3), (0, 0), (0, 0), (0, 0))
  padded = [np.pad(x, empty[: x.ndim]) for x in (predicted, noise, weights)]
  # Another order of the same sum.
  assert float(image(*padded).total) == pytest.approx(float(before.total), rel=1e-6)
  assert float(image(*padded).count) == float(before.count)
  # The mean over patches of the mean over each patch, whatever their size.
  for patch in (1, 2, 4):
    p, n = (patchify(tiny.put(x), patch=(patch, patch)) for x in (predicted, noise))
    by_patch = np.mean((np.asarray(p) - np.asarray(n)) ** 2, -1).mean(-1)
    assert (by_patch * weights).sum() == pytest.approx(float(before.total), rel=1e-5)


def test_sums_of_parts_divided_once_are_the_mean_of_the_whole():
  values = tokens()
  whole = text(*values)
  parts = [text(*(x[i : i + 1] for x in values)) for i in range(B)]
  total = jax.tree.map(lambda *x: sum(x), *parts)
  assert float(total.mean()) == pytest.approx(float(whole.mean()), rel=1e-6)
  counts = {float(part.count) for part in parts}
  assert len(counts) > 1  # so that the mean of means would be another number
  assert abs(np.mean([float(p.mean()) for p in parts]) - float(whole.mean())) > 1e-3


@pytest.mark.slow
def test_nothing_counted_is_a_loss_of_zero_with_a_gradient_of_zero():
  logits, targets, weights = tokens()
  predicted, noise, image_weights = images()
  for loss, values, w in (
    (text, (logits, targets), weights),
    (image, (predicted, noise), image_weights),
  ):
    nothing = loss(*values, 0 * w)
    assert float(nothing.mean()) == float(nothing.total) == float(nothing.count) == 0
    gradient = jax.grad(lambda x: loss(x, values[1], 0 * w).mean())(values[0])  # noqa: B023
    assert not np.any(gradient)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_weighs_nothing_may_be_anything(bad):
  logits, targets, weights = tokens()
  predicted, noise, image_weights = images()
  assert (weights == 0).any() and (image_weights == 0).any()
  bad_logits, bad_predicted = logits.copy(), predicted.copy()
  bad_logits[weights == 0] = bad
  bad_predicted[image_weights == 0] = bad
  got, want = text(bad_logits, targets, weights), text(logits, targets, weights)
  assert float(got.total) == float(want.total)
  got = image(bad_predicted, noise, image_weights)
  assert float(got.total) == float(image(predicted, noise, image_weights).total)
