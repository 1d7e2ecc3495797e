"""Interval attention as Pallas kernels for TPU, forward and backward.

Owns: how arrays are laid out for the kernels. Not: the kernels
(forward_kernel.py, backward_kernel.py), their tiles (tiling.py, lists.py), the
contract (tfusion.attention).

b batch  n key/value heads  g query heads per key/value head  q queries  k keys
d head dim  t items of a list  i blocks of queries  j blocks of keys

The grid has one step for each live tile and no other. A list of tiles, one int32 each,
sits in scalar memory and tells each step which blocks to fetch; its length is a number
computed with it, so one executable serves every mask. The forward pass walks the tiles
of a block of queries, keeping softmax sums and output in VMEM (FlashAttention, arXiv
2205.14135, algorithm 1). The backward pass walks those of a block of keys, keeping dk
and dv, while dq of as many queries as fit stays in VMEM from the first tile to the
last, so that the scores are computed once for all three.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tfusion.attention.intervals import Sizes, sizes_of
from tfusion.attention.tpu import backward_kernel, forward_kernel, lists
from tfusion.attention.tpu.tiling import LANES, Blocks, check, choose_blocks


class TileLists(NamedTuple):
  """What the kernels visit of a shard of the batch; see lists.py."""

  forward_t: jax.Array
  forward_count_1: jax.Array
  backward_pt: jax.Array
  backward_count_p: jax.Array


def find_live(lo_bq, hi_bq, sizes: Sizes, blocks: Blocks | None = None) -> TileLists:
  """Makes the lists of tiles; see `tfusion.attention.gradient`."""
  if sizes.head_dim not in (64, 128, 256):
    raise ValueError(
      f"head_dim={sizes.head_dim}: the TPU kernels take 64, 128 and 256; choose"
      " model.width and model.heads whose quotient is one of them, or"
      " model.attention='chunked' (implementation='chunked' of attend)"
    )
  each = _heads_as_queries(sizes)
  if each > 1:
    lo_bq, hi_bq = (jnp.repeat(x, each, axis=1) for x in (lo_bq, hi_bq))
    queries = sizes.queries * each
    sizes = sizes._replace(queries=queries, heads=sizes.heads // each)
  blocks = _blocks(blocks, sizes)
  f, b = blocks.forward, blocks.backward
  forward = lists.forward_list(
    lo_bq, hi_bq, keys=sizes.keys, query=f.query, key=f.key, chunk=f.chunk
  )
  backward = lists.backward_list(
    lo_bq,
    hi_bq,
    keys=sizes.keys,
    query=b.query,
    key=b.key,
    chunk=b.chunk,
    part=blocks.part,
  )
  return TileLists(*forward, *backward)


def forward(
  q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, live: TileLists, *, blocks=None, **options
):
  """Returns (o_bqhd, lse_bhq); see `tfusion.attention.gradient`."""
  sizes = sizes_of(q_bqhd, k_bknd)
  each = _heads_as_queries(sizes)
  if each > 1:
    lo_bq, hi_bq = (jnp.repeat(x, each, axis=1) for x in (lo_bq, hi_bq))
    q_bqhd = _to_queries(q_bqhd, each)
    o_bqhd, lse_bhq = forward(
      q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, live, blocks=blocks, **options
    )
    lse_bqh = _to_heads(lse_bhq.swapaxes(1, 2), each)
    return _to_heads(o_bqhd, each), lse_bqh.swapaxes(1, 2)
  tiling = _blocks(blocks, sizes).forward
  lo_b1q, hi_b1q = _intervals(lo_bq, hi_bq, sizes.keys, tiling.query)
  o_bngqd, lse_bngq = forward_kernel.run(
    live.forward_t,
    live.forward_count_1[0],
    _queries_first(q_bqhd, sizes, tiling.query),
    _keys_first(k_bknd, tiling.key),
    _keys_first(v_bknd, tiling.key),
    lo_b1q,
    hi_b1q,
    tiling=tiling,
    **options,
  )
  lse_bhq = lse_bngq.reshape(sizes.batch, sizes.heads, -1)[:, :, : sizes.queries]
  return _queries_last(o_bngqd, sizes), lse_bhq


def backward(
  q_bqhd,
  k_bknd,
  v_bknd,
  lo_bq,
  hi_bq,
  live: TileLists,
  lse_bhq,
  delta_bhq,
  do_bqhd,
  *,
  blocks,
  **options,
):
  """Returns (dq_bqhd, dk_bknd, dv_bknd); see `tfusion.attention.gradient`."""
  sizes = sizes_of(q_bqhd, k_bknd)
  each = _heads_as_queries(sizes)
  if each > 1:
    lo_bq, hi_bq = (jnp.repeat(x, each, axis=1) for x in (lo_bq, hi_bq))
    q_bqhd, do_bqhd = (_to_queries(x, each) for x in (q_bqhd, do_bqhd))
    lse_bhq, delta_bhq = (
      _to_queries(x.swapaxes(1, 2), each).swapaxes(1, 2) for x in (lse_bhq, delta_bhq)
    )
    args = q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, live, lse_bhq, delta_bhq, do_bqhd
    dq_bqhd, *dkv = backward(*args, blocks=blocks, **options)
    return _to_heads(dq_bqhd, each), *dkv
  tiling = _blocks(blocks, sizes).backward
  # As the lists have it: on a mesh they were made for the heads of all devices.
  part = _round_up(sizes.queries, tiling.query) // len(live.backward_count_p)
  lo_b1q, hi_b1q = _intervals(lo_bq, hi_bq, sizes.keys, part)
  statistic = (sizes.batch, sizes.kv_heads, sizes.group, -1)
  dq_bngqd, *dkv_bnkd = backward_kernel.run(
    live.backward_pt,
    live.backward_count_p,
    _queries_first(q_bqhd, sizes, part),
    _keys_first(k_bknd, tiling.key),
    _keys_first(v_bknd, tiling.key),
    _queries_first(do_bqhd, sizes, part),
    _pad(lse_bhq * forward_kernel.LOG2E, 2, part).reshape(statistic),
    _pad(delta_bhq, 2, part).reshape(statistic),
    lo_b1q,
    hi_b1q,
    tiling=tiling,
    part=part,
    **options,
  )
  dk_bknd, dv_bknd = (x[:, :, : sizes.keys].swapaxes(1, 2) for x in dkv_bnkd)
  return _queries_last(dq_bngqd, sizes), dk_bknd, dv_bknd


def _blocks(blocks: Blocks | None, sizes: Sizes) -> Blocks:
  blocks = blocks or choose_blocks(sizes)
  check(blocks, sizes)
  return blocks


def _heads_as_queries(sizes: Sizes) -> int:
  """The heads of a group count as queries where all of them are less than a tile: in
  decoding. They share their keys, so a tile is filled with them."""
  return sizes.group if sizes.queries * sizes.group <= LANES // 2 else 1


def _to_queries(x_bqhz, each: int):
  b, q, h, *z = x_bqhz.shape
  return x_bqhz.reshape(b, q, -1, each, *z).swapaxes(2, 3).reshape(b, q * each, -1, *z)


def _to_heads(x_bqhz, each: int):
  b, q, h, *z = x_bqhz.shape
  return x_bqhz.reshape(b, -1, each, h, *z).swapaxes(2, 3).reshape(b, -1, h * each, *z)


def _queries_first(x_bqhd, sizes: Sizes, multiple: int):
  x_bhqd = _pad(x_bqhd.swapaxes(1, 2), 2, multiple)
  return x_bhqd.reshape(sizes.batch, sizes.kv_heads, sizes.group, -1, sizes.head_dim)


def _queries_last(x_bngqd, sizes: Sizes):
  x_bhqd = x_bngqd.reshape(sizes.batch, sizes.heads, -1, sizes.head_dim)
  return x_bhqd[:, :, : sizes.queries].swapaxes(1, 2)


def _keys_first(x_bknd, multiple: int):
  return _pad(x_bknd.swapaxes(1, 2), 2, multiple)


def _intervals(lo_bq, hi_bq, keys: int, multiple: int):
  """Queries beyond the end see what the last one sees: full tiles stay full. Keys
  beyond the end are seen by none."""
  hi_bq = jnp.minimum(hi_bq, keys - 1)
  return (_pad(x, 1, multiple, mode="edge")[:, None] for x in (lo_bq, hi_bq))


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def _pad(x, axis: int, multiple: int, **mode):
  beyond = _round_up(x.shape[axis], multiple) - x.shape[axis]
  if not beyond:
    return x
  width = [(0, beyond if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, width, **mode)
