"""Kills a small training again and again; it must come out as one that was let be.

  python tests/bench/kills.py --hosts 1 --kills 20 --seed 0

trains the digits in small without disturbance, and once more so that every start but
the last is killed, by SIGTERM or kill -9 of one host, at a random moment of a
chosen place. Prints a row for each start. The exit status is 0 only if metrics.jsonl,
validation.jsonl, all arrays of the last checkpoint and the position in the data are
the same to the last bit.

Owns: the moments, the comparison. Not: the run, which is `tfusion train` in processes
of its own.
"""

import argparse
import importlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds for the other hosts to end; a launcher would end them too
KNOBS = {
  "model.layers": 1,
  "model.unroll": 1,
  "model.width": 32,
  "model.mlp": 32,
  "data.row_length": 64,
  "data.lanes": 8,
  "train.batch_rows": 8,
  "train.eval_rows": 8,
  "train.log_every_steps": 1,
  "train.save_every_steps": 5,
  "train.eval_every_steps": 20,
  "sample.sampler": "ddim",
  "sample.steps": 2,
  "eval.samples_per_class": 1,
  "eval.text_rows": 8,
}


class Place(NamedTuple):
  """Where a run may be killed."""

  function: str  # which is called there; empty: from the start of the process
  most_calls: int  # of these the last comes before the kill
  most_seconds: float  # from there to the kill; 0: the function is not called any more


PLACES = {
  "before the first step": Place("", 1, 0.0),  # as long as that takes
  "in a step": Place("tfusion.training.compiled:CompiledStep.__call__", 12, 0.05),
  "in a save": Place("tfusion.checkpoint:Checkpoints.save", 2, 0.5),
  "between the lines and a save": Place("tfusion.checkpoint:Checkpoints.save", 2, 0.0),
  "in an evaluation": Place("tfusion.training.loop:validate", 1, 2.0),
}
FIRST = ("before the first step", "in a save", "in a save")  # before there is one


class Moment(NamedTuple):
  """When one start is killed."""

  place: str
  call: int
  seconds: float
  signal: str
  host: int


