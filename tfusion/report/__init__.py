"""The workdir of a run -> one self-contained HTML page; those of several -> one page
that compares them; the curves of a known-good run.

Owns: what stands on the pages, and in what order. Not: any number on them; training/
and evaluate/ write those into the files that run.py reads.
"""

import collections
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from tfusion import files
from tfusion.report import (
  comparison,
  curves,
  evaluation,
  facts,
  goodput,
  hosts,
  page,
  samples,
  spikes,
)
from tfusion.report.page import Section
from tfusion.report.run import read_checked, read_reference, read_run, spread
from tfusion.report.summary import summary

POINTS, DIGITS = 400, 5  # of a curve of a reference, of a number of it


def write_report(
  workdir: str | Path,
  *,
  reference: str | Path | None = None,
  out: str | Path | None = None,
) -> Path:
  """Writes a page from whatever a workdir holds, and returns its path: `out`, or
  report.html in the workdir.

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
  of, images, sentence = curves.of(run), "Samples", "The same prompts and noise"
  if run.is_autoencoder:
    images, sentence = "Reconstructions", "Images above what came back"

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
    Section("Spikes", "spikes", lambda: spikes.table(workdir, run)),
    Section("Data", "data", lambda: facts.data(run)),
    Section("Time", "goodput", lambda: goodput.table(run.goodput)),
    Section("Hosts", "hosts", lambda: hosts.table(run)),
    Section("Machine and config", "machine", lambda: facts.machine(run)),
  ]
  if run.machine.get("hosts", 1) == 1:
    sections = [section for section in sections if section.title != "Hosts"]
  return _write(files.to_path(out or workdir / "report.html"), workdir.name, sections)


def write_comparison(workdirs: Sequence[str | Path], out: str | Path) -> Path:
  """Writes one page that compares runs, and returns its path.

    write_comparison(["runs/a", "runs/b"], "comparison.html")

  Curves lie over each other; beside each other stand the knobs that differ, the newest
  numbers, what the time went into, and the newest samples. The page needs nothing
  beside it and runs no script.

  Args:
    workdirs: of two runs at least, of models or of autoencoders.
    out: the page.

  Raises:
    ValueError: names a folder that is no run, has no metrics yet, is given twice or of
      another command than the first; or there are too many.
    OSError: the page cannot be written.
  """
  compared = comparison.read(workdirs)

  def of_curves(section: curves.Section) -> Section:
    values = functools.partial(comparison.figures, section, compared)
    return Section(section.title, "curves", values)

  sections = [
    Section("", "compared", lambda: comparison.head(compared)),
    *map(of_curves, curves.of(compared[0].run)),
    Section("Numbers", "columns", lambda: comparison.numbers(compared)),
    Section("What differs", "columns", lambda: comparison.differing(compared)),
    Section("Samples", "grids", lambda: comparison.grids(compared)),
    Section("Time", "times", lambda: comparison.times(compared)),
  ]
  title = ", ".join(each.name for each in compared)
  return _write(files.to_path(out), title, sections)


def check(workdir: str | Path) -> None:
  """Refuses a folder of which there is nothing to report.

  Raises:
    ValueError: it is no run, or one without metrics.
  """
  read_checked(files.to_path(workdir))


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


def _write(path: Path, title: str, sections: list[Section]) -> Path:
  text = page.fill(title, sections)
  # Odd names of files are in it.
  files.write_whole(path, text.encode("utf-8", errors="replace"))
  return path


def _shortened(digits: str) -> float:
  return float(f"{float(digits):.{DIGITS}g}")
