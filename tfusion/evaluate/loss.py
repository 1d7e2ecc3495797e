"""The diffusion loss of held-out images on a fixed grid of noise levels.

Owns: which images, times and noises those are, the means. Not: the loss of one image
(training/losses.py), the one that is logged while training (training/validate.py).

Every image is measured in the middle of every tenth of the noise schedule, always with
the same noise, so two models differ by what they know and by nothing that was drawn.
Its noise follows from the number of its row, its place there and the tenth: so neither
the batch nor the devices change it. The sums are made on the host, in float64.

b batch  n image slots  h w c latent height, width, channels
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.config import Config
from tfusion.data.pipeline import heldout_rows
from tfusion.data.source import Source
from tfusion.diffusion import process
from tfusion.evaluate import record
from tfusion.evaluate.evaluation import Asked
from tfusion.generate.trained import Trained
from tfusion.kinds import FIRST
from tfusion.model.transfusion import Images, Params
from tfusion.sequence import Batch
from tfusion.sharding import by_row, fetch_rows, global_batch, spec
from tfusion.training.step import diffusions, image_target, predict

BINS = 10  # equal parts of the noise schedule, as while training
NOISE_SEED = 1  # the same for every run, and another than of training/validate.py


class Errors(NamedTuple):
  """What was measured of images, f64[images, BINS]; NaN above an image's noise_cap."""

  errors: np.ndarray
  weights: np.ndarray  # f64[images], of the images


def unfit(asked: Asked) -> str:
  """Why a run has no diffusion loss; empty: it has one."""
  config = asked.trained.config
  if config.model.patches == "none":
    return "model.patches=none has no diffusion loss; `text` has that of codes"
  if not _sources(asked):
    return f"data.sources={config.data.sources} holds no images out"
  return ""


def evaluate_loss(asked: Asked) -> dict[str, Any]:
  """The mean squared error of what is predicted, by source, kind and tenth of t.

  train.eval_rows rows of each source at most. `loss_grid` is the mean over tenths, and
  over sources and kinds if there are several; `loss_grid_error` is its standard error,
  from image to image.
  """
  found = {
    source.name if kind == FIRST else f"{source.name} {kind}": own
    for source in _sources(asked)
    for kind, own in measure(asked.trained, [source]).items()
  }
  bins = {name: mean_bins(own) for name, own in found.items()}
  squares = [_error_of_mean(own) ** 2 for own in found.values()]
  results: dict[str, Any] = {
    "loss_grid": float(np.mean([np.nanmean(own) for own in bins.values()])),
    "loss_grid_error": float(np.sqrt(np.sum(squares)) / len(found)),
    "loss_grid_images": sum(len(own.weights) for own in found.values()),
  }
  if len(found) > 1:
    results |= {f"loss_grid:{name}": float(np.nanmean(x)) for name, x in bins.items()}
  results["loss_grid_bins"] = {name: _by_bin(own) for name, own in bins.items()}
  return results


def depends(asked: Asked) -> Any:
  """The documents that are measured, by record.documents_of."""
  return record.documents_of(_sources(asked))


def measure(trained: Trained, sources: Sequence[Source]) -> dict[str, Errors]:
  """Measures the held-out images of sources; all hosts call it, on the mesh in use.

  Args:
    trained: the model.
    sources: test splits, with images.

  Returns:
    Of every kind that there is, one line for each image that is learned, on every
    host.
  """
  config = trained.config
  data = dataclasses.replace(config.data, weights=(), epochs=())
  rows = heldout_rows(
    sources,
    trained.tokenizer,
    dataclasses.replace(config, data=data),
    rows=config.train.eval_rows,
    host=jax.process_index(),
    hosts=jax.process_count(),
  )
  return measure_rows(config, trained.params, rows, mesh=trained.mesh)


