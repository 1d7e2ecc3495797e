"""The head of the page: how far a run is, and its newest numbers.

Owns: the sentence and the tiles. Not: the numbers (curves.py, evaluation.py).
"""

from typing import Any, NamedTuple

import numpy as np

from tfusion.report.curves import Sections, number, smooth
from tfusion.report.evaluation import MEASURES, cell
from tfusion.report.run import Reference, Run, series

OF_EVALUATION = ("caption_accuracy", "image_accuracy", "text_perplexity")


class Tile(NamedTuple):
  """A number at a glance."""

  title: str
  value: str
  note: str
  colour: str


def summary(
  name: str, sections: Sections, run: Run, known: Reference | None
) -> dict[str, Any]:
  """Returns the values of the macro `summary`."""
  return {
    "name": name,
    "state": state(run, known),
    "done": f"{run.step / max(run.step, run.steps, 1):.1%}",
    "tiles": _tiles(sections, run),
  }


def state(run: Run, known: Reference | None = None) -> str:
  """Returns how far a run is, and what is behind it on the page."""
  step, steps = run.step, run.steps
  said = "Finished: update " if 0 < steps <= step else "Update "
  said += f"{step:,} of {steps:,}" if steps else f"{step:,}"
  _, rest = series(run.speed, "eta_seconds")
  if (total := seconds(run)) is not None:
    said += f", {total / 60:,.1f} minutes"
    if step < steps and rest.size:
      said += f", {rest[-1] / 60:,.1f} to go"
  _, skipped = series(run.metrics, "skipped_total")
  if skipped.size and skipped[-1]:
    said += f". {skipped[-1]:.0f} updates skipped: loss or gradient not finite"
  if known:
    said += f". In grey: the reference run {', '.join(known.about)}"
  return said


def seconds(run: Run) -> float | None:
  """Returns how long the starts of a run took; None before its first line."""
  _, logged = series(run.speed, "seconds")
  if not logged.size:
    return None
  # They begin again where a run was restarted.
  return float(logged[:-1][np.diff(logged) < 0].sum() + logged[-1])


def _tiles(sections: Sections, run: Run) -> list[Tile]:
  tiles = []
  for curve in sections.training.curves:
    _, values = series(getattr(run, curve.file), curve.key)
    if values.size:
      newest = number(smooth(values)[-1])
      tiles.append(Tile(curve.title, newest, curve.unit, curve.colour))
  for key in OF_EVALUATION:
    if key in run.evaluation:
      value, note = cell(run.evaluation, key)
      tiles.append(Tile(MEASURES[key].name, value, note, "ink"))
  return tiles
