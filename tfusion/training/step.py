"""The training state and the pure functions that change it.

Owns: TrainState, init, train_step. Not: the loop, files, printing.

b batch  n image slots  h w c latent height, width, channels
Randomness: key = fold_in(fold_in(root, step), stream); nothing random is saved.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from tfusion.config import Config, DiffusionConfig, diffusion_of
from tfusion.diffusion import objective, process
from tfusion.model.transfusion import Images, Params, Transfusion, axis_names, bind
from tfusion.sequence import Batch, Slots
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
OTHER_KINDS = 16  # with the number of a kind behind the first, its stream


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
  # Of every kind f32[b, n, h, w, c], noise or another diffusion.target; none with
  # model.patches=none
  images: Images


class Losses(NamedTuple):
  """Undivided losses of one batch."""

  text: Sum
  images: tuple[Sum, ...]  # of every kind


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
  noise: Images,
  t: Images,
  drop_b: jax.Array | None = None,
) -> Prediction:
  """Noises the images of a batch and runs the model on it.

  Args:
    config: static.
    params: of the model.
    batch: rows of documents.
    noise: of every kind f32[b, n, h, w, c], standard normal, for every image slot.
    t: of every kind [b, n], the timestep of every image slot, 0 (clean) to
      diffusion.timesteps; i32, or f32 with diffusion.schedule=linear.
    drop_b: keys of the rows, for `model.dropout` in training; None: nothing is dropped.
  """
  noisy = noise
  if config.model.patches != "none":
    noisy = tuple(
      process.add_noise(slots.latents, own, t_bn, **_schedule(kind))
      for kind, slots, own, t_bn in zip(
        diffusions(config), batch.slots, noise, t, strict=True
      )
    )
  model = bind(config.model, params)
  if drop_b is None:
    return Prediction(*model.outputs(batch, noisy, t))
  return Prediction(*model.outputs(batch, noisy, t, drop_b))


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


def diffusions(config: Config) -> tuple[DiffusionConfig, ...]:
  """The noise process of every kind."""
  return tuple(diffusion_of(config, kind) for kind in config.model.every_kind)


def image_target(
  diffusion: DiffusionConfig, latents: jax.Array, noise: jax.Array, t_bn: jax.Array
) -> jax.Array:
  """What is to be predicted of images of a kind, [b, n, h, w, c]: its target."""
  scales = process.scales(t_bn, axes=latents.ndim - 2, **_schedule(diffusion))
  return objective.target_of(
    latents, noise, scales, target=diffusion.target, schedule=diffusion.schedule
  )


def losses(
  config: Config,
  params: Params,
  predicted: Prediction,
  batch: Batch[jax.Array],
  noise: Images,
  t: Images,
) -> Losses:
  """Both losses of a batch: next token and predicted noise (section 3, equation 4).

  Other objectives of `diffusion.` have another target and may weigh t; `train.z_loss`
  is added to the text's.
  """
  text_of = functools.partial(text_loss, z_loss=config.train.z_loss)
  if not predicted.images:
    none = Sum(jnp.float32(0), jnp.float32(0))
    return Losses(text_of(config, params, predicted, batch), (none,))
  kinds = zip(diffusions(config), predicted.images, batch.slots, noise, t, strict=True)
  return Losses(
    text=text_of(config, params, predicted, batch),
    images=tuple(_image_loss(*kind) for kind in kinds),
  )


def _image_loss(
  diffusion: DiffusionConfig,
  predicted: jax.Array,
  slots: Slots[jax.Array],
  noise: jax.Array,
  t_bn: jax.Array,
) -> Sum:
  """The loss of the images of one kind."""
  scale_bn, gamma, axes = None, diffusion.min_snr_gamma, predicted.ndim - 2
  if gamma:
    scale_bn = objective.min_snr_weight(
      process.scales(t_bn, axes=axes, **_schedule(diffusion)),
      target=diffusion.target,
      gamma=gamma,
      axes=axes,
    )
  return image_loss(
    predicted,
    image_target(diffusion, slots.latents, noise, t_bn),
    weights_bn=slots.weights,
    scale_bn=scale_bn,
  )


def _schedule(diffusion: DiffusionConfig) -> dict[str, Any]:
  return dict(timesteps=diffusion.timesteps, schedule=diffusion.schedule)


def draw_noise(
  config: Config, key: jax.Array, batch: Batch[jax.Array]
) -> tuple[Images, Images]:
  """Noise and timestep of every image slot of every kind, one t per image (section
  2.2)."""
  noise, t = [], []
  for number, (d, slots) in enumerate(
    zip(diffusions(config), batch.slots, strict=True)
  ):
    own_key = jax.random.fold_in(key, OTHER_KINDS + number) if number else key
    noise_key, t_key = jax.random.split(own_key)
    noise.append(
      jax.random.normal(
        noise_key,
        slots.latents.shape,
        out_sharding=spec("batch", *[None] * (slots.latents.ndim - 1)),
      )
    )
    t_bn = process.draw_t(
      t_key,
      slots.noise_caps,
      logit_normal=(d.t_logit_mean, d.t_logit_std) if d.t_logit_std else None,
      shift=d.t_shift,
      **_schedule(d),
    )
    t.append(t_bn)
  return tuple(noise), tuple(t)


def _counts(config: Config, own: Sequence[jax.Array]) -> list[jax.Array]:
  """What the losses of every kind are divided by, given the weights of its images.

  Kinds that share their layers are averaged together, so that each image counts alike.
  """
  owners = [kind.owner for kind in config.model.every_kind]
  return [
    _add(n for n, other in zip(own, owners, strict=True) if other == owner)
    for owner in owners
  ]


def _weighed(
  config: Config, images: Sequence[Sum], means: Sequence[jax.Array]
) -> jax.Array:
  """What the images add to the loss, given the mean loss of every kind."""
  kinds, terms = config.model.every_kind, []
  counts = _counts(config, [image.count for image in images])
  owners = [kind.owner for kind in kinds]
  for kind, image, mean, count in zip(kinds, images, means, counts, strict=True):
    term = diffusion_of(config, kind).image_weight * mean
    if owners.count(kind.owner) > 1:
      term = term * image.count / jnp.maximum(count, 1e-9)
    terms.append(term)
  return _add(terms)


def _add(terms: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, terms)


def gradients(
  config: Config, params: Params, batch: Batch[jax.Array], key: jax.Array
) -> tuple[Params, Losses]:
  """Gradient of mean text loss + lambda * mean image loss over the whole batch; of
  several kinds each has its lambda.

  Microbatches add undivided gradients; both counts are those of the whole batch, so
  accumulation changes nothing but memory.
  """
  drop_key = jax.random.fold_in(key, DROP) if config.model.dropout else None
  noise, t = draw_noise(config, key, batch)
  text_count = jnp.maximum(jnp.sum(batch.weights_bl), 1e-9)
  own = [jnp.sum(slots.weights) for slots in batch.slots]
  image_counts = [jnp.maximum(count, 1e-9) for count in _counts(config, own)]

  def objective(params, batch, noise, t, *rows_b):
    drop_b = None
    if rows_b:
      assert drop_key is not None
      drop_b = jax.vmap(jax.random.fold_in, (None, 0))(drop_key, *rows_b)
    params = hold_frozen(config, params)
    predicted = predict(config, params, batch, noise, t, drop_b)
    text, images = found = losses(config, params, predicted, batch, noise, t)
    kinds = zip(diffusions(config), images, image_counts, strict=True)
    scaled = _add(
      image.total / count * diffusion.image_weight for diffusion, image, count in kinds
    )
    return text.total / text_count + scaled, found

  gradient = jax.grad(objective, has_aux=True)
  of_rows: tuple[Any, ...] = (batch, noise, t)
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
  grads, (text, images) = gradients(config, state.params, batch, key)
  loss_text, loss_by_kind = text.mean(), [image.mean() for image in images]
  loss = loss_text + _weighed(config, images, loss_by_kind)
  new, grad_norm = update(config, state, grads, loss)
  if text.z is not None:  # what compares with other runs is without it
    loss_text = loss_text - text.z / jnp.maximum(text.count, 1e-9)
  metrics = {
    "loss": loss,
    "loss_text": loss_text,
    **{
      f"loss_{kind.name}": mean
      for kind, mean in zip(config.model.every_kind, loss_by_kind, strict=True)
    },
    "grad_norm": grad_norm,
    "lr": make_schedule(config)(state.step - state.skipped_total),
    "elements": jnp.sum(batch.hi_bl >= batch.lo_bl),
    "images": _add(image.count for image in images),
    "skipped": new.skipped,
    "skipped_total": new.skipped_total,
  }
  if config.model.kinds:
    names = [f"images_{kind.name}" for kind in config.model.every_kind]
    metrics |= {n: image.count for n, image in zip(names, images, strict=True)}
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