def measure_rows(
  config: Config, params: Params, rows: Iterable[Batch[np.ndarray]], *, mesh: Any
) -> dict[str, Errors]:
  """As `measure`, of rows: this host's share of each batch, as heldout_rows has it."""
  kinds = [kind.name for kind in config.model.every_kind]
  errors: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
  weights: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
  first = 0  # row of the batch, over all
  for host_batch in rows:
    batch = global_batch(host_batch, mesh=mesh)
    of_kinds = [
      tuple(
        fetch_rows(error_bn).astype(np.float64)
        for error_bn in error_step(
          config, params, batch, np.int32(first), np.int32(number)
        )
      )
      for number in range(BINS)
    ]
    for kind, slots, of_bins in zip(kinds, batch.slots, zip(*of_kinds), strict=True):
      weight_bn = fetch_rows(slots.weights).astype(np.float64)
      cap_bn = fetch_rows(slots.noise_caps)
      kept = [
        np.where(_inside(cap_bn, number), error_bn, np.nan)
        for number, error_bn in enumerate(of_bins)
      ]
      live_bn = weight_bn > 0
      errors[kind].append(np.stack(kept, axis=-1)[live_bn])
      weights[kind].append(weight_bn[live_bn])
    first += len(batch.tokens_bl)
  found = {
    kind: Errors(np.concatenate(errors[kind]), np.concatenate(weights[kind]))
    for kind in kinds
  }
  return {kind: own for kind, own in found.items() if len(own.weights)}


@functools.partial(jax.jit, static_argnums=0)
def error_step(
  config: Config, params: Params, batch: Batch[jax.Array], first_row, number
) -> Images:
  """The mean squared error of every image slot at one tenth, of every kind f32[b, n].

  Args:
    config: static.
    params: of the model.
    batch: of rows; what stands in an empty slot means nothing.
    first_row: i32[], number of the batch's first row among all.
    number: i32[], of the tenth, from 0 on.
  """
  noise, t, errors = [], [], []
  for diffusion, slots in zip(diffusions(config), batch.slots, strict=True):
    b, n, *shape = slots.latents.shape
    noise.append(draw_noise(first_row, number, rows=b, slots=n, shape=tuple(shape)))
    middle = (number + 0.5) / BINS
    t_bn = jnp.minimum(middle, slots.noise_caps) * diffusion.timesteps
    if diffusion.schedule == process.COSINE:
      t_bn = jnp.maximum(jnp.round(t_bn).astype(jnp.int32), 1)
    t.append(jnp.where(slots.noise_caps > 0, t_bn, 0))
  predicted = predict(config, params, batch, tuple(noise), tuple(t)).images
  assert predicted, "unfit refuses models without patches"
  kinds = zip(diffusions(config), batch.slots, predicted, noise, t, strict=True)
  for diffusion, slots, image, own, t_bn in kinds:
    target = image_target(diffusion, slots.latents, own, t_bn)
    of_image = tuple(range(2, target.ndim))
    errors.append(jnp.mean(jnp.square(image - target), axis=of_image))
  return tuple(errors)


def draw_noise(
  first_row, number, *, rows: int, slots: int, shape: tuple[int, ...]
) -> jax.Array:
  """Noise of every slot, f32[rows, slots, h, w, c], from row, slot and tenth alone."""

  def of_row(row, number):
    key = jax.random.fold_in(jax.random.key(NOISE_SEED), number)
    key = jax.random.fold_in(key, row)
    keys_n = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(slots))
    return jax.vmap(lambda own: jax.random.normal(own, shape))(keys_n)

  row_b = jax.sharding.reshard(first_row + jnp.arange(rows), spec("batch"))
  return by_row(of_row)(row_b, jnp.zeros_like(row_b) + number)


def mean_bins(found: Errors) -> list[float]:
  """The mean of every tenth over the images that reach it; NaN where none does."""
  live = ~np.isnan(found.errors)
  weights = live * found.weights[:, None]
  total, count = np.sum(weights * np.nan_to_num(found.errors), 0), np.sum(weights, 0)
  return np.where(count > 0, total / np.maximum(count, 1e-300), np.nan).tolist()


def _error_of_mean(found: Errors) -> float:
  """The standard error over images, of each one's mean over its tenths."""
  own = np.nanmean(found.errors, axis=1)
  return float(np.std(own, ddof=1) / len(own) ** 0.5) if len(own) > 1 else 0.0


def _inside(cap_bn: np.ndarray, number: int) -> np.ndarray:
  """Whether an image meets a tenth in training: its middle lies below the cap."""
  return number < np.maximum(np.floor(cap_bn * BINS + 0.5), 1)


def _sources(asked: Asked) -> list[Source]:
  return [source for source in asked.corpus.test if source.has_images]


def _by_bin(values: Sequence[float]) -> dict[str, float | None]:
  """By where a tenth begins, as a share of diffusion.timesteps."""
  return {f"{i / BINS:g}": None if np.isnan(x) else x for i, x in enumerate(values)}
