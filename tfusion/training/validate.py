"""Validation loss on held-out rows with a fixed grid of noise.

Owns: eval_step and its average. Not: what the rows are (data/), other evaluations.

b batch  n image slots
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.config import Config
from tfusion.diffusion import process
from tfusion.model.transfusion import Params
from tfusion.sequence import Batch
from tfusion.training.losses import Sum, image_loss
from tfusion.training.step import draw_noise, image_target, predict, text_loss

BINS = 10  # equal parts of the noise schedule
NOISE_SEED = 0  # the same for every run, so that runs compare


class Validation(NamedTuple):
  """Undivided losses; `bins` holds one image loss for every part of the schedule."""

  text: Sum
  bins: tuple[Sum, ...]
  codes: Sum | None = None  # of images that are codes, which `text` is then without


def grid(
  config: Config, batch: Batch[jax.Array], number
) -> tuple[jax.Array, jax.Array]:
  """The bin of every image slot of batch `number` and its middle as t, [b, n].

  The bin goes up by 1 from slot to slot and by 3, which shares no factor with 10, from
  row to row: all bins are met however few of their slots the rows fill. An image with a
  noise_cap goes round the bins whose middle lies within it, as training draws its t
  within it (`draw_t`); one of noise_cap 0 stays clean.
  """
  b, n = batch.image_start_bn.shape
  row_b1 = jnp.arange(b)[:, None] + number * b
  turn_bn = 3 * row_b1 + jnp.arange(n)[None]
  turn_bn = jnp.zeros_like(batch.image_start_bn) + turn_bn  # sharded like the batch
  bins_bn = jnp.floor(batch.noise_cap_bn * BINS + 0.5).astype(jnp.int32)
  bin_bn = turn_bn % jnp.maximum(bins_bn, 1)
  middle_bn = (bin_bn + 0.5) / BINS
  # In the first bin too, the middle may lie above a very low cap.
  share_bn = jnp.minimum(middle_bn, batch.noise_cap_bn)
  t_bn = share_bn * config.diffusion.timesteps
  if config.diffusion.schedule == process.COSINE:
    t_bn = jnp.maximum(jnp.round(t_bn).astype(jnp.int32), 1)
  return bin_bn, jnp.where(batch.noise_cap_bn > 0, t_bn, 0)


@functools.partial(jax.jit, static_argnums=(0, 4))
def eval_step(
  config: Config,
  params: Params,
  batch: Batch[jax.Array],
  number,
  first_code: int | None = None,
) -> Validation:
  """Losses of one batch, each image noised at the middle of its bin."""
  key = jax.random.fold_in(jax.random.key(NOISE_SEED), number)
  noise_bnhwc, _ = draw_noise(config, key, batch)
  bin_bn, t_bn = grid(config, batch, number)
  predicted = predict(config, params, batch, noise_bnhwc, t_bn)
  if predicted.images_bnhwc is None:
    none = (Sum(jnp.float32(0), jnp.float32(0)),) * BINS
    text, codes = _text_and_codes(config, params, predicted, batch, first_code)
    return Validation(text, none, codes)
  target_bnhwc = image_target(config, batch, noise_bnhwc, t_bn)
  bins = tuple(
    image_loss(
      predicted.images_bnhwc,
      target_bnhwc,
      weights_bn=jnp.where(bin_bn == i, batch.image_weight_bn, 0.0),
    )
    for i in range(BINS)
  )
  text, codes = _text_and_codes(config, params, predicted, batch, first_code)
  return Validation(text, bins, codes)


def _text_and_codes(
  config: Config, params: Params, predicted, batch, first_code: int | None
) -> tuple[Sum, Sum | None]:
  """The loss of tokens that are text or marks, and that of codes from `first_code` on;
  of all, without."""
  if first_code is None:
    return text_loss(config, params, predicted, batch), None
  code_bl = batch.targets_bl >= first_code
  weights_bl = batch.weights_bl
  text, codes = (
    text_loss(config, params, predicted, batch._replace(weights_bl=own_bl))
    for own_bl in (
      jnp.where(code_bl, 0, weights_bl),
      jnp.where(code_bl, weights_bl, 0),
    )
  )
  return text, codes


def validate(
  config: Config,
  params: Params,
  batches: Iterable[Batch[jax.Array]],
  *,
  first_code: int | None = None,
) -> dict[str, Any]:
  """Averages over all batches; perplexity is exp of nats per token, specials included.

  Where images are codes, from the id `first_code` on, `loss_text` and all that follows
  from it are of the other tokens, and `loss_codes` is of codes.

  `loss_image` is the mean over the bins that hold an image, so that it does not depend
  on how many images fall into each.
  """
  sums = [
    eval_step(config, params, batch, i, first_code) for i, batch in enumerate(batches)
  ]
  total = jax.tree.map(
    lambda *x: float(sum(np.asarray(y, np.float64) for y in x)), *sums
  )
  text = total.text.total / max(total.text.count, 1e-9)
  bins = [s.total / s.count if s.count else None for s in total.bins]
  seen = [x for x in bins if x is not None]
  codes = {}
  if total.codes is not None:
    codes["loss_codes"] = total.codes.total / max(total.codes.count, 1e-9)
  return codes | {
    "loss_text": text,
    "loss_image": float(np.mean(seen)) if seen else None,
    "perplexity": float(np.exp(text)),
    "loss_image_bins": bins,
    "text_targets": total.text.count,
    "images": sum(s.count for s in total.bins),
  }
