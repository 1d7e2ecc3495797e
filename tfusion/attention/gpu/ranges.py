"""Which tiles the GPU kernels visit, in which order, and how large the tiles are.

Owns: block sizes and their checks, the ranges of each block. Not: the kernels
(kernels.py), the meaning of lo and hi (intervals.py).

b batch  q queries  k keys  c blocks of a row, or of all rows  s splits of the keys
w the five numbers of a block: see `Ranges`
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from tfusion.attention.intervals import Sizes

STACK = 64  # rows up to which the heads that share a key/value head are one block
PROGRAMS = 128  # fewer than that leave multiprocessors idle: the keys are then split
SPLIT = 4  # blocks of keys that a split has at least
SHARED = 227 * 1024  # bytes of shared memory a block of threads can have on Hopper


class Tile(NamedTuple):
  """The block sizes of one kernel, and how Triton compiles it."""

  queries: int
  keys: int
  edge: int  # keys (of dkv: queries) of a tile under a mask; divides those of others
  warps: int
  stages: int  # of the pipeline that loads what a tile needs


class Blocks(NamedTuple):
  """The block sizes of the three kernels."""

  forward: Tile
  dq: Tile
  dkv: Tile


class Ranges(NamedTuple):
  """What the kernels visit: index, first, full, full_end and end of each block.

  The index counts over batch and blocks. The others count along the row, in units of
  `Tile.edge`: [first, end) is visited, and [full, full_end) within it, some whole
  tiles, needs no mask.
  """

  forward_cw: jax.Array  # i32: blocks of queries; what they visit counts in keys
  dq_cw: jax.Array  # i32: likewise
  dkv_cw: jax.Array  # i32: blocks of keys; what they visit counts in queries


# By head dim, for operands of two bytes; swept by tests/bench/attention_sm90a.py for
# what ptxas can keep in registers. No GPU has timed them.
TABLE = {
  64: Blocks(
    Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 128, 32, 8, 3)
  ),
  128: Blocks(
    Tile(128, 128, 64, 8, 3), Tile(128, 64, 32, 8, 3), Tile(64, 128, 32, 8, 3)
  ),
  256: Blocks(Tile(128, 32, 32, 8, 3), Tile(128, 32, 32, 8, 2), Tile(32, 64, 32, 8, 2)),
}
# fp32 multiplies without tensor cores, whose tf32 would round: tiles are small.
TABLE_F32 = {
  64: Blocks(Tile(32, 32, 32, 8, 2), Tile(32, 32, 32, 8, 2), Tile(32, 32, 32, 8, 2)),
  128: Blocks(Tile(32, 32, 32, 8, 2), Tile(32, 32, 32, 8, 2), Tile(16, 32, 16, 8, 2)),
  256: Blocks(Tile(32, 16, 16, 8, 1), Tile(32, 16, 16, 8, 1), Tile(16, 16, 16, 8, 1)),
}


class Plan(NamedTuple):
  """How the work is cut; `sizes` are those of the operands after `stack`."""

  sizes: Sizes
  group: int  # query heads that share a key/value head, after stacking
  stack: int  # of them that lie along the queries
  splits: int  # of the keys of the forward pass
  blocks: Blocks

  @property
  def width(self) -> int:
    """Keys of a split, a multiple of a tile."""
    tile = self.blocks.forward.keys
    return pl.cdiv(pl.cdiv(self.sizes.keys, tile), self.splits) * tile


def plan_of(sizes: Sizes, blocks: Blocks | None) -> Plan:
  """Returns how this call is cut; blocks None takes those of the table."""
  dtype, d = jnp.dtype(sizes.dtype), sizes.head_dim
  if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
    raise ValueError(f"dtype {dtype}: the GPU kernels take bfloat16, float16, float32")
  if d & (d - 1) or not 16 <= d <= 256:
    raise ValueError(
      f"head dim {d}: the GPU kernels need a power of two from 16 to 256; choose one,"
      " or implementation='chunked'"
    )
  group = sizes.heads // sizes.kv_heads
  stack = group if sizes.queries * group <= STACK else 1
  sizes = sizes._replace(queries=sizes.queries * stack, heads=sizes.heads // stack)
  if blocks is None:
    table = TABLE_F32 if dtype == jnp.float32 else TABLE
    tiles = table[max(d, 64)]._asdict().items()
    blocks = Blocks(*(_fit(name, tile, sizes) for name, tile in tiles))
  for name, tile in zip(Blocks._fields, blocks):
    _check(name, tile, d, dtype.itemsize)
  tile = blocks.forward
  programs = sizes.batch * sizes.heads * pl.cdiv(sizes.queries, tile.queries)
  splits = max(1, min(PROGRAMS // programs, sizes.keys // (SPLIT * tile.keys)))
  return Plan(sizes, group // stack, stack, splits, blocks)


def _fit(name: str, tile: Tile, sizes: Sizes) -> Tile:
  """Makes a tile no longer than a short row."""
  queries = min(tile.queries, max(16, pl.next_power_of_2(sizes.queries)))
  keys = min(tile.keys, max(16, pl.next_power_of_2(sizes.keys)))
  # A warp keeps the rows of its accumulators: keys in dkv, otherwise queries.
  shrunk = tile.keys // keys if name == "dkv" else tile.queries // queries
  warps = max(4, tile.warps // shrunk)
  return Tile(queries, keys, min(tile.edge, queries, keys), warps, tile.stages)


def _check(name: str, tile: Tile, d: int, itemsize: int) -> None:
  where = f"blocks.{name}"
  for side in ("queries", "keys", "edge"):
    x = getattr(tile, side)
    if x < 16 or x & (x - 1):
      raise ValueError(f"{where}.{side}={x}: it must be a power of two, 16 at least")
  looped = "queries" if name == "dkv" else "keys"
  if tile.edge > getattr(tile, looped):
    raise ValueError(
      f"{where}.edge={tile.edge}: it must divide {looped}={getattr(tile, looped)}"
    )
  if tile.warps not in (1, 2, 4, 8, 16):
    raise ValueError(f"{where}.warps={tile.warps}: it must be 1, 2, 4, 8 or 16")
  if tile.stages < 1:
    raise ValueError(f"{where}.stages={tile.stages}: it must be 1 at least")
  own, other = tile.queries, tile.keys
  if name == "dkv":
    own, other = other, own
  resident = own if name == "forward" else 2 * own
  shared = (resident + 2 * other * tile.stages) * d * itemsize
  if shared > SHARED:
    raise ValueError(
      f"{where}={tuple(tile)} takes {shared} bytes of shared memory at head dim {d},"
      f" and Hopper has {SHARED}: use fewer queries, keys or stages"
    )


def stack(x_bqhd: jax.Array, plan: Plan) -> jax.Array:
  """Lays the heads that share a key/value head along the queries of a short row."""
  if plan.stack == 1:
    return x_bqhd
  b, _, _, d = x_bqhd.shape
  x_bqngd = x_bqhd.reshape(b, -1, plan.sizes.heads, plan.stack, d)
  return x_bqngd.swapaxes(2, 3).reshape(b, -1, plan.sizes.heads, d)


def unstack(x_bqhd: jax.Array, plan: Plan) -> jax.Array:
  """Undoes `stack`."""
  if plan.stack == 1:
    return x_bqhd
  b, _, n, d = x_bqhd.shape
  x_bqgnd = x_bqhd.reshape(b, -1, plan.stack, n, d)
  return x_bqgnd.swapaxes(2, 3).reshape(b, -1, n * plan.stack, d)


def find_live(
  lo_bq: jax.Array, hi_bq: jax.Array, sizes: Sizes, blocks: Blocks | None = None
) -> Ranges:
  """Finds what each block visits, once for all layers that share lo and hi.

  Takes time and memory in proportion to the queries and keys. Where lo and hi never
  decrease and leave out no key between two that are seen, exactly the tiles that
  somebody sees are visited; otherwise some more may be.

  Raises:
    ValueError: a dtype, head dim or block size that the kernels cannot take.
  """
  plan = plan_of(sizes, blocks)
  lo_bq, hi_bq = (jnp.repeat(x, plan.stack, axis=1) for x in (lo_bq, hi_bq))
  keys, (forward, dq, dkv) = plan.sizes.keys, plan.blocks
  start_s1 = jnp.arange(plan.splits, dtype=jnp.int32)[:, None] * plan.width
  shape = (-1, plan.sizes.queries)
  split_lo = jnp.maximum(lo_bq[:, None], start_s1).reshape(shape)
  split_hi = jnp.minimum(hi_bq[:, None], start_s1 + plan.width - 1).reshape(shape)
  return Ranges(
    _longest_first(_key_spans(split_lo, split_hi, keys, forward)),
    _longest_first(_key_spans(lo_bq, hi_bq, keys, dq)),
    _longest_first(_query_spans(lo_bq, hi_bq, keys, dkv)),
  )


def visited(ranges: Ranges) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns how many tiles of one head the forward, dq, and dkv kernels visit."""
  forward, dq, dkv = (jnp.sum(x_cw[:, 4] - x_cw[:, 1]) for x_cw in ranges)
  return forward, dq, dkv


