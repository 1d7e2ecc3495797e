"""A run's workdir -> one self-contained HTML page; the curves of a known-good run.

Owns: what stands on the page, and in what order. Not: any number on it; training/ and
evaluate/ write those into the files that run.py reads.
"""

import collections
import functools
import json
from pathlib import Path

from tfusion import files
from tfusion.report import curves, evaluation, facts, page, samples
from tfusion.report.page import Section
from tfusion.report.run import read_reference, read_run, spread
from tfusion.report.summary import summary

POINTS, DIGITS = 400, 5  # of a curve of a reference, of a number of it
AUTOENCODER = "autoencoder"  # `command` in the config of such a run


def write_report(workdir: str | Path, *, reference: str | Path | None = None) -> Path:
  """Writes workdir/report.html from whatever the workdir holds, and returns its path.

  The page is under 3 MB, needs nothing beside it and runs no script; of what is missing
  or half written it says so. A `reference`, a file of `save_reference` (by default the
  workdir's reference.json), is plotted in grey behind the run's own curves, unless it
  does not exist or is of another model.

  Raises:
    OSError: the page itself cannot be written.
  """
  workdir = files.to_path(workdir).resolve()
  run = read_run(workdir)
  path = files.to_path(reference or workdir / "reference.json")
  known = read_reference(path, model=run.config.get("model"))
  of, images, sentence = curves.OF_TRAIN, "Samples", "The same prompts and noise"
  if run.config.get("command") == AUTOENCODER:
    of, images = curves.OF_AUTOENCODER, "Reconstructions"
    sentence = "Images above what came back"

  def of_curves(section: curves.Section, *, behind=known) -> Section:
    values = functools.partial(curves.figures, section, run, behind)
    return Section(section.title, "curves", values)

  sections = [
    Section("", "summary", lambda: summary(workdir.name, of, run, known)),
    of_curves(of.training),
    Section(images, "samples", lambda: samples.newest(workdir / "samples", sentence)),
    Section("Evaluation", "evaluation", lambda: evaluation.table(workdir, run, known)),
    of_curves(of.held_out),
    of_curves(of.optimiser, behind=None),
    Section("Data", "data", lambda: facts.data(run)),
    Section("Machine and config", "machine", lambda: facts.machine(run)),
  ]
  text = page.fill(workdir.name, sections)
  # Odd names of files are in it.
  files.write_whole(workdir / "report.html", text.encode("utf-8", errors="replace"))
  return workdir / "report.html"


def save_reference(workdir: str | Path, path: str | Path, *, commit: str = "") -> None:
  """Writes a finished run's curves for `write_report(reference=...)`.

  At most 400 points a curve and 5 significant digits. `commit` names the code it ran.

  Raises:
    ValueError: the run is not finished.
  """
  run = read_run(files.to_path(workdir))
  if not 0 < run.steps <= run.step:
    raise ValueError(
      f"workdir={workdir}: is at update {run.step} of {run.steps}; train it to its end"
      " first"
    )
  machine = collections.defaultdict(str, run.machine)
  hardware = "{devices} x {device}, {cores} cores of {cpu}".format_map(machine)
  losses = ("step", "loss", "loss_text", "loss_image")
  values = {
    "name": files.to_path(workdir).resolve().name,
    "command": machine["command"],
    "hardware": machine["hardware"] or hardware,
    "commit": commit,
    "model": run.config.get("model"),
    "metrics": [{k: x.get(k) for k in losses} for x in spread(run.metrics, POINTS)],
    "validation": spread(run.validation, POINTS),
    "eval": run.evaluation,
  }
  short = json.loads(json.dumps(values), parse_float=_shortened)
  files.write_whole(files.to_path(path), json.dumps(short) + "\n")


def _shortened(digits: str) -> float:
  return float(f"{float(digits):.{DIGITS}g}")
