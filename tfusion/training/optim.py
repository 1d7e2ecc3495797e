"""AdamW, its schedule and decay mask, and the moving average of the weights.

Owns: the optax chain. Not: gradients and their reduction (step.py).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.config import Config


def make_schedule(config: Config | AutoencoderConfig) -> optax.Schedule:
  """Linear warm-up, then down to end_lr at the last step, and end_lr after it.

  The cosine is that of section 4.1. The exponential multiplies the rate by one number
  at every update, the one that ends at end_lr. Chameleon's "exponential decay to 0"
  (arXiv 2405.09818, section 2.3) names no such number, and none reaches 0: ours.
  """
  o, steps = config.optim, config.train.steps
  warmup = min(o.warmup_steps, steps)
  if o.decay == "exponential":
    return optax.warmup_exponential_decay_schedule(
      init_value=0.0,
      peak_value=o.peak_lr,
      warmup_steps=warmup,
      transition_steps=max(steps - warmup, 1),
      decay_rate=o.end_lr / o.peak_lr,
      end_value=o.end_lr,
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup else o.peak_lr,
    peak_value=o.peak_lr,
    warmup_steps=warmup,
    decay_steps=max(steps, warmup + 1),
    end_value=o.end_lr,
  )


def make_optimizer(config: Config | AutoencoderConfig) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW (section 4.1); what decays is ours: decay_mask.

  Then the factors of `train.` for the parameters of text and for those of patches.
  """
  o = config.optim
  towers = []
  if isinstance(config, Config) and set(_factors(config).values()) != {1.0}:
    towers = [optax.stateless(functools.partial(_scale_towers, _factors(config)))]
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    optax.adamw(
      make_schedule(config),
      b1=o.b1,
      b2=o.b2,
      eps=o.eps,
      weight_decay=o.weight_decay,
      mask=decay_mask,
    ),
    *towers,
  )


# Keys of the parameters that patches alone have.
OF_PATCHES = ("patches", "patch_places", "image", "image_norm")


def tower_of(path: Sequence[Any]) -> str:
  """`image` if patches alone use the parameter, `text` if text does, alone or too;
  `lora` if it is a change of low rank.

  Args:
    path: of the parameter, as JAX gives it.
  """
  names = [str(k.key) for k in path]
  if names[0] == "lora":
    return "lora"
  of_kinds = names[0].startswith(("patches_", "patch_places_"))
  return "image" if of_kinds or set(names) & set(OF_PATCHES) else "text"


def hold_frozen(config: Config, params: Any) -> Any:
  """The same parameters, of which those whose factor is 0 get no gradient, so that it
  is no part of the norm by which others are clipped. Nor is it computed, but where one
  kernel makes it beside the gradient of a twin that learns (model/untied.py)."""
  factors = _factors(config)
  if min(factors.values()) > 0:
    return params
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if factors[tower_of(path)] else jax.lax.stop_gradient(x), params
  )


def _factors(config: Config) -> dict[str, float]:
  train = config.train
  return {
    "text": train.text_lr_factor,
    "image": train.image_lr_factor,
    "lora": 1.0,
  }


def _scale_towers(factors: dict[str, float], updates: Any, _: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: factors[tower_of(path)] * x, updates
  )


def decay_mask(params: Any) -> Any:
  """True for matrices; norms and biases, whose names say so, do not decay. The paper
  does not say what does: ours, as Llama's code has it, with embedding and head decayed.

  A name is a key of a nested dict, or the end of a dotted one of a flat dict.
  """

  def decays(path, _):
    name = str(path[-1].key).rpartition(".")[2]
    return not name.startswith(("scale", "b_", "bias"))

  return jax.tree_util.tree_map_with_path(decays, params)


def update_ema(ema: Any, params: Any, *, decay: float, step: jax.Array) -> Any:
  """ema + (1 - d) (params - ema) with d = min(decay, (1 + step) / (10 + step)).

  The ramp forgets the random start; it depends on the step alone, so that a resumed
  run goes on exactly.
  """
  step = step.astype(jnp.float32)
  d = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - d) * (p - e), ema, params)
