"""Compiles the paper's five models for five TPU slices, and writes what came out.

  python tests/bench/compile_table.py

writes experiments/results/compile.md, in about an hour on 2 cores: each model in as few
parts of the batch as fit. `--sizes` and `--topologies` take some of them, for a look;
what the file has of the others stays.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import jax

from tfusion.bench.tpu import aot
from tfusion.config_file import read_config
from tfusion.pods import chips, pages, study
from tfusion.version import __version__

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
SIZES = ("0.16b", "0.37b", "0.76b", "1.4b", "7b")
TOPOLOGIES = ("v5e-256", "v5p-128", "v5p-512", "v6e-256", "2x v5p-256")
HEAD = """# The paper's models, compiled for TPU slices

This page lists what each of the paper's five models takes on five TPU slices. Nothing
on it was run on a TPU.

    python tests/bench/compile_table.py

wrote it, with {versions}. Each line is the real training step of
`experiments/paper.py`, 512 rows of 4,096 elements, compiled by the TPU's own compiler
for the slice. [Pods](../../docs/pods.md) says how the time of a step is predicted and
how far to trust it.

Parts are those of the batch, whose gradients are summed. GiB is what a device needs at
the fullest moment. MFU counts the pairs that see each other, MFU square 6 N T and all
pairs. Exposed is the share of the step in which devices only exchange data. Days are
without pauses.
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--sizes", default=",".join(SIZES))
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  args = parser.parse_args()
  path = RESULTS / "compile.json"
  rows = json.loads(path.read_text()) if path.is_file() else {}
  for name in args.topologies.split(","):
    for size in args.sizes.split(","):
      count, _, rented = name.rpartition("x ")
      topology = chips.parse(rented, slices=int(count or 1))
      found = smallest(size, topology)
      rows[f"{size} {name}"] = pages.row(found)
      print(size, name, *pages.row(found), flush=True)
      path.write_text(json.dumps(rows, indent=1) + "\n")
      write_page(rows)


def smallest(size: str, topology: chips.Topology) -> study.Study:
  """In as few parts of the batch as fit; the last that was tried if none does."""
  mesh = [f"--config.mesh.data={topology.slices}"]
  parts = max(512 // topology.devices // 4, 1)  # four rows of a device at once
  while True:
    config = read_config(
      f"{ROOT}/experiments/paper.py:size={size}",
      [*mesh, f"--config.train.accumulate={parts}"],
    )
    found = study.study(config, topology)
    if found.fits or 512 // parts // 2 < topology.devices:
      return found
    parts *= 2


def write_page(rows: dict[str, list[str]]) -> None:
  commit = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
  ).stdout.strip()
  versions = f"tfusion {__version__} (after commit {commit}), jax {jax.__version__}"
  lines = [HEAD.format(versions=versions)]
  for size in SIZES:
    lines += [f"## {size}", "", "| " + " | ".join(pages.COLUMNS) + " |"]
    lines += ["|" + "---|" * len(pages.COLUMNS)]
    for name in TOPOLOGIES:
      blank = [name, "not compiled yet", *[""] * (len(pages.COLUMNS) - 2)]
      lines += ["| " + " | ".join(rows.get(f"{size} {name}", blank)) + " |"]
    lines += [""]
  (RESULTS / "compile.md").write_text("\n".join(lines))


if __name__ == "__main__":
  if not aot.available():
    sys.exit("libtpu is not installed: pip install 'jax[tpu]'")
  main()
