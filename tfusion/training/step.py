"""The training state and the pure functions that change it.

Owns: TrainState, init, train_step. Not: the loop, files, printing.

b batch  n image slots  h w c latent height, width, channels
Randomness: key = fold_in(fold_in(root, step), stream); nothing random is saved.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from tfusion.config import Config
from tfusion.diffusion import objective, process
from tfusion.model.transfusion import Params, Transfusion, axis_names, bind
from tfusion.sequence import Batch
from tfusion.sharding import spec, state_shardings
from tfusion.training.cross_entropy import next_token_loss
from tfusion.training.losses import Sum, image_loss
from tfusion.training.optim import (
  hold_frozen,
  make_optimizer,
  make_schedule,
  update_ema,
)

INIT, TRAIN = 0, 1  # streams of randomness
DROP = 2  # a stream of the key of a step; noise and t take 0 and 1, by splitting it


class TrainState(NamedTuple):
  """Everything that training changes; plain nested dicts."""

  step: jax.Array  # i32[], updates tried so far, skipped ones included
  skipped: jax.Array  # i32[], non-finite updates skipped in a row
  skipped_total: jax.Array  # i32[], in the whole run
  params: Params  # float32
  opt_state: optax.OptState
  ema: Params  # {} without EMA

  @property
  def sampling_params(self) -> Params:
    """The weights to sample and validate with: the average if there is one."""
    return self.ema or self.params


class Prediction(NamedTuple):
  """What the model says of a noised batch."""

  x_bld: jax.Array  # from which the head makes logits
  # f32, noise or another diffusion.target; None with model.patches=none
  images_bnhwc: jax.Array | None


class Losses(NamedTuple):
  """Undivided losses of one batch."""

  text: Sum
  image: Sum


def init_state(config: Config, root: jax.Array) -> TrainState:
  """Makes the state of step 0; trace it under jit with `shardings` as outputs."""
  key = jax.random.fold_in(root, INIT)
  model = Transfusion(config.model, rngs=nnx.Rngs(params=key))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return TrainState(
    step=jnp.int32(0),
    skipped=jnp.int32(0),
    skipped_total=jnp.int32(0),
    params=params,
    opt_state=make_optimizer(config).init(params),
    ema=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else {},
  )


def shardings(
  config: Config, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> TrainState:
  """The sharding of every leaf of the state."""
  abstract = _shapes(config)
  return state_shardings(abstract, names=axis_names(config.model), mesh=mesh)


def abstract_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state, without numbers."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    _shapes(config),
    shardings(config, mesh),
  )


@functools.cache
def _shapes(config: Config) -> TrainState:
  """Shapes and dtypes of the state."""
  return jax.eval_shape(lambda: init_state(config, jax.random.key(0)))


def predict(
  config: Config,
  params: Params,
  batch: Batch[jax.Array],
  noise_bnhwc: jax.Array,
  t_bn: jax.Array,
  drop_b: jax.Array | None = None,
) -> Prediction:
  """Noises the images of a batch and runs the model on it.

  Args:
    config: static.
    params: of the model.
    batch: rows of documents.
    noise_bnhwc: f32, standard normal, for every image slot.
    t_bn: the timestep of every image slot, 0 (clean) to diffusion.timesteps; i32, or
      f32 with diffusion.schedule=linear.
    drop_b: keys of the rows, for `model.dropout` in training; None: nothing is dropped.
  """
  noisy_bnhwc = noise_bnhwc
  if config.model.patches != "none":
    noisy_bnhwc = process.add_noise(
      batch.latents_bnhwc, noise_bnhwc, t_bn, **_schedule(config)
    )
  model = bind(config.model, params)
  if drop_b is None:
    return Prediction(*model.outputs(batch, noisy_bnhwc, t_bn))
  return Prediction(*model.outputs(batch, noisy_bnhwc, t_bn, drop_b))


def text_loss(
  config: Config,
  params: Params,
  predicted: Prediction,
  batch: Batch[jax.Array],
  *,
  z_loss: float = 0.0,
) -> Sum:
  """Next-token cross entropy of a batch, in nats, and `z_loss` times log^2 Z."""
  return next_token_loss(
    predicted.x_bld,
    params["head"],
    batch.targets_bl,
    weights_bl=batch.weights_bl,
    gradient=config.model.gradient_dtype,
    z_loss=z_loss,
  )


def image_target(
  config: Config, batch: Batch[jax.Array], noise_bnhwc: jax.Array, t_bn: jax.Array
) -> jax.Array:
  """What is to be predicted of the images of a batch: `diffusion.target`."""
  return objective.target_of(
    batch.latents_bnhwc,
    noise_bnhwc,
    process.scales(t_bn, **_schedule(config)),
    target=config.diffusion.target,
    schedule=config.diffusion.schedule,
  )


def losses(
  config: Config,
  params: Params,
  predicted: Prediction,
  batch: Batch[jax.Array],
  noise_bnhwc: jax.Array,
  t_bn: jax.Array,
) -> Losses:
  """Both losses of a batch: next token and predicted noise (section 3, equation 4).

  Other objectives of `diffusion.` have another target and may weigh t; `train.z_loss`
  is added to the text's.
  """
  text_of = functools.partial(text_loss, z_loss=config.train.z_loss)
  if predicted.images_bnhwc is None:
    none = Sum(jnp.float32(0), jnp.float32(0))
    return Losses(text_of(config, params, predicted, batch), none)
  scale_bn, gamma = None, config.diffusion.min_snr_gamma
  if gamma:
    scale_bn = objective.min_snr_weight(
      process.scales(t_bn, **_schedule(config)),
      target=config.diffusion.target,
      gamma=gamma,
    )
  return Losses(
    text=text_of(config, params, predicted, batch),
    image=image_loss(
      predicted.images_bnhwc,
      image_target(config, batch, noise_bnhwc, t_bn),
      weights_bn=batch.image_weight_bn,
      scale_bn=scale_bn,
    ),
  )


def _schedule(config: Config) -> dict[str, Any]:
  return dict(timesteps=config.diffusion.timesteps, schedule=config.diffusion.schedule)


def draw_noise(
  config: Config, key: jax.Array, batch: Batch[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Noise and timestep of every image slot, one t per image (section 2.2)."""
  noise_key, t_key = jax.random.split(key)
  b, n = batch.noise_cap_bn.shape
  noise_bnhwc = jax.random.normal(
    noise_key,
    (b, n, *config.model.image_shape),
    out_sharding=spec("batch", None, None, None, None),
  )
  d = config.diffusion
  t_bn = process.draw_t(
    t_key,
    batch.noise_cap_bn,
    logit_normal=(d.t_logit_mean, d.t_logit_std) if d.t_logit_std else None,
    shift=d.t_shift,
    **_schedule(config),
  )
  return noise_bnhwc, t_bn


