"""`tfusion scaling`: finished runs in families, power laws through them, parity.

Owns: what is read of a run, which runs are one family, the table and the page. Not: the
fits and the paper's filters (scaling.py), how a page is filled (report/).
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfusion import config as config_lib
from tfusion import files
from tfusion import workdir as workdir_lib
from tfusion.config import Config
from tfusion.evaluate import scaling as laws
from tfusion.evaluate.scaling import Interval, Law, Point
from tfusion.report import page
from tfusion.report import plot as plot_lib
from tfusion.report.plot import HUES, Layer
from tfusion.report.run import read_run, series

# Knobs in which the runs of a family may differ: the size, how long and from which seed
# it was trained, the rates that suit a size, what changes numbers by rounding alone.
OF_SIZE = (
  *("model.layers", "model.width", "model.heads", "model.kv_heads", "model.mlp"),
  *("model.unet_widths", "seed", "train.steps"),
  *("optim.peak_lr", "optim.end_lr", "optim.warmup_steps"),
  *("model.dtype", "model.remat", "model.unroll", "model.attention"),
  *("data.workers", "train.accumulate", "train.log_every_steps"),
  *("train.eval_every_steps", "train.save_every_steps", "train.keep_last"),
  *("train.keep_every_steps", "train.max_skipped_updates", "train.stall_seconds"),
  *("train.loggers", "eval.batch"),
  *("mesh.data", "mesh.fsdp", "mesh.context", "mesh.tensor"),
)
# Of validation.jsonl and eval.json, what is fitted unless others are named.
METRICS = (
  *("loss_text", "loss_image", "loss_codes", "text_perplexity"),
  *("caption_accuracy", "image_accuracy", "cider", "fid", "clip"),
)
# How FLOPs are counted -> in words.
FLOPS = {
  "6nd": "6 N D",
  "exact": "FLOPs of matmuls and of the pairs that attention sees",
}
LEAST = 3  # runs for an interval: two always lie on their line
SHOWN = 3  # knobs that name a family
SEED = 0  # of the bootstrap


class Trained(NamedTuple):
  """A finished run."""

  workdir: Path
  config: Config
  flops: float  # of its training
  values: dict[str, float]  # its last held-out numbers, and eval.json


class Family(NamedTuple):
  """Runs that differ in nothing but size."""

  name: str  # the knobs that tell it from the others
  runs: list[Trained]


class Fit(NamedTuple):
  """What one metric of one family does."""

  points: list[Point]
  left_out: int  # by the paper's filters, or without such a number above 0
  law: Law | None  # None: fewer than two different FLOPs are left
  slope: Interval | None  # None: fewer than LEAST are
  parity: Interval | float | None  # of the first family to this one


@dataclasses.dataclass(frozen=True)
class Scaling:
  """What came of runs: `fits[metric][i]` is of `families[i]`.

  The parity ratio is the share of a family's most FLOPs with which the first family
  reaches what the line of that one has there (arXiv 2408.11039, section 4.2).
  """

  flops: str  # one of FLOPS
  families: list[Family]
  fits: dict[str, list[Fit]]

  def __str__(self) -> str:
    """A table for each metric."""
    return "\n".join(_lines(self))

  def write(self, out: str | Path) -> Path:
    """Writes one self-contained page with the table and a plot of each metric.

    Raises:
      OSError: the page cannot be written.
    """
    path = files.to_path(out)
    figures = [_figure(self, metric) for metric in self.fits]
    sections = [
      page.Section("", "curves", lambda: {"sentence": _said(self), "figures": figures}),
      page.Section("Power laws", "columns", lambda: _columns(self)),
    ]
    text = page.fill(f"Scaling of {len(self.families)} families", sections)
    files.write_whole(path, text.encode("utf-8", errors="replace"))
    return path


def scaling(
  workdirs: Sequence[str | Path], *, metrics: Sequence[str] = (), flops: str = "6nd"
) -> Scaling:
  """Fits how metrics of finished runs change with their FLOPs, family by family.

    print(tfusion.scaling(["runs/a-small", "runs/a-large", "runs/b-small", ...]))

  Args:
    workdirs: of `tfusion train`. Runs that differ only in OF_SIZE are one family; they
      are in the order in which they are first named.
    metrics: of validation.jsonl or eval.json; none: those of METRICS that there are.
    flops: `6nd`, six for each parameter and element, as in the paper; or `exact`, as
      training/flops.py counts those of every row.

  Raises:
    ValueError: names a folder that is no finished run, a run without an evaluation or
      without the metric, a family of one run, too many families, or an unknown count.
  """
  if flops not in FLOPS:
    raise ValueError(f"--flops={flops}: choose one of {', '.join(FLOPS)}")
  families = _families([read_trained(files.to_path(path), flops) for path in workdirs])
  known = sorted({name for f in families for run in f.runs for name in run.values})
  for metric in metrics:
    if metric not in known:
      raise ValueError(
        f"--metric={metric}: no run has it; there are {', '.join(known)}"
      )
  fits = {metric: _fits(metric, families) for metric in metrics or METRICS}
  kept = {metric: own for metric, own in fits.items() if any(fit.law for fit in own)}
  if lacking := [metric for metric in metrics or fits if metric not in kept]:
    if metrics or not kept:
      raise ValueError(
        f"{', '.join(lacking)}: no family has two runs of different FLOPs with it"
      )
  return Scaling(flops, families, kept)


def read_trained(workdir: Path, flops: str) -> Trained:
  """A finished run.

  Args:
    workdir: of the run.
    flops: one of FLOPS.

  Raises:
    ValueError: it is none, or lacks what is needed of it.
  """
  config, run = workdir_lib.load_config(workdir), read_run(workdir)
  if run.step < config.train.steps:
    raise ValueError(
      f"{workdir}: is at update {run.step} of {config.train.steps}; train it to its end"
      " first"
    )
  last = run.validation[-1] if run.validation else {}
  if last.get("step") != config.train.steps:
    raise ValueError(
      f"{workdir}: has no evaluation of its last update, {config.train.steps};"
      " repeat its `tfusion train` command"
    )
  elements = _mean(run.metrics, "elements") * run.step
  if flops == "6nd":
    total = laws.training_flops(run.machine.get("parameters", 0), elements)
  else:
    total = _mean(run.speed, "flops_per_element") * elements
  if not total:
    (other,) = FLOPS.keys() - {flops}
    lacking = ("run.json", "parameters") if flops == "6nd" else ("speed.jsonl", "FLOPs")
    raise ValueError(
      f"{workdir}: its {lacking[0]} does not say its {lacking[1]}, as in runs of older"
      f" versions; count in the other way, --flops={other}"
    )
  numbers = (last | run.evaluation).items()
  values = {
    key: float(value)
    for key, value in numbers
    if type(value) in (int, float) and 0 < value < math.inf and key != "step"
  }
  return Trained(workdir, config, total, values)


def _mean(lines: list[dict[str, Any]], key: str) -> float:
  """Over the logged updates, which lie evenly over the run; 0 without any."""
  values = series(lines, key)[1]
  return float(np.mean(values)) if values.size else 0.0


def _families(runs: list[Trained]) -> list[Family]:
  """Runs that differ only in size, together.

  Raises:
    ValueError: a run is given twice or alone in its family, or there are too many.
  """
  known: set[str] = set()
  groups: dict[Any, list[Trained]] = collections.defaultdict(list)
  for run in runs:
    place = files.to_absolute(str(run.workdir))
    if place in known:
      raise ValueError(f"{run.workdir}: is given twice; name every run once")
    known.add(place)
    flat = config_lib.flatten(run.config)
    groups[tuple((k, v) for k, v in flat.items() if k not in OF_SIZE)].append(run)
  values = [dict(key) for key in groups]
  differing = [k for k in values[0] if len({one[k] for one in values}) > 1]
  families = []
  for own, value in zip(groups.values(), values):
    said = [f"{k}={value[k]}" for k in differing]
    more = [f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    name = " ".join(said[:SHOWN] + more) or "all runs"
    if len({run.flops for run in own}) < 2:
      raise ValueError(
        f"{own[0].workdir}: its family ({name}) has no run of another size; give two"
        " sizes at least, which differ in nothing else but rates and length"
      )
    families.append(Family(name, own))
  if len(families) > len(HUES):
    raise ValueError(f"{len(families)} families: at most {len(HUES)} can be shown")
  return families


def _fits(metric: str, families: list[Family]) -> list[Fit]:
  """The laws of a metric, and the parity of the first family to each other."""
  fits: list[Fit] = []
  for family in families:
    runs = [run for run in family.runs if metric in run.values]
    points = laws.kept(metric, [Point(run.flops, run.values[metric]) for run in runs])
    left_out, sizes = len(family.runs) - len(points), len({p.flops for p in points})
    law = laws.fit(points) if sizes > 1 else None
    slope = laws.bootstrap_slope(points, seed=SEED) if sizes >= LEAST else None
    fits.append(Fit(points, left_out, law, slope, None))
  return fits[:1] + [fit._replace(parity=_parity(fits[0], fit)) for fit in fits[1:]]


def _parity(ours: Fit, theirs: Fit) -> Interval | float | None:
  if not ours.law or not ours.law.slope or not theirs.law:
    return None
  if ours.slope and theirs.slope:
    return laws.bootstrap_parity(ours.points, theirs.points, seed=SEED)
  return laws.parity_ratio(ours.points, theirs.points)


def _said(found: Scaling) -> str:
  if len(found.families) == 1:
    return f"Over {FLOPS[found.flops]}."
  return (
    f"Over {FLOPS[found.flops]}. Parity: the share of a family's most FLOPs with which"
    f" {found.families[0].name} reaches what that family's line has there."
  )


def _lines(found: Scaling) -> list[str]:
  width = max(len(family.name) for family in found.families)
  lines = [_said(found)]
  for metric, fits in found.fits.items():
    lines += ["", f"{metric:<{width}}  runs  left out  {'slope':<28}  parity"]
    for family, fit in zip(found.families, fits):
      slope, parity = " ".join(_slope(fit)), " ".join(_ratio(fit))
      count = f"{len(fit.points):>4}  {fit.left_out:>8}"
      lines.append(f"{family.name:<{width}}  {count}  {slope:<28}  {parity}".rstrip())
  return lines


def _slope(fit: Fit) -> tuple[str, str]:
  """The slope and, behind it, its interval."""
  return _number(fit.slope or (fit.law.slope if fit.law else None))


def _ratio(fit: Fit) -> tuple[str, str]:
  return _number(fit.parity)


def _number(value: Interval | float | None) -> tuple[str, str]:
  if isinstance(value, Interval):
    return f"{value.value:.3g}", f"({value.low:.3g} to {value.high:.3g})"
  return ("-" if value is None else f"{value:.3g}"), ""


def _figure(found: Scaling, metric: str) -> dict[str, Any]:
  """The values of one figure of the macro `curves`: points, and lines through them."""
  layers = []
  for colour, fit in zip(HUES, found.fits[metric]):
    points = sorted(fit.points)
    flops = np.array([point.flops for point in points])
    if fit.law:
      ends = flops[[0, -1]]
      line = np.array([fit.law.value(x) for x in ends])
      layers.append(Layer(ends, line, colour, "line"))
    if points:
      values = np.array([point.value for point in points])
      layers.append(Layer(flops, values, colour, "points"))
  return {
    "title": metric,
    "unit": "",
    "colour": "ink",
    "newest": "",
    "reference": "",
    "spikes": 0,
    "alt": f"{metric} over training FLOPs, both logarithmic",
    "source": plot_lib.log_plot(layers, x_label="training FLOPs"),
  }


def _columns(found: Scaling) -> dict[str, Any]:
  """The values of the macro `columns`: a column for each family."""
  groups = []
  for metric, fits in found.fits.items():
    rows: list[tuple[str, str, list[tuple[str, str]]]] = [
      ("Slope", "95 % of the bootstrap's samples", [_slope(fit) for fit in fits]),
      ("Parity FLOP ratio", "of the first family", [_ratio(fit) for fit in fits]),
      (
        "Runs",
        "left out: by the paper's filters, without it, or 0",
        [(f"{len(fit.points)}", f"{fit.left_out} left out") for fit in fits],
      ),
    ]
    groups.append({"title": metric, "rows": [_row(*row) for row in rows]})
  columns = [
    {"name": family.name, "colour": colour, "note": f"{len(family.runs)} runs"}
    for family, colour in zip(found.families, HUES)
  ]
  return {"sentence": "", "columns": columns, "groups": groups}


def _row(name: str, note: str, cells: list[tuple[str, str]]) -> dict[str, Any]:
  shown = [{"value": value, "note": behind} for value, behind in cells]
  return {"name": name, "note": note, "cells": shown}
