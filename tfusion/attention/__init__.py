"""Attention over intervals of keys: one contract, several implementations.

Owns: the contract, its checks, which implementation runs, and how it runs on a mesh.
Not: where intervals come from (sequence.py), the arithmetic (dense.py, chunked.py).

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tfusion.attention import chunked, dense

IMPLEMENTATIONS = {"dense": dense.attend, "chunked": chunked.attend}
DENSE_SCORES = 1024 * 1024  # per head; above, no accelerator should hold them all


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
    implementation: "dense" (the reference) or "chunked" (memory grows in a line with
      the number of queries and keys; up to 200,000 scores of a head, a row of 447,
      are one tile); None takes the faster one for this platform and these sizes.

  Returns:
    o_bqhd in the dtype of q. Scores, softmax and sums are fp32. A nan or an inf in q,
    k or v reaches only queries that see it. On a mesh with explicit axes the result is
    sharded like q, over batch and heads.

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
) -> tuple[jax.Array, jax.Array]:
  """Like `attend`, and returns (o_bqhd, lse_bhq).

  lse is the f32 log of the sum of exp(scores) of each query, finite and about -2e38
  where a query sees no key. Two results over different keys merge by it.
  """
  _check(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq)
  if implementation is None:
    implementation = _choose(q_bqhd, k_bknd)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation={implementation!r} is unknown: use one of"
      f" {sorted(IMPLEMENTATIONS)}, or None to let the platform decide"
    )
  run = functools.partial(
    IMPLEMENTATIONS[implementation],
    scale=1.0 / math.sqrt(q_bqhd.shape[-1]) if scale is None else scale,
    soft_cap=soft_cap,
  )
  specs = _specs(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq)
  if specs is not None:
    batch, _, heads, _ = specs[0]
    out_specs = (specs[0], PartitionSpec(batch, heads, None))
    run = jax.shard_map(run, in_specs=specs, out_specs=out_specs)
  return run(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq)


def _choose(q_bqhd, k_bknd) -> str:
  if jax.default_backend() == "cpu":
    return "chunked"
  scores = q_bqhd.shape[1] * k_bknd.shape[1]
  return "dense" if scores <= DENSE_SCORES else "chunked"


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
  for name, x in (("lo", lo), ("hi", hi)):
    if x.shape != q.shape[:2]:
      raise ValueError(
        f"{name} has shape {x.shape}: it must be {q.shape[:2]}, one per query"
      )
    if x.dtype != jnp.int32:
      raise ValueError(f"{name} has dtype {x.dtype}: cast it with .astype('int32')")


def _specs(q, k, v, lo, hi) -> tuple[PartitionSpec, ...] | None:
  """Returns how the arguments are sharded, or None where nothing is."""
  found = {}
  for name, x in dict(q=q, k=k, v=v, lo=lo, hi=hi).items():
    spec = jax.typeof(x).sharding.spec
    found[name] = PartitionSpec(*spec, *[None] * (x.ndim - len(spec)))
  if all(axis is None for spec in found.values() for axis in spec):
    return None
  batch, length, heads, d = found["q"]
  if length is not None or d is not None:
    raise ValueError(
      f"q is sharded as {found['q']}: reshard it so that only batch and heads are"
      " sharded, never sequence or head dim"
    )
  for name in ("k", "v"):
    if found[name] != found["q"]:
      raise ValueError(
        f"{name} is sharded as {found[name]} and q as {found['q']}: reshard {name}"
        " like q; its heads must divide over the same mesh axis"
      )
  for name in ("lo", "hi"):
    if found[name] != PartitionSpec(batch, None):
      raise ValueError(
        f"{name} is sharded as {found[name]}: reshard it as"
        f" {PartitionSpec(batch, None)}, like the batch of q"
      )
  return tuple(found.values())
