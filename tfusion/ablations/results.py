"""What finished runs found: a small JSON each, to keep and to carry elsewhere.

Owns: those files, which of them are stale. Not: the run (plan.py), tables (tables.py).

  FOLDER/KEY-CODE.json   numbers and curves of a run, by its `judged` and the code
  FOLDER/KEY-CODE.png    images that it made

A suite that was begun on one machine goes on on another with these files alone.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfusion import files
from tfusion.ablations import code
from tfusion.ablations.plan import Spec
from tfusion.config import flatten
from tfusion.evaluate import families
from tfusion.evaluate.scaling import training_flops
from tfusion.report.run import read_run, series, spread

CURVES = ("loss_text", "loss_image", "loss_codes", "loss")  # of metrics.jsonl
POINTS = 60  # of a curve
ROOM = "runs"  # of the folder with the pages


class Result(NamedTuple):
  """A run that is done."""

  key: str  # Spec.judged
  code: str  # code.version() when it was trained
  values: dict[str, Any]  # of validation.jsonl and eval.json
  about: dict[str, Any]  # seconds, FLOPs, hardware, versions
  curves: dict[str, list[list[float]]]
  depends: dict[str, Any]  # Spec.depends()


def path_of(folder: Path, key: str, version: str) -> Path:
  """The file of a result."""
  return folder / f"{key}-{version}.json"


def find(folder: Path, spec: Spec, version: str = "") -> Result | None:
  """The result of a run by code of a version, today's if it is empty; or None."""
  path = path_of(folder, spec.judged, version or code.version())
  return read(path) if path.is_file() else None


def read(path: Path) -> Result:
  """Reads a result.

  Raises:
    ValueError: the file is damaged.
  """
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{name: values[name] for name in Result._fields})
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: is no whole result ({error!r}); delete it, and the run is done again"
    ) from error


def keep(folder: Path, spec: Spec, workdir: Path, *, commit: str) -> Result:
  """Collects what a finished run left in its workdir, and writes it.

  Args:
    folder: of results.
    spec: the run.
    workdir: of the run.
    commit: of the code, as far as it is known.

  Raises:
    ValueError: the run is not finished, or lacks its last evaluation.
  """
  trained = {flops: families.read_trained(workdir, flops) for flops in families.FLOPS}
  run = read_run(workdir)
  spent = run.goodput.get("seconds", {})  # `down` lies between two starts
  known = {name: value for name, value in run.evaluation.items() if _is_small(value)}
  found = Result(
    spec.judged,
    code.version(),
    {k: v for k, v in (run.validation[-1] | known).items() if k not in _ABOUT},
    {
      "name": spec.name,
      "steps": run.step,
      "seed": spec.seed,
      "parameters": run.machine.get("parameters", 0),
      "elements": trained["6nd"].flops / training_flops(run.machine["parameters"], 1),
      "seconds": sum(seconds for cause, seconds in spent.items() if cause != "down"),
      "commit": commit,
      "config": json.loads(json.dumps(flatten(spec.config()))),
      "command": f"tfusion {' '.join(spec.train(Path('WORKDIR'), None))}",
    }
    | {f"flops_{name}": one.flops for name, one in trained.items()}
    | {name: run.machine.get(name) for name in _MACHINE},
    {name: _curve(run.metrics, name) for name in CURVES if _curve(run.metrics, name)},
    spec.depends(),
  )
  scale = f"{spec.config().sample.guidance:g}"
  sheet = workdir / "eval" / f"scenes-guidance-{scale}.png"
  if sheet.is_file():  # before the JSON, which says that all is there
    image = path_of(folder, spec.judged, found.code).with_suffix(".png")
    files.write_whole(image, sheet.read_bytes())
  write(folder, found)
  return found


def write(folder: Path, result: Result) -> Path:
  """Writes a result, whole or not at all; returns its file."""
  path = path_of(folder, result.key, result.code)
  files.write_whole(path, json.dumps(result._asdict(), indent=1) + "\n")
  return path


_ABOUT = ("step", "hardware", "finished")
_MACHINE = ("device", "devices", "cpu", "cores", "python", "jax", "tfusion")


def held_out_loss(spec: Spec, values: dict[str, Any]) -> float:
  """What the run was trained for, on held-out rows: by it a learning rate is chosen."""
  weight = spec.config().diffusion.image_weight
  image = values.get("loss_image") or 0.0
  loss = values["loss_text"] + weight * image + (values.get("loss_codes") or 0.0)
  return loss if math.isfinite(loss) else math.inf


def _is_small(value: Any) -> bool:
  return isinstance(value, int | float | str | dict)


def _curve(lines: list[dict[str, Any]], key: str) -> list[list[float]]:
  """Steps and means of a metric over equal parts of the run."""
  steps, values = series(lines, key)
  if not steps.size:
    return []
  parts = np.array_split(np.arange(steps.size), min(POINTS, steps.size))
  means = [(float(steps[own[-1]]), float(values[own].mean())) for own in parts]
  return [list(point) for point in spread(means, POINTS)]
