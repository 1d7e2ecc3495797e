"""Seconds to save a large training state, and to have it back in another process.

  python tests/bench/saves.py --size 0.37b --directory DIR

makes the state of a model of the paper (float32 parameters and both of Adam's moments,
12 bytes a parameter), saves it to DIR as a run does, takes the files out of the memory
of the system, and restores it in a new process; in a third it loads the parameters
alone, as sampling does. The disk is timed beside it, with a plain file. A save copies
the state, so that the loop can go on.

Owns: the phases, each a process of its own, and the table. Not: checkpoints
(tfusion/checkpoint.py).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAIN_BYTES = 1 << 30  # of the plain file


def main():
  """Prints a line for each phase."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", default="0.37b", help="of the paper")
  parser.add_argument("--layers", type=int, default=0, help="others than its own")
  parser.add_argument("--directory", required=True, help="on the disk to be timed")
  parser.add_argument("--phase", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.phase:
    phase = PHASES[args.phase]
    found = phase(config_of(args.size, args.layers), Path(args.directory))
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(found))
    return
  directory = Path(args.directory) / "saves"
  directory.mkdir(parents=True)
  try:
    write, read = time_plain_file(directory / "plain")
    print(f"a plain file: written at {write:,.0f} MB/s, read at {read:,.0f} MB/s")
    own = ["--size", args.size, "--layers", str(args.layers)]
    command = [sys.executable, __file__, *own, "--directory", str(directory)]
    for name in PHASES:
      begin = time.monotonic()
      done = subprocess.run(
        [*command, "--phase", name],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
      )
      found = json.loads(done.stdout.splitlines()[-1])
      found["process_seconds"] = time.monotonic() - begin
      numbers = (f"{key} {value:,.2f}" for key, value in found.items())
      print(f"{name}: {', '.join(numbers)}", flush=True)
      forget(directory)
  finally:
    shutil.rmtree(directory)


def config_of(size: str, layers: int):
  """The config of a model of the paper, without data."""
  from tfusion.config_file import experiment

  knobs = {"model.layers": layers} if layers else {}
  return experiment(ROOT / f"experiments/paper.py:size={size}", **knobs)


def save(config, directory: Path) -> dict[str, float]:
  """Makes a state and saves it."""
  from functools import partial

  import jax

  from tfusion.checkpoint import Checkpoints
  from tfusion.model.transfusion import parameter_count
  from tfusion.training.step import init_state, shardings

  with jax.set_mesh(mesh := _mesh()):
    init = jax.jit(partial(init_state, config), out_shardings=shardings(config, mesh))
    state = jax.block_until_ready(init(jax.random.key(0)))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    with Checkpoints(directory / "checkpoints") as checkpoints:
      begin = time.monotonic()
      checkpoints.save(1, state, {})
      returned = time.monotonic() - begin
      checkpoints.wait()
      whole = time.monotonic() - begin
      os.sync()
      synced = time.monotonic() - begin
  return {
    "parameters_m": parameter_count(config.model) / 1e6,
    "state_gb": size / 1e9,
    "loop_waits_s": returned,
    "whole_s": whole,
    "on_disk_s": synced,
  }


def restore(config, directory: Path) -> dict[str, float]:
  """Restores it."""
  import jax

  from tfusion.checkpoint import Checkpoints
  from tfusion.training.step import abstract_state

  with jax.set_mesh(mesh := _mesh()):
    target = abstract_state(config, mesh)
    with Checkpoints(directory / "checkpoints") as checkpoints:
      begin = time.monotonic()
      restored = checkpoints.restore(target)
      assert restored is not None and restored.step == 1
      jax.block_until_ready(restored.state)
      return {"restored_s": time.monotonic() - begin}


def load(config, directory: Path) -> dict[str, float]:
  """Reads the parameters alone, as sampling does."""
  import jax

  from tfusion.checkpoint import Checkpoints
  from tfusion.training.step import abstract_state

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
  with jax.set_mesh(mesh := _mesh()):
    target = abstract_state(config, mesh)._replace(opt_state=None)
    begin = time.monotonic()
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
      restored = checkpoints.restore(target, partial=True)
    assert restored is not None
    state = jax.block_until_ready(restored.state)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
  seconds = time.monotonic() - begin
  return {"loaded_s": seconds, "parameters_gb": size / 1e9, "before_gb": before}


PHASES = {"save": save, "restore": restore, "load": load}


def time_plain_file(path: Path) -> tuple[float, float]:
  """MB/s at which the disk takes and gives a file."""
  block = os.urandom(1 << 24)
  begin = time.monotonic()
  with path.open("wb") as file:
    for _ in range(PLAIN_BYTES // len(block)):
      file.write(block)
    file.flush()
    os.fsync(file.fileno())
  write = time.monotonic() - begin
  forget(path.parent)
  begin = time.monotonic()
  with path.open("rb", buffering=0) as file:
    while file.read(len(block)):
      pass
  read = time.monotonic() - begin
  path.unlink()
  return PLAIN_BYTES / write / 1e6, PLAIN_BYTES / read / 1e6


def forget(directory: Path) -> None:
  """Takes the files below out of the memory of the system."""
  for path in directory.rglob("*"):
    if path.is_file():
      handle = os.open(path, os.O_RDONLY)
      os.fsync(handle)
      os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
      os.close(handle)


def _mesh():
  from tfusion.config import MeshConfig
  from tfusion.sharding import make_mesh

  return make_mesh(MeshConfig())


if __name__ == "__main__":
  main()
