"""One step of the backward pass on a TPU core: a block of queries meets its keys.

Owns: the arithmetic of a tile; the call. Not: which tiles (lists.py), how big they
are (tiling.py).

n key/value heads of a step  g query heads of each  q queries  k keys  r queries of a
fragment  d head dim

Scores are computed again, as in the forward pass but transposed: keys x queries. What
there is one number of for each query (lse, delta, lo, hi) is then a row of lanes, as it
lies in memory. dk and dv gather over the tiles of a block of keys, dq over all tiles
of a part of the queries; with several parts, dk and dv go on from the part before.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention.tpu import lists
from tfusion.attention.tpu.forward_kernel import LOG2E, NN, NT
from tfusion.attention.tpu.tiling import LANES, Tiling, compiler_params, cost, precision

TN = (((0,), (0,)), ((), ()))


class _Operands(NamedTuple):
  """What the kernel reads block by block."""

  q_bngqd: Any
  k_bnkd: Any
  v_bnkd: Any
  do_bngqd: Any
  lse_bngq: Any
  delta_bngq: Any
  lo_b1q: Any
  hi_b1q: Any


def run(
  items_pt,
  count_p,
  q_bngqd,
  k_bnkd,
  v_bnkd,
  do_bngqd,
  lse_bngq,
  delta_bngq,
  lo_b1q,
  hi_b1q,
  *,
  tiling: Tiling,
  part: int,
  **options,
):
  """Returns (dq_bngqd, dk_bnkd, dv_bnkd); all lengths are multiples of the tiles.

  lse is in units of log2. The parts of the queries follow each other: dk and dv then
  are float32 sums in HBM that every part adds to.
  """
  batch, heads, _, queries, _ = q_bngqd.shape
  broken_xq = jnp.isnan(lse_bngq).reshape(batch * heads // tiling.heads, -1, queries)
  broken_xi = broken_xq.any(1).reshape(len(broken_xq), -1, tiling.query).any(-1)
  operands = _Operands(
    q_bngqd, k_bnkd, v_bnkd, do_bngqd, lse_bngq, delta_bngq, lo_b1q, hi_b1q
  )

  def one(p, so_far):
    scalars = jnp.full(1, p, jnp.int32), items_pt[p], broken_xi.astype(jnp.int32)
    grads = _run_part(
      count_p[p], scalars, operands, so_far, tiling=tiling, part=part, **options
    )
    return tuple(grads)

  if queries == part:
    return one(0, ())
  zero_bnkd = jnp.zeros_like(k_bnkd, jnp.float32)
  zeros = jnp.zeros_like(q_bngqd), zero_bnkd, zero_bnkd
  dq_bngqd, *dkv = lax.fori_loop(0, queries // part, one, zeros)
  return dq_bngqd, *(x_bnkd.astype(k_bnkd.dtype) for x_bnkd in dkv)


def _run_part(
  count,
  scalars: tuple,
  operands: _Operands,
  so_far: tuple,
  *,
  tiling: Tiling,
  part: int,
  scale: float,
  soft_cap: float | None,
  interpret: Any,
):
  """Runs the kernel for one part, on top of (dq, dk, dv) so far or of nothing."""
  q_bngqd, k_bnkd = operands.q_bngqd, operands.k_bnkd
  _, heads, group, _, head_dim = q_bngqd.shape
  columns, inner = k_bnkd.shape[2] // tiling.key, part // tiling.query

  def place(t, p, items):
    row = lists.backward_row(items[t])
    i = p[0] * inner + lists.backward_column(items[t])
    return row // columns, i, row % columns

  def of_queries(n, t, p, items, _):
    b, i, _ = place(t, p, items)
    return b, n, 0, i, 0

  def of_keys(n, t, p, items, _):
    b, _, j = place(t, p, items)
    return b, n, j, 0

  def of_statistic(n, t, p, items, _):
    b, i, _ = place(t, p, items)
    return b, n, 0, i

  def of_interval(n, t, p, items, _):
    b, i, _ = place(t, p, items)
    return b, 0, i

  def of_part(n, t, p, items, _):
    return place(t, p, items)[0], n, 0, p[0], 0

  block_q = pl.BlockSpec((1, tiling.heads, group, tiling.query, head_dim), of_queries)
  block_k = pl.BlockSpec((1, tiling.heads, tiling.key, head_dim), of_keys)
  block_s = pl.BlockSpec((1, tiling.heads, group, tiling.query), of_statistic)
  block_lo = pl.BlockSpec((1, 1, tiling.query), of_interval)
  resident = (tiling.heads, group, part, head_dim)
  blocks_in = [block_q, block_k, block_k, block_q, block_s, block_s, block_lo, block_lo]
  if so_far:
    blocks_in += [pl.BlockSpec(memory_space=pl.ANY), block_k, block_k]
  keys_f32 = pltpu.VMEM((tiling.heads, tiling.key, head_dim), jnp.float32)
  keys_own = pltpu.VMEM((tiling.heads, tiling.key, head_dim), k_bnkd.dtype)
  results = so_far or (q_bngqd, k_bnkd, k_bnkd)
  first = len(scalars) + len(operands)  # of the results so far, among all that is given
  return pl.pallas_call(
    functools.partial(
      kernel,
      tiling=tiling,
      columns=columns,
      scale=scale,
      soft_cap=soft_cap,
      precision=precision(q_bngqd.dtype),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(heads // tiling.heads, count),
      in_specs=blocks_in,
      out_specs=[pl.BlockSpec((1, *resident), of_part), block_k, block_k],
      scratch_shapes=[
        pltpu.VMEM(resident, jnp.float32),
        keys_f32,
        keys_f32,
        keys_own,
        keys_own,
      ],
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
    input_output_aliases={first + i: i for i in range(len(so_far))},
    compiler_params=compiler_params(),
    cost_estimate=cost(q_bngqd, k_bnkd, matmuls=5),
    interpret=interpret,
    name="attend_backward",
  )(*scalars, *operands, *so_far)


def kernel(part, items, broken, *refs, columns, **static):
  """Adds what one tile gives to dq, dk and dv."""
  operands = _Operands(*refs[: len(_Operands._fields)])
  *before, dq, dk, dv, dq_s, dk_s, dv_s, k_s, v_s = refs[len(operands) :]
  step = _Step(*operands, before[1:], dq, dk, dv, dq_s, dk_s, dv_s, k_s, v_s, **static)
  item = items[pl.program_id(1)]
  first, last, full, start, stop = (lists.bit(item, i) for i in range(5))
  row, block = lists.backward_row(item), lists.backward_column(item)
  column, queries = row % columns, step.q_ref.shape[3]
  blocks = dq_s.shape[2] // queries  # of a part
  at = row // columns * pl.num_programs(0) + pl.program_id(0)
  is_broken = broken[at, part[0] * blocks + block] != 0
  pl.when(first & (column == 0))(step.begin_part)
  pl.when(first)(step.begin_keys)
  pl.when(full)(lambda: step.visit_block(block * queries))

  def visit_chunk(c, _):
    place = c, column * step.tiling.key + c * step.tiling.chunk, block * queries
    pl.when(jnp.logical_not(is_broken))(lambda: step.visit_chunk(*place, clean=False))
    pl.when(is_broken)(lambda: step.visit_chunk(*place, clean=True))
    return 0

  @pl.when(jnp.logical_not(full))
  def _():
    chunks = start.astype(jnp.int32), stop.astype(jnp.int32) + 1
    lax.fori_loop(*chunks, visit_chunk, 0)

  pl.when(last)(step.finish_keys)
  pl.when(last & (column == columns - 1))(step.finish_part)


class _Step(NamedTuple):
  """What a step reads, writes (`ref`) and keeps for the next (`s`), and its phases."""

  q_ref: Any
  k_ref: Any
  v_ref: Any
  do_ref: Any
  lse_ref: Any
  delta_ref: Any
  lo_ref: Any
  hi_ref: Any
  before: Sequence[Any]  # dk and dv of the parts before, if there are several
  dq_ref: Any
  dk_ref: Any
  dv_ref: Any
  dq_s: Any
  dk_s: Any
  dv_s: Any
  k_s: Any  # finite, and times `unit`
  v_s: Any  # finite
  tiling: Tiling
  scale: float
  soft_cap: float | None
  precision: lax.Precision | None

  @property
  def unit(self) -> float:
    cap = self.soft_cap
    return self.scale * LOG2E if cap is None else self.scale / cap

  def begin_part(self):
    """Starts a part of the queries of a row."""
    self.dq_s[...] = jnp.zeros_like(self.dq_s)

  def begin_keys(self):
    """Starts a block of keys."""
    self.dk_s[...] = jnp.zeros_like(self.dk_s)
    self.dv_s[...] = jnp.zeros_like(self.dv_s)
    # A query that sees a nan of these carries it in its lse already. The forward pass
    # scales queries: in bfloat16 scores differ by the rounding of one operand.
    k = _finite(self.k_ref[0]) * self.unit
    self.k_s[...] = k.astype(self.k_s.dtype)
    self.v_s[...] = _finite(self.v_ref[0]).astype(self.v_s.dtype)

  def visit_block(self, first_query):
    """Takes all keys of the block, seen by all queries."""
    everything = pl.ds(0, self.tiling.key)
    self.walk(everything, first_query, self.tiling.rows, None, clean=False)

  def visit_chunk(self, c, first_key, first_query, *, clean: bool):
    """Takes the keys of chunk c that are seen; the first is `first_key`."""
    keys = pl.ds(pl.multiple_of(c * self.tiling.chunk, LANES), self.tiling.chunk)
    self.walk(keys, first_query, self.tiling.chunk_rows, first_key, clean=clean)

  def walk(self, keys, first_query, rows: int, first_key, *, clean: bool):
    """Visits all heads, `rows` queries at a time."""
    heads, group, queries, _ = self.q_ref.shape[1:]
    for n in range(heads):
      for g in range(group):
        for r in range(0, queries, rows):
          of_part = pl.ds(pl.multiple_of(first_query + r, rows), rows)
          self.add(n, g, pl.ds(r, rows), of_part, keys, first_key, clean=clean)

  def add(self, n, g, at, of_part, keys, first_key, *, clean: bool):
    """Adds what the queries `at` and the keys give; no mask without a first key.

    Args:
      clean: takes out what is not finite in q and do: 0 * nan is nan. Its queries
        have nan for lse, and so mark the keys they see.
    """
    q_rd, do_rd = self.q_ref[0, n, g, at, :], self.do_ref[0, n, g, at, :]
    if clean:
      q_rd, do_rd = (_finite(x).astype(x.dtype) for x in (q_rd, do_rd))
    s_kr = self.dot(self.k_s[n, keys, :], q_rd, NT)
    dp_kr = self.dot(self.v_s[n, keys, :], do_rd, NT)
    if self.soft_cap is not None:
      t_kr = jnp.tanh(s_kr)
      s_kr = t_kr * (self.soft_cap * LOG2E)
    p_kr = jnp.exp2(s_kr - self.lse_ref[0, n, g : g + 1, at])
    if first_key is not None:
      key_kr = first_key + lax.broadcasted_iota(jnp.int32, p_kr.shape, 0)
      sees_kr = (key_kr >= self.lo_ref[0, :, at]) & (key_kr <= self.hi_ref[0, :, at])
      p_kr = jnp.where(sees_kr, p_kr, 0.0)
    self.dv_s[n, keys, :] += self.dot(p_kr.astype(do_rd.dtype), do_rd, NN)
    ds_kr = p_kr * (dp_kr - self.delta_ref[0, n, g : g + 1, at])
    if self.soft_cap is not None:
      ds_kr *= 1.0 - t_kr * t_kr
    ds_kr = ds_kr.astype(q_rd.dtype)
    self.dk_s[n, keys, :] += self.dot(ds_kr, q_rd, NN)
    self.dq_s[n, g, of_part, :] += self.dot(ds_kr, self.k_s[n, keys, :], TN)

  def dot(self, a, b, dims):
    """A matmul that sums in float32."""
    return lax.dot_general(
      a, b, dims, precision=self.precision, preferred_element_type=jnp.float32
    )

  def finish_keys(self):
    """Writes dk and dv of a block, on top of those of earlier parts."""
    for x_s, ref, factor, before in zip(
      (self.dk_s, self.dv_s),
      (self.dk_ref, self.dv_ref),
      (self.scale, 1.0),
      self.before or (None, None),
    ):
      x = x_s[...] * factor
      x = x if before is None else x + before[0]
      ref[0] = x.astype(ref.dtype)

  def finish_part(self):
    """Writes dq of a part of the queries."""
    dq = self.dq_s[...] * (self.scale / self.unit)
    self.dq_ref[0] = dq.astype(self.dq_ref.dtype)


def _finite(x):
  """Zero for nan and inf: a matmul would spread them, since 0 * nan is nan."""
  x = x.astype(jnp.float32)
  return jnp.where(jnp.abs(x) < jnp.inf, x, 0.0)
