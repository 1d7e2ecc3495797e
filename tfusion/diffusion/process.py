"""The forward process of DDPM: schedule, noising, target.

Owns: what t means. t = 0 is clean data, t = T is noise; t = 1 .. T are the steps of
arXiv 2006.11239, so abar(0) = 1. Not: the reverse process (samplers.py), the network.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

OFFSET = 0.008  # s of arXiv 2102.09672, equation 17
MAX_BETA = 0.999


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


def add_noise(
  clean: jax.Array, noise: jax.Array, t: jax.Array, *, timesteps: int
) -> jax.Array:
  """q(x_t | x_0): sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, float32.

  Args:
    clean: whole latents, [..., h, w, c]: noise comes before patches.
    noise: standard normal, like `clean`.
    t: i32[...], one per image, 0 .. timesteps.
    timesteps: T.
  """
  abar = cosine_abar(timesteps)

  def at_t(table):
    scale = jnp.asarray(table, jnp.float32).at[t]
    return scale.get(out_sharding=jax.typeof(t).sharding)[..., None, None, None]

  # Roots in float64: 1 - abar loses three digits of float32 at t = 1.
  return at_t(np.sqrt(abar)) * clean + at_t(np.sqrt(1 - abar)) * noise


def draw_t(key: jax.Array, noise_cap: jax.Array, *, timesteps: int) -> jax.Array:
  """Uniform integers in 1 .. round(noise_cap * timesteps), one per image; 0 for cap 0.

  A cap of 0.5 is the limit of t = 500 in arXiv 2408.11039, section 4.3.4.
  """
  top = jnp.maximum(jnp.round(noise_cap * timesteps), 1.0)
  u = jax.random.uniform(key, noise_cap.shape)  # in [0, 1), and u * top stays below top
  t = jnp.floor(u * top).astype(jnp.int32) + 1
  return jnp.where(noise_cap > 0, t, 0)
