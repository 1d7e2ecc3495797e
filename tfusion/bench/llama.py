"""A plain Llama of the same sizes, and its training step: what ours is compared with.

Owns: its rows, its forward pass and its loss. Not: layers and optimizer, which are
ours: only what a Transfusion model has beside them is left out.

b batch  l sequence  d width  v vocab

Its rows are text alone, full, one document each, causal. What is gone: image slots,
noise, patch layers, timesteps, the second loss, several documents in a row.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tfusion.config import Config, ModelConfig
from tfusion.model.linear import param
from tfusion.model.transformer import Transformer
from tfusion.model.transfusion import Params, Transfusion
from tfusion.training import step as step_lib
from tfusion.training.cross_entropy import next_token_loss
from tfusion.training.optim import make_optimizer
from tfusion.training.step import INIT, TrainState


class Llama(Transfusion):
  """A Transfusion model without its patch layers."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    v, d = config.vocab_size, config.width
    self.embedding = param(rngs, ("vocab", "embed"), (v, d), std=1.0)
    tied = dataclasses.replace(config, untied="none")
    self.transformer = Transformer(tied, rngs=rngs)
    self.head = param(rngs, ("embed", "vocab"), (d, v), std=d**-0.5)
    self.config = config

  def read(self, tokens_bl: jax.Array) -> jax.Array:
    """Outputs at every token, which sees those before it: [b, l, d]."""
    index_bl = jnp.zeros_like(tokens_bl) + jnp.arange(tokens_bl.shape[1])[None]
    view = self._view(index_bl, jnp.zeros_like(tokens_bl), index_bl)
    return self.transformer(self.embed_text(tokens_bl), view)[0]


def make_rows(config: Config) -> np.ndarray:
  """Random tokens, one more than a row is long: i32[b, l + 1]."""
  shape = (config.train.batch_rows, config.data.row_length + 1)
  rng = np.random.default_rng(config.seed)
  return rng.integers(0, config.model.vocab_size, shape).astype(np.int32)


def init_state(config: Config, root: jax.Array) -> TrainState:
  """The state of step 0, as `tfusion.training.step.init_state` makes ours."""
  rngs = nnx.Rngs(params=jax.random.fold_in(root, INIT))
  params = nnx.to_pure_dict(nnx.state(Llama(config.model, rngs=rngs), nnx.Param))
  return TrainState(
    step=jnp.int32(0),
    skipped=jnp.int32(0),
    skipped_total=jnp.int32(0),
    params=params,
    opt_state=make_optimizer(config).init(params),
    ema=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else {},
  )


def train_step(
  config: Config, state: TrainState, rows_bl: jax.Array, root: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on rows of `make_rows`; the key is not used: nothing is drawn."""
  del root
  gradient = jax.grad(functools.partial(_objective, config), has_aux=True)
  grads, text = step_lib.accumulate(config, gradient, state.params, (rows_bl,))
  new, grad_norm = step_lib.update(config, state, grads, text.mean())
  return new, {"loss": text.mean(), "grad_norm": grad_norm}


def _objective(config: Config, params: Params, rows_bl: jax.Array):
  """Mean loss over the whole batch, of which these may be a part; and the sum."""
  graphdef, abstract = nnx.split(_abstract(config.model))
  nnx.replace_by_pure_dict(abstract, params)
  tokens_bl, targets_bl = rows_bl[:, :-1], rows_bl[:, 1:]
  x_bld = nnx.merge(graphdef, abstract).read(tokens_bl)
  ones_bl = jnp.ones_like(tokens_bl, jnp.float32)
  text = next_token_loss(
    x_bld,
    params["head"],
    targets_bl,
    weights_bl=ones_bl,
    gradient=config.model.gradient_dtype,
  )
  return text.total / (config.train.batch_rows * tokens_bl.shape[1]), text


def _abstract(config: ModelConfig) -> Llama:
  return nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(params=jax.random.key(0))))
