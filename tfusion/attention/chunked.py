"""Interval attention in plain XLA that never holds queries x keys scores.

Owns: the path for CPUs and for long rows, a loop over tiles of scores, forward and
backward. Not: the meaning of lo and hi (intervals.py), the reference (dense.py).

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
r batch rows of one step  x queries of all the heads that share a key/value head

A step of the loop takes one block of queries of a few rows and heads and visits only
the chunks of keys that they see; a short row is one tile. The backward pass computes
the scores again from the saved lse (FlashAttention, arXiv 2205.14135, section 3.1).

What makes it fast on a CPU (measured on two AVX-512 cores, jax 0.10):
  - a tile stays in the cache, and little memory is touched for the first time: a page
    fault costs more than the arithmetic on the page;
  - the lanes of a step are groups of heads that share no buffer: XLA runs them at once;
  - XLA's fast dots want the first operand with its contracted axis last. So the
    backward pass holds the scores as keys x queries, and gets dq as its transpose
    from transposed keys: small arrays are transposed, scores never.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tfusion.attention import intervals
from tfusion.attention.dense import DEAD_LSE

BLOCK, CHUNK = 128, 128  # queries and keys of a tile of a long row
WHOLE = 200_000  # scores of one head up to which a row is one tile
BUDGET = 512 * 512  # scores of one lane in one step: a megabyte


class Grid(NamedTuple):
  """How the work is cut into steps of rows * lanes * heads * block * chunk scores."""

  rows: int  # batch rows of a step
  lanes: int  # independent groups of heads in a step
  heads: int  # key/value heads of a lane in a step
  block: int  # queries of a step
  chunk: int  # keys of a tile
  blocks: int  # blocks of queries in a row
  steps: int
  queries: int
  keys: int
  kv_heads: int
  group: int  # query heads that share a key/value head

  @property
  def one_chunk(self) -> bool:
    return self.chunk == self.keys

  @property
  def whole_rows(self) -> bool:
    return self.one_chunk and self.block == self.queries


def cut(batch: int, queries: int, keys: int, *, kv_heads: int, group: int) -> Grid:
  """Returns the grid for these sizes; every size is possible, nothing is padded."""
  if queries * keys <= WHOLE:
    block, chunk = queries, keys
  else:
    even = -(-queries // -(-queries // BLOCK))  # as many queries in each block
    block = min(queries, -(-even // 16) * 16)  # and full vectors
    chunk = min(keys, CHUNK)
  blocks = -(-queries // block)
  # Two heads at least in a lane: XLA rewrites a dot without batch axes for the worse.
  lanes = next((x for x in (4, 3, 2) if kv_heads % x == 0 and kv_heads // x > 1), 1)
  fit = BUDGET // (group * block * chunk)
  heads = _divisor(kv_heads // lanes, max(fit, 2))
  whole = chunk == keys and blocks == 1 and heads * lanes == kv_heads
  rows = _divisor(batch, fit // heads) if whole else 1
  steps = batch // rows * (kv_heads // (lanes * heads)) * blocks
  return Grid(
    rows, lanes, heads, block, chunk, blocks, steps, queries, keys, kv_heads, group
  )


def _divisor(x: int, limit: int) -> int:
  """The largest divisor of x that is not above the limit, or 1."""
  return next((y for y in range(min(x, limit), 1, -1) if x % y == 0), 1)


def find_live(
  lo_bq, hi_bq, sizes: intervals.Sizes, blocks: None = None
) -> intervals.KeyRange | None:
  """Returns the live keys of each block of queries, or None where all are one tile."""
  del blocks  # `cut` decides
  grid = _cut(sizes)
  if grid.one_chunk:
    return None
  return intervals.key_ranges(
    lo_bq, hi_bq, keys=grid.keys, block=grid.block, chunk=grid.chunk
  )


class _Place(NamedTuple):
  """Where a step works: the first row, block, query, and kv head of each lane."""

  row: jax.Array | int
  block: jax.Array | int
  query: jax.Array | int
  heads: tuple[jax.Array | int, ...]


def _cut(sizes: intervals.Sizes) -> Grid:
  batch, queries, keys, _, kv_heads, _, _ = sizes
  return cut(batch, queries, keys, kv_heads=kv_heads, group=sizes.group)


def _place(grid: Grid, step) -> _Place:
  per_lane = grid.kv_heads // grid.lanes
  head_steps = per_lane // grid.heads
  # The last block of a ragged row reaches back into the one before it. It goes first,
  # so that the block that owns the shared queries is the last to write them.
  block = grid.blocks - 1 - step % grid.blocks
  query = jnp.minimum(block * grid.block, grid.queries - grid.block)
  head = step // grid.blocks % head_steps * grid.heads
  row = step // (grid.blocks * head_steps) * grid.rows
  heads = tuple(lane * per_lane + head for lane in range(grid.lanes))
  return _Place(row, block, query, heads)


def _loop(grid: Grid, step, init):
  return step(0, init) if grid.steps == 1 else lax.fori_loop(0, grid.steps, step, init)


def _loop_chunks(grid: Grid, ranges: intervals.KeyRange, place: _Place, visit, init):
  """Folds visit(state, first key owned, first key read) over the chunks of a block.

  The two keys differ where a chunk would run over the end: it reads from further
  left, and the keys that it does not own are to be masked.
  """
  if grid.one_chunk:
    return visit(init, 0, 0)
  first = ranges.first_bc[place.row, place.block]

  def body(j, state):
    owned = first + j * grid.chunk
    return visit(state, owned, jnp.minimum(owned, grid.keys - grid.chunk))

  return lax.fori_loop(0, ranges.count_bc[place.row, place.block], body, init)


def _take_interval(grid: Grid, lo_bq, hi_bq, place: _Place):
  """Returns lo_rx, hi_rx of a block."""
  at, size = (place.row, place.query), (grid.rows, grid.block)
  lo_rq, hi_rq = (lax.dynamic_slice(x, at, size) for x in (lo_bq, hi_bq))
  return jnp.tile(lo_rq, (1, grid.group)), jnp.tile(hi_rq, (1, grid.group))


def _take_queries(grid: Grid, x_bqhd, place: _Place) -> list[jax.Array]:
  """Returns x_rnxd of each lane in fp32."""
  at = [(place.row, place.query, n * grid.group, 0) for n in place.heads]
  size = (grid.rows, grid.block, grid.heads * grid.group, x_bqhd.shape[3])
  shape = (grid.rows, grid.heads, grid.group * grid.block, x_bqhd.shape[3])
  taken = [lax.dynamic_slice(x_bqhd, x, size).transpose(0, 2, 1, 3) for x in at]
  return [x_rhqd.reshape(shape).astype(jnp.float32) for x_rhqd in taken]


def _take_keys(grid: Grid, x_bknd, place: _Place, key) -> list[jax.Array]:
  """Returns x_rnkd of each lane in fp32: the chunk that starts at `key`."""
  size = (grid.rows, grid.chunk, grid.heads, x_bknd.shape[3])
  taken = [lax.dynamic_slice(x_bknd, (place.row, key, n, 0), size) for n in place.heads]
  return [x_rknd.transpose(0, 2, 1, 3).astype(jnp.float32) for x_rknd in taken]


def _take_statistic(grid: Grid, x_bhq, place: _Place) -> list[jax.Array]:
  """Returns x_rn1x of each lane."""
  size = (grid.rows, grid.heads * grid.group, grid.block)
  at = [(place.row, n * grid.group, place.query) for n in place.heads]
  shape = (grid.rows, grid.heads, 1, grid.group * grid.block)
  return [lax.dynamic_slice(x_bhq, x, size).reshape(shape) for x in at]


def _put_queries(grid: Grid, x_bqhd, x_rnxd: list[jax.Array], place: _Place):
  """Writes what every lane has for a block of queries."""
  shape = (grid.rows, grid.heads * grid.group, grid.block, x_bqhd.shape[3])
  for n, x in zip(place.heads, x_rnxd):
    x_rqhd = x.reshape(shape).transpose(0, 2, 1, 3).astype(x_bqhd.dtype)
    at = (place.row, place.query, n * grid.group, 0)
    x_bqhd = lax.dynamic_update_slice(x_bqhd, x_rqhd, at)
  return x_bqhd


def _finite(x):
  """Zero for nan and inf: a dot would spread them, since 0 * nan is nan."""
  return jnp.where(jnp.isfinite(x), x, 0.0)


def forward(
  q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, ranges, *, scale, soft_cap, **_
) -> tuple[jax.Array, jax.Array]:
  """Returns (o_bqhd in q's dtype, lse_bhq f32); see `tfusion.attention.gradient`."""
  if q_bqhd.shape[1] == 1:
    return _attend_one(q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, scale, soft_cap)
  grid = _cut(intervals.sizes_of(q_bqhd, k_bknd))

  def step(i, carry):
    o_bqhd, lse_bhq = carry
    place = _place(grid, i)
    lo_rx, hi_rx = _take_interval(grid, lo_bq, hi_bq, place)
    q_rnxd = [q * scale for q in _take_queries(grid, q_bqhd, place)]

    def visit(states, owned, key):
      index_11k = key + lax.broadcasted_iota(jnp.int32, (1, 1, grid.chunk), 2)
      low_rx1 = jnp.maximum(lo_rx, owned)[..., None]
      sees_rxk = (index_11k >= low_rx1) & (index_11k <= hi_rx[..., None])
      k_rnkd = _take_keys(grid, k_bknd, place, key)
      v_rnkd = _take_keys(grid, v_bknd, place, key)
      lanes = zip(states, q_rnxd, k_rnkd, v_rnkd)
      return [_absorb(*lane, sees_rxk[:, None], soft_cap) for lane in lanes]

    top_rnx = jnp.full_like(q_rnxd[0], DEAD_LSE, shape=q_rnxd[0].shape[:3])
    nothing = (top_rnx, jnp.zeros_like(top_rnx), jnp.zeros_like(q_rnxd[0]))
    init = [None if grid.one_chunk else nothing] * grid.lanes
    states = _loop_chunks(grid, ranges, place, visit, init)

    alive_r1x = intervals.alive(lo_rx, hi_rx, keys=grid.keys)[:, None]
    o_rnxd = [
      jnp.where(alive_r1x[..., None], o / s[..., None], 0) for _, s, o in states
    ]
    o_bqhd = _put_queries(grid, o_bqhd, o_rnxd, place)
    for n, (top_rnx, sum_rnx, _) in zip(place.heads, states):
      lse_rnx = jnp.where(alive_r1x, top_rnx + jnp.log(sum_rnx), DEAD_LSE)
      lse_rhq = lse_rnx.reshape(grid.rows, -1, grid.block)
      at = (place.row, n * grid.group, place.query)
      lse_bhq = lax.dynamic_update_slice(lse_bhq, lse_rhq, at)
    return o_bqhd, lse_bhq

  b, q, h, _ = q_bqhd.shape
  lse_bhq = jnp.zeros_like(q_bqhd, jnp.float32, (b, h, q))
  return _loop(grid, step, (jnp.zeros_like(q_bqhd), lse_bhq))


def _attend_one(q_b1hd, k_bknd, v_bknd, lo_b1, hi_b1, scale, soft_cap):
  """What `forward` gives for one query in every row, as a token is sampled: most of the
  time goes into reading keys, so that all heads are one step and nothing is copied."""
  b, _, h, d = q_b1hd.shape
  n = k_bknd.shape[2]
  q_bngd = (q_b1hd.astype(jnp.float32) * scale).reshape(b, n, h // n, d)
  k_bnkd, v_bnkd = (x.swapaxes(1, 2).astype(jnp.float32) for x in (k_bknd, v_bknd))
  index_1k = lax.broadcasted_iota(jnp.int32, (1, k_bknd.shape[1]), 1)
  sees_bk = (index_1k >= lo_b1) & (index_1k <= hi_b1)
  s_bngk = jnp.einsum("bngd,bnkd->bngk", q_bngd, k_bnkd)
  if soft_cap is not None:
    s_bngk = soft_cap * jnp.tanh(s_bngk / soft_cap)
  s_bngk = jnp.where(sees_bk[:, None, None], s_bngk, DEAD_LSE)
  top_bng = jnp.max(s_bngk, axis=-1)
  p_bngk = jnp.exp(s_bngk - top_bng[..., None])
  sum_bng = jnp.sum(p_bngk, axis=-1)
  # A value that is not seen may be a nan, which no weight of 0 would keep away.
  v_bnkd = jnp.where(sees_bk[:, None, :, None], v_bnkd, 0)
  o_bngd = jnp.einsum("bngk,bnkd->bngd", p_bngk, v_bnkd) / sum_bng[..., None]
  alive_b11 = intervals.alive(lo_b1, hi_b1, keys=k_bknd.shape[1])[..., None]
  o_bngd = jnp.where(alive_b11[..., None], o_bngd, 0)
  lse_bng = jnp.where(alive_b11, top_bng + jnp.log(sum_bng), DEAD_LSE)
  o_b1hd = o_bngd.reshape(b, 1, h, d).astype(q_b1hd.dtype)
  return o_b1hd, lse_bng.reshape(b, h, 1)


def _absorb(state, q_rnxd, k_rnkd, v_rnkd, sees_r1xk, soft_cap):
  """One chunk of keys into (largest score, sum of exp, weighted sum of values)."""
  # A value that is not finite travels as a nan of its key: the select that follows
  # keeps it from queries that do not see it.
  good_rnk1 = jnp.max(jnp.abs(v_rnkd), axis=-1, keepdims=True) < jnp.inf
  s_rnxk = jnp.einsum("rnxd,rnkd->rnxk", q_rnxd, jnp.where(good_rnk1, k_rnkd, jnp.nan))
  if soft_cap is not None:
    s_rnxk = soft_cap * jnp.tanh(s_rnxk / soft_cap)
  s_rnxk = jnp.where(sees_r1xk, s_rnxk, DEAD_LSE)
  top_rnx = jnp.max(s_rnxk, axis=-1)
  if state is not None:
    top_rnx = jnp.maximum(top_rnx, state[0])
  p_rnxk = jnp.exp(s_rnxk - top_rnx[..., None])
  sum_rnx = jnp.sum(p_rnxk, axis=-1)
  o_rnxd = jnp.einsum("rnxk,rnkd->rnxd", p_rnxk, _finite(v_rnkd))
  if state is not None:
    # Where no earlier chunk had a live key, the shrink is exp(-huge) = 0 and clears
    # what the masked scores, all equal, have left in the sums.
    shrink_rnx = jnp.exp(state[0] - top_rnx)
    sum_rnx += state[1] * shrink_rnx
    o_rnxd += state[2] * shrink_rnx[..., None]
  return top_rnx, sum_rnx, o_rnxd


class _Lane(NamedTuple):
  """What the gradient of a tile needs of a block of queries, for one lane."""

  q_rnxd: jax.Array  # scaled
  do_rnxd: jax.Array
  lse_rn1x: jax.Array
  delta_rn1x: jax.Array


def backward(
  q_bqhd,
  k_bknd,
  v_bknd,
  lo_bq,
  hi_bq,
  ranges,
  lse_bhq,
  delta_bhq,
  do_bqhd,
  *,
  scale,
  soft_cap,
  **_,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (dq_bqhd, dk_bknd, dv_bknd); see `tfusion.attention.gradient`."""
  grid = _cut(intervals.sizes_of(q_bqhd, k_bknd))

  def step(i, carry):
    place = _place(grid, i)
    lo_rx, hi_rx = _take_interval(grid, lo_bq, hi_bq, place)
    if grid.queries % grid.block:  # queries of the next block are not counted twice
      index_1q = place.query + lax.broadcasted_iota(jnp.int32, (1, grid.block), 1)
      owned_1q = index_1q >= place.block * grid.block
      hi_rx = jnp.where(jnp.tile(owned_1q, (1, grid.group)), hi_rx, -1)
    q_rnxd = [_finite(q * scale) for q in _take_queries(grid, q_bqhd, place)]
    do_rnxd = [_finite(do) for do in _take_queries(grid, do_bqhd, place)]
    lse_rn1x = _take_statistic(grid, lse_bhq, place)
    delta_rn1x = _take_statistic(grid, delta_bhq, place)
    lanes = [_Lane(*x) for x in zip(q_rnxd, do_rnxd, lse_rn1x, delta_rn1x)]

    def visit(state, owned, key):
      index_1k1 = key + lax.broadcasted_iota(jnp.int32, (1, grid.chunk, 1), 1)
      low_r1x = jnp.maximum(lo_rx, owned)[:, None]
      sees_rkx = (index_1k1 >= low_r1x) & (index_1k1 <= hi_rx[:, None])
      k_rnkd = [_finite(k) for k in _take_keys(grid, k_bknd, place, key)]
      v_rnkd = [_finite(v) for v in _take_keys(grid, v_bknd, place, key)]
      tiles = zip(lanes, k_rnkd, v_rnkd)
      grads = [_tile_gradient(*x, sees_rkx[:, None], soft_cap) for x in tiles]
      return _collect(grid, state, grads, place, key)

    dq_bqhd, dkv = carry
    dq_rndx = jnp.zeros_like(q_rnxd[0].swapaxes(2, 3))
    state = None if grid.one_chunk else [dq_rndx] * grid.lanes
    state, dkv = _loop_chunks(grid, ranges, place, visit, (state, dkv))
    dq_rnxd = [dq_rndx.swapaxes(2, 3) * scale for dq_rndx in state]
    return _put_queries(grid, dq_bqhd, dq_rnxd, place), dkv

  dq_bqhd, dkv = _loop(grid, step, (jnp.zeros_like(q_bqhd), _empty(grid, k_bknd)))
  return dq_bqhd, *_finish(grid, dkv, k_bknd)


def _tile_gradient(lane: _Lane, k_rnkd, v_rnkd, sees_r1kx, soft_cap):
  """Returns (dq_rndx without scale, dk_rnkd, dv_rnkd) of one tile of one lane."""
  s_rnkx = jnp.einsum("rnkd,rnxd->rnkx", k_rnkd, lane.q_rnxd)
  if soft_cap is not None:
    s_rnkx = soft_cap * jnp.tanh(s_rnkx / soft_cap)
  p_rnkx = jnp.where(sees_r1kx, jnp.exp(s_rnkx - lane.lse_rn1x), 0.0)
  dp_rnkx = jnp.einsum("rnkd,rnxd->rnkx", v_rnkd, lane.do_rnxd)
  ds_rnkx = p_rnkx * (dp_rnkx - lane.delta_rn1x)
  if soft_cap is not None:
    ds_rnkx *= 1.0 - jnp.square(s_rnkx / soft_cap)
  # Without barriers XLA folds the transpositions back into a dot that is slow.
  k_rndk = lax.optimization_barrier(k_rnkd.swapaxes(2, 3))
  dq_rndx = lax.optimization_barrier(jnp.einsum("rndk,rnkx->rndx", k_rndk, ds_rnkx))
  dk_rnkd = jnp.einsum("rnkx,rnxd->rnkd", ds_rnkx, lane.q_rnxd)
  dv_rnkd = jnp.einsum("rnkx,rnxd->rnkd", p_rnkx, lane.do_rnxd)
  return dq_rndx, dk_rnkd, dv_rnkd


def _empty(grid: Grid, k_bknd):
  """Returns where dk and dv are collected.

  Whole rows are written once, as the caller wants them. Otherwise every tile adds to
  its keys, in fp32, and each lane has arrays of its own so that lanes do not wait.
  """
  if grid.whole_rows:
    return jnp.zeros_like(k_bknd), jnp.zeros_like(k_bknd)
  b, k, n, d = k_bknd.shape
  zero_bnkd = jnp.zeros_like(k_bknd, jnp.float32, (b, n // grid.lanes, k, d))
  return [(zero_bnkd, zero_bnkd)] * grid.lanes


def _collect(grid: Grid, state, grads, place: _Place, key):
  """Adds the gradients of one tile to (dq_rndx of each lane, dk and dv)."""
  dq_rndx, dkv = state
  new_rndx = [dq for dq, _, _ in grads]
  dq_rndx = new_rndx if dq_rndx is None else [a + b for a, b in zip(dq_rndx, new_rndx)]
  if grid.whole_rows:
    for n, (_, *new_rnkd) in zip(place.heads, grads):
      new_rknd = [x.swapaxes(1, 2).astype(t.dtype) for x, t in zip(new_rnkd, dkv)]
      first = (place.row, 0, n, 0)
      dkv = [lax.dynamic_update_slice(t, x, first) for t, x in zip(dkv, new_rknd)]
    return dq_rndx, tuple(dkv)
  at = (place.row, place.heads[0], key, 0)  # heads[0] counts within the lane

  def add(total_bnkd, x_rnkd):
    x_rnkd += lax.dynamic_slice(total_bnkd, at, x_rnkd.shape)
    return lax.dynamic_update_slice(total_bnkd, x_rnkd, at)

  return dq_rndx, [
    (add(dk, dk_rnkd), add(dv, dv_rnkd))
    for (dk, dv), (_, dk_rnkd, dv_rnkd) in zip(dkv, grads)
  ]


def _finish(grid: Grid, dkv, k_bknd):
  """Returns dk_bknd, dv_bknd."""
  if grid.whole_rows:
    return dkv
  dkv_bnkd = [jnp.concatenate(lanes, axis=1) for lanes in zip(*dkv)]
  return tuple(x.swapaxes(1, 2).astype(k_bknd.dtype) for x in dkv_bnkd)
