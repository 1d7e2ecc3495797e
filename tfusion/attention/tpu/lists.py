"""Which tiles the TPU kernels visit, and in what order: their lists of tiles.

Owns: the lists, one int32 per tile, and how it is packed. Not: which tiles are live
(intervals.py), what is done in one (forward_kernel.py, backward_kernel.py).

b batch  i blocks of queries  j blocks of keys  c chunks of a block of keys
p resident parts of the queries  t items

A step of the forward pass fetches one block of keys and computes those chunks of it
that are live. Lists are sorted as integers: the fields that order them stand in the
highest bits.

  forward    row 15 = b * blocks of queries + i | j 10 | fresh, last chunk, first
             chunk, full, last, first: 1 each
  backward   row 15 = b * blocks of keys + j | i 11, within the part | last chunk,
             first chunk, full, last, first: 1 each; a list for each part

first, last: of the tiles of this row, which share an accumulator. full: needs no mask.
fresh: no earlier row of this b has fetched these keys. Every row has a tile, so that
all results are written: one without a live tile has an empty one.
"""

import jax
import jax.numpy as jnp

from tfusion.attention import intervals

ROWS, KEY_BLOCKS, QUERY_BLOCKS = 1 << 15, 1 << 10, 1 << 11
UNUSED = jnp.iinfo(jnp.int32).max  # sorts behind every item


def forward_list(lo_bq, hi_bq, *, keys: int, query: int, key: int, chunk: int):
  """Returns (items i32[t], count i32[1]) in the order of the queries.

  Args:
    lo_bq, hi_bq: i32, any intervals.
    keys: how many there are.
    query, key, chunk: sizes of a block of queries, of a block of keys, and of its
      chunks: one or two.
  """
  tiles = intervals.tiles(lo_bq, hi_bq, keys=keys, block_q=query, block_k=chunk)
  batch, blocks, _ = tiles.live_bij.shape
  live_bijc = _by_two(tiles.live_bij, key // chunk, beyond=False)
  full_bijc = _by_two(tiles.full_bij, key // chunk, beyond=True)
  live_bij = live_bijc.any(-1)
  none_bi1 = ~live_bij.any(-1, keepdims=True)
  columns_11j = jnp.arange(live_bij.shape[2], dtype=jnp.int32)[None, None]
  visited_bij = live_bij | (none_bi1 & (columns_11j == 0))
  rows_bi1 = jnp.arange(batch * blocks, dtype=jnp.int32).reshape(batch, blocks, 1)
  first_bij, last_bij = _ends(visited_bij)
  fresh_bij = visited_bij & (jnp.cumsum(visited_bij, axis=1) == 1)
  from_bij = ~live_bijc[..., 0]  # an empty tile goes from chunk 1 to chunk 0
  to_bij = live_bijc[..., 1]
  flags = (first_bij, last_bij, full_bijc.all(-1), from_bij, to_bij, fresh_bij)
  order_bij = rows_bi1 << 16 | columns_11j << 6

  def one(x_bij):
    return x_bij.reshape(1, -1, x_bij.shape[2])

  items_1t, count_1 = _sorted(one(visited_bij), one(order_bij), map(one, flags))
  return items_1t[0], count_1


def backward_list(
  lo_bq, hi_bq, *, keys: int, query: int, key: int, chunk: int, part: int
):
  """Returns (items i32[p, t], count i32[p]) in the order of the keys.

  Args:
    lo_bq, hi_bq, keys, query, key, chunk: as for forward_list.
    part: queries whose gradient stays resident; a multiple of `query`.
  """
  tiles = intervals.tiles(lo_bq, hi_bq, keys=keys, block_q=query, block_k=chunk)
  batch, blocks, _ = tiles.live_bij.shape
  live_bijc = _by_two(tiles.live_bij, key // chunk, beyond=False)
  full_bijc = _by_two(tiles.full_bij, key // chunk, beyond=True)
  columns, inner = live_bijc.shape[2], part // query
  pad = ((0, 0), (0, -blocks % inner), (0, 0))

  def turned(x_bij):
    x_bpij = jnp.pad(x_bij, pad).reshape(batch, -1, inner, columns)
    return x_bpij.transpose(1, 0, 3, 2).reshape(-1, batch * columns, inner)

  live_pxi = turned(live_bijc.any(-1))
  none_px1 = ~live_pxi.any(-1, keepdims=True)
  blocks_11i = jnp.arange(inner, dtype=jnp.int32)[None, None]
  visited_pxi = live_pxi | (none_px1 & (blocks_11i == 0))
  rows_1x1 = jnp.arange(batch * columns, dtype=jnp.int32)[None, :, None]
  start_pxi = ~turned(live_bijc[..., 0])
  stop_pxi = turned(live_bijc[..., 1])
  full_pxi = turned(full_bijc.all(-1))
  flags = (*_ends(visited_pxi), full_pxi, start_pxi, stop_pxi)
  return _sorted(visited_pxi, rows_1x1 << 16 | blocks_11i << 5, flags)


def _by_two(x_bij, chunks: int, *, beyond: bool):
  """Groups chunks into blocks of two, or of one and `beyond`."""
  if chunks == 1:
    return jnp.stack([x_bij, jnp.full_like(x_bij, beyond)], axis=-1)
  x_bij = jnp.pad(x_bij, ((0, 0), (0, 0), (0, x_bij.shape[2] % 2)))
  return x_bij.reshape(*x_bij.shape[:2], -1, 2)


def _ends(visited_xyz):
  """Returns which tiles are the first and the last of their row."""
  count_xyz = jnp.cumsum(visited_xyz, axis=-1)
  return (
    visited_xyz & (count_xyz == 1),
    visited_xyz & (count_xyz == count_xyz[..., -1:]),
  )


def _sorted(visited_pxy, order_pxy, flags):
  """Packs and sorts the items of each p."""
  items_pxy = order_pxy
  for place, flag_pxy in enumerate(flags):
    items_pxy = items_pxy | flag_pxy.astype(jnp.int32) << place
  items_pxy = jnp.where(visited_pxy, items_pxy, UNUSED)
  items_pt = jnp.sort(items_pxy.reshape(len(items_pxy), -1), axis=-1)
  return items_pt, jnp.sum(visited_pxy, (1, 2), dtype=jnp.int32)


def bit(item: jax.Array, place: int) -> jax.Array:
  """Returns whether a flag is set; see the head of this file for the places."""
  return (item >> place) & 1 == 1


def forward_row(item: jax.Array) -> jax.Array:
  """Returns b * blocks of queries + i."""
  return item >> 16


def forward_column(item: jax.Array) -> jax.Array:
  """Returns j."""
  return (item >> 6) & (KEY_BLOCKS - 1)


def backward_row(item: jax.Array) -> jax.Array:
  """Returns b * blocks of keys + j."""
  return item >> 16


def backward_column(item: jax.Array) -> jax.Array:
  """Returns i, counted within the part."""
  return (item >> 5) & (QUERY_BLOCKS - 1)
