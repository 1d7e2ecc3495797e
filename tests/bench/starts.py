"""Seconds from the start of `tfusion train` to its first update.

  python tests/bench/starts.py --rounds 3

starts each config with an empty folder of compiled programs (cold), and again with what
the first start left there (warm). Prints the median, least and most of the rounds, and
the parts that the run's goodput.json names.

Owns: the starts and the table. Not: the run, in a process of its own that is stopped
by SIGTERM after its first update.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("experiments/digits.py", "experiments/paper.py:smoke")


def main():
  """Prints a row for each config, cold and warm."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3, help="of each")
  args = parser.parse_args()
  print("| config | compiled programs | seconds to the first update | init | compile |")
  print("|" + 5 * "---|")
  for config in CONFIGS:
    found: dict[str, list[tuple[float, dict[str, float]]]] = {"cold": [], "warm": []}
    for _ in range(args.rounds):
      with tempfile.TemporaryDirectory() as folder:
        for name in found:
          found[name].append(start(config, Path(folder), name))
    for name, starts in found.items():
      seconds = [total for total, _ in starts]
      parts = [
        f"{statistics.median(own[part] for _, own in starts):.1f}"
        for part in ("init", "compile")
      ]
      spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
      print(
        f"| {config} | {name} | {statistics.median(seconds):.1f} ({spread}) |"
        f" {' | '.join(parts)} |",
        flush=True,
      )


def start(config: str, folder: Path, name: str) -> tuple[float, dict[str, float]]:
  """Starts a run of its own and stops it.

  Args:
    config: an experiment.
    folder: gets the workdir, and keeps the compiled programs.
    name: of the workdir.

  Returns:
    Seconds until its first update was done; those of goodput.json.
  """
  workdir = folder / name
  command = [sys.executable, "-m", "tfusion", "train", "--config", config]
  command += ["--workdir", str(workdir), "--config.train.log_every_steps=1"]
  env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
  begin = time.monotonic()
  with subprocess.Popen(
    command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
  ) as process:
    for line in process.stdout:
      if line.startswith("step 1/"):
        break
    else:
      raise RuntimeError(f"{config} ended with {process.wait()}")
    seconds = time.monotonic() - begin
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
  return seconds, json.loads((workdir / "goodput.json").read_text())["seconds"]


if __name__ == "__main__":
  main()
