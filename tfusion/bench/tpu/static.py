"""What attention could reach on TPUs that are not here: `tfusion bench attention
--static`.

Owns: the programs, and the table. Not: the compiling (aot.py), the counting
(bundles.py). Upper bounds, not speeds: waits for memory are not in them.
"""

import importlib.util
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from tfusion import attention
from tfusion.attention import intervals
from tfusion.attention.tpu.tiling import choose_blocks
from tfusion.bench.tpu import aot, bundles, rivals

MATMULS = {"forward": 2, "backward": 5}  # of queries x keys x head dim in a tile
KERNELS = {"forward": ("fwd", "forward"), "backward": ("dkv", "bwd", "backward")}


class Program(NamedTuple):
  """A way to compute attention."""

  make: str  # `module:function`, called with sizes, backward and the options
  options: dict[str, Any]
  needs: str  # the package it is in


PROGRAMS = {
  "tfusion": Program("tfusion.bench.tpu.static:ours", {}, "jax"),
  "splash, causal": Program(
    "tfusion.bench.tpu.rivals:splash", {"dynamic": False}, "jax"
  ),
  "splash, mask": Program("tfusion.bench.tpu.rivals:splash", {"dynamic": True}, "jax"),
  "tokamax, causal": Program(
    "tfusion.bench.tpu.rivals:tokamax", {"dynamic": False}, "tokamax"
  ),
  "tokamax, mask": Program(
    "tfusion.bench.tpu.rivals:tokamax", {"dynamic": True}, "tokamax"
  ),
}


def ours(*, sizes: list[int], backward: bool) -> tuple:
  """The kernels of tfusion.attention, as `rivals.splash`."""
  length, heads, kv_heads, head_dim = sizes
  dtype = jnp.dtype(jnp.bfloat16)
  whole = intervals.Sizes(1, length, length, heads, kv_heads, head_dim, dtype)

  def attend(q_hqd, k_nkd, v_nkd, lo_q, hi_q):
    q_1qhd, k_1knd, v_1knd = (x.swapaxes(0, 1)[None] for x in (q_hqd, k_nkd, v_nkd))
    o_1qhd = attention.attend(
      q_1qhd, k_1knd, v_1knd, lo_q[None], hi_q[None], implementation="tpu"
    )
    return o_1qhd[0].swapaxes(0, 1)

  def tiles():
    blocks, told = choose_blocks(whole), {}
    for direction in MATMULS:
      tiling = getattr(blocks, direction)
      rows = tiling.heads * whole.group * tiling.query
      # One more body takes what is not finite out of a masked tile.
      told[direction] = {
        "full": [rows, tiling.key],
        "masked": [rows, tiling.chunk],
        "rare": 1,
      }
    return told

  return rivals.case(attend, sizes, backward=backward, tiles=tiles)


class Pass(NamedTuple):
  """A kernel on one generation."""

  error: str | None
  bodies: dict[str, bundles.Body]  # "full" and "masked", or one of them
  peak: dict[str, float]  # share of the nominal peak that each can reach
  temp_bytes: int  # of forward alone, or of forward and backward


def find_tile(direction: str, rows: int, keys: int, head_dim: int, side: int):
  """Returns the Tile of a pass: an MXU holds a head dim in whole sides of its own."""
  padded = -(-head_dim // side) * side
  flops = 2 * MATMULS[direction] * rows * keys * head_dim
  return bundles.Tile(flops, rows * keys, padded / head_dim)


def measure(generation: str, name: str, sizes: list[int]) -> dict[str, Pass]:
  """Compiles one of PROGRAMS, and counts: {"forward": Pass, "backward": Pass}.

  Args:
    generation: of `bundles.GENERATIONS`.
    name: of PROGRAMS.
    sizes: length, heads, kv_heads, head_dim.
  """
  program, core = PROGRAMS[name], bundles.GENERATIONS[generation]
  if importlib.util.find_spec(program.needs) is None:
    missing = Pass(f"{program.needs} is not installed", {}, {}, 0)
    return dict.fromkeys(MATMULS, missing)
  cases = [
    aot.Case(program.make, program.options | {"sizes": sizes, "backward": backward})
    for backward in (False, True)
  ]
  return {
    direction: count(direction, found, head_dim=sizes[3], core=core)
    for direction, found in zip(MATMULS, aot.profile(generation, cases))
  }


def count(
  direction: str, found: aot.Profile, *, head_dim: int, core: bundles.Generation
) -> Pass:
  """Counts the one kernel of a pass, "forward" or "backward", in a Profile."""
  if found.error:
    return Pass(found.error, {}, {}, 0)
  kernels = [
    pieces
    for name, pieces in found.kernels.items()
    if any(word in name for word in KERNELS[direction])
  ]
  told = dict(found.told[direction])
  rare = told.pop("rare", 0)
  tiles = {
    kind: find_tile(direction, rows, keys, head_dim, core.side)
    for kind, (rows, keys) in told.items()
  }
  try:
    if len(kernels) != 1:
      raise ValueError(f"one {direction} kernel expected among {list(found.kernels)}")
    bodies = bundles.find_bodies(kernels[0], tiles, core, rare=rare)
  except ValueError as error:  # not counted, and the table says why
    return Pass(str(error), {}, {}, found.temp_bytes)
  peak = {
    kind: tiles[kind].flops / (body.cycles * core.flops_per_cycle)
    for kind, body in bodies.items()
  }
  return Pass(None, bodies, peak, found.temp_bytes)


def table(generations: list[str], sizes: list[int]) -> Iterator[str]:
  """Yields the lines to print, each as soon as it is known.

  Raises:
    ValueError: an unknown generation, or libtpu is not installed.
  """
  length, heads, kv_heads, head_dim = sizes
  for generation in generations:  # all, before the first takes its minute
    aot.check(generation)
  yield f"1 row of {length}, {heads} / {kv_heads} heads of {head_dim}, bfloat16"
  yield "share of nominal peak: an upper bound of what the instructions allow, in full"
  yield "and in masked tiles; MXU where its occupancy decides. Temporary MB planned."
  yield f"{'':24}{'forward':>18}{'backward':>18}{'MB forward':>14}{'and backward':>14}"
  done, total, start = 0, len(generations) * len(PROGRAMS), time.monotonic()
  for generation in generations:
    for name in PROGRAMS:
      passes = measure(generation, name, sizes)
      shares = "".join(f"{_shares(p):>18}" for p in passes.values())
      temps = "".join(f"{_megabytes(p):>14}" for p in passes.values())
      yield f"{generation:<6} {name:<17}{shares}{temps}"
      for error in dict.fromkeys(p.error for p in passes.values() if p.error):
        yield f"{'':7}{error.splitlines()[0]}"
      done += 1
      each = (time.monotonic() - start) / done
      if done < total:
        minutes, seconds = divmod(round(each * (total - done)), 60)
        left = f"{each:.0f} s each, left {minutes}:{seconds:02}"
        yield f"{'':7}{done} of {total}, {left}"


def _shares(found: Pass) -> str:
  """Such as `99 / 94`, with `-` for a body that the kernel does not have."""
  if found.error:
    return "?"
  words = []
  for kind in ("full", "masked"):
    if kind not in found.bodies:
      words.append("-")
      continue
    body, share = found.bodies[kind], f"{100 * found.peak[kind]:.0f}"
    words.append(f"{share} MXU" if body.mxu_cycles >= body.bundles else share)
  return " / ".join(words)


def _megabytes(found: Pass) -> str:
  return f"{found.temp_bytes / 1e6:.1f}" if found.temp_bytes else "-"
