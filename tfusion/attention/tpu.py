"""Interval attention as Pallas kernels for TPU, forward and backward.

Owns: the work lists, the sizes of tiles, how arrays are laid out and handed to the
kernels. Not: what happens in a tile (tpu_forward.py, tpu_backward.py), the contract
(tfusion/attention/__init__.py).

b batch  n key/value heads  g query heads per key/value head  q queries  k keys
d head dim  t items of a work list  i blocks of queries  j blocks of keys

The grid has one step for each live tile and no other. A work list, one int32 per tile,
sits in scalar memory and tells each step which blocks to fetch; its length is a number
computed with it, so one executable serves every mask (kernels.md of the design calls
this the dynamic grid). The forward pass walks the tiles of a block of queries, keeping
softmax sums and output in VMEM (FlashAttention, arXiv 2205.14135, algorithm 1); the
backward pass walks those of a block of keys, keeping dk and dv, while dq of as many
queries as fit stays in VMEM from the first tile to the last, so that the scores are
computed once for all three.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention import tpu_backward, tpu_forward, tpu_work
from tfusion.attention.intervals import Sizes, sizes_of
from tfusion.attention.tpu_forward import LANES


class Tiling(NamedTuple):
  """How one pass cuts its work: a step fetches heads x query x key."""

  heads: int  # key/value heads of a step; their query heads come along
  query: int  # queries of a step
  key: int  # keys fetched in a step
  chunk: int  # keys computed at once where some are masked; dead chunks are skipped
  rows: int  # queries of one head computed at once: a fragment, of full blocks
  chunk_rows: int  # the same of chunks
  ahead: int  # fragments whose scores are computed before they are used


class Blocks(NamedTuple):
  """The tiles of both passes."""

  forward: Tiling
  backward: Tiling
  part: int  # queries whose gradient stays in VMEM


class Work(NamedTuple):
  """The work lists of a shard of the batch; see tpu_work.py."""

  forward_t: jax.Array
  forward_count_1: jax.Array
  backward_t: jax.Array
  backward_count_1: jax.Array


def choose_blocks(sizes: Sizes) -> Blocks:
  """Returns the tiles for these sizes on the chip in use.

  `tfusion bench attention --static` shows what they reach: tiles of 512 x 512 waste
  little of packed rows, and rows and ahead are what keeps the matrix units busiest.
  """
  wide = _chip().mxu_column_size > LANES
  heads = _divisor(sizes.kv_heads, max(4 // sizes.group, 1))
  query = min(512, _round_up(sizes.queries, LANES))
  key = min(1024, _round_up(sizes.keys, LANES))
  chunk = key if key % 256 else key // 2
  rows, half = _divisor(query, 256), _divisor(query, 128)
  forward = Tiling(
    heads, query, key, chunk, rows, rows if wide else half, ahead=2 if wide else 1
  )
  backward = Tiling(heads, query, key, chunk, half if wide else rows, rows, ahead=0)
  return Blocks(forward, backward, part=_part(sizes, backward))


def _part(sizes: Sizes, tiling: Tiling) -> int:
  """As many queries as a third of VMEM holds: sums in f32, results twice."""
  numbers = 4 + 2 * jnp.dtype(sizes.dtype).itemsize
  each = tiling.heads * sizes.group * max(sizes.head_dim, LANES) * numbers
  blocks = max(_chip().vmem_capacity_bytes // 3 // each // tiling.query, 1)
  whole = -(-sizes.queries // tiling.query)
  parts = -(-whole // blocks)
  return -(-whole // parts) * tiling.query


def _chip():
  """What is known of the TPU in use; of a v5e where there is none: interpreted."""
  try:
    return pltpu.get_tpu_info()
  except ValueError:
    return pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)


def prepare(lo_bq, hi_bq, sizes: Sizes, blocks: Blocks | None = None) -> Work:
  """Makes the work lists; see `tfusion.attention.prepare`."""
  blocks = _checked(blocks or choose_blocks(sizes), sizes)
  f, b = blocks.forward, blocks.backward
  forward = tpu_work.forward_list(
    lo_bq, hi_bq, keys=sizes.keys, query=f.query, key=f.key, chunk=f.chunk
  )
  backward = tpu_work.backward_list(
    lo_bq,
    hi_bq,
    keys=sizes.keys,
    query=b.query,
    key=b.key,
    chunk=b.chunk,
    part=blocks.part,
  )
  return Work(*forward, *backward)


def _checked(blocks: Blocks, sizes: Sizes) -> Blocks:
  return blocks


def forward(
  q_bqhd,
  k_bknd,
  v_bknd,
  lo_bq,
  hi_bq,
  work: Work,
  *,
  scale,
  soft_cap,
  blocks,
  interpret,
):
  """Returns (o_bqhd, lse_bhq); see `tfusion.attention.gradient`."""
  sizes = sizes_of(q_bqhd, k_bknd)
  tiling = (blocks or choose_blocks(sizes)).forward
  q_bngqd = _heads_first(q_bqhd, sizes.kv_heads, tiling.query)
  k_bnkd, v_bnkd = (_keys_first(x, tiling.key) for x in (k_bknd, v_bknd))
  lo_b1q = _intervals(lo_bq, tiling.query)
  hi_b1q = _intervals(jnp.minimum(hi_bq, sizes.keys - 1), tiling.query)
  batch, heads, group, queries, head_dim = q_bngqd.shape
  blocks_q = queries // tiling.query

  def place(t, items):
    row = tpu_work.forward_row(items[t])
    return row // blocks_q, row % blocks_q

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
  rows = tiling.heads * group * tiling.query
  f32 = functools.partial(pltpu.VMEM, dtype=jnp.float32)
  spare = tpu_forward.spare_lanes(head_dim, mxu=_chip().mxu_column_size)
  o_bngqd, lse_bngq = pl.pallas_call(
    functools.partial(
      tpu_forward.kernel,
      tiling=tiling,
      scale=scale,
      soft_cap=soft_cap,
      precision=_precision(sizes.dtype),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(heads // tiling.heads, work.forward_count_1[0]),
      in_specs=[block_q, block_k, block_k, block_lo, block_lo],
      out_specs=[
        block_q,
        pl.BlockSpec((1, tiling.heads, group, tiling.query), of_lse),
      ],
      scratch_shapes=[
        f32((rows, LANES)),
        f32((8, LANES) if spare else (rows, LANES)),
        f32((rows, head_dim + spare)),
        pltpu.VMEM((rows, head_dim), sizes.dtype),
        pltpu.VMEM((tiling.query, LANES), jnp.int32),
        pltpu.VMEM((tiling.query, LANES), jnp.int32),
        pltpu.SMEM((k_bnkd.shape[2] // tiling.key,), jnp.int32),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(q_bngqd.shape, q_bngqd.dtype),
      jax.ShapeDtypeStruct(q_bngqd.shape[:4], jnp.float32),
    ],
    compiler_params=_compiler_params(),
    cost_estimate=_cost(sizes, matmuls=2),
    interpret=interpret,
    name="attend_forward",
  )(work.forward_t, q_bngqd, k_bnkd, v_bnkd, lo_b1q, hi_b1q)
  o_bhqd = o_bngqd.reshape(batch, heads * group, queries, head_dim)
  lse_bhq = lse_bngq.reshape(batch, heads * group, queries)
  o_bqhd = o_bhqd[:, :, : sizes.queries].swapaxes(1, 2)
  return o_bqhd, lse_bhq[:, :, : sizes.queries]


def backward(
  q_bqhd,
  k_bknd,
  v_bknd,
  lo_bq,
  hi_bq,
  work: Work,
  lse_bhq,
  delta_bhq,
  do_bqhd,
  *,
  scale,
  soft_cap,
  blocks,
  interpret,
):
  """Returns (dq_bqhd, dk_bknd, dv_bknd); see `tfusion.attention.gradient`."""
  sizes = sizes_of(q_bqhd, k_bknd)
  blocks = blocks or choose_blocks(sizes)
  tiling, part = blocks.backward, blocks.part
  q_bngqd, do_bngqd = (_heads_first(x, sizes.kv_heads, part) for x in (q_bqhd, do_bqhd))
  k_bnkd, v_bnkd = (_keys_first(x, tiling.key) for x in (k_bknd, v_bknd))
  lo_b1q = _intervals(lo_bq, part)
  hi_b1q = _intervals(jnp.minimum(hi_bq, sizes.keys - 1), part)
  batch, heads, group, queries, head_dim = q_bngqd.shape
  lse_bngq, delta_bngq = (
    _pad(x, 2, part).reshape(batch, heads, group, queries)
    for x in (lse_bhq * tpu_forward.LOG2E, delta_bhq)
  )
  broken_bni = jnp.isnan(lse_bngq).reshape(batch, heads, group, -1, tiling.query)
  broken_bni = broken_bni.any((2, 4)).reshape(
    batch, heads // tiling.heads, tiling.heads, -1
  )
  broken_x = broken_bni.any(2).astype(jnp.int32).reshape(-1)
  parts, columns = queries // part, k_bnkd.shape[2] // tiling.key
  inner = part // tiling.query

  def place(t, items):
    row = tpu_work.backward_row(items[t])
    b, p = row // (columns * parts), row // columns % parts
    return b, p, p * inner + tpu_work.backward_column(items[t]), row % columns

  def of_queries(n, t, items, _):
    b, _, i, _ = place(t, items)
    return b, n, 0, i, 0

  def of_keys(n, t, items, _):
    b, _, _, j = place(t, items)
    return b, n, j, 0

  def of_statistic(n, t, items, _):
    b, _, i, _ = place(t, items)
    return b, n, 0, i

  def of_interval(n, t, items, _):
    b, _, i, _ = place(t, items)
    return b, 0, i

  def of_dq(n, t, items, _):
    b, p, _, _ = place(t, items)
    return b, n, 0, p, 0

  def of_dkv(n, t, items, _):
    b, p, _, j = place(t, items)
    return p, b, n, j, 0

  block_q = pl.BlockSpec((1, tiling.heads, group, tiling.query, head_dim), of_queries)
  block_k = pl.BlockSpec((1, tiling.heads, tiling.key, head_dim), of_keys)
  block_s = pl.BlockSpec((1, tiling.heads, group, tiling.query), of_statistic)
  block_lo = pl.BlockSpec((1, 1, tiling.query), of_interval)
  block_dkv = pl.BlockSpec((1, 1, tiling.heads, tiling.key, head_dim), of_dkv)
  keys_of_step = (tiling.heads, tiling.key, head_dim)
  queries_of_part = (tiling.heads, group, part, head_dim)
  f32 = functools.partial(pltpu.VMEM, dtype=jnp.float32)
  # One part writes the gradients themselves, several write terms of a sum.
  dkv_dtype = k_bnkd.dtype if parts == 1 else jnp.float32
  dkv_shape = jax.ShapeDtypeStruct((parts, *k_bnkd.shape), dkv_dtype)
  dq_bngqd, dk_pbnkd, dv_pbnkd = pl.pallas_call(
    functools.partial(
      tpu_backward.kernel,
      tiling=tiling,
      columns=columns,
      parts=parts,
      scale=scale,
      soft_cap=soft_cap,
      precision=_precision(sizes.dtype),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(heads // tiling.heads, work.backward_count_1[0]),
      in_specs=[block_q, block_k, block_k, block_q, *[block_s] * 2, *[block_lo] * 2],
      out_specs=[pl.BlockSpec((1, *queries_of_part), of_dq), block_dkv, block_dkv],
      scratch_shapes=[
        f32(queries_of_part),
        f32(keys_of_step),
        f32(keys_of_step),
        pltpu.VMEM(keys_of_step, sizes.dtype),
        pltpu.VMEM(keys_of_step, sizes.dtype),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(q_bngqd.shape, q_bngqd.dtype),
      dkv_shape,
      dkv_shape,
    ],
    compiler_params=_compiler_params(),
    cost_estimate=_cost(sizes, matmuls=5),
    interpret=interpret,
    name="attend_backward",
  )(
    work.backward_t,
    broken_x,
    q_bngqd,
    k_bnkd,
    v_bnkd,
    do_bngqd,
    lse_bngq,
    delta_bngq,
    lo_b1q,
    hi_b1q,
  )
  dq_bhqd = dq_bngqd.reshape(batch, heads * group, queries, head_dim)
  dq_bqhd = dq_bhqd[:, :, : sizes.queries].swapaxes(1, 2)
  dk_bknd, dv_bknd = (
    x.sum(0).astype(k_bknd.dtype)[:, :, : sizes.keys].swapaxes(1, 2)
    for x in (dk_pbnkd, dv_pbnkd)
  )
  return dq_bqhd, dk_bknd, dv_bknd


def _compiler_params():
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "arbitrary"),
    vmem_limit_bytes=_chip().vmem_capacity_bytes * 9 // 10,
  )


def _precision(dtype):
  """Float32 operands are multiplied as such: a TPU would round them to bfloat16."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _cost(sizes: Sizes, *, matmuls: int) -> pl.CostEstimate:
  """Of a causal row: what the intervals will be is not known yet."""
  scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys // 2
  moved = sizes.batch * sizes.head_dim * jnp.dtype(sizes.dtype).itemsize
  return pl.CostEstimate(
    flops=2 * matmuls * scores * sizes.head_dim,
    transcendentals=scores,
    bytes_accessed=moved
    * matmuls
    * (sizes.heads * sizes.queries + sizes.kv_heads * sizes.keys),
  )


def _heads_first(x_bqhd, kv_heads: int, multiple: int):
  x_bhqd = _pad(x_bqhd.swapaxes(1, 2), 2, multiple)
  batch, heads, queries, head_dim = x_bhqd.shape
  return x_bhqd.reshape(batch, kv_heads, heads // kv_heads, queries, head_dim)


def _keys_first(x_bknd, multiple: int):
  return _pad(x_bknd.swapaxes(1, 2), 2, multiple)


def _intervals(x_bq, multiple: int):
  """Queries beyond the end see what the last one sees: full tiles stay full."""
  return _pad(x_bq, 1, multiple, mode="edge")[:, None]


def _pad(x, axis: int, multiple: int, **mode):
  beyond = -x.shape[axis] % multiple
  if not beyond:
    return x
  width = [(0, beyond if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, width, **mode)


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def _divisor(x: int, limit: int) -> int:
  """The largest divisor of x that is not above the limit."""
  return next(y for y in range(min(x, limit), 0, -1) if x % y == 0)
