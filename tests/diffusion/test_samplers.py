"""Promises of tfusion/diffusion/samplers.py."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfusion.diffusion import samplers
from tfusion.diffusion.objective import target_of
from tfusion.diffusion.process import Scales, cosine_abar
from tfusion.diffusion.samplers import begin, denoise, guide, make_steps

T = 1000
MEAN, STD = 0.5, 0.3  # of the data that the oracle knows
SHAPE = (40_000, 1, 1, 1)


def oracle(x, t, *, std=STD, array=jnp.asarray):
  """The best guess of the noise in x if the data is N(MEAN, std^2)."""
  abar = cosine_abar(T).copy()
  abar[0] = np.nan  # nobody may ask at t = 0
  scale = np.sqrt(1 - abar) / (abar * std**2 + 1 - abar)
  return array(scale)[t] * (x - array(np.sqrt(abar) * MEAN)[t])


def kept(steps):
  """The timesteps that a chain of `steps` stands at, from T to 0."""
  return [round(T * (steps - i) / steps) for i in range(steps + 1)]


def posterior(x, clean, t, before):
  """Mean and variance of q(x_before | x_t, x_0) by Bayes' rule: the product of the
  Gaussians q(x_t | x_before) and q(x_before | x_0), all in float64."""
  abar = cosine_abar(T)
  alpha = abar[t] / abar[before]
  if before == 0:
    return clean, 0.0
  precision = alpha / (1 - alpha) + 1 / (1 - abar[before])
  mean = np.sqrt(alpha) / (1 - alpha) * x
  mean = mean + np.sqrt(abar[before]) / (1 - abar[before]) * clean
  return mean / precision, 1 / precision


def reverse(x, noise, t, before, *, sampler, fresh, clip=0.0):
  """One literal step from t to before in float64."""
  abar = cosine_abar(T)
  clean = (x - np.sqrt(1 - abar[t]) * noise) / np.sqrt(abar[t])
  if clip:
    clean = np.clip(clean, -clip, clip)
    noise = (x - np.sqrt(abar[t]) * clean) / np.sqrt(1 - abar[t])
  if sampler == "ddim":
    return np.sqrt(abar[before]) * clean + np.sqrt(1 - abar[before]) * noise
  mean, variance = posterior(x, clean, t, before)
  return mean + np.sqrt(variance) * fresh


def draw(number):
  return jax.random.normal(jax.random.fold_in(jax.random.key(1), number), SHAPE)


def run(predict, *, sampler, steps, clip=0.0, draw=draw, shape=SHAPE):
  forgetful = lambda x, t, memory: (predict(x, t), memory)  # noqa: E731
  noise = jax.random.normal(jax.random.key(0), shape)
  made = make_steps(sampler, steps=steps, timesteps=T)
  how = dict(steps=made, draw=draw, clip=clip)
  image = jax.jit(lambda x: denoise(forgetful, begin(x, ()), **how).x)
  return np.asarray(image(noise))


def test_a_step_finds_what_the_one_before_it_left_in_memory():
  def remember(x, t, seen):
    return x * seen, t / T

  def know(x, t):  # what stands in memory: nothing, then the t of the step before
    return x * jnp.where(t == T, 0.0, (t + T // 4) / T)

  made = make_steps("ddim", steps=4, timesteps=T)
  noise = jax.random.normal(jax.random.key(0), (5,))
  walk = begin(noise, jnp.zeros(()))
  got = denoise(remember, walk, steps=made, draw=draw, clip=0.0).x
  np.testing.assert_allclose(got, run(know, sampler="ddim", steps=4, shape=(5,)))


@pytest.mark.slow
@pytest.mark.parametrize(
  "sampler, steps, off", [("ddpm", 250, 0.024), ("ddim", 50, 0.047)]
)
def test_a_known_gaussian_comes_back_from_its_oracle(sampler, steps, off):
  x = run(oracle, sampler=sampler, steps=steps)
  # With few steps even the oracle's images vary too little: the std is 2.3 % low for
  # DDPM and 4.6 % for DDIM, as the next test says exactly. The mean of 40,000 draws is
  # itself off by STD / 200 and their std by STD / 283.
  four_sigma = 4 * STD / np.sqrt(len(x))
  assert x.mean() == pytest.approx(MEAN, abs=four_sigma)
  assert x.std() == pytest.approx(STD, abs=four_sigma / np.sqrt(2) + off * STD)


@pytest.mark.slow
@pytest.mark.parametrize("sampler, steps", [("ddpm", 250), ("ddim", 50)])
def test_mean_and_std_follow_their_recursion_in_float64(sampler, steps):
  # The oracle is linear in x, so every step maps a Gaussian to a Gaussian.
  mean, variance = 0.0, 1.0
  for t, before in itertools.pairwise(kept(steps)):

    def step(x, fresh, t=t, before=before):
      noise = oracle(x, t, array=np.asarray)
      return reverse(x, noise, t, before, sampler=sampler, fresh=fresh)

    offset = step(0.0, 0.0)
    mean = step(mean, 0.0)
    variance = (step(1.0, 0.0) - offset) ** 2 * variance + (
      step(0.0, 1.0) - offset
    ) ** 2
  x = run(oracle, sampler=sampler, steps=steps)
  four_sigma = 4 * np.sqrt(variance / len(x))
  assert x.mean() == pytest.approx(mean, abs=four_sigma)
  assert x.std() == pytest.approx(np.sqrt(variance), abs=four_sigma / np.sqrt(2))


def test_ddim_finds_a_single_point_exactly():
  x = run(
    functools.partial(oracle, std=0.0),
    sampler="ddim",
    steps=50,
    shape=(9, 1, 1, 1),
  )
  # The last step divides by sqrt(abar) = 1.000 what float32 subtracts.
  np.testing.assert_allclose(x, MEAN, atol=1e-6)


def test_ddpm_ends_at_a_single_point_too():
  point = functools.partial(oracle, std=0.0)
  x = run(point, sampler="ddpm", steps=50)
  np.testing.assert_allclose(x, MEAN, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 7, 250, T])
def test_ddpm_constants_are_the_posterior_by_bayes_rule(steps):
  s = make_steps("ddpm", steps=steps, timesteps=T)
  stand = kept(steps)
  np.testing.assert_array_equal(s.t, stand[:-1])
  for number, (t, before) in enumerate(itertools.pairwise(stand)):
    to_clean, variance = posterior(0.0, 1.0, t, before)
    to_x, _ = posterior(1.0, 0.0, t, before)
    # float64 rounded once to float32; near t = 0 Bayes' rule cancels digits of its own.
    got = (s.to_clean[number], s.to_x[number], s.to_noise[number], s.sigma[number])
    expected = (to_clean, to_x, 0.0, np.sqrt(variance))
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_denoising_is_the_literal_loop(sampler, clip):
  shape = (2, 4, 4, 1)
  fresh = [np.asarray(draw(n))[: 2 * 16].reshape(shape) for n in range(7)]

  def predict(x, t, np=jnp):
    return 0.9 * x + 0.1 * np.sin(3 * x + t / 100)

  x = run(
    predict,
    sampler=sampler,
    steps=7,
    clip=clip,
    draw=lambda n: jnp.asarray(np.stack(fresh))[n],
    shape=shape,
  )
  slow = np.asarray(jax.random.normal(jax.random.key(0), shape), np.float64)
  for number, (t, before) in enumerate(itertools.pairwise(kept(7))):
    noise = predict(slow, t, np=np)
    slow = reverse(
      slow, noise, t, before, sampler=sampler, fresh=fresh[number], clip=clip
    )
  # Unclipped, the first step multiplies float32 noise (1e-7) by 1 / sqrt(abar) = 20,000
  # on numbers of that size.
  np.testing.assert_allclose(x, slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_clipped_image_stays_in_its_bounds_whatever_is_predicted(sampler):
  x = run(
    lambda x, t: 5 * jnp.ones_like(x),
    draw=lambda number: 3.0,
    sampler=sampler,
    steps=5,
    clip=1.5,
    shape=(9, 1, 1, 1),
  )
  assert np.all(np.abs(x) <= 1.5)
  assert np.any(np.abs(x) == 1.5)


def test_ddim_draws_no_fresh_noise():
  def refuse(number):
    raise AssertionError("drawn")

  run(oracle, sampler="ddim", steps=5, draw=refuse, shape=(2, 1, 1, 1))


@pytest.mark.parametrize("steps", [1, 3, 50, 250, T])
def test_kept_steps_are_even_and_begin_at_pure_noise(steps):
  t = make_steps("ddim", steps=steps, timesteps=T).t
  assert len(t) == steps and t[0] == T and t[-1] >= 1
  gaps = -np.diff([*t, 0])
  assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_steps_from_below_noise_are_those_of_a_shorter_schedule(sampler):
  made = make_steps(sampler, steps=49, timesteps=T, start=0.98)
  whole = make_steps(sampler, steps=50, timesteps=T)
  for name, late, all_of_it in zip(made._fields, made, whole):
    np.testing.assert_array_equal(late, all_of_it[1:], err_msg=name)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [50, 250])
def test_from_t_of_1000_an_error_of_the_noise_is_multiplied_by_hundreds_in_one_step(
  sampler, steps
):
  def gain(start):
    """How far a step moves x for an error of 1 in the predicted noise, at most."""
    s = make_steps(sampler, steps=steps, timesteps=T, start=start)
    return np.max(np.abs(s.to_noise - s.to_clean * s.spread / s.signal))

  abar = cosine_abar(T)[T - T // steps]
  assert gain(1.0) == pytest.approx(np.sqrt(abar / 2.43e-9), rel=0.01)  # 126 or 632
  assert gain(1.0) > 100 and gain(0.98) < 2


FINE = 1 << 15  # timesteps, so that steps need not be even in t


def path(schedule, steps, *, even_in_t):
  """Steps from where signal and noise are as large to where noise is 1 % or, if they
  are even in t, nothing. Else they are even in log(signal / spread), as the theory of
  DPM-Solver has them."""
  if schedule == "linear":
    t = np.arange(FINE + 1)
    signal, spread = 1 - t / FINE, t / FINE
  else:
    abar = cosine_abar(FINE)
    signal, spread = np.sqrt(abar), np.sqrt(1 - abar)
  if even_in_t:
    t = np.linspace(0, FINE // 2, steps + 1).astype(np.int32)
  else:
    half_log_snr = np.log(np.maximum(signal, 1e-12) / np.maximum(spread, 1e-12))
    even = np.linspace(np.log(99) / 2, 0, steps + 1)
    t = np.interp(-even, -half_log_snr, np.arange(FINE + 1)).round().astype(np.int32)
  return samplers.Path(t, signal[t], spread[t], np.square(signal[t]))


def error(sampler, steps, *, schedule, target="v"):
  """Of where a sampler leads, with the best prediction for data N(MEAN, STD^2), in
  float64. Without fresh noise every x keeps its place in the Gaussian of its t."""
  way = path(schedule, steps, even_in_t=sampler != "dpmpp_2m")
  how = dict(target=target, schedule=schedule)
  made = samplers.SAMPLERS[schedule][sampler](way)
  order = {int(t): n for n, t in enumerate(way.t)}
  signal_n, spread_n = jnp.asarray(way.signal), jnp.asarray(way.spread)

  def predict(x, number, memory):
    signal, spread = signal_n[number], spread_n[number]
    gain = signal * STD**2 / ((signal * STD) ** 2 + spread**2)
    clean = MEAN + gain * (x - signal * MEAN)
    noise = (x - signal * clean) / spread
    return target_of(clean, noise, Scales(signal, spread), **how), memory

  def mean_and_std(end):
    return way.signal[end] * MEAN, np.hypot(way.signal[end] * STD, way.spread[end])

  made = made._replace(t=np.asarray([order[int(t)] for t in made.t]))
  made = jax.tree.map(lambda c: c.astype(c.dtype if c is made.t else np.float64), made)
  z = np.asarray([0.7, -1.1, 2.0])
  mean, std = mean_and_std(-1)
  start = jnp.asarray(mean + std * z)
  x = denoise(predict, begin(start, ()), steps=made, draw=None, clip=0.0, **how).x
  mean, std = mean_and_std(0)
  return np.max(np.abs(x - (mean + std * z)))


@pytest.mark.slow
@pytest.mark.parametrize(
  "schedule, sampler, order",
  [
    ("cosine", "ddim", 1),
    ("cosine", "dpmpp_2m", 2),
    ("linear", "euler", 1),
    ("linear", "heun", 2),
    ("linear", "dpmpp_2m", 2),
  ],
)
def test_the_error_falls_with_the_order_of_the_method(schedule, sampler, order):
  with jax.enable_x64(True):
    coarse, fine = (error(sampler, n, schedule=schedule) for n in (16, 64))
  # A quarter of the width: an error of order p falls by 4^p, beside higher terms.
  assert np.log(coarse / fine) / np.log(4) == pytest.approx(order, rel=0.15)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_all_targets_lead_to_the_same_image(sampler):
  with jax.enable_x64(True):
    made = [error(sampler, 8, schedule="cosine", target=t) for t in ("eps", "x0", "v")]
  np.testing.assert_allclose(made, made[0], rtol=1e-5)  # constants are float32


@pytest.mark.parametrize(
  "schedule, sampler", [("linear", "euler"), ("linear", "heun"), ("linear", "dpmpp_2m")]
)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_straight_lines_from_pure_noise_to_a_point_end_at_the_point(
  schedule, sampler, steps
):
  made = make_steps(sampler, steps=steps, timesteps=T, schedule=schedule)
  assert made.t[0] == T and made.signal[0] == 0
  x = denoise(
    lambda x, t, memory: ((x - MEAN) / (t / T), memory),  # noise - clean
    begin(jax.random.normal(jax.random.key(0), (9,)), ()),
    steps=made,
    draw=draw,
    clip=0.0,
    target="v",
    schedule=schedule,
  ).x
  np.testing.assert_allclose(x, MEAN, atol=1e-6)


def test_heun_asks_twice_in_every_step_but_the_last():
  made = make_steps("heun", steps=4, timesteps=T, schedule="linear")
  np.testing.assert_array_equal(made.t, [1000, 750, 750, 500, 500, 250, 250])


def test_a_shift_moves_steps_towards_noise_and_keeps_both_ends():
  how = dict(steps=4, timesteps=T, schedule="linear", shift=3.0)
  t = make_steps("euler", **how).t
  # 3 s / (1 + 2 s) of s = 1, 3/4, 1/2, 1/4.
  np.testing.assert_allclose(t, [1000, 900, 750, 500])
  with pytest.raises(ValueError, match="sample.steps=900: with diffusion.t_shift=3"):
    make_steps("ddim", steps=900, timesteps=T, shift=3.0)


def test_a_sampler_of_another_schedule_is_refused():
  with pytest.raises(ValueError, match="'ddpm'.*schedule=linear.*dpmpp_2m.*euler"):
    make_steps("ddpm", steps=5, timesteps=T, schedule="linear")


def test_an_unknown_sampler_and_too_many_steps_are_refused():
  with pytest.raises(ValueError, match="sample.sampler='euler'.*ddim.*ddpm"):
    make_steps("euler", steps=5, timesteps=T)
  for steps in (0, T + 1):
    with pytest.raises(ValueError, match=f"sample.steps={steps}"):
      make_steps("ddpm", steps=steps, timesteps=T)
  with pytest.raises(ValueError, match=r"sample.steps=51: must be in 1 .. 50"):
    make_steps("ddpm", steps=51, timesteps=T, start=0.05)


def test_guidance_extends_the_line_from_unconditional_to_conditional():
  c, u = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 2.0])
  np.testing.assert_allclose(guide(c, u, scale=1.0), c)
  np.testing.assert_allclose(guide(c, u, scale=0.0), u)
  np.testing.assert_allclose(guide(c, u, scale=3.0), [2.0, -10.0])


def test_rescaled_guidance_has_the_deviation_of_what_the_text_asks_for():
  rng = np.random.default_rng(0)
  c, u = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
  plain = guide(c, u, scale=4.0)
  np.testing.assert_array_equal(plain, u + 4.0 * (c - u))
  whole = guide(c, u, scale=4.0, rescale=1.0)
  of_image = (1, 2, 3)
  np.testing.assert_allclose(whole.std(of_image), c.std(of_image), rtol=1e-5)
  ratio = np.asarray(whole / plain)
  np.testing.assert_allclose(ratio, ratio[:, :1, :1, :1] + 0 * ratio, rtol=1e-4)
  half = guide(c, u, scale=4.0, rescale=0.5)
  np.testing.assert_allclose(half, (whole + plain) / 2, rtol=1e-5, atol=1e-6)
