"""Losses of the Transfusion objective (arXiv 2408.11039, section 3, equation 4).

Owns: reductions. Not: noise and targets (diffusion/), weights (sequence.py).

b batch  l sequence  v vocab  n image slots  h w c latent height, width, channels
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sum(NamedTuple):
  """A reduction that is not divided yet: add over microbatches, then `mean` once."""

  total: jax.Array  # f32[]
  # f32[], the sum of weights. It hides tuple.count, which nothing asks of a Sum.
  count: jax.Array  # type: ignore[assignment]
  # f32[], what `train.z_loss` has added to the total; None: nothing.
  z: jax.Array | None = None

  def mean(self) -> jax.Array:
    """total / count; 0 where nothing was counted."""
    return self.total / jnp.maximum(self.count, 1e-9)


def text_loss(
  logits_blv: jax.Array,
  targets_bl: jax.Array,
  *,
  weights_bl: jax.Array,
  z_loss: float = 0.0,
) -> Sum:
  """Sums next-token cross entropy, in nats, over positions times their weight.

  The logit of the target comes from a one-hot sum, which stays local when the
  vocabulary is sharded. Above 0 `z_loss` adds so many log^2 Z to each position, where Z
  is the sum of the softmax (arXiv 2405.09818, section 2.3).
  """
  logits = logits_blv.astype(jnp.float32)
  vocab_v = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  hit_blv = targets_bl[:, :, None] == vocab_v[None, None, :]
  target_bl = jnp.sum(jnp.where(hit_blv, logits, 0.0), axis=-1)
  log_z_bl = jax.nn.logsumexp(logits, axis=-1)
  nats_bl = log_z_bl - target_bl
  # A weight of zero selects too: a NaN at padding must not become 0 * NaN.
  live_bl = weights_bl > 0
  total = jnp.sum(jnp.where(live_bl, nats_bl * weights_bl, 0.0))
  if not z_loss:
    return Sum(total, jnp.sum(weights_bl))
  z_bl = z_loss * jnp.square(log_z_bl)
  z = jnp.sum(jnp.where(live_bl, z_bl * weights_bl, 0.0))
  return Sum(total + z, jnp.sum(weights_bl), z)


def image_loss(
  predicted_bnhwc: jax.Array,
  target_bnhwc: jax.Array,
  *,
  weights_bn: jax.Array,
  scale_bn: jax.Array | None = None,
) -> Sum:
  """Sums over images the squared error, a mean over the image's numbers.

  So the loss does not depend on the latent width, the patch size or the slots.

  Args:
    predicted_bnhwc: f32, or of as many dimensions as its kind has.
    target_bnhwc: f32, what was to be predicted: the noise in the paper.
    weights_bn: f32, of each image; they are counted.
    scale_bn: f32, multiplies errors and is not counted; None: 1.
  """
  of_image = tuple(range(2, predicted_bnhwc.ndim))
  error_bn = jnp.mean(jnp.square(predicted_bnhwc - target_bnhwc), axis=of_image)
  if scale_bn is not None:
    error_bn = error_bn * scale_bn
  live_bn = weights_bn > 0
  total = jnp.sum(jnp.where(live_bn, error_bn * weights_bn, 0.0))
  return Sum(total, jnp.sum(weights_bn))
