"""Several runs on one page: what differs between them, and what came of it.

Owns: which runs can be compared, their names and colours, the tables. Not: what is read
of a run (run.py), which curves there are (curves.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfusion import files
from tfusion.numerals import percent
from tfusion.report import curves, evaluation, facts, goodput, samples, summary
from tfusion.report.curves import Curve, Section, number, smooth
from tfusion.report.evaluation import Cell
from tfusion.report.plot import HUES, plot
from tfusion.report.run import Run, read_checked, series

MOST = len(HUES)  # runs that can be told apart by colour
NONE = "-"  # where a run has no such number, knob or sample
# Of run.json, what a difference in speed may come from.
MACHINE = "device devices hosts cpu cores mesh parameters python jax tfusion".split()


class Compared(NamedTuple):
  """One of several runs."""

  name: str  # the end of its path, as long as tells it from the others
  colour: str  # of theme.css
  workdir: Path
  run: Run


class Row(NamedTuple):
  """Something of all runs."""

  name: str
  note: str
  cells: list[Cell]


def read(workdirs: Sequence[str | Path]) -> list[Compared]:
  """Reads runs, in the order in which they are named.

  Raises:
    ValueError: names a folder that is no run, has no metrics yet, is given twice or of
      another command than the first; or there are too few or too many.
  """
  paths = [files.to_path(workdir) for workdir in workdirs]
  if not 2 <= len(paths) <= MOST:
    raise ValueError(f"{len(paths)} runs: from 2 to {MOST} can be compared")
  where = [files.to_absolute(str(path)) for path in paths]
  for i, path in enumerate(paths):
    if where[i] in where[:i]:
      raise ValueError(f"{path}: is given twice; name every run once")
  runs = [read_checked(path) for path in paths]
  for path, run in zip(paths, runs):
    if run.is_autoencoder != runs[0].is_autoencoder:
      command = ("train", "autoencoder")[run.is_autoencoder]
      raise ValueError(
        f"{path}: is a run of `tfusion {command}`, and {paths[0]} is not; compare runs"
        " of one command"
      )
  names = facts.short_names([f"folder:{one}" for one in where]).values()
  return [
    Compared(name.removeprefix("folder:"), colour, path, run)
    for name, colour, path, run in zip(names, HUES, paths, runs)
  ]


def head(compared: list[Compared]) -> dict[str, Any]:
  """Returns the values of the macro `compared`: which colour is which run."""
  return {
    "runs": [
      {
        "name": each.name,
        "colour": each.colour,
        "workdir": str(each.workdir),
        "state": summary.state(each.run),
      }
      for each in compared
    ]
  }


def figures(section: Section, compared: list[Compared]) -> dict[str, Any] | None:
  """Returns the plots of a section, with a curve of each run; None if there is none."""
  made = [_figure(section, curve, compared) for curve in section.curves]
  found = [figure for figure in made if figure]
  return {"sentence": "", "figures": found} if found else None


def numbers(compared: list[Compared]) -> dict[str, Any]:
  """Returns the values of the macro `columns`: the newest numbers of the runs."""
  of = curves.of(compared[0].run)
  groups = [
    ("Run", [_row("Updates", "", compared, _updates), _time(compared)]),
    *(
      (section.title, [_newest(curve, compared) for curve in section.curves])
      for section in of
    ),
    ("Evaluation", [_measure(key, compared) for key in evaluation.MEASURES]),
  ]
  return _columns(
    "The newest; training losses and speeds are smoothed.", compared, groups
  )


def differing(compared: list[Compared]) -> dict[str, Any]:
  """Returns the values of the macro `columns`: the knobs in which runs differ, and the
  machines if they do."""
  configs = [_flat(each.run.config) for each in compared]
  machines = [{k: each.run.machine.get(k) for k in MACHINE} for each in compared]
  knobs, alike = _differences(configs)
  sentence = (
    f"Knobs that differ: {len(knobs)}. The other {alike} are the same in all runs."
  )
  groups = [("Config", knobs), ("Machine", _differences(machines)[0])]
  return _columns(sentence, compared, groups)


def times(compared: list[Compared]) -> dict[str, Any] | None:
  """Returns the values of the macro `times`; None where no run has an account."""
  accounts = [each.run.goodput for each in compared]
  by_run = [{part.cause: part for part in goodput.parts(one)} for one in accounts]
  causes = dict.fromkeys(
    [*goodput.CAUSES.values(), *(cause for found in by_run for cause in found)]
  )
  rows = []
  for cause in causes:
    found = [parts.get(cause) for parts in by_run]
    cells = [
      Cell(f"{part.seconds:,.1f} s", percent(part.share)) if part else Cell(NONE, "")
      for part in found
    ]
    if any(found):
      rows.append(Row(cause.name, cause.meaning, cells))
  if not rows:
    return None
  return {
    "runs": [
      {"name": each.name, "colour": each.colour, "goodput": goodput.table(account)}
      for each, account in zip(compared, accounts)
    ],
    "table": _columns("", compared, [("", rows)]),
  }


def grids(compared: list[Compared]) -> dict[str, Any] | None:
  """Returns the values of the macro `grids`: the newest samples, and the images of the
  last evaluation; None where no run has any."""
  share = samples.LARGE_BYTES // len(compared)
  newest = [
    samples.latest(each.workdir / "samples", limit_bytes=share) for each in compared
  ]
  rows: dict[str, list[Any]] = {}

  def add(name: str, column: int, shown: Any) -> None:
    rows.setdefault(name, [None] * len(compared))[column] = shown

  for column, found in enumerate(newest):
    for asked in found["by_prompt"] if found else []:
      add(asked["prompt"], column, asked)
    if found and not found["by_prompt"]:
      add("Newest", column, {"images": [found["newest"]], "text": ""})
  for column, each in enumerate(compared):
    for path in sorted((each.workdir / "eval").glob("*.png"))[: evaluation.IMAGES]:
      image = samples.image(path, width_px=1080, limit_bytes=share)
      add(f"eval/{path.name}", column, {"images": [image], "text": ""})
  if not rows:
    return None
  return {
    "columns": [
      {"name": each.name, "colour": each.colour, "note": found["name"] if found else ""}
      for each, found in zip(compared, newest)
    ],
    "rows": [{"name": name, "cells": cells} for name, cells in rows.items()],
  }


def _figure(
  section: Section, curve: Curve, compared: list[Compared]
) -> dict[str, Any] | None:
  layers = []
  for each in compared:
    own = curves.layers(curve, each.run, None)
    layers += [layer._replace(colour=each.colour) for layer in own[-1:]]
  if not layers:
    return None
  bins = curve.key == "loss_image_bins"
  return {
    "title": curve.title,
    "unit": curve.unit,
    "colour": "ink",
    "newest": "",
    "reference": "",
    "spikes": 0,
    "alt": f"{section.title}: {curve.title}, {curve.unit}",
    "source": plot(
      layers,
      x_label="t / T" if bins else "update",
      x_max=1 if bins else max(each.run.steps for each in compared),
      from_zero=curve.file == "speed",
    ),
  }


def _columns(
  sentence: str, compared: list[Compared], groups: list[tuple[str, list[Row]]]
) -> dict[str, Any]:
  """A column for each run. Rows of which no run has anything are left out."""
  kept = []
  for title, rows in groups:
    said = [row for row in rows if any(cell.value != NONE for cell in row.cells)]
    kept += [{"title": title, "rows": said}] if said else []
  return {
    "sentence": sentence,
    "columns": [{"name": x.name, "colour": x.colour, "note": ""} for x in compared],
    "groups": kept,
  }


def _row(
  name: str, note: str, compared: list[Compared], cell: Callable[[Run], Cell]
) -> Row:
  return Row(name, note, [cell(each.run) for each in compared])


def _updates(run: Run) -> Cell:
  return Cell(f"{run.step:,}", f"of {run.steps:,}" if run.steps else "")


def _time(compared: list[Compared]) -> Row:
  def cell(run: Run) -> Cell:
    seconds = summary.seconds(run)
    return Cell(NONE if seconds is None else f"{seconds / 60:,.1f}", "")

  return _row("Time", "minutes", compared, cell)


def _newest(curve: Curve, compared: list[Compared]) -> Row:
  """The last value of a curve; of a training curve, of its smoothed line."""

  def cell(run: Run) -> Cell:
    x, y = series(getattr(run, curve.file), curve.key)
    if not x.size:
      return Cell(NONE, "")
    whole = curve.file == "validation" or curve.key == "lr"
    return Cell(number(float((y if whole else smooth(y))[-1])), f"update {x[-1]:,.0f}")

  return _row(curve.title, curve.unit, compared, cell)


def _measure(key: str, compared: list[Compared]) -> Row:
  measure = evaluation.MEASURES[key]
  cells = [evaluation.cell(each.run.evaluation, key) for each in compared]
  return Row(measure.name, measure.meaning, cells)


def _differences(values: list[dict[str, Any]]) -> tuple[list[Row], int]:
  """A row for each key whose values are not the same everywhere, and how many are."""
  keys = dict.fromkeys(key for one in values for key in one)
  rows = []
  for key in keys:
    found = [one.get(key) for one in values]
    if any(x != found[0] for x in found):
      shown = [NONE if x is None else f"{x}" for x in found]
      rows.append(Row(key, "", [Cell(text, "") for text in shown]))
  return rows, len(keys) - len(rows)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """The leaves of nested dicts, each under its path with dots."""
  found: dict[str, Any] = {}
  for key, value in values.items():
    if isinstance(value, dict):
      found |= _flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value
  return found
