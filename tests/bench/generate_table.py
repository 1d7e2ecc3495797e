"""Sampling beside its twin in eager PyTorch, in one run: a table of ratios.

Owns: the order of the runs and the table. Not: ours (`tfusion bench generate`), the
twin (generate_torch.py). Each runs in a process of its own, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = ((256, 4), (512, 8))
TASKS = ("text", "image", "caption")


def main():
  """Runs both `--rounds` times and prints one row for each task."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--torch-python", default=sys.executable, help="has torch")
  args = parser.parse_args()
  for width, layers in SIZES:
    size = ["--width", str(width), "--layers", str(layers), "--rounds", "3"]
    ours, twins = [], {task: [] for task in TASKS}
    for _ in range(args.rounds):
      said = output(
        [sys.executable, "-m", "tfusion", "bench", "generate", "--single", *size]
      )
      ours.append(dict(line.split(maxsplit=1) for line in said.splitlines()))
      for task, own in twins.items():
        command = [args.torch_python, "generate_torch.py", "--task", task]
        command += ["--dim", str(width), "--depth", str(layers), "--rounds", "3"]
        own.append(json.loads(output(command)))
    number = lambda one, name: float(one[name].replace(",", ""))  # noqa: E731
    print(f"width {width}, {layers} layers; {ours[0]['cpu']}, {ours[0]['vectors']}")
    print("task        ours s  torch s  ours is  ours peak GB  torch peak GB")
    for task, own in twins.items():
      pairs = [(number(a, f"{task}_s"), b["median_s"]) for a, b in zip(ours, own)]
      mine, other = (statistics.median(column) for column in zip(*pairs))
      ratio = statistics.median(b / a for a, b in pairs)
      peaks = number(ours[0], "peak_rss_gb"), own[0]["peak_rss_gb"]
      print(
        f"{task:<10} {mine:>7.3f} {other:>8.3f} {ratio:>7.2f}x"
        f" {peaks[0]:>13.2f} {peaks[1]:>14.2f}"
      )
    for name in ("step_ms", "floor_ms", "over_floor", "matmul_gflops"):
      print(f"{name} {statistics.median(number(one, name) for one in ours):.2f}")


def output(command: list[str]) -> str:
  """What a program prints."""
  done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f"{command}: {done.stderr[-2000:]}")
  return done.stdout


if __name__ == "__main__":
  main()
