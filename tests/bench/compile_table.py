"""Compiles the paper's five models for five TPU slices, and writes what came out.

  python tests/bench/compile_table.py

writes experiments/results/compile.md, in about an hour on 2 cores: each model in as few
parts of the batch as fit. `--sizes` and `--topologies` take some of them, for a look;
what the file has of the others stays. `--smallest` tries instead, for each model, from
which slice of each generation on it fits.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys

import jax

from tfusion.bench.tpu import aot
from tfusion.config_file import read_config
from tfusion.model.transfusion import parameter_count
from tfusion.pods import chips, pages, study
from tfusion.version import __version__

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
SIZES = ("0.16b", "0.37b", "0.76b", "1.4b", "7b")
GENERATIONS = ("v5e", "v5p", "v6e")
ROWS = 512  # of a batch
TOPOLOGIES = ("v5e-256", "v5p-128", "v5p-512", "v6e-256", "2x v5p-256")
HEAD = """# The paper's models, compiled for TPU slices

This page lists what each of the paper's five models takes on five TPU slices. Nothing
on it was run on a TPU.

    python tests/bench/compile_table.py

    python tests/bench/compile_table.py --smallest

wrote it, with {versions}. Each line is the real training step of
`experiments/paper.py`, 512 rows of 4,096 elements, compiled by the TPU's own compiler
for the slice. [Pods](../../docs/pods.md) says how the time of a step is predicted and
how far to trust it.

Parts are those of the batch, whose gradients are summed. GiB is what a device needs at
the fullest moment. MFU counts the pairs that see each other, MFU square 6 N T and all
pairs. Exposed is the share of the step in which devices only exchange data. Days are
without pauses. Commit is that of the code which was compiled; before ec05bc7 it held
all logits of a part at once, and took more memory than today's; and before 5fb4140 the
gradients of a v5e were scattered beside nothing.
"""

SMALLEST = """## The smallest slices

The first slice of each generation on which the step fits, with one row of a device at
once and `model.remat=full`. It would take long: this says where a model can be tried.
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--sizes", default=",".join(SIZES))
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--smallest", action="store_true", help="the smallest slices")
  args = parser.parse_args()
  path = RESULTS / "compile.json"
  sizes = args.sizes.split(",")
  places = GENERATIONS if args.smallest else args.topologies.split(",")
  for name, size in itertools.product(places, sizes):
    found = smallest_slice(size, name) if args.smallest else on_slice(size, name)
    # Another run may have written the rest meanwhile.
    rows = json.loads(path.read_text()) if path.is_file() else {}
    rows[f"{size} {name}"] = [*pages.row(found), commit()]
    print(size, name, *pages.row(found), flush=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    write_page(rows)


def smallest_slice(size: str, generation: str) -> study.Study:
  """On the first slice it fits: one row of a device at once, all computed again."""
  found = None
  for name in chips.RENTED:
    topology = chips.parse(name)
    if topology.generation != generation:
      continue
    parts = ROWS // topology.devices
    knobs = [f"--config.train.accumulate={parts}", "--config.model.remat=full"]
    config = read_config(f"{ROOT}/experiments/paper.py:size={size}", knobs)
    # Parameters, both moments and gradients, in float32.
    least = 16 * parameter_count(config.model) / topology.devices
    if least < topology.chip.hbm_bytes:
      found = study.study(config, topology)
      if found.fits:
        return found
  assert found is not None  # a slice of the largest size holds all of them
  return found


def on_slice(size: str, name: str) -> study.Study:
  """In as few parts of the batch as fit; the last that was tried if none does."""
  count, _, rented = name.rpartition("x ")
  topology = chips.parse(rented, slices=int(count or 1))
  mesh = [f"--config.mesh.data={topology.slices}"]
  parts = max(ROWS // topology.devices // 4, 1)  # four rows of a device at once
  while True:
    config = read_config(
      f"{ROOT}/experiments/paper.py:size={size}",
      [*mesh, f"--config.train.accumulate={parts}"],
    )
    found = study.study(config, topology)
    if found.fits or ROWS // parts // 2 < topology.devices:
      return found
    parts *= 2


def commit() -> str:
  """Of the code that compiles."""
  command = ["git", "rev-parse", "--short", "HEAD"]
  return subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True
  ).stdout.strip()


def write_page(rows: dict[str, list[str]]) -> None:
  lines = [HEAD.format(versions=f"tfusion {__version__}, jax {jax.__version__}")]
  columns = [*pages.COLUMNS, "commit"]
  for size in SIZES:
    lines += [f"## {size}", "", "| " + " | ".join(columns) + " |"]
    lines += ["|" + "---|" * len(columns)]
    for name in TOPOLOGIES:
      blank = [name, "not compiled yet", *[""] * (len(columns) - 2)]
      lines += ["| " + " | ".join(rows.get(f"{size} {name}", blank)) + " |"]
    lines += [""]
  lines += [SMALLEST, "| size | " + " | ".join(GENERATIONS) + " |"]
  lines += ["|" + "---|" * (1 + len(GENERATIONS))]
  for size in SIZES:
    lines += [f"| {size} | " + " | ".join(smallest_cells(size, rows)) + " |"]
  lines += [""]
  (RESULTS / "compile.md").write_text("\n".join(lines))


def smallest_cells(size: str, rows: dict[str, list[str]]) -> list[str]:
  """The slice and the GiB of a device, for each generation."""
  found = [rows.get(f"{size} {generation}") for generation in GENERATIONS]
  return [f"{row[0]}, {row[4]} GiB" if row else "not compiled yet" for row in found]


if __name__ == "__main__":
  if not aot.available():
    sys.exit("libtpu is not installed: pip install 'jax[tpu]'")
  main()
