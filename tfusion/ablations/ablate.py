"""`tfusion ablate`: does the runs of suites, and shows where they stand.

Owns: what both doors call, their checks. Not: doing runs (runner.py), boards
(board.py), pages (pages.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tfusion.ablations import board, full, pages, plan, results, runner, suites
from tfusion.ablations.board import Board, Place

FOLDER = "runs/ablate"
OUT = "experiments/results"
MOST_SEEDS = 20


class Ablated(NamedTuple):
  """Where suites stand."""

  boards: list[Board]
  pages: list[Path]
  missing: int  # runs that failed, or could not begin because another did


def ablate(
  names: str,
  *,
  scale: str = "tiny",
  seeds: int = 3,
  folder: str | Path = FOLDER,
  out: str | Path = OUT,
  devices: str = "",
  experiment: str | Path = plan.EXPERIMENT,
  search: bool = True,
  only: Sequence[str] = (),
  show: bool = False,
  say: Callable[[str], object] = print,
) -> Ablated:
  """Trains all models that suites compare, and writes a page of each suite.

    tfusion.ablate("table5", seeds=2)

  What is done is not done again, whatever suite asked for it; what was interrupted goes
  on.

  Args:
    names: of suites, with commas between them; `all` is every one.
    scale: tiny, for 2 CPU cores, minutes for each run; small, for a GPU; smoke, a
      minute or less for each, to see that everything runs.
    seeds: of each arm.
    folder: for assets and workdirs.
    out: for a page of each suite in HTML and in Markdown, and, in its folder `runs`, a
      small JSON of each run, by which another machine goes on.
    devices: one run at a time on each, as in "gpu:0,gpu:1" or, for cores of a CPU,
      "cpu:0-3,cpu:4-7"; empty: one run at a time on the whole machine.
    experiment: the file that all arms begin with.
    search: whether every arm's learning rate is looked for, by short runs.
    only: does only arms with one of these in their name; none: all arms.
    show: only write the pages, of what is done.
    say: gets lines of progress.

  Raises:
    ValueError: a suite or a value is unknown, a run's config does not fit, or another
      process is at work in the folder.
    runner.Failed: what all runs stand on could not be made.
  """
  wanted = suites.chosen(names)
  place = _place(scale, seeds, Path(folder), Path(out), str(experiment), search)
  own = runner.parse_devices(devices)
  made: list[Path] = []

  def write() -> list[Board]:
    made.clear()
    boards = [board.gather(place, suite) for suite in wanted]
    for one in boards:
      command = f"tfusion ablate {one.suite.name} --scale {scale} --seeds {seeds}"
      command += "" if search else " --no-search"
      made.extend(pages.write(place, one, Path(out), command=command))
    return boards

  todo, missing = [suites.with_arms(suite, only) for suite in wanted], 0
  if show:
    _check_any(place, wanted)
  else:
    missing = runner.run(place, todo, devices=own, say=say, after=write)
  return Ablated(write(), made, missing)


def launch(names: str) -> list[str]:
  """What starts the runs of suites at the paper's sizes on a pod, as lines of a shell.

  Raises:
    ValueError: a suite is unknown.
  """
  return full.lines(suites.chosen(names))


def _place(
  scale: str, seeds: int, folder: Path, out: Path, experiment: str, search: bool
) -> Place:
  if scale not in plan.IMAGES:
    known = ", ".join([*plan.IMAGES, "full"])
    raise ValueError(f"--scale={scale}: choose one of {known}")
  if not 1 <= seeds <= MOST_SEEDS:
    raise ValueError(f"--seeds={seeds}: give a number from 1 to {MOST_SEEDS}")
  for path in (folder, out):
    if set(",:;") & set(str(path)):
      raise ValueError(f"{path}: has a comma or a colon in its name; choose another")
  return Place(scale, seeds, folder, out / results.ROOM, experiment, search)


def _check_any(place: Place, wanted: list[suites.Suite]) -> None:
  """Raises ValueError if nothing of any suite is done."""
  if not any(board.gather(place, suite).done for suite in wanted):
    names = ", ".join(suite.name for suite in wanted)
    raise ValueError(
      f"{place.results}: holds no run of {names} at --scale={place.scale}; leave out"
      " --show, and they are done"
    )
