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

from tfusion.config import Config, DiffusionConfig
from tfusion.diffusion import process
from tfusion.model.transfusion import Params
from tfusion.sequence import Batch, Slots
from tfusion.training.losses import Sum, image_loss
from tfusion.training.step import (
  diffusions,
  draw_noise,
  image_target,
  predict,
  text_loss,
)

BINS = 10  # equal parts of the noise schedule
NOISE_SEED = 0  # the same for every run, so that runs compare


class Validation(NamedTuple):
  """Undivided losses; `bins` holds, of every kind of images, a loss for every part of
  the schedule."""

  text: Sum
  bins: tuple[tuple[Sum, ...], ...]
  codes: Sum | None = None  # of images that are codes, which `text` is then without


def grid(
  diffusion: DiffusionConfig, slots: Slots[jax.Array], number
) -> tuple[jax.Array, jax.Array]:
  """The bin of every slot of a kind in batch `number` and its middle as t, [b, n].

  The bin goes up by 1 from slot to slot and by 3, which shares no factor with 10, from
  row to row: all bins are met however few of their slots the rows fill. An image with a
  noise_cap goes round the bins whose middle lies within it, as training draws its t
  within it (`draw_t`); one of noise_cap 0 stays clean.
  """
  b, n = slots.starts.shape
  row_b1 = jnp.arange(b)[:, None] + number * b
  turn_bn = 3 * row_b1 + jnp.arange(n)[None]
  turn_bn = jnp.zeros_like(slots.starts) + turn_bn  # sharded like the batch
  bins_bn = jnp.floor(slots.noise_caps * BINS + 0.5).astype(jnp.int32)
  bin_bn = turn_bn % jnp.maximum(bins_bn, 1)
  middle_bn = (bin_bn + 0.5) / BINS
  # In the first bin too, the middle may lie above a very low cap.
  share_bn = jnp.minimum(middle_bn, slots.noise_caps)
  t_bn = share_bn * diffusion.timesteps
  if diffusion.schedule == process.COSINE:
    t_bn = jnp.maximum(jnp.round(t_bn).astype(jnp.int32), 1)
  return bin_bn, jnp.where(slots.noise_caps > 0, t_bn, 0)


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
  noise, _ = draw_noise(config, key, batch)
  kinds = [*zip(diffusions(config), batch.slots, strict=True)]
  bins, t = zip(*(grid(*kind, number) for kind in kinds))
  predicted = predict(config, params, batch, noise, t)
  text, codes = _text_and_codes(config, params, predicted, batch, first_code)
  if not predicted.images:
    none = (Sum(jnp.float32(0), jnp.float32(0)),) * BINS
    return Validation(text, (none,), codes)
  losses = tuple(
    _by_bin(*kind, image, own, t_bn, bin_bn)
    for kind, image, own, t_bn, bin_bn in zip(
      kinds, predicted.images, noise, t, bins, strict=True
    )
  )
  return Validation(text, losses, codes)


def _by_bin(
  diffusion: DiffusionConfig, slots: Slots, predicted, noise, t_bn, bin_bn
) -> tuple[Sum, ...]:
  """The loss of the images of one kind in every part of the schedule."""
  target = image_target(diffusion, slots.latents, noise, t_bn)
  return tuple(
    image_loss(predicted, target, weights_bn=jnp.where(bin_bn == i, slots.weights, 0.0))
    for i in range(BINS)
  )


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
  on how many images fall into each; other kinds have theirs by their names.
  """
  sums = [
    eval_step(config, params, batch, i, first_code) for i, batch in enumerate(batches)
  ]
  total = jax.tree.map(
    lambda *x: float(sum(np.asarray(y, np.float64) for y in x)), *sums
  )
  text = total.text.total / max(total.text.count, 1e-9)
  by_kind = [
    [s.total / s.count if s.count else None for s in kind] for kind in total.bins
  ]
  names = [f"loss_{kind.name}" for kind in config.model.every_kind]
  codes = {}
  if total.codes is not None:
    codes["loss_codes"] = total.codes.total / max(total.codes.count, 1e-9)
  return codes | {
    "loss_text": text,
    **{name: _mean(bins) for name, bins in zip(names, by_kind, strict=True)},
    "perplexity": float(np.exp(text)),
    "loss_image_bins": by_kind[0],
    "text_targets": total.text.count,
    "images": sum(s.count for kind in total.bins for s in kind),
  }


def _mean(bins: list[float | None]) -> float | None:
  """Over those that hold an image; None: none does."""
  seen = [x for x in bins if x is not None]
  return float(np.mean(seen)) if seen else None
