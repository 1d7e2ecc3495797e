"""What seeds say: means, spreads, and whether one arm is better than another.

Owns: the arithmetic. Not: which numbers are compared (board.py).

Arms are compared seed by seed: the same seed draws the same rows in the same order, so
much of the spread of one arm is that of the other, and falls out of the difference.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Spread(NamedTuple):
  """Numbers of several seeds."""

  mean: float
  deviation: float  # of the seeds, with n - 1; 0 of one seed
  seeds: int


class Difference(NamedTuple):
  """By how much one arm is better than another, seed by seed."""

  mean: float  # above 0: better, whichever way is better
  low: float  # ends of the interval of Student's t; infinite with one seed
  high: float
  better: int  # seeds in which it is better
  seeds: int

  @property
  def verdict(self) -> str:
    """In words: holds, same sign, mixed, opposite sign, no difference, or does not
    hold."""
    if self.low > 0:
      return "holds"
    if self.high < 0:
      return "does not hold: the opposite does"
    if self.better == self.seeds:
      return "same sign"
    if self.better:
      return "mixed"
    return "opposite sign" if self.mean else "no difference"


def spread(values: Sequence[float]) -> Spread:
  """Mean and deviation.

  Raises:
    ValueError: there are none.
  """
  if not values:
    raise ValueError("no seeds, so no mean")
  deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
  return Spread(float(np.mean(values)), deviation, len(values))


def compare(
  better: Sequence[float], worse: Sequence[float], *, more: bool
) -> Difference:
  """Compares two arms, seed by seed.

  Args:
    better: of each seed, the numbers of the arm that should be better.
    worse: of the same seeds in the same order.
    more: whether a larger number is better.

  Raises:
    ValueError: not as many of both, or none.
  """
  if len(better) != len(worse) or not better:
    raise ValueError(f"{len(better)} and {len(worse)} seeds cannot be compared")
  signed = (np.asarray(better, float) - np.asarray(worse, float)) * (1 if more else -1)
  mean, seeds = float(signed.mean()), len(signed)
  half = math.inf
  if seeds > 1:
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, seeds - 1)
    half = float(quantile * signed.std(ddof=1) / math.sqrt(seeds))
  better_in = int((signed > 0).sum())
  return Difference(mean, mean - half, mean + half, better_in, seeds)
