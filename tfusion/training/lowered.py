"""The training step from shapes alone: for machines that are not here, and to compare.

Owns: a batch without numbers, the lowered step. Not: what it computes (step.py), its
compilation (compiled.py).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tfusion.config import Config, slots_of
from tfusion.sequence import Batch, Slots
from tfusion.sharding import spec
from tfusion.training.compiled import jit_step
from tfusion.training.step import abstract_state, shardings, train_step


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Batch[Any]:
  """A batch of `train.batch_rows` without numbers."""
  rows, length = config.train.batch_rows, config.data.row_length
  sharding = NamedSharding(mesh, spec("batch"))

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

  by_position = array(jnp.int32, length)
  return Batch(
    tokens_bl=by_position,
    targets_bl=by_position,
    weights_bl=array(jnp.float32, length),
    positions_bl=by_position,
    lo_bl=by_position,
    hi_bl=by_position,
    patch_bl=by_position,
    slots=tuple(
      Slots(
        latents=array(jnp.float32, slots, *kind.shape),
        starts=array(jnp.int32, slots),
        weights=array(jnp.float32, slots),
        noise_caps=array(jnp.float32, slots),
      )
      for kind, slots in zip(config.model.every_kind, slots_of(config), strict=True)
    ),
  )


def lower_step(config: Config, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
  """The training step, as loop.py compiles it. Call it inside jax.set_mesh."""
  key = jax.eval_shape(lambda: jax.random.key(config.seed))
  root = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, P()))
  step = jit_step(functools.partial(train_step, config), shardings(config, mesh))
  return step.lower(abstract_state(config, mesh), abstract_batch(config, mesh), root)