class _Extent(NamedTuple):
  """What the queries of each block see, of the keys there are."""

  first_bc: jax.Array  # that any of them sees; the number of keys if none does
  last_bc: jax.Array  # that any of them sees; -1 if none does
  low_bc: jax.Array  # the largest lo
  high_bc: jax.Array  # the smallest hi


def _extent(lo_bq, hi_bq, keys: int, block: int) -> _Extent:
  lo_bq, hi_bq = jnp.maximum(lo_bq, 0), jnp.minimum(hi_bq, keys - 1)
  live_bq = lo_bq <= hi_bq
  length = lo_bq.shape[1]

  def fold(x_bq, neutral, reduce):
    pad = -length % block
    x_bq = jnp.pad(x_bq, ((0, 0), (0, pad)), constant_values=neutral)
    return reduce(x_bq.reshape(x_bq.shape[0], -1, block), axis=-1)

  return _Extent(
    fold(jnp.where(live_bq, lo_bq, keys), keys, jnp.min),
    fold(jnp.where(live_bq, hi_bq, -1), -1, jnp.max),
    fold(lo_bq, 0, jnp.max),
    fold(hi_bq, keys - 1, jnp.min),
  )


def _key_spans(lo_bq, hi_bq, keys: int, tile: Tile) -> list[jax.Array]:
  """Returns first, full, full_end and end of each block of queries, each [b, c]."""
  extent = _extent(lo_bq, hi_bq, keys, tile.queries)
  end = extent.last_bc // tile.edge + 1
  first = jnp.minimum(extent.first_bc // tile.edge, end)
  full = -(-extent.low_bc // tile.edge)
  full_end = (extent.high_bc + 1) // tile.edge
  return _whole_tiles(first, full, full_end, end, tile.keys // tile.edge)


def _query_spans(lo_bq, hi_bq, keys: int, tile: Tile) -> list[jax.Array]:
  """Returns first, full, full_end and end of each block of keys, each [b, c].

  Largest and smallest values so far increase, whatever lo and hi do, and so can be
  searched: a span then holds every query that sees the block, and is full only where
  all queries see all of it.
  """
  extent = _extent(lo_bq, hi_bq, keys, tile.edge)
  start_c = jnp.arange(0, keys, tile.keys, dtype=jnp.int32)
  last_c = jnp.minimum(start_c + tile.keys, keys) - 1

  def search(x_bc, key_c, side):
    find = functools.partial(jnp.searchsorted, side=side)
    return jax.vmap(find, in_axes=(0, None))(x_bc, key_c).astype(jnp.int32)

  first = search(lax.cummax(extent.last_bc, axis=1), start_c, "left")
  end = search(lax.cummin(extent.first_bc, axis=1, reverse=True), last_c, "right")
  full = search(lax.cummin(extent.high_bc, axis=1, reverse=True), last_c, "left")
  full_end = search(lax.cummax(extent.low_bc, axis=1), start_c, "right")
  # The last queries of a ragged row have no whole tile.
  full_end = jnp.minimum(full_end, lo_bq.shape[1] // tile.edge)
  ratio = tile.queries // tile.edge
  return _whole_tiles(jnp.minimum(first, end), full, full_end, end, ratio)


def _whole_tiles(first, full, full_end, end, ratio: int) -> list[jax.Array]:
  """Returns the bounds with as many whole tiles as fit into [full, full_end)."""
  full = jnp.clip(full, first, end)
  full_end = jnp.clip(full_end, full, end)
  return [first, full, full + (full_end - full) // ratio * ratio, end]


def _longest_first(spans: list[jax.Array]) -> jax.Array:
  """Returns [c, w] of the spans of all blocks of all rows."""
  first, full, full_end, end = (x_bc.reshape(-1) for x_bc in spans)
  order = jnp.argsort(first - end).astype(jnp.int32)
  bounds = jnp.stack([first, full, full_end, end], axis=-1)
  return jnp.concatenate([order[:, None], bounds[order]], axis=-1)
