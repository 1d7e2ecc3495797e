"""What the network predicts of a noised image, and how much an error of it weighs.

Owns: the three targets, the way from each to the clean image, weights by t. Not: the
mixing (process.py), the reduction to a loss (training/losses.py).

For every target the clean image is x_scale x_t - out_scale out, so an error of the
prediction is out_scale times as large an error of the clean image.
"""

import jax
import jax.numpy as jnp

from tfusion.diffusion.process import LINEAR, Scales

EPS, X0, V = "eps", "x0", "v"


def target_of(
  clean: jax.Array, noise: jax.Array, scales: Scales, *, target: str, schedule: str
) -> jax.Array:
  """What the network is to predict.

  Args:
    clean: the image, f32[..., h, w, c].
    noise: that was mixed with it.
    scales: of the mixture.
    target: eps, the noise (arXiv 2006.11239); x0, the clean image; or v, the direction
      in which x_t moves as t grows: signal noise - spread clean with the cosine
      schedule (arXiv 2202.00512, section 4), noise - clean with the linear one (arXiv
      2209.03003).
    schedule: cosine or linear.
  """
  if target == EPS:
    return noise
  if target == X0:
    return clean
  if schedule == LINEAR:
    return noise - clean
  return scales.signal * noise - scales.spread * clean


def clean_of(
  out: jax.Array, x: jax.Array, scales: Scales, *, target: str, schedule: str
) -> jax.Array:
  """The clean image that a prediction means; arguments as in `target_of`.

  With eps it divides by the signal, which is 0 at t = T with the linear schedule.
  """
  if target == EPS:
    return (x - scales.spread * out) / scales.signal
  if target == X0:
    return out
  if schedule == LINEAR:
    return x - scales.spread * out
  return scales.signal * x - scales.spread * out


def min_snr_weight(
  scales: Scales, *, target: str, gamma: float, axes: int = 3
) -> jax.Array:
  """Weight of an image's squared error: min(SNR, gamma) of the clean image's.

  arXiv 2303.09556, section 3.4: min(SNR, gamma) / SNR for eps, itself for x0,
  min(SNR, gamma) / (SNR + 1) for v with the cosine schedule, where SNR is
  signal^2 / spread^2.

  Args:
    scales: of the mixture.
    target: as in `target_of`.
    gamma: the largest SNR that counts.
    axes: of an image: h, w, c.

  Returns:
    f32[...], finite at every t above 0.
  """
  signal, spread = (jnp.squeeze(x, tuple(range(-axes, 0))) for x in scales)
  square_signal, square_spread = jnp.square(signal), jnp.square(spread)
  # Multiplied out, so that neither t = 0 nor t = T divides by 0.
  capped = jnp.minimum(square_signal, gamma * square_spread)  # min(SNR, gamma) spread^2
  if target == EPS:
    return capped / jnp.maximum(square_signal, jnp.finfo(jnp.float32).tiny)
  if target == X0:
    return capped / jnp.maximum(square_spread, jnp.finfo(jnp.float32).tiny)
  return capped
