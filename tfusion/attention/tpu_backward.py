"""One step of the backward pass on a TPU core: a block of queries meets its keys.

Owns: the arithmetic of a tile; the call. Not: which tiles (tpu_work.py), how big they
are (tpu_tiling.py).

n key/value heads of a step  g query heads of each  q queries  k keys  r queries of a
fragment  d head dim

Scores are computed again, as in the forward pass but transposed: keys x queries. What
there is one number of for each query (lse, delta, lo, hi) is then a row of lanes, as it
lies in memory. dk and dv gather over the tiles of a block of keys, dq over all tiles
of a part of the queries; with several parts, dk and dv go on from the part before.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention import tpu_tiling, tpu_work
from tfusion.attention.tpu_forward import LOG2E, NN, NT

TN = (((0,), (0,)), ((), ()))


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
  tiling: tpu_tiling.Tiling,
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
  given = q_bngqd, k_bnkd, v_bnkd, do_bngqd, lse_bngq, delta_bngq, lo_b1q, hi_b1q
  call = functools.partial(_run_part, tiling=tiling, part=part, **options)

  def one(p, so_far):
    lists = jnp.full(1, p, jnp.int32), items_pt[p], broken_xi.astype(jnp.int32)
    return tuple(call(count_p[p], *lists, *given, so_far=so_far))

  if queries == part:
    return one(0, ())
  zero_bnkd = jnp.zeros_like(k_bnkd, jnp.float32)
  zeros = jnp.zeros_like(q_bngqd), zero_bnkd, zero_bnkd
  dq_bngqd, *dkv = lax.fori_loop(0, queries // part, one, zeros)
  return dq_bngqd, *(x_bnkd.astype(k_bnkd.dtype) for x_bnkd in dkv)


def _run_part(
  count, *args, so_far, tiling: tpu_tiling.Tiling, part, scale, soft_cap, interpret
):
  """Runs the kernel for one part, on top of (dq, dk, dv) so far or of nothing."""
  q_bngqd, k_bnkd = args[3:5]
  _, heads, group, _, head_dim = q_bngqd.shape
  columns, inner = k_bnkd.shape[2] // tiling.key, part // tiling.query

  def place(t, p, items):
    row = tpu_work.backward_row(items[t])
    i = p[0] * inner + tpu_work.backward_column(items[t])
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
  return pl.pallas_call(
    functools.partial(
      kernel,
      tiling=tiling,
      columns=columns,
      scale=scale,
      soft_cap=soft_cap,
      precision=tpu_tiling.precision(q_bngqd.dtype),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
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
    input_output_aliases={len(args) + i: i for i in range(len(so_far))},
    compiler_params=tpu_tiling.compiler_params(),
    cost_estimate=tpu_tiling.cost(q_bngqd, k_bnkd, matmuls=5),
    interpret=interpret,
    name="attend_backward",
  )(*args, *so_far)


def kernel(
  part,
  items,
  broken,
  q_ref,
  k_ref,
  v_ref,
  do_ref,
  lse_ref,
  delta_ref,
  lo_ref,
  hi_ref,
  *refs,
  tiling,
  columns,
  scale,
  soft_cap,
  precision,
):
  """Adds what one tile gives to dq, dk and dv."""
  *before, dq_ref, dk_ref, dv_ref, dq_s, dk_s, dv_s, k_s, v_s = refs
  item = items[pl.program_id(1)]
  first, last, full, start, stop = (tpu_work.bit(item, i) for i in range(5))
  row, block = tpu_work.backward_row(item), tpu_work.backward_column(item)
  column = row % columns
  heads, group, queries, _ = q_ref.shape[1:]
  unit = scale * LOG2E if soft_cap is None else scale / soft_cap
  blocks = dq_s.shape[2] // queries  # of a part
  at = row // columns * pl.num_programs(0) + pl.program_id(0)
  is_broken = broken[at, part[0] * blocks + block] != 0

  @pl.when(first & (column == 0))
  def _():
    dq_s[...] = jnp.zeros_like(dq_s)

  @pl.when(first)
  def _():
    dk_s[...] = jnp.zeros_like(dk_s)
    dv_s[...] = jnp.zeros_like(dv_s)
    # A query that sees a nan of these carries it in its lse already.
    k_s[...] = (_finite(k_ref[0]) * unit).astype(k_s.dtype)
    v_s[...] = _finite(v_ref[0]).astype(v_s.dtype)

  def dot(a, b, dims):
    return lax.dot_general(
      a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )

  def fragment(n, g, r, keys, *, rows, first_key=None, clean=False):
    """Adds what `rows` queries of one head give; unmasked without a first key."""
    at = pl.ds(r, rows)
    q_rd, do_rd = q_ref[0, n, g, at, :], do_ref[0, n, g, at, :]
    if clean:
      q_rd, do_rd = (_finite(x).astype(x.dtype) for x in (q_rd, do_rd))
    s_kr = dot(k_s[n, keys, :], q_rd, NT)
    dp_kr = dot(v_s[n, keys, :], do_rd, NT)
    if soft_cap is not None:
      t_kr = jnp.tanh(s_kr)
      s_kr = t_kr * (soft_cap * LOG2E)
    p_kr = jnp.exp2(s_kr - lse_ref[0, n, g : g + 1, at])
    if first_key is not None:
      index_kr = first_key + lax.broadcasted_iota(jnp.int32, p_kr.shape, 0)
      sees_kr = (index_kr >= lo_ref[0, :, at]) & (index_kr <= hi_ref[0, :, at])
      p_kr = jnp.where(sees_kr, p_kr, 0.0)
    dv_s[n, keys, :] += dot(p_kr.astype(do_rd.dtype), do_rd, NN)
    ds_kr = p_kr * (dp_kr - delta_ref[0, n, g : g + 1, at])
    if soft_cap is not None:
      ds_kr *= 1.0 - t_kr * t_kr
    ds_kr = ds_kr.astype(q_rd.dtype)
    dk_s[n, keys, :] += dot(ds_kr, q_rd, NN)
    of_part = pl.ds(pl.multiple_of(block * queries + r, rows), rows)
    dq_s[n, g, of_part, :] += dot(ds_kr, k_s[n, keys, :], TN)

  def walk(keys, *, rows, **how):
    for n in range(heads):
      for g in range(group):
        for r in range(0, queries, rows):
          fragment(n, g, r, keys, rows=rows, **how)

  @pl.when(full)
  def _():
    walk(pl.ds(0, tiling.key), rows=tiling.rows)

  def chunk(c, _):
    keys = pl.ds(pl.multiple_of(c * tiling.chunk, tiling.chunk), tiling.chunk)
    how = dict(rows=tiling.chunk_rows, first_key=column * tiling.key + c * tiling.chunk)
    pl.when(jnp.logical_not(is_broken))(lambda: walk(keys, **how))
    pl.when(is_broken)(lambda: walk(keys, **how, clean=True))
    return 0

  @pl.when(jnp.logical_not(full))
  def _():
    lax.fori_loop(start.astype(jnp.int32), stop.astype(jnp.int32) + 1, chunk, 0)

  @pl.when(last)
  def _():
    for x_s, x_ref, factor, earlier in zip(
      (dk_s, dv_s), (dk_ref, dv_ref), (scale, 1.0), before[1:] or (None, None)
    ):
      x = x_s[...] * factor
      x = x if earlier is None else x + earlier[0]
      x_ref[0] = x.astype(x_ref.dtype)

  @pl.when(last & (column == columns - 1))
  def _():
    dq_ref[0] = (dq_s[...] * (scale / unit)).astype(dq_ref.dtype)


def _finite(x):
  """Zero for nan and inf: a matmul would spread them, since 0 * nan is nan."""
  x = x.astype(jnp.float32)
  return jnp.where(jnp.abs(x) < jnp.inf, x, 0.0)
