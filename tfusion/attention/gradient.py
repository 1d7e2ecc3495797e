"""One gradient for every implementation: what surrounds its forward and backward.

Owns: the custom gradient, vmap as more rows of the batch, shard_map on a mesh.
Not: the arithmetic, which each implementation brings as a module with

  find_live(lo_bq, hi_bq, sizes, blocks) -> live: a tree of arrays, each with the batch,
    or something for every shard of it, in front
  forward(q, k, v, lo, hi, live, *, scale, soft_cap, blocks, interpret)
    -> (o, lse, *kept)
  backward(q, k, v, lo, hi, live, lse, delta, do, *kept, ...) -> (dq, dk, dv)

A module without `backward` is differentiated by JAX: the reference. Only a Ring keeps
anything: as many arrays like k as its attribute `kept` says.

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

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
  def kept(self) -> int:
    return getattr(self.module, "kept", 0)

  @property
  def options(self) -> dict[str, Any]:
    return dict(
      scale=self.scale,
      soft_cap=self.soft_cap,
      blocks=self.blocks,
      interpret=self.interpret,
    )


class Inputs(NamedTuple):
  """The arrays of a call, or what there is one of for each of them."""

  q_bqhd: Any
  k_bknd: Any
  v_bknd: Any
  lo_bq: Any
  hi_bq: Any
  live: Any  # of `find_live`


def attend(call: Call, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """Returns (o_bqhd, lse_bhq), differentiable in q, k and v."""
  if not hasattr(call.module, "backward"):
    return _forward(call, inputs)
  return _attend(call, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call: Call, inputs: Inputs):
  o_bqhd, lse_bhq, *_ = _by_rows(call, _forward)(inputs)
  return o_bqhd, lse_bhq


def _attend_forward(call: Call, inputs: Inputs):
  o_bqhd, lse_bhq, *kept = _by_rows(call, _forward)(inputs)
  return (o_bqhd, lse_bhq), (inputs, o_bqhd, lse_bhq, kept)


def _attend_backward(call: Call, saved, cotangents):
  inputs, o_bqhd, lse_bhq, kept = saved
  do_bqhd, dlse_bhq = cotangents
  delta_bqh = jnp.sum(do_bqhd.astype(jnp.float32) * o_bqhd.astype(jnp.float32), -1)
  delta_bhq = delta_bqh.swapaxes(1, 2) - dlse_bhq
  # A query that met a nan or an inf carries it in its lse, which meets the scores
  # before the select. Everything else is made finite, and so cannot spread.
  lse_bhq = jnp.where(jnp.isfinite(delta_bhq), lse_bhq, jnp.nan)
  delta_bhq = jnp.where(jnp.isfinite(delta_bhq), delta_bhq, 0.0)
  dq_bqhd, dk_bknd, dv_bknd = _by_rows(call, _backward)(
    inputs, lse_bhq, delta_bhq, do_bqhd, *kept
  )
  return (Inputs(dq_bqhd, dk_bknd, dv_bknd, lo_bq=None, hi_bq=None, live=None),)


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(call: Call, inputs: Inputs):
  def run(inputs):
    return call.module.forward(*inputs, **call.options)

  if call.specs is None:
    return run(inputs)
  q, kv, _ = call.specs
  return jax.shard_map(
    run,
    in_specs=(_input_specs(call.specs, inputs.live),),
    out_specs=(q, P(q[0], q[2], q[1]), *[kv] * call.kept),
    check_vma=not hasattr(call.module, "backward"),
  )(inputs)


def _backward(call: Call, inputs: Inputs, *of_queries_and_kept):
  def run(inputs, *others):
    return call.module.backward(*inputs, *others, **call.options)

  if call.specs is None:
    return run(inputs, *of_queries_and_kept)
  q, kv, _ = call.specs
  lse = P(q[0], q[2], q[1])
  return jax.shard_map(
    run,
    in_specs=(
      _input_specs(call.specs, inputs.live),
      *(lse, lse, q),
      *[kv] * call.kept,
    ),
    out_specs=(q, kv, kv),
    check_vma=False,
  )(inputs, *of_queries_and_kept)


def _input_specs(specs: tuple[P, P, P], live) -> Inputs:
  q, kv, lo = specs
  return Inputs(q, kv, kv, lo, lo, jax.tree.map(lambda _: _of_shards(lo), live))


def _by_rows(call: Call, function):
  """Under vmap, makes the mapped axis part of the batch."""

  @custom_vmap
  def run(inputs, *of_queries):
    return function(call, inputs, *of_queries)

  @run.def_vmap
  def rule(size, mapped, inputs, *of_queries):
    def fold(x, is_mapped):
      if not is_mapped:
        x = jnp.broadcast_to(x[None], (size, *x.shape))
      x = jnp.moveaxis(x, 0, 1)  # the batch stays in front, as it is sharded
      return x.reshape(-1, *x.shape[2:])

    def unfold(x):
      return jnp.moveaxis(x.reshape(-1, size, *x.shape[1:]), 1, 0)

    inputs_mapped, *of_queries_mapped = mapped
    # What is live is found anew, for all the rows that there are now.
    inputs, inputs_mapped = (x._replace(live=None) for x in (inputs, inputs_mapped))
    inputs = jax.tree.map(fold, inputs, inputs_mapped)
    of_queries = tuple(fold(*pair) for pair in zip(of_queries, of_queries_mapped))
    sizes = intervals.sizes_of(inputs.q_bqhd, inputs.k_bknd)
    live = find_live(call, inputs.lo_bq, inputs.hi_bq, sizes)
    out = _by_rows(call, function)(inputs._replace(live=live), *of_queries)
    return jax.tree.map(unfold, out), jax.tree.map(lambda _: True, out)

  return run


def find_live(call: Call, lo_bq, hi_bq, sizes: intervals.Sizes) -> Any:
  """Returns what the implementation needs of the intervals, shard by shard."""
  run = functools.partial(call.module.find_live, blocks=call.blocks)
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
