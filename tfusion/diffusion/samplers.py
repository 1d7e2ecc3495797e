"""The reverse process: from noise to a clean image, given a noise predictor.

Owns: the timesteps visited, DDPM and DDIM updates, guidance. Not: the predictor (it
is a function handed in), text (generate/).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.diffusion.process import cosine_abar


class Steps(NamedTuple):
  """Constants of every denoising step, from noise to data: f32[steps] each.

  x_prev = clean * to_clean + x * to_x + noise_pred * to_noise + sigma * fresh noise.
  """

  t: np.ndarray  # i32, the timestep the predictor is asked at
  signal: np.ndarray  # sqrt(abar), the share of clean in x
  spread: np.ndarray  # sqrt(1 - abar), that of noise
  to_clean: np.ndarray
  to_x: np.ndarray
  to_noise: np.ndarray
  sigma: np.ndarray


def ddpm(abar_s: np.ndarray) -> tuple[np.ndarray, ...]:
  """Ancestral sampling on the kept steps with the posterior variance
  (arXiv 2006.11239, equations 6 and 7; respaced as in arXiv 2102.09672, section 4)."""
  now, before = abar_s[1:], abar_s[:-1]
  alpha = now / before
  to_clean = np.sqrt(before) * (1 - alpha) / (1 - now)
  to_x = np.sqrt(alpha) * (1 - before) / (1 - now)
  sigma = np.sqrt((1 - before) / (1 - now) * (1 - alpha))
  return to_clean, to_x, np.zeros_like(now), sigma


def ddim(abar_s: np.ndarray) -> tuple[np.ndarray, ...]:
  """Deterministic sampling, eta = 0 (arXiv 2010.02502, equation 12)."""
  before = abar_s[:-1]
  zeros = np.zeros_like(before)
  return np.sqrt(before), zeros, np.sqrt(1 - before), zeros


SAMPLERS = {"ddpm": ddpm, "ddim": ddim}


def make_steps(
  sampler: str, *, steps: int, timesteps: int, start: float = 1.0
) -> Steps:
  """Keeps `steps` of the timesteps, evenly spaced, with the first but not t = 1
  ("trailing" in arXiv 2305.08891, Table 2).

  Args:
    sampler: of SAMPLERS.
    steps: to take.
    timesteps: T.
    start: share of T at which the first step stands, in (0, 1]. Pure noise is taken for
      x there, of which at 0.97 of 1,000 no more than 0.2 % of the variance is data.

  Raises:
    ValueError: an unknown sampler, or more steps than timesteps below the first.
  """
  if sampler not in SAMPLERS:
    raise ValueError(f"sample.sampler={sampler!r}: choose one of {sorted(SAMPLERS)}")
  first = round(start * timesteps)
  if not 1 <= steps <= first:
    raise ValueError(f"sample.steps={steps}: must be in 1 .. {first}")
  kept_s = np.round(np.linspace(0, first, steps + 1)).astype(np.int32)
  abar_s = cosine_abar(timesteps)[kept_s]
  scales = (np.sqrt(abar_s[1:]), np.sqrt(1 - abar_s[1:]))
  constants = (*scales, *SAMPLERS[sampler](abar_s))
  return Steps(
    kept_s[1:][::-1].copy(), *(c[::-1].astype(np.float32) for c in constants)
  )


def guide(conditional, unconditional, *, scale: float) -> jax.Array:
  """Classifier-free guidance: u + scale (c - u) (arXiv 2207.12598); 1 is none."""
  return unconditional + scale * (conditional - unconditional)


def denoise(
  predict: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
  noise: jax.Array,
  memory: Any,
  *,
  steps: Steps,
  draw: Callable[[jax.Array], jax.Array],
  clip: float,
) -> jax.Array:
  """Runs the reverse process as one scan; returns the image at t = 0.

  Args:
    predict: (x, t i32[], memory) -> predicted noise like x, and the memory. It may
      write there what no later step reads, and so needs no new one in every step.
    noise: x at the first of the steps, standard normal, f32[..., h, w, c].
    memory: any arrays.
    steps: from make_steps.
    draw: step number i32[] -> fresh standard normal noise like x.
    clip: bound on the predicted clean image; 0 is none. Near t = T a small error of
      the predicted noise is multiplied by 1 / sqrt(abar), 20,000 at T.
  """
  ancestral = np.any(steps.sigma > 0)

  def step(carry, inputs):
    x, memory = carry
    number, s = inputs
    predicted, memory = predict(x, s.t, memory)
    clean = (x - s.spread * predicted) / s.signal
    if clip:
      clean = jnp.clip(clean, -clip, clip)
      predicted = (x - s.signal * clean) / s.spread
    x = s.to_clean * clean + s.to_x * x + s.to_noise * predicted
    x = x + s.sigma * draw(number) if ancestral else x
    return (x, memory), None

  numbers = jnp.arange(len(steps.t))
  inputs = (numbers, jax.tree.map(jnp.asarray, steps))
  return jax.lax.scan(step, (noise, memory), inputs)[0][0]