def main() -> int:
  """Runs both and compares them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--hosts", type=int, default=1, help="processes of a run")
  parser.add_argument("--kills", type=int, default=20, help="starts that are killed")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--steps", type=int, default=400, help="updates of a run")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    runs = Runs(Path(folder), hosts=args.hosts, steps=args.steps)
    # Twice: the second has its programs compiled, as those that are killed have.
    for name in ("undisturbed", "again"):
      begin = time.monotonic()
      statuses, first_step = runs.start(name)
      assert statuses == [0] * args.hosts, runs.said()
      print(f"{name}: {args.steps} updates in {time.monotonic() - begin:.0f} s")
    assert not compare(runs.folder / "undisturbed", runs.folder / "again")
    print("| kill | host | signal | where | call | seconds later | statuses |", end="")
    print(" checkpoints | unfinished | lines of metrics |")
    print("|" + 10 * "---|")
    moments = make_moments(
      random.Random(args.seed), args.kills, args.hosts, first_step=first_step
    )
    for number, moment in enumerate(moments, start=1):
      statuses, _ = runs.start("killed", moment)
      print(row(number, moment, statuses, runs.folder / "killed"), flush=True)
      if not any(statuses):
        print("it came to its end before: give it more --steps", runs.said())
        return 1
    statuses, _ = runs.start("killed")
    if statuses != [0] * args.hosts:
      print(f"the last start ended with {statuses}:", runs.said())
      return 1
    differences = compare(runs.folder / "undisturbed", runs.folder / "killed")
    print("\n".join(differences) or "the same to the last bit")
    return 1 if differences else 0


def make_moments(
  rng: random.Random, kills: int, hosts: int, *, first_step: float
) -> list[Moment]:
  """The moments of all kills: every place in turn, in random order.

  Args:
    rng: draws them.
    kills: how many.
    hosts: of which one is hit.
    first_step: seconds from the start of a process to its first step.
  """
  rest = list(itertools.islice(itertools.cycle(PLACES), max(kills - len(FIRST), 0)))
  rng.shuffle(rest)
  moments = []
  for number, name in enumerate([*FIRST, *rest][:kills]):
    place, first = PLACES[name], number < len(FIRST)
    most = place.most_seconds if place.function else first_step
    moments.append(
      Moment(
        name,
        1 if first else rng.randint(1, place.most_calls),
        rng.uniform(0, most),
        # SIGTERM lets a run save: after it, no save is the first.
        "SIGKILL" if first else rng.choice(["SIGTERM", "SIGKILL"]),
        rng.randrange(hosts),
      )
    )
  return moments


class Runs:
  """Starts of runs in one folder."""

  def __init__(self, folder: Path, *, hosts: int, steps: int):
    """Starts nothing yet."""
    self.folder, self._hosts = folder, hosts
    knobs = KNOBS | {"train.steps": steps, "data.workers": 1 if hosts == 1 else 0}
    config = f"{ROOT / 'experiments' / 'digits.py'}:smoke"
    self._args = ["train", "--config", config]
    self._args += [f"--config.{key}={value}" for key, value in knobs.items()]
    self._env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
      "JAX_NUM_CPU_DEVICES": "2" if hosts > 1 else "1",
      "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "PYTHONPATH": str(ROOT),
    }

  def start(self, name: str, moment: Moment | None = None) -> tuple[list[int], float]:
    """Runs until all hosts have ended.

    Args:
      name: of the workdir.
      moment: when one is killed.

    Returns:
      Their exit statuses; seconds to the first update, 0 where there was none.
    """
    args = [*self._args, "--workdir", str(self.folder / name)]
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    started, first_step, begin = [], 0.0, time.monotonic()
    for host in range(self._hosts):
      own = moment if moment and moment.host == host else None
      command = [sys.executable, __file__, "as-host", json.dumps(own), *args]
      if self._hosts > 1:
        command += ["--distributed", f"{address},{host},{self._hosts}"]
      with self._printed(host).open("w") as file:
        started.append(
          subprocess.Popen(command, env=self._env, stdout=file, stderr=file)
        )
    ended = float("inf")  # when the first did
    while any(one.poll() is None for one in started):
      time.sleep(0.02)
      if not first_step and "step " in self._printed(0).read_text(errors="replace"):
        first_step = time.monotonic() - begin
      if any(one.poll() is not None for one in started):
        ended = min(ended, time.monotonic())
      if time.monotonic() > ended + PATIENCE:
        for one in started:
          one.kill()
    return [one.wait() for one in started], first_step

  def said(self) -> str:
    """What the hosts of the last start have printed."""
    return "\n".join(self._printed(i).read_text() for i in range(self._hosts))

  def _printed(self, host: int) -> Path:
    return self.folder / f"host_{host}.txt"


def row(number: int, moment: Moment, statuses: list[int], workdir: Path) -> str:
  """A line of the table."""
  folder, metrics = workdir / "checkpoints", workdir / "metrics.jsonl"
  names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
  whole = sorted(int(n) for n in names if n.isdecimal() and f"{n}.partial" not in names)
  halves = sorted(n.removesuffix(".partial") for n in names if n.endswith(".partial"))
  values = [
    *(number, moment.host, moment.signal, moment.place, moment.call),
    f"{moment.seconds:.3f}",
    " ".join(map(str, statuses)),
    " ".join(map(str, whole)) or "none",
    " ".join(halves) or "none",
    metrics.read_text().count("\n") if metrics.is_file() else 0,
  ]
  return f"| {' | '.join(map(str, values))} |"


def compare(want: Path, got: Path) -> list[str]:
  """What differs between two workdirs, of what must not."""
  differences = [
    f"{name} differs"
    for name in ("metrics.jsonl", "validation.jsonl")
    if (want / name).read_bytes() != (got / name).read_bytes()
  ]
  (step, arrays, lanes), (own_step, own_arrays, own_lanes) = map(read, (want, got))
  differences += [f"step {own_step}, not {step}"] * (step != own_step)
  differences += ["another position in the data"] * (lanes != own_lanes)
  assert arrays.keys() == own_arrays.keys() and arrays
  differences += [
    f"{name} differs" for name in arrays if arrays[name] != own_arrays[name]
  ]
  elements = sum(map(len, arrays.values()))
  print(f"compared: {len(arrays)} arrays of {elements:,} bytes, after update {step}")
  return differences


def read(workdir: Path) -> tuple[int, dict[str, bytes], dict[int, Any]]:
  """The last checkpoint: its step, the bytes of its arrays by name, its lanes."""
  import jax
  import numpy as np

  from tfusion.checkpoint import Checkpoints
  from tfusion.config import MeshConfig
  from tfusion.sharding import make_mesh
  from tfusion.training.step import abstract_state
  from tfusion.workdir import load_config

  mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    restored = checkpoints.restore(abstract_state(load_config(workdir), mesh))
  assert restored is not None and not restored.skipped
  found = jax.tree_util.tree_flatten_with_path(restored.state)[0]
  arrays = {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in found}
  return restored.step, arrays, restored.lanes


def as_host(moment: str, args: list[str]) -> int:
  """Runs a command that kills itself at its moment, which is JSON."""
  if own := json.loads(moment):
    arm(Moment(*own))
  from tfusion import cli

  return cli.main(args)


def arm(moment: Moment) -> None:
  """Kills this process at its moment."""

  def strike():
    os.kill(os.getpid(), signal.Signals[moment.signal])

  place = PLACES[moment.place]
  if not place.function:
    threading.Timer(moment.seconds, strike).start()
    return
  module, _, name = place.function.partition(":")
  owner: Any = importlib.import_module(module)
  *outer, name = name.split(".")
  for one in outer:
    owner = getattr(owner, one)
  function, calls = getattr(owner, name), itertools.count(1)

  def watched(*args, **options):
    if next(calls) == moment.call:
      if place.most_seconds:
        threading.Timer(moment.seconds, strike).start()
      else:
        strike()
    return function(*args, **options)

  setattr(owner, name, watched)


if __name__ == "__main__":
  if sys.argv[1:2] == ["as-host"]:
    sys.exit(as_host(sys.argv[2], sys.argv[3:]))
  sys.exit(main())
