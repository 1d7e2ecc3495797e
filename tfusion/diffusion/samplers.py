"""The reverse process: from noise to a clean image, given a prediction.

Owns: the timesteps visited, the update of every sampler, guidance. Not: the predictor
(it is a function handed in), text (generate/).

Every sampler here is linear: the next x is a sum of x, the predicted clean image, the
one predicted before, the predicted noise and fresh noise. So a sampler is a table of
constants, made in float64, and one loop runs them all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.diffusion.objective import EPS, clean_of
from tfusion.diffusion.process import COSINE, LINEAR, Scales, cosine_abar, shifted


class Steps(NamedTuple):
  """Constants of every evaluation of the network, from noise to data: f32[n] each.

  x = clean * to_clean + x * to_x + noise_pred * to_noise + before * to_before
    + sigma * fresh noise, where `before` is the clean image of the evaluation before.
  """

  t: np.ndarray  # the timestep the predictor is asked at: i32; f32 if linear
  signal: np.ndarray  # the share of clean in x
  spread: np.ndarray  # that of noise
  to_clean: np.ndarray
  to_x: np.ndarray
  to_noise: np.ndarray
  to_before: np.ndarray
  sigma: np.ndarray


class Path(NamedTuple):
  """Where a sampler stands, from data to noise: float64[steps + 1] each."""

  t: np.ndarray
  signal: np.ndarray
  spread: np.ndarray
  abar: np.ndarray  # the square of signal, as it is exact


def ddpm(path: Path) -> Steps:
  """Ancestral sampling on the kept steps with the posterior variance
  (arXiv 2006.11239, equations 6 and 7; respaced as in arXiv 2102.09672, section 4)."""
  now, before = path.abar[1:], path.abar[:-1]
  alpha = now / before
  return _from_noise(
    path,
    to_clean=np.sqrt(before) * (1 - alpha) / (1 - now),
    to_x=np.sqrt(alpha) * (1 - before) / (1 - now),
    sigma=np.sqrt((1 - before) / (1 - now) * (1 - alpha)),
  )


def ddim(path: Path) -> Steps:
  """Deterministic sampling, eta = 0 (arXiv 2010.02502, equation 12).

  On straight lines it is Euler's method for dx/dt = noise - clean: order 1.
  """
  return _from_noise(path, to_clean=path.signal[:-1], to_noise=path.spread[:-1])


def dpmpp_2m(path: Path) -> Steps:
  """DPM-Solver++(2M): deterministic, order 2 with one evaluation per step.

  arXiv 2211.01095, algorithm 2; its last step, to t = 0, is of order 1, where the
  logarithm of the ratio of signal and noise that it steps in has no end.
  """
  signal, spread = path.signal, path.spread
  with np.errstate(divide="ignore"):
    half_log_snr = np.log(signal) - np.log(spread)
  h = half_log_snr[:-1] - half_log_snr[1:]  # of the step that ends at each
  ratio = signal[1:] * spread[:-1] / (spread[1:] * signal[:-1])  # exp(-h)
  more = np.zeros_like(h)  # how far to extrapolate from the prediction before
  if len(h) > 2:
    more[1:-1] = h[1:-1] / (2 * h[2:])  # 0 behind pure noise, where h has no end
  to_data = signal[:-1] * (1 - ratio)
  return _from_noise(
    path,
    to_clean=to_data * (1 + more),
    to_x=spread[:-1] / spread[1:],
    to_before=-to_data * more,
  )


def heun(path: Path) -> Steps:
  """Heun's method for dx/dt = noise - clean on straight lines: order 2.

  Two evaluations per step and one for the last, which is Euler's. The first makes
  Euler's step, along which noise - before stays (x - before) / t. The second adds half
  the difference of the two directions times the step: width / 2 (clean - before) / t.
  """
  euler = ddim(path)
  made = Steps(*(np.repeat(constants, 2)[:-1] for constants in euler))
  ends = path.spread[1:-1][::-1]  # of the steps before the last
  width = path.spread[2:][::-1] - ends
  for second, constants in (
    (made.t, euler.t[1:]),
    (made.signal, euler.signal[1:]),
    (made.spread, euler.spread[1:]),
    (made.to_clean, width / 2 / ends),
    (made.to_x, 1.0),
    (made.to_noise, 0.0),
    (made.to_before, -width / 2 / ends),
  ):
    second[1::2] = constants
  return made


def _from_noise(path: Path, **constants: np.ndarray) -> Steps:
  """Turned around, so that the noise comes first; constants not given are 0."""
  zeros = np.zeros(len(path.t) - 1)
  names = ("to_clean", "to_x", "to_noise", "to_before", "sigma")
  columns = (
    path.signal[1:],
    path.spread[1:],
    *(constants.get(n, zeros) for n in names),
  )
  return Steps(path.t[1:][::-1].copy(), *(c[::-1].astype(np.float32) for c in columns))


# By schedule. Euler's method is ddim on straight lines, and has the name of its field.
SAMPLERS: dict[str, dict[str, Callable[[Path], Steps]]] = {
  COSINE: {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m},
  LINEAR: {"euler": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m},
}


def make_steps(
  sampler: str,
  *,
  steps: int,
  timesteps: int,
  start: float = 1.0,
  schedule: str = COSINE,
  shift: float = 1.0,
) -> Steps:
  """Keeps `steps` of the timesteps, evenly spaced, with the first but not t = 1
  ("trailing" in arXiv 2305.08891, Table 2).

  Args:
    sampler: of SAMPLERS.
    steps: to take.
    timesteps: T.
    start: share of T at which the first step stands, in (0, 1]. Pure noise is taken for
      x there, of which at 0.97 of 1,000 no more than 0.2 % of the variance is data.
    schedule: cosine or linear.
    shift: moves the steps towards noise, as `process.shifted` does.

  Raises:
    ValueError: a sampler that is unknown or of another schedule, more steps than
      timesteps below the first, or a shift that lets two steps fall together.
  """
  known = SAMPLERS[schedule]
  if sampler not in known:
    raise ValueError(
      f"sample.sampler={sampler!r}: with diffusion.schedule={schedule} choose one of"
      f" {sorted(known)}"
    )
  first = start * timesteps if schedule == LINEAR else round(start * timesteps)
  if steps < 1 or (schedule == COSINE and steps > first):
    raise ValueError(f"sample.steps={steps}: must be in 1 .. {first}")
  t = np.linspace(0, first, steps + 1)
  if shift != 1.0:
    t = shifted(t / first, shift) * first
  if schedule == LINEAR:
    signal, spread = 1 - t / timesteps, t / timesteps
    return known[sampler](Path(t.astype(np.float32), signal, spread, np.square(signal)))
  t = np.round(t).astype(np.int32)
  if len(np.unique(t)) < len(t):
    raise ValueError(
      f"sample.steps={steps}: with diffusion.t_shift={shift:g} steps fall on the same"
      f" of {timesteps} timesteps; take fewer"
    )
  abar = cosine_abar(timesteps)[t]
  return known[sampler](Path(t, np.sqrt(abar), np.sqrt(1 - abar), abar))


def guide(
  conditional,
  unconditional,
  *,
  scale: float | jax.Array,
  rescale: float = 0.0,
  images=None,
  image_scale: float | jax.Array = 1.0,
) -> jax.Array:
  """Classifier-free guidance: u + scale (c - u) (arXiv 2207.12598); 1 is none.

  With `images` u + image_scale (i - u) + scale (c - i) (arXiv 2211.09800, equation 3,
  in another order): how far to go by the images alone, and from there by the text.

  Args:
    conditional: c, what is predicted with the text, [b, ...].
    unconditional: u, without.
    scale: how far to go from u through c.
    rescale: above 0, the share of the way by which the deviation of each image's
      prediction goes back to that of c (arXiv 2305.08891, equations 15 and 16).
    images: i, what is predicted with the images that stand before, without text.
    image_scale: how far to go from u through i.
  """
  base = unconditional
  if images is not None:
    base = images
    unconditional = unconditional + image_scale * (images - unconditional)
  guided = unconditional + scale * (conditional - base)
  if not rescale:
    return guided
  of_image = tuple(range(1, guided.ndim))
  kept = jnp.std(conditional, axis=of_image, keepdims=True)
  now = jnp.std(guided, axis=of_image, keepdims=True)
  back = guided * (kept / jnp.maximum(now, jnp.finfo(jnp.float32).tiny))
  return rescale * back + (1 - rescale) * guided


class Walk(NamedTuple):
  """Where the reverse process stands."""

  x: jax.Array  # f32[..., h, w, c]
  clean: jax.Array  # as it was predicted last, like x; zeros before
  memory: Any


def begin(noise: jax.Array, memory: Any) -> Walk:
  """At the first of the steps: x is standard normal there."""
  return Walk(noise, jnp.zeros_like(noise), memory)


def denoise(
  predict: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
  walk: Walk,
  *,
  steps: Steps,
  draw: Callable[[jax.Array], jax.Array],
  clip: float,
  target: str = EPS,
  schedule: str = COSINE,
  first: int | jax.Array = 0,
  last: int | jax.Array | None = None,
) -> Walk:
  """Runs the reverse process as one loop; behind the last step x is the image at t = 0.

  Args:
    predict: (x, t[], memory) -> what is predicted, like x, and the memory. It may
      write there what no later step reads, and so needs no new one in every step.
    walk: as `begin`, or an earlier part of the steps, leaves it; memory: any arrays.
    steps: from make_steps.
    draw: step number i32[] -> fresh standard normal noise like x.
    clip: bound on the predicted clean image; 0 is none. Near t = T a small error of
      the predicted noise is multiplied by 1 / sqrt(abar), 20,000 at T.
    target: what is predicted: eps, x0 or v.
    schedule: cosine or linear.
    first, last: the part of the steps to take; None: to the end. That they are numbers
      of the device changes nothing about what a step computes.
  """
  ancestral, looks_back = np.any(steps.sigma > 0), np.any(steps.to_before != 0)
  table = jax.tree.map(jnp.asarray, steps)

  def step(number, walk):
    x, before, memory = walk
    s = jax.tree.map(lambda constants: constants[number], table)
    out, memory = predict(x, s.t, memory)
    at = Scales(s.signal, s.spread)
    clean = clean_of(out, x, at, target=target, schedule=schedule)
    if clip:
      clean = jnp.clip(clean, -clip, clip)
    # The noise in x beside the clean image; that which is predicted where it is.
    as_predicted = target == EPS and not clip
    noise = out if as_predicted else (x - s.signal * clean) / s.spread
    x = s.to_clean * clean + s.to_x * x + s.to_noise * noise
    x = x + s.to_before * before if looks_back else x
    x = x + s.sigma * draw(number) if ancestral else x
    return Walk(x, clean, memory)

  last = len(steps.t) if last is None else last
  return jax.lax.fori_loop(first, last, step, walk)
