"""The page of a suite: its tables, curves and images.

Owns: what is plotted, writing both forms. Not: the tables (tables.py), how a page is
filled (report/).
"""

from pathlib import Path
from typing import Any

import numpy as np

from tfusion import files
from tfusion.ablations import results, tables
from tfusion.ablations.board import Board, Place
from tfusion.report import page, samples
from tfusion.report import plot as plot_lib
from tfusion.report.plot import HUES, Layer

GUIDE = "../../docs/ablations.md"  # from experiments/results of a clone
GRID_PX, GRID_BYTES = 780, 200_000
CURVES = {
  "loss_text": ("text loss", "nats per token"),
  "loss_image": ("diffusion loss", "mean squared error"),
}


def write(place: Place, board: Board, out: Path, *, command: str) -> list[Path]:
  """Writes SUITE.html and SUITE.md.

  Args:
    place: of the runs.
    board: where the suite stands.
    out: the folder.
    command: that did the runs, for the reader.

  Returns:
    Both paths.

  Raises:
    OSError: one cannot be written.
  """
  suite, made = board.suite, tables.of(board)
  sections = [
    page.Section("", "paragraph", lambda: {"title": suite.name, "text": suite.about}),
    *(page.Section(table.title, "table", table._asdict) for table in made),
    page.Section("Curves", "curves", lambda: _curves(board)),
    page.Section("Images", "grids", lambda: _grids(place, board)),
    page.Section("Failed", "table", lambda: _failed(board)),
  ]
  text = page.fill(f"Ablation {suite.name}", sections)
  paths = [out / f"{suite.name}.html", out / f"{suite.name}.md"]
  out.mkdir(parents=True, exist_ok=True)
  files.write_whole(paths[0], text.encode("utf-8", errors="replace"))
  guide = GUIDE if (out / GUIDE).is_file() else ""
  text = tables.markdown(board, command=command, guide=guide)
  files.write_whole(paths[1], text)
  return paths


def _curves(board: Board) -> dict[str, Any] | None:
  """Training losses: a colour for each arm, a line for each seed."""
  figures = []
  for key, (title, unit) in CURVES.items():
    layers = [
      _layer(seat.result.curves[key], colour)
      for one, colour in zip(board.standings, HUES)
      for seat in one.seats
      if seat.result and key in seat.result.curves
    ]
    if layers:
      end = max(float(layer.x[-1]) for layer in layers)
      source = plot_lib.plot(layers, x_label="update", x_max=end, from_zero=False)
      figures.append(_figure(title, unit, source))
  names = ", ".join(
    f"{one.arm.name} {number}" for number, one in enumerate(board.standings, 1)
  )
  said = f"While training; colours in the order of the table: {names}."
  return {"sentence": said, "figures": figures} if figures else None


def _layer(points: list[list[float]], colour: str) -> Layer:
  steps, values = np.asarray(points, float).T
  return Layer(steps, values, colour, "line")


def _figure(title: str, unit: str, source: str) -> dict[str, Any]:
  return {
    **{"title": title, "unit": unit, "colour": "ink", "newest": "", "reference": ""},
    **{"spikes": 0, "alt": f"{title} over updates, {unit}", "source": source},
  }


def _grids(place: Place, board: Board) -> dict[str, Any] | None:
  """The images of seed 0 of every arm."""
  rows = []
  for one in board.standings:
    result = one.seats[0].result if one.seats else None
    if result is None:
      continue
    path = results.path_of(place.results, result.key, result.code).with_suffix(".png")
    if path.is_file():
      shown = samples.image(path, width_px=GRID_PX, limit_bytes=GRID_BYTES)
      rows.append({"name": one.arm.name, "cells": [{"images": [shown], "text": ""}]})
  if not rows:
    return None
  column = {"name": "seed 0, with guidance", "colour": "muted", "note": ""}
  return {"columns": [column], "rows": rows}


def _failed(board: Board) -> dict[str, Any] | None:
  rows = [
    [one.arm.name, f"{seat.seed}", seat.failed]
    for one in board.standings
    for seat in one.seats
    if seat.failed
  ]
  if not rows:
    return None
  return {"sentence": "", "head": ["arm", "seed", "why"], "rows": rows}
