"""What weights of their own for patches cost: a step of each `model.untied`, in turns.

  python tests/bench/untied_step.py --config experiments/digits.py

prints one line of JSON a value, with the share by which its step is slower than that of
`none`, which has as many operations.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from contextlib import closing

import jax

from tfusion.bench import training
from tfusion.config import CHOICES
from tfusion.config_file import read_config
from tfusion.data.pipeline import HostBatches, open_corpus
from tfusion.sharding import global_batch, make_mesh
from tfusion.startup import use_huge_pages
from tfusion.training import machine


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--config", default="experiments/digits.py")
  parser.add_argument("--steps", type=int, default=10, help="in each of 3 turns")
  args = parser.parse_args()
  # A process that makes rows meanwhile would share the cores.
  config = read_config(args.config, ["--config.data.workers=0"])
  for line in measure(config, steps=args.steps):
    print(json.dumps(line), flush=True)


def measure(config, *, steps: int) -> list[dict]:
  """A line for each value of `model.untied`."""
  programs = {}
  with (
    tempfile.TemporaryDirectory() as folder,
    jax.set_mesh(make_mesh(config.mesh)),
    closing(HostBatches(open_corpus(config, folder), config, host=0, hosts=1)) as data,
  ):
    batch = global_batch(next(data), mesh=jax.sharding.get_mesh())
    for untied in CHOICES["model.untied"]:
      model = dataclasses.replace(config.model, untied=untied)
      program = training.compile_step(dataclasses.replace(config, model=model), batch)
      programs[untied] = (program, batch)
    seconds = training.time_in_turns(programs, steps=steps)
  about = machine.environment()
  return [
    {
      "untied": untied,
      "step_ms": 1e3 * statistics.median(seconds[untied]),
      "over_none": training.over(seconds[untied], seconds["none"]),
      "cpu": about["cpu"],
    }
    for untied in programs
  ]


if __name__ == "__main__":
  use_huge_pages()
  main()