def gradients(
  config: Config, params: Params, batch: Batch[jax.Array], key: jax.Array
) -> tuple[Params, Losses]:
  """Gradient of mean text loss + lambda * mean image loss over the whole batch.

  Microbatches add undivided gradients; both counts are those of the whole batch, so
  accumulation changes nothing but memory.
  """
  drop_key = jax.random.fold_in(key, DROP) if config.model.dropout else None
  noise_bnhwc, t_bn = draw_noise(config, key, batch)
  text_count = jnp.maximum(jnp.sum(batch.weights_bl), 1e-9)
  image_count = jnp.maximum(jnp.sum(batch.image_weight_bn), 1e-9)

  def objective(params, batch, noise_bnhwc, t_bn, *rows_b):
    drop_b = None
    if rows_b:
      assert drop_key is not None
      drop_b = jax.vmap(jax.random.fold_in, (None, 0))(drop_key, *rows_b)
    params = hold_frozen(config, params)
    predicted = predict(config, params, batch, noise_bnhwc, t_bn, drop_b)
    text, image = found = losses(config, params, predicted, batch, noise_bnhwc, t_bn)
    scaled = image.total / image_count * config.diffusion.image_weight
    return text.total / text_count + scaled, found

  gradient = jax.grad(objective, has_aux=True)
  of_rows: tuple[Any, ...] = (batch, noise_bnhwc, t_bn)
  if config.model.dropout:
    rows = jnp.arange(len(batch.tokens_bl))
    of_rows += (jax.sharding.reshard(rows, spec("batch")),)
  return accumulate(config, gradient, params, of_rows)


