"""The state of an autoencoder's training and the functions that change it.

Owns: State, init, the loss, train_step, sums for validation. Not: layers (network.py),
the discriminator (adversary.py), features (perceptual.py), the loop (loop.py).

b batch  h w c height, width, channels  n cells of the latent grid  v codes
Randomness: key = fold_in(fold_in(root, step), stream); nothing random is saved.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tfusion.autoencoder import adversary, network, perceptual
from tfusion.autoencoder.network import Params
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.training.optim import make_optimizer, make_schedule, update_ema

INIT, DISCRIMINATOR, TRAIN = 0, 1, 2  # streams of randomness
NATS_PER_BIT = 0.6931471805599453


class State(NamedTuple):
  """Everything that training changes; replicated on all devices."""

  step: jax.Array  # i32[], updates tried so far, skipped ones included
  skipped: jax.Array  # i32[], non-finite updates skipped in a row
  skipped_total: jax.Array  # i32[], in the whole run
  params: Params  # of the autoencoder, float32
  opt_state: optax.OptState
  ema: Params  # {} without EMA
  adversary: adversary.Params
  adversary_opt_state: optax.OptState

  @property
  def best_params(self) -> Params:
    """The weights to validate and to keep: the average if there is one."""
    return self.ema or self.params


class Reconstruction(NamedTuple):
  """Images that went through the latent, and what that cost."""

  image_bhwc: jax.Array  # f32, about [-1, 1]
  price_b: jax.Array  # f32: KL in nats, or the codebook's loss
  bits_b: jax.Array  # f32, of a latent: KL, or log2 of the codes there are
  codes_bn: jax.Array | None  # i32, with a codebook


class Losses(NamedTuple):
  """Terms of both losses, f32[] each; those of the adversary are 0 before it begins."""

  total: jax.Array  # of the autoencoder
  pixel: jax.Array
  perceptual: jax.Array
  price: jax.Array
  generator: jax.Array
  discriminator: jax.Array  # the discriminator's only loss


class Sums(NamedTuple):
  """Sums over images."""

  # f32[]. It hides tuple.count, which nothing asks of Sums.
  count: jax.Array  # type: ignore[assignment]
  psnr: jax.Array  # dB
  pixel: jax.Array  # L1
  bits: jax.Array  # per image
  codes_v: jax.Array  # f32: how often each was used; [0] without a codebook


def init_state(config: AutoencoderConfig, root: jax.Array) -> State:
  """Makes the state of step 0; trace it under jit."""
  params = network.init(config.model, jax.random.fold_in(root, INIT))
  other = adversary.init(config.loss, jax.random.fold_in(root, DISCRIMINATOR))
  return State(
    step=jnp.int32(0),
    skipped=jnp.int32(0),
    skipped_total=jnp.int32(0),
    params=params,
    opt_state=make_optimizer(config).init(params),
    ema=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else {},
    adversary=other,
    adversary_opt_state=make_optimizer(config).init(other),
  )


def reconstruct(
  config: AutoencoderConfig,
  params: Params,
  x_bhwc: jax.Array,
  *,
  key: jax.Array | None,
) -> Reconstruction:
  """Encodes and decodes images in [-1, 1].

  The latent of a VAE is drawn with `key`, as in training, or without one the mean, as
  a codec takes it. Of codes a bit rate is the most that they can carry, as they come
  without a model of how often each is used.
  """
  model = network.bind(config.model, params)
  if not config.model.codes:
    posterior = model.encode(x_bhwc)
    latent = posterior.mean_bhwc if key is None else posterior.sample(key)
    nats_b = posterior.kl()
    return Reconstruction(model.decode(latent), nats_b, nats_b / NATS_PER_BIT, None)
  q = model.quantise(model.encode_vectors(x_bhwc))
  price_b = q.loss(config.loss.beta)
  bits = q.codes_bn.shape[1] * jnp.log2(config.model.codes)
  bits_b = jnp.full_like(price_b, bits)
  return Reconstruction(model.decode(q.latents_bhwc), price_b, bits_b, q.codes_bn)


def losses(
  config: AutoencoderConfig,
  features: perceptual.Features,
  weights: Mapping[str, jax.Array],
  params: Params,
  other: adversary.Params,
  x_bhwc: jax.Array,
  key: jax.Array,
  *,
  adversarial: bool,
) -> tuple[Losses, Reconstruction]:
  """Both losses of a batch; see LossConfig for terms and reductions.

  Args:
    config: static.
    features: the network of the perceptual term, static.
    weights: of that network.
    params: of the autoencoder; the discriminator's loss does not move them.
    other: of the discriminator; the autoencoder's loss does not move them.
    x_bhwc: images in [-1, 1].
    key: for the draw from the posterior.
    adversarial: False leaves the adversary out of the program.
  """
  loss, dtype = config.loss, network.dtype_of(config.model)
  made = reconstruct(config, params, x_bhwc, key=key)
  image = made.image_bhwc
  zero = jnp.float32(0)
  pixel = jnp.mean(jnp.abs(image - x_bhwc))
  seen = generator = discriminator = zero
  if features.stages and loss.perceptual_weight:
    far_b = perceptual.distance(features, weights, image, x_bhwc, dtype=dtype)
    seen = jnp.mean(far_b)
  price = jnp.mean(made.price_b)
  if adversarial:

    def score(params, x):
      return adversary.score(loss, params, x, dtype=dtype)

    generator = adversary.generator_loss(score(jax.lax.stop_gradient(other), image))
    discriminator = adversary.discriminator_loss(
      score(other, x_bhwc), score(other, jax.lax.stop_gradient(image))
    )
  total = pixel + loss.perceptual_weight * seen + loss.adversary_weight * generator
  total += (1.0 if config.model.codes else loss.kl_weight) * price
  return Losses(total, pixel, seen, price, generator, discriminator), made


def train_step(
  config: AutoencoderConfig,
  features: perceptual.Features,
  adversarial: bool,
  state: State,
  x_bhwc: jax.Array,
  root: jax.Array,
  weights: Mapping[str, jax.Array],
) -> tuple[State, dict[str, jax.Array]]:
  """One update of the autoencoder and, if `adversarial`, of the discriminator.

  Both are computed from the same reconstruction; the reference updates the second after
  the first. One program with the adversary and one without, instead of a branch: XLA
  computes convolutions in a branch on one core of a CPU.

  Args:
    config: static.
    features: the network of the perceptual term, static.
    adversarial: static; True from loss.adversary_start on.
    state: donated by the caller.
    x_bhwc: images in [-1, 1], sharded by rows.
    root: the run's key.
    weights: of that network.

  Returns:
    The next state and metrics, f32[] each. A non-finite loss or gradient leaves
    parameters, moments and average as they were and is counted in `skipped`.
  """
  key = jax.random.fold_in(jax.random.fold_in(root, state.step), TRAIN)

  def objective(params, other):
    terms, made = losses(
      config, features, weights, params, other, x_bhwc, key, adversarial=adversarial
    )
    return terms.total + terms.discriminator, (terms, made)

  gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
  (grads, other_grads), (terms, made) = gradient(state.params, state.adversary)
  norm, other_norm = optax.tree.norm(grads), optax.tree.norm(other_grads)
  finite = jnp.isfinite(terms.total + terms.discriminator + norm + other_norm)

  updates, opt_state = make_optimizer(config).update(
    grads, state.opt_state, state.params
  )
  new = state._replace(
    skipped=jnp.int32(0),
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )
  if config.optim.ema_decay:
    decay = config.optim.ema_decay
    ema = update_ema(state.ema, new.params, decay=decay, step=state.step)
    new = new._replace(ema=ema)
  if adversarial:
    updates, opt_state = make_optimizer(adversary_run(config)).update(
      other_grads, state.adversary_opt_state, state.adversary
    )
    other = optax.apply_updates(state.adversary, updates)
    new = new._replace(adversary=other, adversary_opt_state=opt_state)
  kept = state._replace(
    skipped=state.skipped + 1, skipped_total=state.skipped_total + 1
  )
  new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
  new = new._replace(step=state.step + 1)
  metrics = {
    "loss": terms.total,
    "loss_pixel": terms.pixel,
    "loss_perceptual": terms.perceptual,
    "loss_codebook" if config.model.codes else "kl_nats": terms.price,
    "loss_generator": terms.generator,
    "loss_discriminator": terms.discriminator,
    "psnr": jnp.mean(psnr(made.image_bhwc, x_bhwc)),
    "grad_norm": norm,
    "adversary_grad_norm": other_norm,
    "lr": make_schedule(config)(state.step - state.skipped_total),
    "skipped": new.skipped,
    "skipped_total": new.skipped_total,
  }
  if made.codes_bn is not None:
    used_v = count_codes(made.codes_bn, config.model.codes)
    metrics["codes_used"], metrics["codes_perplexity"] = use_of_codes(used_v)
  return new, {name: x.astype(jnp.float32) for name, x in metrics.items()}


def sums(
  config: AutoencoderConfig, params: Params, x_bhwc: jax.Array, weights_b: jax.Array
) -> tuple[Sums, jax.Array]:
  """Sums over images with weight 1 and the reconstructions, as a codec makes them."""
  made = reconstruct(config, params, x_bhwc, key=None)
  pixel_b = jnp.mean(jnp.abs(made.image_bhwc - x_bhwc), axis=(1, 2, 3))
  codes_v = jnp.zeros(0)
  if made.codes_bn is not None:
    codes_v = count_codes(made.codes_bn, config.model.codes, weights_b=weights_b)
  total = Sums(
    count=jnp.sum(weights_b),
    psnr=jnp.sum(psnr(made.image_bhwc, x_bhwc) * weights_b),
    pixel=jnp.sum(pixel_b * weights_b),
    bits=jnp.sum(made.bits_b * weights_b),
    codes_v=codes_v,
  )
  return total, made.image_bhwc


def psnr(made_bhwc: jax.Array, x_bhwc: jax.Array) -> jax.Array:
  """f32[b], dB: peak signal to noise of each image; what is made is clipped.

  At most 100, which an exact copy gets.
  """
  error_bhwc = jnp.square(jnp.clip(made_bhwc, -1, 1) - x_bhwc)
  mse_b = jnp.mean(error_bhwc, axis=(1, 2, 3))
  return 10 * jnp.log10(4 / jnp.maximum(mse_b, 4e-10))  # from -1 to 1 is a peak of 2


def count_codes(
  codes_bn: jax.Array, codes: int, *, weights_b: jax.Array | None = None
) -> jax.Array:
  """f32[v]: how often each code is in a batch, on every device."""
  weights_bn = jnp.ones_like(codes_bn, jnp.float32)
  if weights_b is not None:
    weights_bn *= weights_b[:, None]
  codes_bn, weights_bn = (
    jax.sharding.reshard(x, jax.P()) for x in (codes_bn, weights_bn)
  )
  return jnp.zeros(codes).at[codes_bn].add(weights_bn)


def use_of_codes(used_v: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The share of the codes that occur, and the perplexity: how many it would be if
  those were used evenly."""
  p_v = used_v / jnp.maximum(jnp.sum(used_v), 1)
  entropy = -jnp.sum(jnp.where(p_v > 0, p_v * jnp.log(jnp.maximum(p_v, 1e-30)), 0))
  return jnp.mean(used_v > 0), jnp.exp(entropy)


def adversary_run(config: AutoencoderConfig) -> AutoencoderConfig:
  """The discriminator's own run: the same optimizer over the steps that it has."""
  steps = max(config.train.steps - config.loss.adversary_start, 1)
  train = dataclasses.replace(config.train, steps=steps)
  return dataclasses.replace(config, train=train)
