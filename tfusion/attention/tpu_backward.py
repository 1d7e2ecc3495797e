"""One step of the backward pass on a TPU core: a block of queries meets its keys.

Owns: the arithmetic of a tile. Not: which tile (tpu_work.py), where it comes from
(tpu.py).

n key/value heads of a step  g query heads of each  q queries  k keys  r queries of a
fragment  d head dim

Scores are computed again, as in the forward pass but transposed: keys x queries. What
there is one number of for each query (lse, delta, lo, hi) is then a row of lanes, as it
lies in memory. dk and dv gather over the tiles of a block of keys, dq over all tiles
of a part of the queries.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from tfusion.attention import tpu_work
from tfusion.attention.tpu_forward import LOG2E, NN, NT

TN = (((0,), (0,)), ((), ()))


def kernel(
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
  dq_ref,
  dk_ref,
  dv_ref,
  dq_s,
  dk_s,
  dv_s,
  k_s,
  v_s,
  *,
  tiling,
  columns,
  parts,
  scale,
  soft_cap,
  precision,
):
  """Adds what one tile gives to dq, dk and dv."""
  item = items[pl.program_id(1)]
  first, last, full, start, stop = (tpu_work.bit(item, i) for i in range(5))
  row, block = tpu_work.backward_row(item), tpu_work.backward_column(item)
  column = row % columns
  heads, group, queries, _ = q_ref.shape[1:]
  unit = scale * LOG2E if soft_cap is None else scale / soft_cap
  blocks = dq_s.shape[2] // queries  # of a part
  # `broken` counts blocks of queries of each step's heads of each row of the batch.
  at = (row // (columns * parts) * pl.num_programs(0) + pl.program_id(0)) * parts
  is_broken = broken[(at + row // columns % parts) * blocks + block] != 0

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
    dk_ref[0, 0] = (dk_s[...] * scale).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv_s[...].astype(dv_ref.dtype)

  @pl.when(last & (column == columns - 1))
  def _():
    dq_ref[0] = (dq_s[...] * (scale / unit)).astype(dq_ref.dtype)


def _finite(x):
  """Zero for nan and inf: a matmul would spread them, since 0 * nan is nan."""
  x = x.astype(jnp.float32)
  return jnp.where(jnp.abs(x) < jnp.inf, x, 0.0)