def accumulate(config: Config, gradient: Callable, params: Params, of_rows: Any) -> Any:
  """The gradient of a batch and undivided losses, summed over its parts.

  Args:
    config: static; `train.accumulate` parts.
    gradient: (params, *of_rows) -> (gradient, losses).
    params: of the model.
    of_rows: arrays, or trees of them, with the rows of the batch in front.
  """
  parts = config.train.accumulate
  if parts == 1:
    return gradient(params, *of_rows)

  def add_part(sums, part):
    return jax.tree.map(jnp.add, sums, gradient(params, *part)), None

  split = jax.tree.map(lambda x: _microbatches(x, parts), of_rows)
  of_one = lambda: gradient(params, *jax.tree.map(lambda x: x[0], split))  # noqa: E731
  no_losses = jax.tree.map(lambda _: jnp.float32(0), jax.eval_shape(of_one)[1])
  zeros = (jax.tree.map(jnp.zeros_like, params), no_losses)
  return jax.lax.scan(add_part, zeros, split)[0]


def train_step(
  config: Config, state: TrainState, batch: Batch[jax.Array], root: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update.

  Args:
    config: static.
    state: donated by the caller.
    batch: global arrays, sharded by rows.
    root: the run's key.

  Returns:
    The next state and metrics, f32[] each. A non-finite loss or gradient leaves
    parameters, moments and average as they were and is counted in `skipped`.
  """
  key = jax.random.fold_in(jax.random.fold_in(root, state.step), TRAIN)
  grads, (text, image) = gradients(config, state.params, batch, key)
  loss_text, loss_image = text.mean(), image.mean()
  loss = loss_text + config.diffusion.image_weight * loss_image
  new, grad_norm = update(config, state, grads, loss)
  if text.z is not None:  # what compares with other runs is without it
    loss_text = loss_text - text.z / jnp.maximum(text.count, 1e-9)
  metrics = {
    "loss": loss,
    "loss_text": loss_text,
    "loss_image": loss_image,
    "grad_norm": grad_norm,
    "lr": make_schedule(config)(state.step - state.skipped_total),
    "elements": jnp.sum(batch.hi_bl >= batch.lo_bl),
    "images": image.count,
    "skipped": new.skipped,
    "skipped_total": new.skipped_total,
  }
  return new, {name: x.astype(jnp.float32) for name, x in metrics.items()}


def update(
  config: Config, state: TrainState, grads: Params, loss: jax.Array
) -> tuple[TrainState, jax.Array]:
  """The state after an optimizer's step, which what is not finite leaves out, and the
  norm of the gradient."""
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  updates, opt_state = make_optimizer(config).update(
    grads, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if config.optim.ema_decay:
    ema = update_ema(ema, params, decay=config.optim.ema_decay, step=state.step)
  new = TrainState(
    step=state.step + 1,
    skipped=jnp.int32(0),
    skipped_total=state.skipped_total,
    params=params,
    opt_state=opt_state,
    ema=ema,
  )
  kept = state._replace(
    step=state.step + 1,
    skipped=state.skipped + 1,
    skipped_total=state.skipped_total + 1,
  )
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept), grad_norm


def _microbatches(x: jax.Array, parts: int) -> jax.Array:
  """[b, ...] to [parts, b / parts, ...], each part spread over all devices."""
  rows = x.shape[0] // parts
  sharding = jax.typeof(x).sharding.spec
  return jnp.swapaxes(
    x.reshape(rows, parts, *x.shape[1:], out_sharding=P(sharding[0])), 0, 1
  )
