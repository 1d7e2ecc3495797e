"""Attention over intervals of keys: one contract, several implementations.

Owns: the contract, its checks, and which implementation runs. Not: where intervals come
from (sequence.py), gradients and meshes (gradient.py, ring.py), the arithmetic
(dense.py, chunked.py, tpu/, gpu/). README.md beside this file tells the whole.

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
"""

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec

from tfusion.attention import gradient, intervals, ring

IMPLEMENTATIONS = ("dense", "chunked", "gpu", "tpu")
BY_PLATFORM = {"cpu": "chunked", "tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}
MODULES = {"gpu": "gpu.kernels", "tpu": "tpu.layout"}  # of the others, their name
HEAD_DIMS = {"tpu": (64, 128, 256), "gpu": (16, 32, 64, 128, 256)}  # of the kernels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Work:
  """What `prepare` found in the intervals of a batch, for every layer to use."""

  live: Any  # what is live, as the implementation has it: arrays of lists or ranges
  sizes: intervals.Sizes = dataclasses.field(metadata={"static": True})
  implementation: str = dataclasses.field(metadata={"static": True})
  blocks: Any = dataclasses.field(metadata={"static": True})


def prepare(
  lo_bq: jax.Array,
  hi_bq: jax.Array,
  *,
  keys: int,
  heads: int,
  kv_heads: int,
  head_dim: int,
  dtype: Any,
  implementation: str | None = None,
  blocks: Any = None,
) -> Work:
  """Finds the live tiles of a batch, once for all layers that share its intervals.

  Args:
    lo_bq, hi_bq: i32, as for `attend`.
    keys, heads, kv_heads, head_dim, dtype: of the calls that will use it.
    implementation: as for `attend`.
    blocks: sizes of tiles, a `Blocks` of the implementation's module; None takes those
      of its table.

  Returns:
    Work for `attend(..., work=work)`. Its shapes do not depend on lo and hi: one
    executable serves every mask.

  Raises:
    ValueError: an unknown name, or blocks that cannot work.
  """
  _check_intervals(lo_bq, hi_bq, lo_bq.shape[:2])
  dtype = jnp.dtype(dtype)
  batch, queries = lo_bq.shape
  sizes = intervals.Sizes(batch, queries, keys, heads, kv_heads, head_dim, dtype)
  name = _choose(implementation, head_dim)
  module = _module(name)
  specs = None
  if _on_mesh():
    lo = _spec(lo_bq)
    specs = (PartitionSpec(*lo, None, None),) * 2 + (lo,)
    module = _around(module, lo)
  call = gradient.Call(
    module=module,
    scale=1.0,  # neither this nor the cap decides what is live
    soft_cap=None,
    blocks=blocks,
    interpret=False,
    specs=specs,
  )
  live = gradient.find_live(call, lo_bq, hi_bq, sizes)
  return Work(live=live, sizes=sizes, implementation=name, blocks=blocks)


def attend(
  q_bqhd: jax.Array,
  k_bknd: jax.Array,
  v_bknd: jax.Array,
  lo_bq: jax.Array,
  hi_bq: jax.Array,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
  implementation: str | None = None,
  interpret: bool = False,
  work: Work | None = None,
) -> jax.Array:
  """Computes softmax(scale * q k) v, where query i sees the keys lo[i] <= j <= hi[i].

  Args:
    q_bqhd: queries of any float dtype.
    k_bknd: keys; n key/value heads divide the h query heads, and query heads
      i * h / n onwards share key/value head i. The number of keys may differ from
      the number of queries.
    v_bknd: values.
    lo_bq: i32, the first key each query sees; see `tfusion.attention.intervals`.
    hi_bq: i32, the last key it sees, inclusive. With lo > hi it sees none: its output
      is zero, and so is every gradient from it.
    scale: of the scores; 1 / sqrt(d) if None.
    soft_cap: scores become soft_cap * tanh(scores / soft_cap) (arXiv 2408.00118,
      section 2) if given.
    implementation: "dense" (the reference), "chunked" (XLA; memory grows in a line with
      the number of queries and keys), "tpu" or "gpu" (the Pallas kernels); None takes
      that of `work`, or the one for the platform and the head dim.
    interpret: runs the Pallas kernels step by step on any platform, for tests.
    work: what `prepare` made of these lo and hi; None makes it here.

  Returns:
    o_bqhd in the dtype of q. Scores, softmax and sums are fp32. A nan or an inf in q,
    k or v reaches only queries that see it. On a mesh with explicit axes the result is
    sharded like q, over batch and heads; and over the sequence, if q, k, v, lo and hi
    all are, over the same mesh axis.

  Raises:
    ValueError: shapes, dtypes or shardings that do not fit, or an unknown name.
  """
  o_bqhd, _ = attend_with_lse(
    q_bqhd,
    k_bknd,
    v_bknd,
    lo_bq,
    hi_bq,
    scale=scale,
    soft_cap=soft_cap,
    implementation=implementation,
    interpret=interpret,
    work=work,
  )
  return o_bqhd


def attend_with_lse(
  q_bqhd: jax.Array,
  k_bknd: jax.Array,
  v_bknd: jax.Array,
  lo_bq: jax.Array,
  hi_bq: jax.Array,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
  implementation: str | None = None,
  interpret: bool = False,
  work: Work | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Like `attend`, and returns (o_bqhd, lse_bhq).

  lse is the f32 log of the sum of exp(scores) of each query, finite and about -2e38
  where a query sees no key. Two results over different keys merge by it.
  """
  _check(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq)
  sizes = intervals.sizes_of(q_bqhd, k_bknd)
  if work is None:
    name, blocks = _choose(implementation, sizes.head_dim), None
  else:
    _check_work(work, sizes, implementation)
    name, blocks = work.implementation, work.blocks
  module, specs = _module(name), None
  if _on_mesh():
    specs = _specs(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq)
    module = _around(module, specs[2])
  call = gradient.Call(
    module=module,
    scale=1.0 / math.sqrt(sizes.head_dim) if scale is None else scale,
    soft_cap=soft_cap,
    blocks=blocks,
    interpret=interpret,
    specs=specs,
  )
  live = gradient.find_live(call, lo_bq, hi_bq, sizes) if work is None else work.live
  inputs = gradient.Inputs(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, live)
  return gradient.attend(call, inputs)


def _choose(implementation: str | None, head_dim: int) -> str:
  if implementation in IMPLEMENTATIONS:
    return implementation
  if implementation is not None:
    raise ValueError(
      f"implementation={implementation!r} is unknown: use one of"
      f" {sorted(IMPLEMENTATIONS)}, or None to let the platform decide"
    )
  name = BY_PLATFORM.get(platform(), "chunked")
  if head_dim not in HEAD_DIMS.get(name, (head_dim,)):
    name = "chunked"
  logging.log_first_n(
    logging.INFO,
    "attention: %r, as the platform is %r and the head dim %d",
    1,
    name,
    platform(),
    head_dim,
  )
  return name


def platform() -> str:
  """Of the mesh in use, which may be of devices that are not here: cpu, gpu or tpu."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def _module(name: str):
  # Only the one in use: Pallas takes a second to import.
  return importlib.import_module(f"tfusion.attention.{MODULES.get(name, name)}")


def _around(module, lo: PartitionSpec):
  """The module itself, or a ring of it where rows are cut into shards."""
  axis = lo[1]
  devices = 1 if axis is None else jax.sharding.get_abstract_mesh().shape[axis]
  return module if devices == 1 else ring.Ring(module, axis, devices)


def _on_mesh() -> bool:
  """Are there mesh axes over which arrays may be sharded here?"""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and not mesh.are_all_axes_manual


def _check(q, k, v, lo, hi) -> None:
  for name, x, shape in (("q", q, "[b, q, h, d]"), ("k", k, "[b, k, n, d]")):
    if x.ndim != 4:
      raise ValueError(f"{name} has shape {x.shape}: it must be {shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} has dtype {x.dtype}: cast it to a float dtype")
  if v.shape != k.shape or v.dtype != k.dtype:
    raise ValueError(
      f"v is {v.dtype}{v.shape} and k is {k.dtype}{k.shape}: they must be alike"
    )
  if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
    raise ValueError(
      f"q has shape {q.shape} and k has shape {k.shape}: batch and head dim must agree"
    )
  if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
    raise ValueError(
      f"q has {q.shape[2]} heads and k has {k.shape[2]}: the heads of q must be a"
      " multiple of those of k and v"
    )
  if 0 in q.shape or 0 in k.shape:
    raise ValueError(f"q has shape {q.shape} and k has shape {k.shape}: none may be 0")
  _check_intervals(lo, hi, q.shape[:2])


def _check_intervals(lo, hi, shape) -> None:
  for name, x in (("lo", lo), ("hi", hi)):
    if x.ndim != 2 or x.shape != shape:
      raise ValueError(f"{name} has shape {x.shape}: it must be {shape}, one per query")
    if x.dtype != jnp.int32:
      raise ValueError(f"{name} has dtype {x.dtype}: cast it with .astype('int32')")


def _check_work(work: Work, sizes: intervals.Sizes, implementation) -> None:
  if implementation not in (None, work.implementation):
    raise ValueError(
      f"implementation={implementation!r}, but work was prepared for"
      f" {work.implementation!r}: leave one of them out"
    )
  if work.sizes != sizes:
    raise ValueError(
      f"work was prepared for {work.sizes}, and this call has {sizes}: prepare it for"
      " these"
    )


def _spec(x) -> PartitionSpec:
  spec = jax.typeof(x).sharding.spec
  one = [x[0] if isinstance(x, tuple) and len(x) == 1 else x for x in spec]
  return PartitionSpec(*one, *[None] * (x.ndim - len(spec)))


def _specs(q, k, v, lo, hi) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
  """Returns how q, k and v, and lo and hi are sharded."""
  found = {name: _spec(x) for name, x in dict(q=q, k=k, v=v, lo=lo, hi=hi).items()}
  batch, length, heads, d = found["q"]
  if isinstance(length, tuple) or d is not None:
    raise ValueError(
      f"q is sharded as {found['q']}: reshard it so that its sequence is sharded over"
      " one mesh axis or none, and its head dim never"
    )
  for name in ("k", "v"):
    if found[name] != found["q"]:
      raise ValueError(
        f"{name} is sharded as {found[name]} and q as {found['q']}: reshard {name}"
        " like q; its heads and length must divide over the same mesh axes"
      )
  for name in ("lo", "hi"):
    if found[name] != PartitionSpec(batch, length):
      raise ValueError(
        f"{name} is sharded as {found[name]}: reshard it as"
        f" {PartitionSpec(batch, length)}, like batch and sequence of q"
      )
  return found["q"], found["k"], found["lo"]
