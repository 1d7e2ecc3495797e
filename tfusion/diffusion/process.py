"""The forward process: how an image and noise are mixed at t, and how t is drawn.

Owns: what t means. t = 0 is clean data, t = T is noise, and x_t is signal times the
image plus spread times noise. With the schedule `cosine` t = 1 .. T are the steps of
arXiv 2006.11239, so abar(0) = 1; with `linear` t is any number in [0, T], and images go
to noise on straight lines (rectified flow, arXiv 2209.03003). Not: what the network
predicts (objective.py), the reverse process (samplers.py), the network.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OFFSET = 0.008  # s of arXiv 2102.09672, equation 17
MAX_BETA = 0.999

SMALLEST = 2.0**-24  # 1 minus it is the number below 1 in float32
COSINE, LINEAR = "cosine", "linear"


class Scales(NamedTuple):
  """Of an image and of noise in x_t: f32[..., 1, 1, 1], or as many as images have."""

  signal: jax.Array
  spread: jax.Array


@functools.cache
def cosine_abar(timesteps: int) -> np.ndarray:
  """The share of signal variance left at t = 0 .. timesteps, float64[timesteps + 1].

  arXiv 2102.09672, equation 17, with betas clipped at 0.999; named by arXiv 2408.11039,
  section 2.2. abar[0] is 1, abar[timesteps] is 2.4e-9 at 1000 steps.
  """

  def f(share):
    return math.cos((share + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2

  betas = [
    min(1 - f((t + 1) / timesteps) / f(t / timesteps), MAX_BETA)
    for t in range(timesteps)
  ]
  return np.concatenate([[1.0], np.cumprod(1 - np.asarray(betas))])


def scales(
  t: jax.Array, *, timesteps: int, schedule: str = COSINE, axes: int = 3
) -> Scales:
  """What of an image and what of noise is in x_t.

  Args:
    t: i32[...], or f32[...] with the linear schedule, one per image, 0 .. timesteps.
    timesteps: T.
    schedule: cosine, where both are roots of abar and 1 - abar, or linear, where they
      are 1 - t / T and t / T.
    axes: of an image: h, w, c.
  """
  over = (..., *[None] * axes)
  if schedule == LINEAR:
    share = t.astype(jnp.float32)[over] / timesteps
    return Scales(1.0 - share, share)
  abar = cosine_abar(timesteps)

  def at_t(table):
    scale = jnp.asarray(table, jnp.float32).at[t]
    return scale.get(out_sharding=jax.typeof(t).sharding)[over]

  # Roots in float64: 1 - abar loses three digits of float32 at t = 1.
  return Scales(at_t(np.sqrt(abar)), at_t(np.sqrt(1 - abar)))


def add_noise(
  clean: jax.Array,
  noise: jax.Array,
  t: jax.Array,
  *,
  timesteps: int,
  schedule: str = COSINE,
) -> jax.Array:
  """q(x_t | x_0): signal x_0 + spread noise, float32.

  Args:
    clean: whole latents, [..., h, w, c]: noise comes before patches.
    noise: standard normal, like `clean`.
    t: one per image, as `scales` takes it.
    timesteps: T.
    schedule: cosine or linear.
  """
  signal, spread = scales(
    t, timesteps=timesteps, schedule=schedule, axes=clean.ndim - t.ndim
  )
  return signal * clean + spread * noise


def draw_t(
  key: jax.Array,
  noise_cap: jax.Array,
  *,
  timesteps: int,
  schedule: str = COSINE,
  logit_normal: tuple[float, float] | None = None,
  shift: float = 1.0,
) -> jax.Array:
  """One t per image, uniform unless told otherwise; 0 for a cap of 0.

  With the cosine schedule: integers in 1 .. round(noise_cap * timesteps). With the
  linear one: numbers in (0, noise_cap * timesteps]. A cap of 0.5 is the limit of
  t = 500 in arXiv 2408.11039, section 4.3.4.

  Args:
    key: of the random numbers.
    noise_cap: f32[...], in [0, 1].
    timesteps: T.
    schedule: cosine or linear.
    logit_normal: mean and deviation of log(t / (T - t)) below a cap of 1, for a
      logit-normal t (arXiv 2403.03206, equation 19).
    shift: moves t towards noise, see `shifted`.
  """
  if logit_normal is None:
    u = jax.random.uniform(key, noise_cap.shape)  # in [0, 1)
  else:
    mean, deviation = logit_normal
    u = jax.nn.sigmoid(mean + deviation * jax.random.normal(key, noise_cap.shape))
    u = jnp.minimum(u, 1 - SMALLEST)  # below 1, as a uniform u is
  if shift != 1.0:
    u = jnp.minimum(shifted(u, shift), 1 - SMALLEST)
  if schedule == LINEAR:
    return jnp.maximum(u, SMALLEST) * noise_cap * timesteps
  top = jnp.maximum(jnp.round(noise_cap * timesteps), 1.0)
  t = jnp.floor(u * top).astype(jnp.int32) + 1  # u * top stays below top
  return jnp.where(noise_cap > 0, t, 0)


def shifted(share, shift: float):
  """Moves shares of T towards 1 for a shift above 1, keeping 0 and 1 (arXiv
  2403.03206, equation 23: shift is the root of the ratio of the numbers of pixels)."""
  return shift * share / (1 + (shift - 1) * share)
