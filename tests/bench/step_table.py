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
PEERS = ("plain", "package", "package, our params")
SIZES = ((256, 4), (512, 8))  # dim, depth; 8 heads


def main():
  """Runs every program `--rounds` times and prints one row for each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
  parser.add_argument("--steps", type=int, default=10, help="timed steps of each run")
  parser.add_argument("--cores", type=int, default=2, help="that each program gets")
  parser.add_argument("--torch-python", default=sys.executable, help="has torch")
  parser.add_argument(
    "--peers", nargs="*", default=PEERS, choices=PEERS, help="that run beside ours"
  )
  args = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))[: args.cores]
  print(
    f"each program alone on cores {cores}; steps and rates are medians of the runs,"
  )
  print("'ours is' the median ratio of our rate to that of the run beside it; 'share'")
  print("the median of rates over that of a float32 matmul in ours of the same round")
  print(
    "dim depth program            params  step ms   elements/s  ours is  share  peak GB"
  )
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
    programs = {name: programs[name] for name in ("ours", *args.peers)}
    results = {name: [] for name in programs}
    for _ in range(args.rounds):
      for name, command in programs.items():
        results[name].append(run(command, cores=cores))
    matmuls = [ours["matmul_gflops"] for ours in results["ours"]]
    print(
      f"on {results['ours'][0]['cpu']} ({results['ours'][0]['vectors']}):"
      f" matmuls at {min(matmuls):.0f} to {max(matmuls):.0f} GFLOP/s"
    )
    for name, runs in results.items():
      print(f"{dim:>3} {depth:>5} {line(name, runs, results['ours'])}", flush=True)


def line(name: str, runs: list[dict], ours: list[dict]) -> str:
  """What is printed of a program, whose runs have one of ours beside each.

  The plain twin has our layers, and so needs as many operations for a step; the package
  has others, which are not counted.
  """
  ratios = [rate(own) / rate(r) for own, r in zip(ours, runs)]
  shares = [
    own["gflop_per_step"] / r["median_ms"] * 1e3 / own["matmul_gflops"]
    for own, r in zip(ours, runs)
  ]
  share = f"{statistics.median(shares):.0%}" if name in ("ours", "plain") else "-"
  return (
    f"{name:<18} {runs[0]['params'] / 1e6:5.1f}M"
    f" {statistics.median(r['median_ms'] for r in runs):8.0f}"
    f" {statistics.median(map(rate, runs)):12,.0f}"
    f" {statistics.median(ratios):7.2f}x"
    f" {share:>6}"
    f" {max(r['peak_rss_gb'] for r in runs):8.2f}"
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
