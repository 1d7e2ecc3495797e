"""Interval attention for NVIDIA GPUs: Pallas kernels on its Triton backend.

Owns: the three kernels (forward, dq, dk and dv) and their arithmetic. Not: which tiles
they visit (ranges.py), the contract and its gradient rule (tfusion.attention).

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
c blocks  w the five numbers of a block: see `Ranges`  s splits of the keys

A block of queries visits the keys that it sees, a block of keys the queries that see
it (FlashAttention-2, arXiv 2307.08691, section 3). The tiles that are seen in part come
first, under a mask. All others need none: everybody there may see a nan, too, so only
the masked tiles guard against it.

Blocks start in the order of their length, so that no long one is left at the end.
Operands stay [b, q, h, d], neither transposed nor padded; the last block of a ragged
row loads and stores under a mask. Scores are in units of log2(e), for exp2.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from tfusion.attention.dense import DEAD_LSE
from tfusion.attention.gpu.ranges import (
  Blocks,
  Ranges,
  Tile,
  find_live,
  plan_of,
  stack,
  unstack,
)
from tfusion.attention.intervals import sizes_of

__all__ = ["Blocks", "Ranges", "Tile", "backward", "find_live", "forward"]

LOG2E = math.log2(math.e)


def forward(
  q_bqhd: jax.Array,
  k_bknd: jax.Array,
  v_bknd: jax.Array,
  lo_bq: jax.Array,
  hi_bq: jax.Array,
  ranges: Ranges,
  *,
  scale: float,
  soft_cap: float | None,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Returns (o_bqhd in q's dtype, lse_bhq f32); see `tfusion.attention`.

  Args:
    q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, scale, soft_cap: see `tfusion.attention`.
    ranges: from `find_live`, with these lo, hi, sizes and blocks.
    blocks: block sizes to use instead of those of the table.
    interpret: runs the kernels without a GPU, slowly.
  """
  plan = plan_of(sizes_of(q_bqhd, k_bknd), blocks)
  # The ranges know how the keys were split: a shard has fewer heads than `find_live`.
  rows = plan.sizes.batch * pl.cdiv(plan.sizes.queries, plan.blocks.forward.queries)
  splits = len(ranges.forward_cw) // rows
  plan = plan._replace(splits=splits)
  q = stack(q_bqhd, plan)
  lo_bq, hi_bq = (jnp.repeat(x, plan.stack, axis=1) for x in (lo_bq, hi_bq))
  b, queries, heads, d = q.shape
  dtype = q.dtype if splits == 1 else jnp.float32
  out = [
    jax.ShapeDtypeStruct((b * splits, queries, heads, d), dtype),
    jax.ShapeDtypeStruct((b * splits, heads, queries), jnp.float32),
  ]
  o, lse = _call(
    _forward_kernel,
    "forward",
    heads,
    out,
    plan=plan,
    scores=_Scores(scale, soft_cap),
    interpret=interpret,
  )(ranges.forward_cw, q, k_bknd, v_bknd, lo_bq, hi_bq)
  if splits > 1:
    lse_bshq = lse.reshape(b, splits, heads, queries)
    lse = jax.nn.logsumexp(lse_bshq, axis=1)
    share_bshq = jnp.exp(lse_bshq - lse[:, None])
    o_bsqhd = o.reshape(b, splits, queries, heads, d)
    o = jnp.einsum("bshq,bsqhd->bqhd", share_bshq, o_bsqhd, precision="highest")
  lse = unstack(lse.swapaxes(1, 2)[..., None], plan)[..., 0].swapaxes(1, 2)
  return unstack(o, plan).astype(q_bqhd.dtype), lse


