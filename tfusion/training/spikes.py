"""Updates whose loss or gradient is far above those before them.

Owns: the rule. Not: what is said of them (log.py, report/).
"""

import collections
import math
from typing import NamedTuple

import numpy as np

KEYS = ("loss", "grad_norm")
WINDOW, LEAST = (
  128,
  32,
)  # updates before it that one is compared with, at most, at least
DEVIATIONS = 8.0  # above the median, in standard deviations of what is normal ...
RATIO = 1.5  # ... and in any case so many times the median


class Spike(NamedTuple):
  """A value far above its median."""

  key: str
  value: float
  median: float


class Spikes:
  """The running medians. They begin anew with every start of a run."""

  def __init__(self):
    """Has seen nothing yet."""
    self._seen = {key: collections.deque[float](maxlen=WINDOW) for key in KEYS}

  def find(self, values: dict[str, float]) -> list[Spike]:
    """What of an update is a spike.

    The deviation is the median one times 1.4826, which a few spikes do not move.

    Args:
      values: of the update; what is missing or not finite is passed over.
    """
    found = []
    for key, before in self._seen.items():
      value = values.get(key, math.nan)
      if not math.isfinite(value):
        continue
      if len(before) >= LEAST:
        median = float(np.median(before))
        deviation = 1.4826 * float(np.median(np.abs(np.asarray(before) - median)))
        if value > max(median + DEVIATIONS * deviation, RATIO * median):
          found.append(Spike(key, value, median))
      before.append(value)
    return found
