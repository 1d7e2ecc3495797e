"""Where a suite stands: every arm and seed, what it found, what the claims come to.

Owns: gathering results, the learning rate that a search chose, differences of arms.
Not: doing runs (runner.py), how a board looks (tables.py, pages.py).
"""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tfusion.ablations import code, plan, results, statistics
from tfusion.ablations.plan import Spec
from tfusion.ablations.results import Result
from tfusion.ablations.statistics import Difference, Spread
from tfusion.ablations.suites import MORE, Arm, Claim, Suite
from tfusion.evaluate import scaling
from tfusion.evaluate.scaling import Interval, Point

FAILED = "failed.txt"  # in the workdir of a run that failed: why
LEAST = 3  # points of a family for an interval


class Place(NamedTuple):
  """Where the runs of an ablation are, and what they have in common."""

  scale: str
  seeds: int
  folder: Path  # workdirs and assets
  results: Path
  experiment: str = plan.EXPERIMENT
  search: bool = True  # whether learning rates are looked for

  def spec(self, arm: Arm, seed: int) -> Spec:
    """The run of an arm at the rates that are written in suites.py."""
    return Spec(arm, seed, self.scale, self.experiment, self.folder / "assets")

  def workdir(self, spec: Spec) -> Path:
    """Of a run, by the code of today."""
    return self.folder / "runs" / f"{spec.key}-{code.version()}"


class Seat(NamedTuple):
  """One arm at one seed."""

  seed: int
  result: Result | None
  failed: str = ""  # why, if it did


class Standing(NamedTuple):
  """One arm."""

  arm: Arm
  rate: float | None  # that the search chose, times the arm's; None: not known yet
  seats: list[Seat]

  def values(self, metric: str) -> dict[int, float]:
    """Of every seed that is done and has it."""
    return {
      seat.seed: float(seat.result.values[metric])
      for seat in self.seats
      if seat.result and isinstance(seat.result.values.get(metric), int | float)
    }

  def spread(self, metric: str) -> Spread | None:
    """Over the seeds; None where there is none."""
    found = list(self.values(metric).values())
    return statistics.spread(found) if found else None


class Board(NamedTuple):
  """A suite."""

  suite: Suite
  version: str  # of the code of all results that are shown
  standings: list[Standing]
  stale: int  # runs of which there are results by other code alone

  @property
  def is_stale(self) -> bool:
    """Whether all that is shown was found by other code than today's."""
    return self.version != code.version()

  @property
  def done(self) -> int:
    """Runs with a result."""
    return sum(seat.result is not None for one in self.standings for seat in one.seats)

  @property
  def wanted(self) -> int:
    """Runs in all."""
    return sum(len(one.seats) for one in self.standings)

  def standing(self, name: str) -> Standing:
    """Of the arm of a name."""
    return next(one for one in self.standings if one.arm.name == name)

  def difference(self, claim: Claim) -> Difference | None:
    """Of the two arms of a claim, over the seeds that both have; None without any."""
    better = self.standing(claim.better).values(claim.metric)
    worse = self.standing(claim.worse).values(claim.metric)
    both = sorted(better.keys() & worse.keys())
    if not both:
      return None
    return statistics.compare(
      [better[seed] for seed in both],
      [worse[seed] for seed in both],
      more=MORE[claim.metric],
    )

  def parity(self, metric: str) -> Interval | float | None:
    """The parity FLOP ratio of the first family to the second; None: it has none."""
    if not self.suite.families:
      return None
    ours, theirs = (self._points(name, metric) for name in self.suite.families)
    sizes = [len({point.flops for point in points}) for points in (ours, theirs)]
    if min(sizes) < 2 or not scaling.fit(ours).slope:
      return None
    if min(sizes) >= LEAST:
      return scaling.bootstrap_parity(ours, theirs, seed=0)
    return scaling.parity_ratio(ours, theirs)

  def _points(self, family: str, metric: str) -> list[Point]:
    return [
      Point(seat.result.about["flops_6nd"], float(seat.result.values[metric]))
      for one in self.standings
      if one.arm.name.startswith(family)
      for seat in one.seats
      if seat.result and seat.result.values.get(metric, 0) > 0
    ]


def rate_of(place: Place, arm: Arm, version: str = "") -> float | None:
  """The learning rate that the search of an arm chose, times its own.

  The one with the least held-out loss, the smaller of equals. 1 where nothing is looked
  for; None until all tries are done.
  """
  if not place.search:
    return 1.0
  losses = {}
  for spec in searches(place, arm, version):
    found = results.find(place.results, spec, version)
    if found is None:
      return None
    losses[spec.rate] = results.held_out_loss(spec, found.values)
  return min(losses, key=lambda rate: losses[rate])


def searches(place: Place, arm: Arm, version: str = "") -> list[Spec]:
  """The short runs of an arm; of one that starts from another, with its best rate."""
  return plan.searches(_started(place, place.spec(arm, 0), version))


def spec_of(place: Place, arm: Arm, seed: int, version: str = "") -> Spec | None:
  """The run of an arm at its best learning rate; None until that is known."""
  rate = rate_of(place, arm, version)
  if rate is None:
    return None
  return _started(place, place.spec(arm, seed), version)._replace(rate=rate)


def _started(place: Place, spec: Spec, version: str) -> Spec:
  if spec.arm.start is None:
    return spec
  rate = rate_of(place, spec.arm.start, version)
  return spec._replace(start_rate=1.0 if rate is None else rate)


def gather(place: Place, suite: Suite) -> Board:
  """Where a suite stands, by the code of today; by other code if that has nothing.

  Raises:
    ValueError: a result is damaged.
  """
  known = collections.Counter(_versions(place, suite))
  today = code.version()
  version = today if today in known or not known else known.most_common(1)[0][0]
  standings = []
  for arm in suite.arms:
    rate, seats = rate_of(place, arm, version), []
    for seed in range(place.seeds):
      spec = spec_of(place, arm, seed, version)
      result = results.find(place.results, spec, version) if spec else None
      seats.append(Seat(seed, result, "" if result else _failed(place, arm, spec)))
    standings.append(Standing(arm, rate, seats))
  done = sum(seat.result is not None for one in standings for seat in one.seats)
  others = max((n for v, n in known.items() if v != version), default=0)
  return Board(suite, version, standings, max(others - done, 0))


def _versions(place: Place, suite: Suite) -> Sequence[str]:
  """Of every result of the suite, the version of its code."""
  found: list[str] = []
  every = {path.stem.partition("-")[2] for path in place.results.glob("*-*.json")}
  for version in every:
    for arm in suite.arms:
      for seed in range(place.seeds):
        spec = spec_of(place, arm, seed, version)
        if spec and results.path_of(place.results, spec.judged, version).is_file():
          found.append(version)
  return found


def _failed(place: Place, arm: Arm, spec: Spec | None) -> str:
  """Why a run has no result, as far as it is known."""
  specs = [spec] if spec else searches(place, arm)
  for one in specs:
    path = place.workdir(one) / FAILED
    if path.is_file():
      return path.read_text(encoding="utf-8", errors="replace").strip()
  return ""
