"""One gradient for every implementation: what surrounds its forward and backward.

Owns: the custom gradient, vmap as more rows of the batch, shard_map on a mesh.
Not: the arithmetic, which each implementation brings as a module with

  prepare(lo_bq, hi_bq, sizes, blocks) -> a tree of arrays, each with the batch, or
    something for every shard of it, in front
  forward(q, k, v, lo, hi, work, *, scale, soft_cap, blocks, interpret) -> (o, lse)
  backward(q, k, v, lo, hi, work, lse, delta, do, *, ...) -> (dq, dk, dv)

A module without `backward` is differentiated by JAX: the reference.

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec as P

from tfusion.attention import intervals


@dataclasses.dataclass(frozen=True)
class Call:
  """All that is not an array."""

  module: Any  # or a Ring of one
  scale: float
  soft_cap: float | None
  blocks: Any
  interpret: bool
  specs: tuple[P, P, P] | None  # of q, k and v, and lo and hi; None without a mesh

  @property
  def options(self) -> dict[str, Any]:
    return dict(
      scale=self.scale,
      soft_cap=self.soft_cap,
      blocks=self.blocks,
      interpret=self.interpret,
    )


def attend(call: Call, q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, work):
  """Returns (o_bqhd, lse_bhq), differentiable in q, k and v."""
  if not hasattr(call.module, "backward"):
    return _forward(call, q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, work)
  return _attend(call, q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, work)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call, *args):
  return _by_rows(call, _forward)(*args)


def _attend_forward(call, *args):
  o_bqhd, lse_bhq = _by_rows(call, _forward)(*args)
  return (o_bqhd, lse_bhq), (args, o_bqhd, lse_bhq)


def _attend_backward(call, saved, cotangents):
  args, o_bqhd, lse_bhq = saved
  do_bqhd, dlse_bhq = cotangents
  delta_bqh = jnp.sum(do_bqhd.astype(jnp.float32) * o_bqhd.astype(jnp.float32), -1)
  delta_bhq = delta_bqh.swapaxes(1, 2) - dlse_bhq
  # A query that met a nan or an inf carries it in its lse, which meets the scores
  # before the select. Everything else is made finite, and so cannot spread.
  lse_bhq = jnp.where(jnp.isfinite(delta_bhq), lse_bhq, jnp.nan)
  delta_bhq = jnp.where(jnp.isfinite(delta_bhq), delta_bhq, 0.0)
  grads = _by_rows(call, _backward)(*args, lse_bhq, delta_bhq, do_bqhd)
  return *grads, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(call: Call, *args):
  run = functools.partial(call.module.forward, **call.options)
  if call.specs is None:
    return run(*args)
  q, kv, lo = call.specs
  work = jax.tree.map(lambda _: _of_shards(lo), args[5])
  return jax.shard_map(
    run,
    in_specs=(q, kv, kv, lo, lo, work),
    out_specs=(q, P(q[0], q[2], q[1])),
    check_vma=not hasattr(call.module, "backward"),
  )(*args)


def _backward(call: Call, *args):
  run = functools.partial(call.module.backward, **call.options)
  if call.specs is None:
    return run(*args)
  q, kv, lo = call.specs
  lse = P(q[0], q[2], q[1])
  work = jax.tree.map(lambda _: _of_shards(lo), args[5])
  return jax.shard_map(
    run,
    in_specs=(q, kv, kv, lo, lo, work, lse, lse, q),
    out_specs=(q, kv, kv),
    check_vma=False,
  )(*args)


def _by_rows(call: Call, function):
  """Under vmap, makes the mapped axis part of the batch."""

  @custom_vmap
  def run(*args):
    return function(call, *args)

  @run.def_vmap
  def rule(size, mapped, *args):
    def fold(x, is_mapped):
      if not is_mapped:
        x = jnp.broadcast_to(x[None], (size, *x.shape))
      x = jnp.moveaxis(x, 0, 1)  # the batch stays in front, as it is sharded
      return x.reshape(-1, *x.shape[2:])

    def unfold(x):
      return jnp.moveaxis(x.reshape(-1, size, *x.shape[1:]), 1, 0)

    arrays = [x for i, x in enumerate(args) if i != 5]
    flags = [x for i, x in enumerate(mapped) if i != 5]
    arrays = [fold(*pair) for pair in zip(arrays, flags)]
    work = prepare(call, *arrays[3:5], intervals.sizes_of(*arrays[:2]))
    out = _by_rows(call, function)(*arrays[:5], work, *arrays[5:])
    return jax.tree.map(unfold, out), jax.tree.map(lambda _: True, out)

  return run


def prepare(call: Call, lo_bq, hi_bq, sizes: intervals.Sizes):
  """Returns what the implementation needs of the intervals, shard by shard."""
  run = functools.partial(call.module.prepare, blocks=call.blocks)
  if call.specs is None:
    return run(lo_bq, hi_bq, sizes=sizes)
  *_, lo = call.specs
  rows, length = (_shards(axes) for axes in lo)
  sizes = sizes._replace(
    batch=sizes.batch // rows,
    queries=sizes.queries // length,
    keys=sizes.keys // length,
  )
  return jax.shard_map(
    functools.partial(run, sizes=sizes),
    in_specs=(lo, lo),
    out_specs=_of_shards(lo),
    check_vma=False,
  )(lo_bq, hi_bq)


def _shards(axes) -> int:
  mesh = jax.sharding.get_abstract_mesh().shape
  return math.prod(mesh[axis] for axis in _names(axes))


def _of_shards(lo: P) -> P:
  """What a shard of lo and hi has for itself is stacked in front."""
  return P((*_names(lo[0]), *_names(lo[1])))


def _names(axes) -> tuple[str, ...]:
  """The mesh axes of one dimension of a PartitionSpec."""
  return axes if isinstance(axes, tuple) else () if axes is None else (axes,)
