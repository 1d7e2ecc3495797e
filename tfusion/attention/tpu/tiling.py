"""How big the tiles of the TPU kernels are, and whether they fit the chip.

Owns: the sizes, by chip and shapes; what a kernel asks of the compiler. Not: which
tiles are visited (lists.py), what happens in one (the two kernels).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention.intervals import Sizes
from tfusion.attention.tpu import lists

LANES = 128


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


def choose_blocks(sizes: Sizes) -> Blocks:
  """Returns the tiles for these sizes on the chip in use: the first that fit.

  `tfusion bench attention --static` shows what they reach: tiles of 512 x 512 waste
  little of packed rows, and rows and ahead are what keeps the matrix units busiest.
  """
  wide = chip().mxu_column_size > LANES
  heads = _divisor(sizes.kv_heads, max(4 // sizes.group, 1))
  # A tile is straight code: of more rows than these it takes minutes to compile.
  most = max(2048 // sizes.group // LANES * LANES, LANES)
  sides = (512, 1024), (512, 512), (256, 512), (128, 512), (128, 128)
  for query, key in sides[2:] if sizes.dtype == jnp.float32 else sides:
    query = min(query, most, padded(sizes.queries))
    key = min(key, _round_up(sizes.keys, LANES))
    chunk = key if key <= 512 or key % 256 else key // 2
    rows, half = _divisor(query, 256), _divisor(query, 128)
    few = rows if sizes.head_dim > LANES else half  # a wide unit wants 256 of something
    if wide:
      forward = Tiling(heads, query, key, chunk, rows, rows, ahead=2)
      backward = Tiling(heads, query, key, chunk, few, rows, ahead=0)
    else:
      forward = Tiling(heads, query, key, chunk, rows, half, ahead=1)
      backward = Tiling(heads, query, key, chunk, rows, rows, ahead=0)
    part = _part(backward, sizes)
    if forward_bytes(forward, sizes) <= _budget() and part:
      break
  return Blocks(forward, backward, part or query)


def padded(queries: int) -> int:
  """Returns a length of a block that holds so many queries, if they are few."""
  return _round_up(queries, 16 if queries <= LANES // 2 else LANES)


def forward_bytes(tiling: Tiling, sizes: Sizes) -> int:
  """Returns about how much VMEM the forward pass takes, what it spills included."""
  size, width = jnp.dtype(sizes.dtype).itemsize, max(sizes.head_dim, LANES)
  rows, keys = tiling.heads * sizes.group * tiling.query, tiling.heads * tiling.key
  fetched = 2 * size * width * (2 * rows + 2 * keys)
  kept = rows * (4 * (width + 3 * LANES) + size * width) + 8 * tiling.query * LANES
  return fetched + kept + 8 * 4 * tiling.rows * tiling.key


def backward_bytes(tiling: Tiling, sizes: Sizes, *, part: int) -> int:
  """Returns about how much VMEM the backward pass takes, what it spills included."""
  size, width = jnp.dtype(sizes.dtype).itemsize, max(sizes.head_dim, LANES)
  group = tiling.heads * sizes.group
  rows, keys = group * tiling.query, tiling.heads * tiling.key
  one_part = part >= sizes.queries
  sums = 2 * size if one_part else 4 * 4  # dk or dv: out; or in and out in float32
  fetched = width * (2 * size * (2 * rows + 2 * keys) + 2 * keys * sums)
  kept = width * keys * (2 * 4 + 2 * size)
  resident = width * group * part * (4 + 2 * size)  # summed in f32, and sent twice
  return fetched + kept + resident + 6 * 4 * tiling.rows * tiling.key


def _part(tiling: Tiling, sizes: Sizes) -> int:
  """Returns how many queries stay in VMEM, in parts without a rest; 0 if none fits."""
  blocks = -(-sizes.queries // tiling.query)
  for inner in range(blocks, 0, -1):
    part = inner * tiling.query
    if blocks % inner == 0 and backward_bytes(tiling, sizes, part=part) <= _budget():
      return part
  return 0


def _budget() -> int:
  return chip().vmem_capacity_bytes * 9 // 10


def chip() -> pltpu.TpuInfo:
  """What is known of the TPU in use; of a v5e where there is none: interpreted."""
  try:
    return pltpu.get_tpu_info()
  except ValueError:
    return pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)


def compiler_params() -> pltpu.CompilerParams:
  """Steps over heads are independent, steps over tiles follow each other."""
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "arbitrary"),
    vmem_limit_bytes=_budget(),
  )


def precision(dtype) -> jax.lax.Precision | None:
  """Float32 operands are multiplied as such: a TPU would round them to bfloat16."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def cost(q_bngqd, k_bnkd, *, matmuls: int) -> pl.CostEstimate:
  """Of a causal row: what the intervals will be is not known yet."""
  scores = q_bngqd.size // q_bngqd.shape[-1] * k_bnkd.shape[2] // 2
  return pl.CostEstimate(
    flops=2 * matmuls * scores * q_bngqd.shape[-1],
    transcendentals=scores,
    bytes_accessed=matmuls * (q_bngqd.size + k_bnkd.size) * q_bngqd.dtype.itemsize,
  )


