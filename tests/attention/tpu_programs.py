"""What test_tpu_compile.py compiles, and the budgets of its instructions.

A change that makes an inner loop longer fails there. If it is meant, write new budgets:

  python tests/attention/tpu_programs.py
"""

import concurrent.futures
import importlib.metadata
import json
import pathlib
import sys
from typing import NamedTuple

from tfusion.bench import aot, bundles, static

BUDGETS = pathlib.Path(__file__).with_name("tpu_budgets.json")
HEADS, KV_HEADS = 16, 4


class Key(NamedTuple):
  """One program: attention, or attention and its gradient."""

  length: int
  head_dim: int
  backward: bool


# The ends of what fits in VMEM and the usual size, everywhere; what is measured of
# memory, where XLA does not keep small arrays in VMEM and where it does.
EVERYWHERE = (Key(4096, 64, True), Key(8192, 128, True), Key(32768, 256, True))
CLOSELY = (
  *EVERYWHERE,
  Key(8192, 256, True),
  Key(16384, 128, True),
  Key(8192, 128, False),
  Key(16384, 128, False),
)
PROGRAMS = {
  "v4": EVERYWHERE,
  "v5e": CLOSELY,
  "v5p": EVERYWHERE,
  "v6e": CLOSELY,
  "tpu7x": EVERYWHERE,
}


def compile_all(generations: list[str]) -> dict[str, concurrent.futures.Future]:
  """Starts one process for each generation, two at a time.

  Returns:
    A future of {Key: Profile} by generation.
  """
  pool = concurrent.futures.ThreadPoolExecutor(2)
  started = {name: pool.submit(_compile, name) for name in generations}
  pool.shutdown(wait=False)
  return started


def _compile(generation: str) -> dict[Key, aot.Profile]:
  cases = [
    aot.Case(
      "tfusion.bench.static:ours",
      {"sizes": [k.length, HEADS, KV_HEADS, k.head_dim], "backward": k.backward},
    )
    for k in PROGRAMS[generation]
  ]
  return dict(zip(PROGRAMS[generation], aot.profile(generation, cases)))


def count_bundles(generation: str, compiled: dict[Key, aot.Profile]) -> dict[str, int]:
  """Returns the bundles of every body, such as {"8192 128 backward masked": 4301}."""
  core, found = bundles.GENERATIONS[generation], {}
  for key, profile in compiled.items():
    if key.backward:  # it holds the forward kernel too
      for direction in static.MATMULS:
        counted = static.count(direction, profile, head_dim=key.head_dim, core=core)
        if counted.error:
          raise ValueError(f"{generation}, {key}, {direction}: {counted.error}")
        for kind, body in counted.bodies.items():
          found[f"{key.length} {key.head_dim} {direction} {kind}"] = body.bundles
  return found


def libtpu_version() -> str:
  """Returns the version of the compiler."""
  return importlib.metadata.version("libtpu")


def write_budgets(path: pathlib.Path = BUDGETS) -> None:
  """Compiles for every generation and writes what it counts."""
  started = compile_all(list(bundles.GENERATIONS))
  counts = {name: count_bundles(name, done.result()) for name, done in started.items()}
  budgets = {"libtpu": libtpu_version(), "bundles": counts}
  path.write_text(json.dumps(budgets, indent=2) + "\n")


if __name__ == "__main__":
  sys.exit(write_budgets())
