"""One step of the forward pass on a TPU core: a block of keys meets its queries.

Owns: the arithmetic of a tile, and how it keeps the matrix units busy; the call. Not:
which tiles (tpu_work.py), how big they are (tpu_tiling.py).

n key/value heads of a step  g query heads of each  q queries  k keys  r rows of a
fragment  c keys of a chunk  d head dim  w d and the lanes beside it

Scores are in units of log2: queries come into VMEM times scale * log2(e), so that
exp2, which the hardware has, needs no multiplication. Every row keeps its largest
score, the sum of exp2(score - largest) and the weighted sum of values; the former two
in all lanes.

The scores of the next fragment are asked of the matrix units before the softmax of this
one, so that the two overlap. Where the head dim leaves lanes of the matrix unit idle,
ones beside the values make it compute the sum of the softmax as well.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention import tpu_tiling, tpu_work
from tfusion.attention.dense import DEAD_LSE
from tfusion.attention.tpu_tiling import LANES

LOG2E = math.log2(math.e)
NT = (((1,), (1,)), ((), ()))  # contracts the last axis of both
NN = (((1,), (0,)), ((), ()))


def run(
  items,
  count,
  q_bngqd,
  k_bnkd,
  v_bnkd,
  lo_b1q,
  hi_b1q,
  *,
  tiling: tpu_tiling.Tiling,
  scale,
  soft_cap,
  interpret,
):
  """Returns (o_bngqd, lse_bngq); all lengths are multiples of the tiles."""
  _, heads, group, queries, head_dim = q_bngqd.shape
  blocks, dtype = queries // tiling.query, q_bngqd.dtype

  def place(t, items):
    row = tpu_work.forward_row(items[t])
    return row // blocks, row % blocks

  def of_queries(n, t, items):
    b, i = place(t, items)
    return b, n, 0, i, 0

  def of_keys(n, t, items):
    return place(t, items)[0], n, tpu_work.forward_column(items[t]), 0

  def of_interval(n, t, items):
    b, i = place(t, items)
    return b, 0, i

  def of_lse(n, t, items):
    b, i = place(t, items)
    return b, n, 0, i

  block_q = pl.BlockSpec((1, tiling.heads, group, tiling.query, head_dim), of_queries)
  block_k = pl.BlockSpec((1, tiling.heads, tiling.key, head_dim), of_keys)
  block_lo = pl.BlockSpec((1, 1, tiling.query), of_interval)
  block_lse = pl.BlockSpec((1, tiling.heads, group, tiling.query), of_lse)
  rows = tiling.heads * group * tiling.query
  f32 = functools.partial(pltpu.VMEM, dtype=jnp.float32)
  mxu = tpu_tiling.chip().mxu_column_size
  spare = -head_dim % mxu if head_dim < mxu else 0
  return pl.pallas_call(
    functools.partial(
      kernel,
      tiling=tiling,
      scale=scale,
      soft_cap=soft_cap,
      precision=tpu_tiling.precision(dtype),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(heads // tiling.heads, count),
      in_specs=[block_q, block_k, block_k, block_lo, block_lo],
      out_specs=[block_q, block_lse],
      scratch_shapes=[
        f32((rows, LANES)),
        f32((8, LANES) if spare else (rows, LANES)),
        f32((rows, head_dim + spare)),
        pltpu.VMEM((rows, head_dim), dtype),
        pltpu.VMEM((tiling.query, LANES), jnp.int32),
        pltpu.VMEM((tiling.query, LANES), jnp.int32),
        pltpu.SMEM((k_bnkd.shape[2] // tiling.key,), jnp.int32),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(q_bngqd.shape, dtype),
      jax.ShapeDtypeStruct(q_bngqd.shape[:4], jnp.float32),
    ],
    compiler_params=tpu_tiling.compiler_params(),
    cost_estimate=tpu_tiling.cost(q_bngqd, k_bnkd, matmuls=2),
    interpret=interpret,
    name="attend_forward",
  )(items, q_bngqd, k_bnkd, v_bnkd, lo_b1q, hi_b1q)


def kernel(
  items,
  q_ref,
  k_ref,
  v_ref,
  lo_ref,
  hi_ref,
  o_ref,
  lse_ref,
  top_s,
  sum_s,
  o_s,
  q_s,
  lo_s,
  hi_s,
  broken_s,
  *,
  tiling,
  scale,
  soft_cap,
  precision,
):
  """Folds one block of keys into the running softmax of one block of queries."""
  item = items[pl.program_id(1)]
  first, last, full, start, stop, fresh = (tpu_work.bit(item, i) for i in range(6))
  column = tpu_work.forward_column(item)
  heads, group, queries, head_dim = q_ref.shape[1:]
  spare = o_s.shape[1] - head_dim

  @pl.when(first)
  def _():
    top_s[...] = jnp.full_like(top_s, DEAD_LSE)
    o_s[...] = jnp.zeros_like(o_s)
    if not spare:
      sum_s[...] = jnp.zeros_like(sum_s)
    unit = scale * LOG2E if soft_cap is None else scale / soft_cap
    q = q_ref[0].reshape(q_s.shape).astype(jnp.float32) * unit
    q_s[...] = q.astype(q_s.dtype)
    for ref, scratch in ((lo_ref, lo_s), (hi_ref, hi_s)):
      for c in range(0, scratch.shape[0], LANES):
        row = jnp.broadcast_to(ref[0, :, c : c + LANES], (LANES, LANES))
        scratch[c : c + LANES, :] = jnp.transpose(row)

  @pl.when(fresh)
  def _():
    # Once for every block of keys, not once for every tile: it stalls the core.
    v = v_ref[0].astype(jnp.float32)
    broken = jnp.max(jnp.where(jnp.abs(v) < jnp.inf, 0.0, 1.0))
    broken_s[column] = broken.astype(jnp.int32)

  def fragments(rows):
    """All (head n, its query head g, where its rows stand in VMEM, their queries)."""
    return [
      (n, pl.ds((n * group + g) * queries + r, rows), pl.ds(r, rows))
      for n in range(heads)
      for g in range(group)
      for r in range(0, queries, rows)
    ]

  def scores(fragment, keys):
    n, rows, _ = fragment
    q = q_s[rows, :]
    s_rc = lax.dot_general(
      q,
      k_ref[0, n, keys, :],
      NT,
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    return s_rc if soft_cap is None else jnp.tanh(s_rc) * (soft_cap * LOG2E)

  def sees(fragment, first_key, width):
    queries_r = fragment[2]
    lo_rc = _across(lo_s[queries_r, :], width)
    hi_rc = _across(hi_s[queries_r, :], width)
    key_rc = first_key + lax.broadcasted_iota(jnp.int32, lo_rc.shape, 1)
    return (key_rc >= lo_rc) & (key_rc <= hi_rc)

  def absorb(fragment, s_rc, v_cd):
    rows = fragment[1]
    before = top_s[rows, :]
    top = jnp.maximum(before, jnp.max(s_rc, axis=1, keepdims=True))
    p_rc = jnp.exp2(s_rc - _across(top, s_rc.shape[1]))
    # Where no earlier tile had a live key this is exp2(-huge) = 0, and clears what
    # masked scores, all equal, have left in the sums.
    shrink = jnp.exp2(before - top)
    top_s[rows, :] = top
    if spare:
      v_cd = jnp.concatenate(
        [v_cd, jnp.ones((v_cd.shape[0], spare), v_cd.dtype)], axis=1
      )
    else:
      sum_s[rows, :] = shrink * sum_s[rows, :] + jnp.sum(p_rc, axis=1, keepdims=True)
    o_rw = lax.dot_general(
      p_rc.astype(v_cd.dtype),
      v_cd,
      NN,
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    o_s[rows, :] = _across(shrink, o_rw.shape[1]) * o_s[rows, :] + o_rw

  def walk(keys, rows, mask):
    """Visits all fragments, their scores `ahead` of their softmax."""
    todo = fragments(rows)
    waiting = [scores(f, keys) for f in todo[: tiling.ahead]]
    for i, fragment in enumerate(todo):
      if i + tiling.ahead < len(todo):
        waiting.append(scores(todo[i + tiling.ahead], keys))
      s_rc = waiting.pop(0)
      absorb(fragment, mask(fragment, s_rc), v_ref[0, fragment[0], keys, :])

  @pl.when(full)
  def _():
    walk(pl.ds(0, tiling.key), tiling.rows, lambda _, s_rc: s_rc)

  broken = broken_s[column] != 0

  def chunk(c, _):
    keys = pl.ds(pl.multiple_of(c * tiling.chunk, tiling.chunk), tiling.chunk)
    first_key = column * tiling.key + c * tiling.chunk

    def mask(fragment, s_rc):
      return jnp.where(sees(fragment, first_key, tiling.chunk), s_rc, DEAD_LSE)

    @pl.when(jnp.logical_not(broken))
    def _():
      walk(keys, tiling.chunk_rows, mask)

    @pl.when(broken)
    def _():
      # 0 * nan is nan: values that are not finite are taken out, and the queries that
      # do see them are marked afterwards. Slow, and short.
      for fragment in fragments(tiling.chunk_rows):
        v_cd = v_ref[0, fragment[0], keys, :].astype(jnp.float32)
        good_cd = jnp.abs(v_cd) < jnp.inf
        s_rc = mask(fragment, scores(fragment, keys))
        absorb(fragment, s_rc, jnp.where(good_cd, v_cd, 0.0).astype(v_ref.dtype))
        ok_rc = sees(fragment, first_key, tiling.chunk).astype(jnp.float32)
        bad_cd = jnp.where(good_cd, 0.0, 1.0)
        count_rd = lax.dot_general(
          ok_rc, bad_cd, NN, preferred_element_type=jnp.float32
        )
        mark_rd = jnp.where(count_rd > 0, jnp.nan, 0.0)
        o_s[fragment[1], :head_dim] += mark_rd

    return 0

  @pl.when(jnp.logical_not(full))
  def _():
    lax.fori_loop(start.astype(jnp.int32), stop.astype(jnp.int32) + 1, chunk, 0)

  @pl.when(last)
  def _():
    for n in range(heads):
      for g in range(group):
        rows = pl.ds((n * group + g) * queries, queries)
        top = top_s[rows, :]
        dead = top == DEAD_LSE
        total = sum_s[rows, :] if not spare else _fill(o_s[rows, head_dim:])
        total = jnp.where(dead, 1.0, total)
        share = jnp.where(dead, 0.0, 1.0 / total)
        o = o_s[rows, :head_dim] * _across(share, head_dim)
        o_ref[0, n, g] = o.astype(o_ref.dtype)
        lse = jnp.where(dead, DEAD_LSE, (top + jnp.log2(total)) / LOG2E)
        for c in range(0, queries, LANES):
          turned = jnp.transpose(lse[c : c + LANES, :])
          lse_ref[0, n, g : g + 1, c : c + LANES] = turned[:1]


def _across(x_rl, width: int):
  """A number of each row, in all lanes, for `width` lanes."""
  return x_rl[:, :width] if width <= LANES else jnp.tile(x_rl, (1, width // LANES))


def _fill(x_rw):
  """A number of each row, in some lanes, in all of them."""
  width = x_rw.shape[1]
  return x_rw[:, :LANES] if width >= LANES else jnp.tile(x_rw, (1, LANES // width))
