"""The same rows through three programs in one run: a table of speed and memory.

Owns: the order of the runs and the table. Not: the programs (step_ours.py,
peers_torch.py), which run in processes of their own, in turn, so that a change of the
machine's speed meets all of them, and on the same cores. Needs Linux to bind them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = ((256, 4), (512, 8))  # dim, depth; 8 heads


def main():
  """Runs every program `--rounds` times and prints one row for each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
  parser.add_argument("--steps", type=int, default=10, help="timed steps of each run")
  parser.add_argument("--cores", type=int, default=2, help="that each program gets")
  parser.add_argument("--torch-python", default=sys.executable, help="has torch")
  args = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))[: args.cores]
  print(
    f"each program alone on cores {cores}; steps and rates are medians of the runs,"
  )
  print("'ours is' the median ratio of our rate to that of the run beside it")
  print("dim depth program            params  step ms   elements/s  ours is  peak GB")
  for dim, depth in SIZES:
    width = ["--dim", str(dim)]
    depth_and_steps = ["--depth", str(depth), "--steps", str(args.steps)]
    ours = [sys.executable, "step_ours.py", *width, *depth_and_steps]
    threads = ["--threads", str(len(cores))]  # XLA takes as many as it has cores
    torch = [args.torch_python, "peers_torch.py", *depth_and_steps, *threads]
    torch += ["--program"]
    params = ["--match-params", str(run(ours, cores=cores)["params"])]
    programs = {
      "ours": ours,
      "plain": [*torch, "plain", *width],
      "package": [*torch, "package", *width],
      "package, our params": [*torch, "package", *params],
    }
    results = {name: [] for name in programs}
    for _ in range(args.rounds):
      for name, command in programs.items():
        results[name].append(run(command, cores=cores))
    our_rates = [rate(r) for r in results["ours"]]
    for name, runs in results.items():
      ratios = [ours / rate(r) for ours, r in zip(our_rates, runs)]
      print(
        f"{dim:>3} {depth:>5} {name:<18} {runs[0]['params'] / 1e6:5.1f}M"
        f" {statistics.median(r['median_ms'] for r in runs):8.0f}"
        f" {statistics.median(map(rate, runs)):12,.0f}"
        f" {statistics.median(ratios):7.2f}x"
        f" {max(r['peak_rss_gb'] for r in runs):8.2f}",
        flush=True,
      )


def rate(result: dict) -> float:
  """Elements per second of the median step."""
  return result["elements_per_step"] / result["median_ms"] * 1e3


def run(command: list[str], *, cores: list[int]) -> dict:
  """Runs [python, script, arguments ...] on these cores; reads its last line as JSON.

  Ours gets huge pages, as the command `tfusion` takes them. With them the plain twin
  at width 256 takes 244 and 239 ms instead of 247 and 251: little beside our ratios.
  """
  python, script, *arguments = command
  pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if "ours" in script else {}
  own = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)  # of this thread, and so of what it starts
  try:
    done = subprocess.run(
      [python, str(HERE / script), *arguments],
      capture_output=True,
      text=True,
      check=False,
      env=os.environ | pages,
    )
  finally:
    os.sched_setaffinity(0, own)
  if done.returncode:
    raise RuntimeError(f"{script} {' '.join(arguments)}:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
  main()
