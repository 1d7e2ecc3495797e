"""The real programs for machines that are not here: the training step, and sampling.

Owns: the mesh of a topology, the lowered sampler, what programs are given. Not: the
lowered step (training/lowered.py), what they compute (training/step.py,
generate/drawing.py), what is read out of them (hlo.py, timeline.py).

Runs in a process that PJRT's plugin for TPUs, or many devices of a CPU, were set up in:
worker.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding

from tfusion.config import Config
from tfusion.diffusion import samplers
from tfusion.generate import drawing as drawing_lib
from tfusion.model.transformer import empty_cache
from tfusion.model.transfusion import dtype_of
from tfusion.pods.chips import GPUS, Topology
from tfusion.sharding import make_mesh, spec
from tfusion.training.lowered import abstract_batch
from tfusion.training.step import abstract_state, draw_noise, losses, predict


def mesh_of(config: Config, topology: Topology) -> jax.sharding.Mesh:
  """The mesh of a config over the devices of a topology.

  Raises:
    ValueError: the compiler knows no such topology.
  """
  if topology.generation in GPUS:  # as many devices of a CPU stand for them
    return make_mesh(config.mesh)
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=topology.slice_name, num_slices=topology.slices
    )
  except Exception as error:  # of several kinds: what the plugin says
    said = str(error).partition("\n")[0][:300]
    raise ValueError(
      f"--topology={topology.slice_name}: the compiler for TPUs knows none such"
      f" ({said}); of v5p each side is 1, 2 or a multiple of 4; slices of v5e and v6e"
      " go from 1x1 to 16x16"
    ) from error
  return make_mesh(config.mesh, devices=described.devices)


def lower_sampler(config: Config, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
  """The denoising steps of one image in each of `eval.batch` rows, with a full cache.
  Call it inside jax.set_mesh.

  Raises:
    ValueError: the model has no patches.
  """
  if config.model.patches == "none":
    raise ValueError("model.patches=none: there is no image to denoise in this model")
  by_row = NamedSharding(mesh, spec("batch"))
  rows, drawing = config.eval.batch, _drawing(config)
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  number = jax.ShapeDtypeStruct((), jnp.int32)
  return drawing_lib.advance.lower(
    config.model,
    abstract_state(config, mesh).sampling_params,
    kind=config.model.every_kind[0],
    diffusion=config.diffusion,
    sample=config.sample,
    drawing=drawing,
    image_b=jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row),
    keys_b=jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=by_row),
    first=number,
    last=number,
  )


def arguments(
  config: Config, mesh: jax.sharding.Mesh, *, trains: bool
) -> dict[str, Any]:
  """What a program is given, by name: of the training step, or of the sampler, which
  has no more than parameters and a cache. Call it inside jax.set_mesh."""
  state = abstract_state(config, mesh)
  if not trains:
    cache = _drawing(config).walk.memory
    return {"parameters": state.sampling_params, "cache": cache}
  return {
    "parameters": state.params,
    "optimizer": state.opt_state,
    "average": state.ema,
    "batch": abstract_batch(config, mesh),
  }


def _drawing(config: Config) -> drawing_lib.Drawing:
  """An image in every row, on its way; guidance doubles the rows of the cache."""
  length, rows = config.sample.max_elements, config.eval.batch
  branches = 1 if config.sample.guidance == 1.0 else 2

  def make():
    dtype, many = dtype_of(config.model), rows * branches
    cache = empty_cache(config.model, batch=many, length=length, dtype=dtype)
    shape = (rows, *config.model.image_shape)
    noise = jnp.zeros(shape, jnp.float32, out_sharding=spec("batch"))
    at = jnp.zeros(many, jnp.int32, out_sharding=spec("batch"))
    return drawing_lib.Drawing(samplers.begin(noise, cache), at, at)

  return jax.eval_shape(make)


def residual_bytes(config: Config, mesh: jax.sharding.Mesh) -> int:
  """Bytes on a device of what the forward pass keeps for the backward pass, of one part
  of a batch: activations, without the parameters. Call it inside jax.set_mesh."""
  parts = config.train.accumulate
  batch = abstract_batch(config, mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (x.shape[0] // parts, *x.shape[1:]), x.dtype, sharding=x.sharding
    ),
    batch,
  )
  params = abstract_state(config, mesh).params

  def kept(params, batch):
    noise, t = draw_noise(config, jax.random.key(0), batch)

    def objective(params):
      predicted = predict(config, params, batch, noise, t)
      text, images = losses(config, params, predicted, batch, noise, t)
      return functools.reduce(jnp.add, [image.total for image in images], text.total)

    return jax.vjp(objective, params)[1]

  own = {(x.shape, x.dtype) for x in jax.tree.leaves(params)}
  found = jax.eval_shape(kept, params, batch)
  return sum(
    shard_bytes(x) for x in jax.tree.leaves(found) if (x.shape, x.dtype) not in own
  )


def shard_bytes(x: Any) -> int:
  """Bytes of an abstract array on one device."""
  sharding = x.sharding
  shape = sharding.shard_shape(x.shape) if sharding is not None else x.shape
  itemsize = getattr(x.dtype, "itemsize", 4)
  return int(np.prod(shape, dtype=np.int64)) * itemsize
