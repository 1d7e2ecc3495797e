"""How big the tiles of the TPU kernels are, and whether they fit the chip.

Owns: the sizes, by chip and shapes; what a kernel asks of the compiler. Not: which
tiles are visited (tpu_work.py), what happens in one (tpu_forward.py, tpu_backward.py).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention.intervals import Sizes

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
  """Returns the tiles for these sizes on the chip in use.

  `tfusion bench attention --static` shows what they reach: tiles of 512 x 512 waste
  little of packed rows, and rows and ahead are what keeps the matrix units busiest.
  """
  wide = chip().mxu_column_size > LANES
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
  """As many queries as half of VMEM holds: sums in f32, and results twice."""
  numbers = 4 + 2 * jnp.dtype(sizes.dtype).itemsize
  each = tiling.heads * sizes.group * max(sizes.head_dim, LANES) * numbers
  blocks = max(chip().vmem_capacity_bytes // 2 // each // tiling.query, 1)
  whole = -(-sizes.queries // tiling.query)
  parts = -(-whole // blocks)
  return -(-whole // parts) * tiling.query


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
    vmem_limit_bytes=chip().vmem_capacity_bytes * 9 // 10,
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
  """Raises ValueError for tiles that do not fit each other or the chip."""


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def _divisor(x: int, limit: int) -> int:
  """The largest divisor of x that is not above the limit."""
  return next(y for y in range(min(x, limit), 0, -1) if x % y == 0)
