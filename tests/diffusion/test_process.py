"""Promises of tfusion/diffusion/process.py."""

import jax
import numpy as np
import pytest

from tfusion.diffusion.process import add_noise, cosine_abar, draw_t, shifted

T = 1000


def test_the_cosine_schedule_has_the_published_values():
  abar = cosine_abar(T)
  # The specification counts steps from 0, we from 1; at 0 nothing is noised.
  for t, value in {1: 0.999959, 250: 0.847012, 500: 0.493844, 750: 0.144272}.items():
    assert abar[t] == pytest.approx(value, abs=1e-6)
  assert abar[T] == pytest.approx(2.43e-9, rel=1e-2)  # three digits are given
  assert abar[0] == 1.0


def test_signal_only_falls_and_no_step_takes_more_than_the_largest_beta():
  abar = cosine_abar(T)
  betas = 1 - abar[1:] / abar[:-1]
  assert len(abar) == T + 1
  assert np.all(betas > 0)
  assert betas.max() == pytest.approx(0.999)


@pytest.mark.slow
def test_noise_is_added_as_the_schedule_says_with_one_t_per_image():
  rng = np.random.default_rng(0)
  clean, noise = rng.normal(size=(2, 2, 3, 4, 4, 1))
  t = np.asarray([[0, 1, 500], [999, 1000, 7]], np.int32)
  noisy = add_noise(
    clean.astype(np.float32),
    noise.astype(np.float32),
    jax.numpy.asarray(t),
    timesteps=T,
  )
  for i, j in np.ndindex(t.shape):
    abar = cosine_abar(T)[t[i, j]]
    expected = np.sqrt(abar) * clean[i, j] + np.sqrt(1 - abar) * noise[i, j]
    # A few roundings of float32 numbers near 1.
    np.testing.assert_allclose(noisy[i, j], expected, atol=1e-6)


def test_t_zero_returns_the_clean_image_bit_for_bit():
  rng = np.random.default_rng(0)
  clean, noise = rng.normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
  noisy = add_noise(clean, noise, jax.numpy.zeros(3, jax.numpy.int32), timesteps=T)
  np.testing.assert_array_equal(noisy, clean)


def test_the_noise_of_the_first_step_has_all_digits_of_float32():
  one = np.ones((1, 1, 1, 1), np.float32)
  t = jax.numpy.ones(1, jax.numpy.int32)
  noisy = np.asarray(add_noise(0 * one, one, t, timesteps=T)).item()
  # 1 - abar taken in float32 is wrong by 4e-4 here.
  assert noisy == pytest.approx(np.sqrt(1 - cosine_abar(T)[1]), rel=1e-6)


@pytest.mark.parametrize("cap", [1.0, 0.5, 0.3])
def test_t_is_uniform_from_one_to_the_cap(cap):
  timesteps, draws = 10, 200_000
  t = draw_t(jax.random.key(0), np.full(draws, cap, np.float32), timesteps=timesteps)
  counts = np.bincount(np.asarray(t), minlength=timesteps + 1)
  top = round(cap * timesteps)
  assert counts[0] == 0
  assert not counts[top + 1 :].any()
  # Five standard deviations of a binomial count.
  share = 1 / top
  slack = 5 * np.sqrt(draws * share * (1 - share))
  np.testing.assert_allclose(counts[1 : top + 1], draws * share, atol=slack)


@pytest.mark.slow
def test_all_thousand_steps_are_drawn_and_half_of_them_under_a_cap_of_a_half():
  caps = np.repeat(np.float32([1.0, 0.5]), 100_000).reshape(2, -1)
  t = np.asarray(draw_t(jax.random.key(1), caps, timesteps=T))
  # One of 1000 values is missed by 100,000 draws with a probability of e^-100.
  assert len(np.unique(t[0])) == 1000 and t[0].min() == 1 and t[0].max() == 1000
  assert len(np.unique(t[1])) == 500 and t[1].min() == 1 and t[1].max() == 500


def test_the_largest_uniform_number_draws_no_step_beyond_the_cap(monkeypatch):
  largest = np.float32(1) - np.finfo(np.float32).epsneg
  monkeypatch.setattr(
    jax.random, "uniform", lambda key, shape: jax.numpy.full(shape, largest)
  )
  caps = np.float32([1.0, 0.5, 0.999, 1e-6])
  t = draw_t(jax.random.key(0), caps, timesteps=T)
  np.testing.assert_array_equal(t, [1000, 500, 999, 1])


def test_a_cap_of_zero_leaves_an_image_clean():
  caps = np.tile(np.float32([0.0, 1.0]), 1000)
  t = np.asarray(draw_t(jax.random.key(0), caps, timesteps=T))
  assert not t[::2].any() and t[1::2].all()


def draws(cap=1.0, count=100_000, **how):
  caps = np.full(count, cap, np.float32)
  return np.asarray(draw_t(jax.random.key(0), caps, timesteps=T, **how))


def test_straight_lines_mix_in_proportion_to_t():
  clean, noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1))
  t = np.float32([0, 250.5, T])
  noisy = add_noise(clean, noise, jax.numpy.asarray(t), timesteps=T, schedule="linear")
  share = t[:, None, None, None] / T
  np.testing.assert_allclose(noisy, (1 - share) * clean + share * noise, atol=1e-6)
  np.testing.assert_array_equal(noisy[2], noise[2].astype(np.float32))


@pytest.mark.parametrize("cap", [1.0, 0.5, 0.0])
def test_on_straight_lines_t_is_any_number_up_to_the_cap(cap):
  t = draws(cap, schedule="linear")
  assert t.dtype == np.float32 and t.min() >= 0 and t.max() <= cap * T
  if cap:
    assert t.min() > 0
    # Of a uniform number; its mean is off by less than five deviations.
    assert t.mean() == pytest.approx(
      cap * T / 2, abs=5 * cap * T / np.sqrt(12 * len(t))
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_logit_normal_t_has_the_mean_and_deviation_asked_for(schedule):
  t = draws(schedule=schedule, logit_normal=(-0.4, 0.8))
  # An integer t stands for the interval of width 1 that ends there.
  share = (t - 0.5 * (schedule == "cosine")) / T
  logit = np.log(share / (1 - share))
  slack = 5 * 0.8 / np.sqrt(len(t))
  assert logit.mean() == pytest.approx(-0.4, abs=slack)
  assert logit.std() == pytest.approx(0.8, abs=slack)


def test_a_shift_keeps_both_ends_and_scales_the_odds():
  share = np.linspace(0, 1, 11)[1:-1]
  moved = shifted(share, 3.0)
  np.testing.assert_allclose(moved / (1 - moved), 3 * share / (1 - share))
  assert shifted(0.0, 3.0) == 0 and shifted(1.0, 3.0) == 1


def test_shifted_t_is_the_same_draw_moved():
  plain = draws(schedule="linear") / T
  np.testing.assert_allclose(
    draws(schedule="linear", shift=3.0) / T, shifted(plain, 3.0), atol=1e-6
  )