def backward(
  q_bqhd: jax.Array,
  k_bknd: jax.Array,
  v_bknd: jax.Array,
  lo_bq: jax.Array,
  hi_bq: jax.Array,
  ranges: Ranges,
  lse_bhq: jax.Array,
  delta_bhq: jax.Array,
  do_bqhd: jax.Array,
  *,
  scale: float,
  soft_cap: float | None,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (dq_bqhd, dk_bknd, dv_bknd) in the dtypes of q, k and v.

  Args:
    lse_bhq: from `forward`; nan where q, o or do of a query is not finite.
    delta_bhq: f32, finite: the sum of o * do over d, minus the gradient of lse.
    do_bqhd: the gradient of o.
    q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, ranges, scale, soft_cap, blocks, interpret:
      as of `forward`.
  """
  plan = plan_of(sizes_of(q_bqhd, k_bknd), blocks)
  q, do = stack(q_bqhd, plan), stack(do_bqhd, plan)
  lse_bqh1, delta_bqh1 = (x.swapaxes(1, 2)[..., None] for x in (lse_bhq, delta_bhq))
  lse, delta = (stack(x, plan)[..., 0].swapaxes(1, 2) for x in (lse_bqh1, delta_bqh1))
  lo_bq, hi_bq = (jnp.repeat(x, plan.stack, axis=1) for x in (lo_bq, hi_bq))
  operands = (q, k_bknd, v_bknd, do.astype(q.dtype), lse, delta, lo_bq, hi_bq)
  call = functools.partial(
    _call, plan=plan, scores=_Scores(scale, soft_cap), interpret=interpret
  )
  like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k_bknd, v_bknd)]
  run_dq = call(_dq_kernel, "dq", plan.sizes.heads, like[0])
  run_dkv = call(_dkv_kernel, "dkv", plan.sizes.kv_heads, like[1:])
  dq = run_dq(ranges.dq_cw, *operands)
  dk, dv = run_dkv(ranges.dkv_cw, *operands)
  return unstack(dq, plan), dk, dv


class _Scores:
  """Scores of a tile and their derivative; the same arithmetic in all kernels."""

  def __init__(self, scale: float, soft_cap: float | None):
    self.soft_cap = soft_cap
    self.scale = scale
    if soft_cap is not None:
      self.inner, self.outer = 2 * LOG2E * scale / soft_cap, soft_cap * LOG2E
    elif scale > 0:  # outer is one of a fused multiply-add
      self.inner, self.outer = 1.0, scale * LOG2E
    else:
      self.inner, self.outer = scale, LOG2E  # a largest score needs outer > 0

  def bounded(self, products):
    """Scores but for the factor `outer`."""
    x = products if self.inner == 1.0 else products * self.inner
    # tanh, as accurate as a score needs: the library's takes too many registers.
    return x if self.soft_cap is None else 1.0 - 2.0 / (1.0 + jnp.exp2(x))

  def gradient(self, ds, bounded):
    """Of products / scale, from that of the scores."""
    return ds if self.soft_cap is None else ds * (1.0 - bounded * bounded)


def _dot(a, b, *, contract: tuple[int, int]):
  """Sums in fp32; fp32 operands are not rounded."""
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  axes = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(
    a, b, axes, precision=precision, preferred_element_type=jnp.float32
  )


def _load(ref, *at, inside=None, other=0):
  """Loads a block; `inside` is a mask of its first axis, None where all are."""
  if inside is None:
    return ref[at]
  view = ref.at[at]
  mask = jnp.broadcast_to(inside.reshape(-1, *[1] * (len(view.shape) - 1)), view.shape)
  return plt.load(view, mask=mask, other=other)


def _store(ref, *at, inside, value):
  view = ref.at[at]
  if inside is not None:
    inside = jnp.broadcast_to(inside.reshape(-1, *[1] * (value.ndim - 1)), value.shape)
  plt.store(view, value.astype(ref.dtype), mask=inside)


def _span(start, size: int, length: int, *, whole: bool = False):
  """Returns (slice, indices, which of them exist: None for all) from `start` on.

  Args:
    whole: all are known to exist.
  """
  index = start + lax.broadcasted_iota(jnp.int32, (size,), 0)
  inside = None if whole or length % size == 0 else index < length
  return pl.ds(start, size), index, inside


def _slide(start, size: int, length: int):
  """Like `_span`, but moved back into the row where it would run over the end.

  The indices before `start` are then the caller's to leave out.
  """
  if length % size == 0 or length < size:
    return _span(start, size, length)
  return _span(jnp.minimum(start, length - size), size, length, whole=True)


def _finite(x):
  """Zero for nan and inf: a matmul would spread them, since 0 * nan is nan."""
  return jnp.where(jnp.abs(x) < jnp.inf, x, jnp.zeros_like(x))


def _program(ranges_ref, heads: int, per_row: int):
  """Returns (row, block, head, bounds) of this program."""
  program = pl.program_id(0)
  rank, head = lax.div(program, heads), lax.rem(program, heads)
  index, *bounds = (ranges_ref[rank, i] for i in range(5))
  return lax.div(index, per_row), lax.rem(index, per_row), head, bounds


def _visit(bounds, size: int, edge: int, length: int, tile, state, *, repeat: int = 1):
  """Folds state = tile(state, span, start, repetition, masked) over a program's tiles.

  Args:
    bounds: of `Ranges`, in units of `edge`.
    size: of tiles that need no mask.
    edge: of tiles under a mask.
    length: of the row that is cut into them.
    repeat: how often each tile is visited.
  """
  first, full, full_end, end = bounds
  before, ratio = full - first, size // edge

  def masked(t, state):
    i = lax.div(t, repeat)
    start = (first + i + jnp.where(i >= before, full_end - full, 0)) * edge
    span = _slide(start, edge, length)
    return tile(state, span, start, lax.rem(t, repeat), True)

  def unmasked(t, state):
    start = full * edge + lax.div(t, repeat) * size
    span = _span(start, size, length, whole=True)
    return tile(state, span, start, lax.rem(t, repeat), False)

  state = lax.fori_loop(0, (before + end - full_end) * repeat, masked, state)
  if length < size:
    return state
  return lax.fori_loop(0, lax.div(full_end - full, ratio) * repeat, unmasked, state)


def _forward_kernel(
  ranges_ref, q_ref, k_ref, v_ref, lo_ref, hi_ref, o_ref, lse_ref, *, plan, tile, scores
):
  sizes = plan.sizes
  per_row = pl.cdiv(sizes.queries, tile.queries)
  split_row, block, h, bounds = _program(ranges_ref, sizes.heads, per_row)
  row, n = lax.div(split_row, plan.splits), lax.div(h, plan.group)
  at_q, _, inside_q = _span(block * tile.queries, tile.queries, sizes.queries)
  split = lax.rem(split_row, plan.splits) * plan.width
  last = jnp.minimum(split + plan.width, sizes.keys) - 1
  lo_q = jnp.maximum(_load(lo_ref, row, at_q, inside=inside_q), split)
  hi_q = jnp.minimum(_load(hi_ref, row, at_q, inside=inside_q, other=-1), last)
  q_qd = _load(q_ref, row, at_q, h, slice(None), inside=inside_q)

  def visit(state, span, start, _, masked):
    top_q, sum_q, o_qd = state
    at_k, index_k, inside_k = span
    k_kd = _load(k_ref, row, at_k, n, slice(None), inside=inside_k)
    v_kd = _load(v_ref, row, at_k, n, slice(None), inside=inside_k)
    if masked:
      # A value that is not finite travels as a nan in the scores of its key, where a
      # select keeps it from queries that do not see it.
      good_kd = jnp.abs(v_kd) < jnp.inf
      poison_k = jnp.sum(jnp.where(good_kd, 0.0, jnp.nan), axis=1)
      v_kd = jnp.where(good_kd, v_kd, jnp.zeros_like(v_kd))
    s_qk = scores.bounded(_dot(q_qd, k_kd, contract=(1, 1)))
    if masked:
      low_q = jnp.maximum(lo_q, start)
      sees_qk = (index_k[None] >= low_q[:, None]) & (index_k[None] <= hi_q[:, None])
      s_qk = jnp.where(sees_qk, s_qk + poison_k[None], -jnp.inf)
    new_top_q = jnp.maximum(top_q, jnp.max(s_qk, axis=1) * scores.outer)
    p_qk = jnp.exp2(s_qk * scores.outer - new_top_q[:, None])
    shrink_q = jnp.exp2(top_q - new_top_q)
    sum_q = sum_q * shrink_q + jnp.sum(p_qk, axis=1)
    o_qd *= shrink_q[:, None]
    o_qd += _dot(p_qk.astype(v_kd.dtype), v_kd, contract=(1, 0))
    return new_top_q, sum_q, o_qd

  # The largest score starts finite: the difference of two of -inf would be nan.
  top_q = jnp.full((tile.queries,), DEAD_LSE, jnp.float32)
  o_qd = jnp.zeros((tile.queries, sizes.head_dim), jnp.float32)
  state = (top_q, jnp.zeros_like(top_q), o_qd)
  looped = (tile.keys, tile.edge, sizes.keys)
  top_q, sum_q, o_qd = _visit(bounds, *looped, visit, state)
  alive_q = lo_q <= hi_q
  sum_q = jnp.where(alive_q, sum_q, 1.0)
  lse_q = jnp.where(alive_q, top_q / LOG2E + jnp.log(sum_q), DEAD_LSE)
  o_qd = o_qd / sum_q[:, None]
  _store(o_ref, split_row, at_q, h, slice(None), inside=inside_q, value=o_qd)
  _store(lse_ref, split_row, h, at_q, inside=inside_q, value=lse_q)


def _dq_kernel(
  ranges_ref,
  q_ref,
  k_ref,
  v_ref,
  do_ref,
  lse_ref,
  delta_ref,
  lo_ref,
  hi_ref,
  dq_ref,
  *,
  plan,
  tile,
  scores,
):
  sizes = plan.sizes
  per_row = pl.cdiv(sizes.queries, tile.queries)
  row, block, h, bounds = _program(ranges_ref, sizes.heads, per_row)
  n = lax.div(h, plan.group)
  at_q, _, inside_q = _span(block * tile.queries, tile.queries, sizes.queries)
  lo_q = _load(lo_ref, row, at_q, inside=inside_q)
  hi_q = _load(hi_ref, row, at_q, inside=inside_q, other=-1)
  hi_q = jnp.minimum(hi_q, sizes.keys - 1)
  q_qd = _load(q_ref, row, at_q, h, slice(None), inside=inside_q)
  do_qd = _load(do_ref, row, at_q, h, slice(None), inside=inside_q)
  lse_q = _load(lse_ref, row, h, at_q, inside=inside_q) * LOG2E
  delta_q = _load(delta_ref, row, h, at_q, inside=inside_q)

  def visit(dq_qd, span, start, _, masked):
    at_k, index_k, inside_k = span
    k_kd = _load(k_ref, row, at_k, n, slice(None), inside=inside_k)
    v_kd = _load(v_ref, row, at_k, n, slice(None), inside=inside_k)
    if masked:  # lse carries what was not finite
      k_kd = _finite(k_kd)
    s_qk = scores.bounded(_dot(q_qd, k_kd, contract=(1, 1)))
    p_qk = jnp.exp2(s_qk * scores.outer - lse_q[:, None])
    dp_qk = _dot(do_qd, v_kd, contract=(1, 1))
    ds_qk = scores.gradient(p_qk * (dp_qk - delta_q[:, None]), s_qk)
    if masked:
      low_q = jnp.maximum(lo_q, start)
      sees_qk = (index_k[None] >= low_q[:, None]) & (index_k[None] <= hi_q[:, None])
      ds_qk = jnp.where(sees_qk, ds_qk, 0.0)
    return dq_qd + _dot(ds_qk.astype(k_kd.dtype), k_kd, contract=(1, 0))

  dq_qd = jnp.zeros((tile.queries, sizes.head_dim), jnp.float32)
  looped = (tile.keys, tile.edge, sizes.keys)
  dq_qd = _visit(bounds, *looped, visit, dq_qd) * scores.scale
  _store(dq_ref, row, at_q, h, slice(None), inside=inside_q, value=dq_qd)


def _dkv_kernel(
  ranges_ref,
  q_ref,
  k_ref,
  v_ref,
  do_ref,
  lse_ref,
  delta_ref,
  lo_ref,
  hi_ref,
  dk_ref,
  dv_ref,
  *,
  plan,
  tile,
  scores,
):
  """Holds the scores as keys x queries: a product with p needs no transposition."""
  sizes = plan.sizes
  per_row = pl.cdiv(sizes.keys, tile.keys)
  row, block, n, bounds = _program(ranges_ref, sizes.kv_heads, per_row)
  at_k, index_k, inside_k = _span(block * tile.keys, tile.keys, sizes.keys)
  k_kd = _load(k_ref, row, at_k, n, slice(None), inside=inside_k)
  v_kd = _load(v_ref, row, at_k, n, slice(None), inside=inside_k)

  def visit(state, span, start, head, masked):
    dk_kd, dv_kd = state
    h = n * plan.group + head
    at_q, index_q, inside_q = span
    q_qd = _load(q_ref, row, at_q, h, slice(None), inside=inside_q)
    do_qd = _load(do_ref, row, at_q, h, slice(None), inside=inside_q)
    if masked:  # lse carries what was not finite
      q_qd, do_qd = _finite(q_qd), _finite(do_qd)
    s_kq = scores.bounded(_dot(k_kd, q_qd, contract=(1, 1)))
    lse_q = _load(lse_ref, row, h, at_q, inside=inside_q) * LOG2E
    p_kq = jnp.exp2(s_kq * scores.outer - lse_q[None])
    if masked:
      lo_q = _load(lo_ref, row, at_q, inside=inside_q)
      hi_q = _load(hi_ref, row, at_q, inside=inside_q, other=-1)
      hi_q = jnp.where(index_q >= start, hi_q, -1)
      sees_kq = (index_k[:, None] >= lo_q[None]) & (index_k[:, None] <= hi_q[None])
      p_kq = jnp.where(sees_kq, p_kq, 0.0)
    dp_kq = _dot(v_kd, do_qd, contract=(1, 1))
    delta_q = _load(delta_ref, row, h, at_q, inside=inside_q)
    ds_kq = scores.gradient(p_kq * (dp_kq - delta_q[None]), s_kq)
    if masked:  # a key that is not finite takes nothing from who does not see it
      ds_kq = jnp.where(p_kq == 0.0, 0.0, ds_kq)
    dv_kd += _dot(p_kq.astype(do_qd.dtype), do_qd, contract=(1, 0))
    dk_kd += _dot(ds_kq.astype(q_qd.dtype), q_qd, contract=(1, 0))
    return dk_kd, dv_kd

  zero_kd = jnp.zeros((tile.keys, sizes.head_dim), jnp.float32)
  looped, state = (tile.queries, tile.edge, sizes.queries), (zero_kd, zero_kd)
  dk_kd, dv_kd = _visit(bounds, *looped, visit, state, repeat=plan.group)
  dk_kd *= scores.scale
  _store(dk_ref, row, at_k, n, slice(None), inside=inside_k, value=dk_kd)
  _store(dv_ref, row, at_k, n, slice(None), inside=inside_k, value=dv_kd)


def _call(kernel, name: str, heads: int, out_shape, *, plan, scores, interpret):
  """Returns the kernel as a function of (ranges, operands)."""
  tile = getattr(plan.blocks, name)

  def run(ranges_cw, *operands):
    return pl.pallas_call(
      functools.partial(kernel, plan=plan, tile=tile, scores=scores),
      grid=(len(ranges_cw) * heads,),
      out_shape=out_shape,
      compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
      interpret=interpret,
      name=f"interval_attention_{name}",
    )(ranges_cw, *operands)

  return run