def check(blocks: Blocks, sizes: Sizes) -> None:
  """Raises ValueError for tiles that do not fit each other, the lists or the chip."""
  for name in ("forward", "backward"):
    t = getattr(blocks, name)
    for key, value, whole in (
      ("heads", t.heads, sizes.kv_heads),
      ("chunk", t.chunk, t.key),
      ("rows", t.rows, t.query),
      ("chunk_rows", t.chunk_rows, t.query),
    ):
      if whole % value:
        raise ValueError(f"blocks.{name}.{key}={value} must divide {whole}")
    for key, value in (("query", t.query), ("key", t.key), ("chunk", t.chunk)):
      if value % LANES and value != padded(sizes.queries):
        raise ValueError(
          f"blocks.{name}.{key}={value}: make it a multiple of {LANES}, the lanes"
        )
    if t.key // t.chunk > 2:
      raise ValueError(
        f"blocks.{name}.chunk={t.chunk}: make it {t.key} or {t.key // 2}, the block of"
        " keys or half of it"
      )
    _check_lists(name, t, sizes)
  if blocks.part % blocks.backward.query:
    raise ValueError(
      f"blocks.part={blocks.part}: make it a multiple of {blocks.backward.query}, the"
      " queries of a step"
    )
  needs = {
    "forward": forward_bytes(blocks.forward, sizes),
    "backward": backward_bytes(blocks.backward, sizes, part=blocks.part),
  }
  for name, size in needs.items():
    if size > _budget():
      raise ValueError(
        f"blocks.{name}={getattr(blocks, name)} takes about {size >> 20} MiB of VMEM"
        f" for {sizes}, and the core has {chip().vmem_capacity_bytes >> 20}: make"
        " query, key or part smaller"
      )


def _check_lists(name: str, tiling: Tiling, sizes: Sizes) -> None:
  queries, keys = -(-sizes.queries // tiling.query), -(-sizes.keys // tiling.key)
  rows = sizes.batch * (queries if name == "forward" else keys)
  tiles = sizes.batch * queries * keys
  limits = (
    (rows, lists.ROWS, "rows of tiles"),
    (keys, lists.KEY_BLOCKS, "blocks of keys"),
    (queries, lists.QUERY_BLOCKS, "blocks of queries"),
    (tiles, chip().smem_capacity_bytes // 8, "tiles"),
  )
  for count, limit, what in limits:
    if count > limit:
      raise ValueError(
        f"{sizes} in tiles of {tiling.query} x {tiling.key} are {count} {what}, and the"
        f" list of the {name} pass takes {limit}: shard the batch or the sequence"
        " over more devices"
      )


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def _divisor(x: int, limit: int) -> int:
  """The largest divisor of x that is not above the limit."""
  return next(y for y in range(min(x, limit), 0, -1) if x % y == 0)
