"""How a metric grows with compute, and how much less of it one family needs.

Owns: the fit of a power law, the parity FLOP ratio with the paper's filters, bootstrap
intervals (arXiv 2408.11039, section 4.2). Not: where points come from.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Points that the paper leaves out of its fits (footnote 16): models too small to draw.
FILTERS = {
  "fid": lambda fid: fid <= 100.0,
  "clip": lambda clip: clip >= 17.0,
  "cider": lambda cider: cider >= 4.0,
}


class Point(NamedTuple):
  """A trained model."""

  flops: float  # of its training, 6 N D
  value: float  # of the metric, above 0


class Law(NamedTuple):
  """value = exp(intercept) * flops ** slope."""

  slope: float
  intercept: float

  def value(self, flops: float) -> float:
    """The metric after so many FLOPs."""
    return math.exp(self.intercept) * flops**self.slope

  def flops(self, value: float) -> float:
    """After how many FLOPs the metric has this value.

    Raises:
      ValueError: the metric does not change with FLOPs.
    """
    if not self.slope:
      raise ValueError("a metric that does not change with FLOPs: no number gives it")
    with np.errstate(over="ignore"):  # of a metric that hardly changes: no end
      return float(np.exp((math.log(value) - self.intercept) / self.slope))


class Interval(NamedTuple):
  """Where a number lies, with 95 % of the bootstrap's samples between the ends."""

  value: float
  low: float
  high: float


def training_flops(parameters: float, elements: float) -> float:
  """6 N D, where elements are tokens and patches alike (section 4.2)."""
  return 6.0 * parameters * elements


def kept(metric: str, points: Sequence[Point]) -> list[Point]:
  """The points that the paper's filters keep; all of a metric that has none."""
  keep = FILTERS.get(metric, lambda _: True)
  return [point for point in points if keep(point.value)]


def fit(points: Sequence[Point]) -> Law:
  """The straight line through log(value) over log(FLOPs), by least squares.

  Raises:
    ValueError: fewer than two different FLOPs, or a number that has no logarithm.
  """
  for point in points:
    if not (0 < point.flops < math.inf and 0 < point.value < math.inf):
      raise ValueError(f"{point}: FLOPs and values must be above 0 and finite")
  if len({point.flops for point in points}) < 2:
    raise ValueError(
      f"{len(points)} points with fewer than two different FLOPs: no line goes through"
      " them; give runs of two sizes or lengths at least"
    )
  flops, values = np.log(np.asarray(points, np.float64)).T
  slope, intercept = np.polyfit(flops, values, 1)
  return Law(float(slope), float(intercept))


def parity_ratio(ours: Sequence[Point], theirs: Sequence[Point]) -> float:
  """The share of their FLOPs with which we reach what their largest model reaches.

  That is FLOPs at which our line has the value of their line at their most FLOPs, over
  these: below 1 where we need less.

  Raises:
    ValueError: one of the two families has no line.
  """
  most = max((point.flops for point in theirs), default=0.0)
  return fit(ours).flops(fit(theirs).value(most)) / most


def bootstrap_slope(
  points: Sequence[Point], *, seed: int, samples: int = 1000
) -> Interval:
  """The slope of `fit`, as an Interval.

  Args:
    points: of one family.
    seed: of the samples.
    samples: how many; those with fewer than two different FLOPs are drawn anew.

  Raises:
    ValueError: as `fit`.
  """
  rng = np.random.default_rng(seed)
  drawn = [fit(_resample(rng, points)).slope for _ in range(samples)]
  return _interval(fit(points).slope, drawn)


def bootstrap_parity(
  ours: Sequence[Point], theirs: Sequence[Point], *, seed: int, samples: int = 1000
) -> Interval:
  """The ratio of `parity_ratio`, as an Interval; both families are drawn anew.

  Their most FLOPs stay what they are: the question is not drawn anew.

  Raises:
    ValueError: one of the two families has no line.
  """
  rng = np.random.default_rng(seed)
  most = max(point.flops for point in theirs)
  drawn = []
  for _ in range(samples):
    own, other = fit(_resample(rng, ours)), fit(_resample(rng, theirs))
    drawn.append(own.flops(other.value(most)) / most)
  return _interval(parity_ratio(ours, theirs), drawn)


def _resample(rng: np.random.Generator, points: Sequence[Point]) -> list[Point]:
  fit(points)  # raises where no sample could do
  while True:
    sample = [points[i] for i in rng.integers(len(points), size=len(points))]
    if len({point.flops for point in sample}) > 1:
      return sample


def _interval(value: float, drawn: Sequence[float]) -> Interval:
  # Those of samples, so that an infinite one does no harm.
  low, high = np.quantile(drawn, (0.025, 0.975), method="nearest")
  return Interval(value, float(low), float(high))
