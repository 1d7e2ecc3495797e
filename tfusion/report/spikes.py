"""Spikes of loss and gradient on the page: when, how high, and of which documents.

Owns: the list, and the command that shows the rows of an update. Not: the rule for
spikes (training/spikes.py), which training writes to spikes.jsonl; their marks in the
curves (curves.py).
"""

import shlex
from pathlib import Path
from typing import Any

from tfusion.report.curves import number
from tfusion.report.run import Run

LISTED = 20  # updates, at most: those whose spike is the highest
NAMES = {"loss": "Loss", "grad_norm": "Gradient norm"}


def table(workdir: Path, run: Run) -> dict[str, Any] | None:
  """Returns the values of the macro `spikes`; None of a run that is not logged yet.

  Args:
    workdir: of the run, for the commands.
    run: its `spikes`, in order of the updates.
  """
  if not run.metrics:
    return None
  by_step: dict[int, list[dict[str, Any]]] = {}
  for line in run.spikes:
    by_step.setdefault(int(line["step"]), []).append(line)
  highest = sorted(by_step, key=lambda step: -max(map(_times, by_step[step])))[:LISTED]
  return {
    "count": len(by_step),
    "listed": len(highest),
    "updates": [
      {
        "step": f"{step:,}",
        "spikes": [_spike(line) for line in by_step[step]],
        "command": "" if run.is_autoencoder else command(workdir, step),
      }
      for step in sorted(highest)
    ],
  }


def command(workdir: Path, step: int) -> str:
  """Returns what shows the rows that an update took, with their documents."""
  return f"tfusion inspect data --workdir {shlex.quote(str(workdir))} --step {step}"


def _times(line: dict[str, Any]) -> float:
  """How many times its median a value is."""
  return line["value"] / max(abs(line["median"]), 1e-30)


def _spike(line: dict[str, Any]) -> dict[str, str]:
  return {
    "name": NAMES.get(line["key"], line["key"]),
    "value": number(line["value"]),
    "median": number(line["median"]),
    "times": f"{_times(line):,.1f}",
  }
