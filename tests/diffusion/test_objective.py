"""Promises of tfusion/diffusion/objective.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from tfusion.diffusion.objective import clean_of, min_snr_weight, target_of
from tfusion.diffusion.process import scales

T = 1000
BOTH = [(s, t) for s in ("cosine", "linear") for t in ("eps", "x0", "v")]


def images(schedule, t):
  clean, noise = np.random.default_rng(0).normal(size=(2, len(t), 4, 4, 1))
  dtype = jnp.float32 if schedule == "linear" else jnp.int32
  at = scales(jnp.asarray(t, dtype), timesteps=T, schedule=schedule)
  return jnp.float32(clean), jnp.float32(noise), at


@pytest.mark.parametrize("schedule, target", BOTH)
def test_the_right_prediction_means_the_clean_image(schedule, target):
  clean, noise, at = images(schedule, [1, 300, 700, 900])
  how = dict(target=target, schedule=schedule)
  x = at.signal * clean + at.spread * noise
  got = clean_of(target_of(clean, noise, at, **how), x, at, **how)
  # Rounding of numbers near 1, divided by a signal of 0.1 at t = 900.
  np.testing.assert_allclose(got, clean, atol=1e-5)


@pytest.mark.slow
def test_v_is_how_x_moves_with_t():
  clean, noise, at = images("linear", [400])
  v = target_of(clean, noise, at, target="v", schedule="linear")
  np.testing.assert_allclose(v, noise - clean, atol=1e-7)
  # On the cosine schedule signal and spread are cosine and sine of an angle.
  clean, noise, at = images("cosine", [400])
  v = target_of(clean, noise, at, target="v", schedule="cosine")
  x = at.signal * clean + at.spread * noise
  np.testing.assert_allclose(np.mean(v**2 + x**2), np.mean(clean**2 + noise**2), 1e-5)
  np.testing.assert_allclose(v, at.signal * noise - at.spread * clean, atol=1e-6)


@pytest.mark.parametrize("schedule, target", BOTH)
def test_min_snr_weighs_errors_of_the_clean_image_alike_for_every_target(
  schedule, target
):
  gamma, clean, (signal, spread) = 5.0, *images(schedule, [10, 300, 700, 950])[::2]
  how = dict(target=target, schedule=schedule)
  x = clean  # any image: what an error of the prediction does to the clean one counts
  zero, one = jnp.zeros_like(x), jnp.ones_like(x)
  at = scales(
    jnp.asarray([10, 300, 700, 950], "float32" if schedule == "linear" else "int32"),
    timesteps=T,
    schedule=schedule,
  )
  error = clean_of(one, x, at, **how) - clean_of(zero, x, at, **how)
  snr = np.square(signal / spread)
  want = np.minimum(snr, gamma) * np.square(error)
  got = min_snr_weight(at, target=target, gamma=gamma)
  np.testing.assert_allclose(got, np.mean(want, (1, 2, 3)), rtol=2e-4)


@pytest.mark.slow
def test_min_snr_weights_are_those_of_the_publication():
  at = images("cosine", [100, 500, 900])[2]
  snr = np.square(at.signal / at.spread)[:, 0, 0, 0]
  capped = np.minimum(snr, 5.0)
  for target, want in (
    ("eps", capped / snr),
    ("x0", capped),
    ("v", capped / (snr + 1)),
  ):
    got = min_snr_weight(at, target=target, gamma=5.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=target)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_min_snr_weights_are_finite_at_both_ends(target):
  at = images("linear", [0, T])[2]
  assert np.all(np.isfinite(min_snr_weight(at, target=target, gamma=5.0)))
