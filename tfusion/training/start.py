"""The state of step 0: from random numbers alone, or from weights that are there.

Owns: putting the two together on the devices, what is said of their memory. Not: the
random numbers (step.py), what weights there are (interop/weights.py).
"""

import math
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tfusion import progress
from tfusion.config import Config
from tfusion.data.pipeline import Corpus
from tfusion.model.transfusion import Params
from tfusion.training.step import TrainState, abstract_state, init_state, shardings


class FirstWeights(Protocol):
  """Weights that a run begins with, on all hosts."""

  def check(self, corpus: Corpus) -> None:
    """Called before training; raises ValueError for what does not fit."""

  def describe(self) -> str:
    """What they are, in a line."""

  def load(self, wanted: Params) -> Params:
    """Those of the parameters that there are, where `wanted`, shapes with shardings,
    has them."""


def new_state(
  config: Config,
  mesh: jax.sharding.Mesh,
  root: jax.Array,
  weights: FirstWeights | None = None,
) -> TrainState:
  """Makes the state of step 0, each leaf where it belongs.

  Args:
    config: checked.
    mesh: in use.
    root: the key of the run.
    weights: to begin with; parameters that they do not have are made as ever. None: all
      are. Their memory is printed before any is read.

  Raises:
    ValueError: the weights are not of this model.
  """
  out = shardings(config, mesh)
  if weights is None:
    return jax.jit(partial(init_state, config), out_shardings=out)(root)
  wanted = abstract_state(config, mesh)
  if jax.process_index() == 0:
    progress.say(f"{weights.describe()}; {memory(wanted)}")
  loaded = weights.load(wanted.params)
  begin = partial(_begin, config)
  return jax.jit(begin, out_shardings=out, donate_argnums=1)(root, loaded)


def memory(wanted: TrainState) -> str:
  """What a state takes of each device, of shapes with shardings."""
  parts = {
    "parameters": wanted.params,
    "optimizer": wanted.opt_state,
    "average": wanted.ema,
  }
  gib = {name: _bytes(part) / 2**30 for name, part in parts.items()}
  each = ", ".join(f"{name} {size:.2f}" for name, size in gib.items() if size)
  device = jax.local_devices()[0]
  room = (device.memory_stats() or {}).get("bytes_limit", 0) / 2**30
  of = f" of {room:.2f}" if room else ""
  return (
    f"the state takes {sum(gib.values()):.2f}{of} GiB of each of {jax.device_count()}"
    f" devices ({each})"
  )


def _bytes(tree: Any) -> int:
  """Of one device."""
  return sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in jax.tree.leaves(tree)
  )


def _begin(config: Config, root: jax.Array, loaded: Params) -> TrainState:
  """The state with these parameters; random ones that they replace are not computed."""
  state = init_state(config, root)
  params = _with(state.params, loaded)
  ema = jax.tree.map(jnp.copy, params) if config.optim.ema_decay else {}
  return state._replace(params=params, ema=ema)


def _with(params: Params, loaded: Params) -> Params:
  return {
    key: (_with(own, loaded[key]) if isinstance(own, dict) else loaded[key])
    if key in loaded
    else own
    for key, own in params.items()
  }
