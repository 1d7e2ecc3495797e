"""One step of the forward pass on a TPU core: a block of keys meets its queries.

Owns: the arithmetic of a tile, and how it keeps the matrix units busy; the call. Not:
which tiles (lists.py), how big they are (tiling.py).

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention.dense import DEAD_LSE
from tfusion.attention.tpu import lists
from tfusion.attention.tpu.tiling import (
  LANES,
  Tiling,
  chip,
  compiler_params,
  cost,
  precision,
)

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
  tiling: Tiling,
  scale,
  soft_cap,
  interpret,
):
  """Returns (o_bngqd, lse_bngq); all lengths are multiples of the tiles."""
  _, heads, group, queries, head_dim = q_bngqd.shape
  blocks, dtype = queries // tiling.query, q_bngqd.dtype

  def place(t, items):
    row = lists.forward_row(items[t])
    return row // blocks, row % blocks

  def of_queries(n, t, items):
    b, i = place(t, items)
    return b, n, 0, i, 0

  def of_keys(n, t, items):
    return place(t, items)[0], n, lists.forward_column(items[t]), 0

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
  mxu = chip().mxu_column_size
  spare = -head_dim % mxu if head_dim < mxu else 0
  return pl.pallas_call(
    functools.partial(
      kernel,
      tiling=tiling,
      scale=scale,
      soft_cap=soft_cap,
      precision=precision(dtype),
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
    compiler_params=compiler_params(),
    cost_estimate=cost(q_bngqd, k_bnkd, matmuls=2),
    interpret=interpret,
    name="attend_forward",
  )(items, q_bngqd, k_bnkd, v_bnkd, lo_b1q, hi_b1q)


def kernel(items, *refs, **static):
  """Folds one block of keys into the running softmax of one block of queries."""
  step = _Step(*refs, **static)
  item = items[pl.program_id(1)]
  first, last, full, start, stop, fresh = (lists.bit(item, i) for i in range(6))
  column = lists.forward_column(item)
  pl.when(first)(step.begin)
  # Once for every block of keys, not once for every tile: it stalls the core.
  pl.when(fresh)(lambda: step.look_for_broken(column))
  pl.when(full)(step.visit_block)
  broken = step.broken_s[column] != 0

  def visit_chunk(c, _):
    key = column * step.tiling.key + c * step.tiling.chunk
    pl.when(jnp.logical_not(broken))(lambda: step.visit_chunk(c, key))
    pl.when(broken)(lambda: step.visit_broken_chunk(c, key))
    return 0

  @pl.when(jnp.logical_not(full))
  def _():
    chunks = start.astype(jnp.int32), stop.astype(jnp.int32) + 1
    lax.fori_loop(*chunks, visit_chunk, 0)

  pl.when(last)(step.finish)


class _Fragment(NamedTuple):
  """Some queries of one head."""

  head: int
  group: int
  queries: Any  # `pl.ds` among the queries of the block
  rows: Any  # among all rows of the step


class _Step(NamedTuple):
  """What a step reads, writes (`ref`) and keeps for the next (`s`), and its phases."""

  q_ref: Any
  k_ref: Any
  v_ref: Any
  lo_ref: Any
  hi_ref: Any
  o_ref: Any
  lse_ref: Any
  top_s: Any  # largest score of each row
  sum_s: Any  # sum of exp2(score - largest), unless it stands beside o
  o_s: Any  # weighted sum of values, and in lanes beside it the sum
  q_s: Any
  lo_s: Any  # as columns: one number for each row, in all lanes
  hi_s: Any
  broken_s: Any  # of each block of keys: is a value not finite?
  tiling: Tiling
  scale: float
  soft_cap: float | None
  precision: lax.Precision | None

  def fragments(self, size: int) -> list[_Fragment]:
    """All heads of the step, `size` queries at a time."""
    heads, group, queries, _ = self.q_ref.shape[1:]
    return [
      _Fragment(n, g, pl.ds(r, size), pl.ds((n * group + g) * queries + r, size))
      for n in range(heads)
      for g in range(group)
      for r in range(0, queries, size)
    ]

  @property
  def spare(self) -> int:
    return self.o_s.shape[1] - self.q_ref.shape[-1]

  def begin(self):
    """Starts a block of queries."""
    self.top_s[...] = jnp.full_like(self.top_s, DEAD_LSE)
    self.o_s[...] = jnp.zeros_like(self.o_s)
    if not self.spare:
      self.sum_s[...] = jnp.zeros_like(self.sum_s)
    cap = self.soft_cap
    unit = self.scale * LOG2E if cap is None else self.scale / cap
    q = self.q_ref[0].reshape(self.q_s.shape).astype(jnp.float32) * unit
    self.q_s[...] = q.astype(self.q_s.dtype)
    for ref, scratch in ((self.lo_ref, self.lo_s), (self.hi_ref, self.hi_s)):
      for c in range(0, scratch.shape[0], LANES):
        row = ref[0, :, c : c + LANES]
        row = jnp.broadcast_to(row, (LANES, row.shape[1]))
        scratch[c : c + LANES, :] = jnp.transpose(row)

  def look_for_broken(self, column):
    """Notes whether some value of this block of keys is not finite."""
    v = self.v_ref[0].astype(jnp.float32)
    broken = jnp.max(jnp.where(jnp.abs(v) < jnp.inf, 0.0, 1.0))
    self.broken_s[column] = broken.astype(jnp.int32)

  def visit_block(self):
    """Takes all keys in, seen by all queries."""
    everything = pl.ds(0, self.tiling.key)
    self.walk(everything, self.tiling.rows, lambda _, s_rc: s_rc)

  def visit_chunk(self, c, first_key):
    """Takes in the keys of chunk c that are seen; the first is `first_key`."""

    def mask(fragment, s_rc):
      return jnp.where(self.sees(fragment, first_key, s_rc.shape), s_rc, DEAD_LSE)

    self.walk(self.keys(c), self.tiling.chunk_rows, mask)

  def visit_broken_chunk(self, c, first_key):
    """The same where values are not finite: 0 * nan is nan, so these are taken out,
    and the queries that do see them are marked afterwards. Slow, and short."""
    for fragment in self.fragments(self.tiling.chunk_rows):
      v_cd = self.v_ref[0, fragment.head, self.keys(c), :].astype(jnp.float32)
      good_cd = jnp.abs(v_cd) < jnp.inf
      s_rc = self.scores(fragment, self.keys(c))
      sees_rc = self.sees(fragment, first_key, s_rc.shape)
      s_rc = jnp.where(sees_rc, s_rc, DEAD_LSE)
      v_good_cd = jnp.where(good_cd, v_cd, 0.0).astype(self.v_ref.dtype)
      self.absorb(fragment, s_rc, v_good_cd)
      bad_cd = jnp.where(good_cd, 0.0, 1.0)
      count_rd = self.dot(sees_rc.astype(jnp.float32), bad_cd, NN)
      marked = self.o_s.at[fragment.rows, : v_cd.shape[1]]
      marked[...] += jnp.where(count_rd > 0, jnp.nan, 0.0)

  def walk(self, keys, rows: int, mask):
    """Visits all fragments, their scores `ahead` of their softmax."""
    todo = self.fragments(rows)
    waiting = [self.scores(f, keys) for f in todo[: self.tiling.ahead]]
    for i, fragment in enumerate(todo):
      if i + self.tiling.ahead < len(todo):
        waiting.append(self.scores(todo[i + self.tiling.ahead], keys))
      s_rc = mask(fragment, waiting.pop(0))
      self.absorb(fragment, s_rc, self.v_ref[0, fragment.head, keys, :])

  def keys(self, c):
    """Where the keys of chunk c stand in the block."""
    return pl.ds(pl.multiple_of(c * self.tiling.chunk, LANES), self.tiling.chunk)

  def dot(self, a, b, dims):
    """A matmul that sums in float32."""
    return lax.dot_general(
      a, b, dims, precision=self.precision, preferred_element_type=jnp.float32
    )

  def scores(self, fragment: _Fragment, keys):
    """s_rc in units of log2."""
    s_rc = self.dot(
      self.q_s[fragment.rows, :], self.k_ref[0, fragment.head, keys, :], NT
    )
    cap = self.soft_cap
    return s_rc if cap is None else jnp.tanh(s_rc) * (cap * LOG2E)

  def sees(self, fragment: _Fragment, first_key, shape):
    """Which of the keys from `first_key` on the queries see."""
    key_rc = first_key + lax.broadcasted_iota(jnp.int32, shape, 1)
    lo_rc = _across(self.lo_s[fragment.queries, :], shape[1])
    hi_rc = _across(self.hi_s[fragment.queries, :], shape[1])
    return (key_rc >= lo_rc) & (key_rc <= hi_rc)

  def absorb(self, fragment: _Fragment, s_rc, v_cd):
    """One step of the running softmax."""
    rows = fragment.rows
    before = self.top_s[rows, :]
    top = jnp.maximum(before, jnp.max(s_rc, axis=1, keepdims=True))
    p_rc = jnp.exp2(s_rc - _across(top, s_rc.shape[1]))
    # Where no earlier tile had a live key this is exp2(-huge) = 0, and clears what
    # masked scores, all equal, have left in the sums.
    shrink = jnp.exp2(before - top)
    self.top_s[rows, :] = top
    if self.spare:
      ones = jnp.ones((v_cd.shape[0], self.spare), v_cd.dtype)
      v_cd = jnp.concatenate([v_cd, ones], axis=1)
    else:
      sum_r1 = jnp.sum(p_rc, axis=1, keepdims=True)
      self.sum_s[rows, :] = shrink * self.sum_s[rows, :] + sum_r1
    o_rw = self.dot(p_rc.astype(v_cd.dtype), v_cd, NN)
    self.o_s[rows, :] = _across(shrink, o_rw.shape[1]) * self.o_s[rows, :] + o_rw

  def finish(self):
    """Writes the results of a block of queries."""
    queries, head_dim = self.q_ref.shape[3:]
    for n, g, _, rows in self.fragments(queries):
      top = self.top_s[rows, :]
      dead = top == DEAD_LSE
      total = _fill(self.o_s[rows, head_dim:]) if self.spare else self.sum_s[rows, :]
      total = jnp.where(dead, 1.0, total)
      share = jnp.where(dead, 0.0, 1.0 / total)
      o = self.o_s[rows, :head_dim] * _across(share, head_dim)
      self.o_ref[0, n, g] = o.astype(self.o_ref.dtype)
      lse = jnp.where(dead, DEAD_LSE, (top + jnp.log2(total)) / LOG2E)
      for c in range(0, queries, LANES):
        turned = jnp.transpose(lse[c : c + LANES, :])
        self.lse_ref[0, n, g : g + 1, c : c + LANES] = turned[:1]


def _across(x_rl, width: int):
  """A number of each row, in all lanes, for `width` lanes."""
  return x_rl[:, :width] if width <= LANES else jnp.tile(x_rl, (1, width // LANES))


def _fill(x_rw):
  """A number of each row, in some lanes, in all of them."""
  width = x_rw.shape[1]
  return x_rw[:, :LANES] if width >= LANES else jnp.tile(x_rw, (1, LANES // width))
