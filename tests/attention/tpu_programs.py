"""What test_tpu_compile.py compiles, and the budgets of its instructions.

A change that makes an inner loop longer fails there. If it is meant, write new budgets:

  python tests/attention/tpu_programs.py

And to compile every length and head dim for every generation, in about 15 minutes:

  python tests/attention/tpu_programs.py all
"""

import concurrent.futures
import importlib.metadata
import json
import pathlib
import sys
from typing import NamedTuple

from tfusion.bench.tpu import aot, bundles, static

BUDGETS = pathlib.Path(__file__).with_name("tpu_budgets.json")
HEADS, KV_HEADS = 16, 4


class Key(NamedTuple):
  """One program: attention, or attention and its gradient."""

  length: int
  head_dim: int
  backward: bool


# A program with a gradient, which holds the forward kernel too, takes 20 to 40 seconds
# of a core. So each generation has one, of another length or head dim.
PROGRAMS = {
  "v4": [Key(8192, 128, True)],
  "v5e": [Key(8192, 128, True), Key(8192, 128, False)],
  "v5p": [Key(4096, 64, True)],
  "v6e": [Key(32768, 128, True)],
  "tpu7x": [Key(8192, 256, True)],
}
ALL = [
  Key(length, head_dim, backward)
  for length in (4096, 8192, 32768)
  for head_dim in (64, 128, 256)
  for backward in (False, True)
]


def compile_all(programs: dict[str, list[Key]]) -> dict:
  """Starts one process for each generation, two at a time.

  Returns:
    A future of {Key: Profile} by generation.
  """
  pool = concurrent.futures.ThreadPoolExecutor(2)
  started = {name: pool.submit(_compile, name, keys) for name, keys in programs.items()}
  pool.shutdown(wait=False)
  return started


def _compile(generation: str, keys: list[Key]) -> dict[Key, aot.Profile]:
  cases = [
    aot.Case(
      "tfusion.bench.tpu.static:ours",
      {"sizes": [k.length, HEADS, KV_HEADS, k.head_dim], "backward": k.backward},
    )
    for k in keys
  ]
  return dict(zip(keys, aot.profile(generation, cases)))


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
  started = compile_all(PROGRAMS)
  counts = {name: count_bundles(name, done.result()) for name, done in started.items()}
  budgets = {"libtpu": libtpu_version(), "bundles": counts}
  path.write_text(json.dumps(budgets, indent=2) + "\n")


def show_all() -> int:
  """Prints what ALL need of memory and reach; returns how many do not compile."""
  errors = 0
  for name, done in compile_all(dict.fromkeys(bundles.GENERATIONS, ALL)).items():
    for key, profile in done.result().items():
      direction = "backward" if key.backward else "forward"
      core = bundles.GENERATIONS[name]
      counted = static.count(direction, profile, head_dim=key.head_dim, core=core)
      peak = {kind: round(100 * share) for kind, share in counted.peak.items()}
      said = f"{peak} % of peak" if not counted.error else counted.error[:200]
      row = f"{name:<6} {key.length:>6} {key.head_dim:>4} {direction:<8}"
      print(f"{row} {profile.temp_bytes / 1e6:9.1f} MB {said}", flush=True)
      errors += counted.error is not None
  return errors


if __name__ == "__main__":
  sys.exit(show_all() if sys.argv[1:] == ["all"] else write_budgets())
