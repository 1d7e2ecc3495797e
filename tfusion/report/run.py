"""What the files of a workdir say of its run, as far as they are whole.

Owns: which files are read, and the names that keys had in older workdirs. Not: what a
page shows of them; how the files of a reference are chosen (`save_reference`).
"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tfusion import files

# What keys were called in files of older runs: what they are called now.
OLDER_NAMES = {
  "judge_accuracy": "classifier_accuracy",
  "judge_right": "classifier_right",
  "judge_scans": "classifier_scans",
  "pictures": "images",
  "pictures_per_s": "images_per_s",
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run; of what is missing or half written there is nothing."""

  config: dict[str, Any]
  machine: dict[str, Any]  # and the command; run.json
  data: dict[str, Any]
  skipped: dict[str, Any]
  evaluation: dict[str, Any]
  goodput: dict[str, Any]
  metrics: list[dict[str, Any]]  # a line of these four has a step
  speed: list[dict[str, Any]]
  validation: list[dict[str, Any]]
  spikes: list[dict[str, Any]]

  @property
  def step(self) -> int:
    """Updates done, as far as anything says so."""
    return max([x["step"] for x in self.metrics + self.validation], default=0)

  @property
  def is_autoencoder(self) -> bool:
    """Whether it is of `tfusion autoencoder`; such a run has no rows."""
    return self.config.get("command") == "autoencoder"

  @property
  def steps(self) -> int:
    """Updates wanted; 0 if that is not known."""
    return self.config.get("train", {}).get("steps", 0)


@dataclasses.dataclass(frozen=True)
class Reference:
  """A run that is known to be good: its curves, drawn behind those of another."""

  about: list[str]  # its name, hardware and commit, as far as they are known
  evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
  metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  validation: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def read_run(workdir: Path) -> Run:
  """Reads what there is of a run."""
  return Run(
    config=_values(workdir / "config.json"),
    machine=_values(workdir / "run.json"),
    data=_values(workdir / "data.json"),
    skipped=_values(workdir / "skipped.json"),
    evaluation=_renamed(_numbers(_values(workdir / "eval.json"))),
    goodput=_values(workdir / "goodput.json"),
    metrics=_lines(workdir / "metrics.jsonl"),
    speed=_lines(workdir / "speed.jsonl"),
    validation=_lines(workdir / "validation.jsonl"),
    spikes=_lines(workdir / "spikes.jsonl"),
  )


def read_checked(workdir: Path) -> Run:
  """Reads a run of which there is something to show.

  Raises:
    ValueError: the folder is no run, or one without metrics.
  """
  run = read_run(workdir)
  if not (workdir / "config.json").is_file():
    files.check_there(workdir / "config.json", option="RUN")
    raise ValueError(
      f"{workdir}: is no run, as it holds no config.json; name the workdir of `tfusion"
      " train` or `tfusion autoencoder`"
    )
  if not run.config:
    raise ValueError(f"{workdir / 'config.json'}: is damaged; restore it")
  if not run.metrics:
    every = run.config.get("train", {}).get("log_every_steps", "?")
    raise ValueError(
      f"{workdir}: has no metrics yet; the first line of metrics.jsonl comes after"
      f" train.log_every_steps={every} updates"
    )
  return run


def read_reference(path: Path, *, model: dict[str, Any] | None) -> Reference | None:
  """Reads a file of `save_reference`; None where there is none of this model."""
  values = _values(path)
  if not values or values.get("model") != model:
    return None
  about = [values.get(key) for key in ("name", "hardware", "commit")]
  evaluation = values.get("eval")
  return Reference(
    about=[str(x) for x in about if x],
    evaluation=_renamed(evaluation) if isinstance(evaluation, dict) else {},
    metrics=values.get("metrics", []),
    validation=values.get("validation", []),
  )


def series(lines: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps and the values of a key, f64[n] each, where it is finite."""
  pairs = [
    (line["step"], line[key])
    for line in lines
    if isinstance(line.get(key), int | float) and math.isfinite(line[key])
  ]
  steps, values = np.array(pairs, float).reshape(-1, 2).T
  return steps, values


def spread(items: Any, most: int) -> list:
  """Returns at most so many of the items, evenly, the first and the last included."""
  n = len(items)
  return [items[round(i)] for i in np.linspace(0, n - 1, min(most, n))]


def _values(path: Path) -> dict[str, Any]:
  """What a .json holds; nothing if it is not whole, or no object."""
  with contextlib.suppress(ValueError):
    values = json.loads(_text(path))
    return values if isinstance(values, dict) else {}
  return {}


def _lines(path: Path) -> list[dict[str, Any]]:
  """The lines of a .jsonl that are whole and have a step."""
  found = []
  for line in _text(path).split("\n"):
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  found = [x for x in found if isinstance(x, dict)]
  return [_renamed(x) for x in found if isinstance(x.get("step"), int | float)]


def _numbers(evaluation: dict[str, Any]) -> dict[str, Any]:
  """eval.json without what its numbers depend on."""
  return {key: value for key, value in evaluation.items() if key != "finished"}


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
  return {OLDER_NAMES.get(key, key): value for key, value in values.items()}


def _text(path: Path) -> str:
  if not path.is_file():
    return ""
  return path.read_text(encoding="utf-8", errors="replace")
