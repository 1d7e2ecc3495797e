"""The speed of a model's training: elements per second, share of the peak (MFU).

Owns: the peak of this run, which run.json keeps. Not: the operations of a batch
(flops.py), the rate of a machine (machine.py).
"""

from pathlib import Path

import jax

from tfusion.training import events, machine
from tfusion.training.log import Values


class Speed:
  """Rates of a run; the peak behind MFU goes up where a device was seen to do more."""

  def __init__(self, workdir: Path):
    """Looks up the peak of a device, or measures it.

    Args:
      workdir: whose run.json is corrected when the peak is.
    """
    self.peak, self.source = machine.peak_flops()
    self.facts: Values = {}  # of run.json
    self._workdir = workdir

  def write_facts(self, facts: Values) -> Values:
    """Writes run.json with the peak of all devices; returns all that it says."""
    peak = {"peak_flops": self.total, "peak_flops_source": self.source}
    self.facts = events.write_facts(self._workdir, facts | peak)
    return self.facts

  @property
  def total(self) -> float:
    """FLOP/s of all devices at their peak."""
    return self.peak * jax.device_count()

  def rates(self, since: dict[str, float]) -> Values:
    """What speed.jsonl says beside times.

    Args:
      since: `seconds`, and the `elements` and `flops` of all hosts in them.
    """
    rate = since["flops"] / since["seconds"] / jax.device_count()
    if rate > self.peak:
      self._raise_peak(rate)
    return {
      "elements_per_s": since["elements"] / since["seconds"],
      "mfu": rate / self.peak,
      "flops_per_element": since["flops"] / since["elements"],
    }

  def _raise_peak(self, rate: float) -> None:
    """Corrects the peak where more was seen: it was measured in a busy moment."""
    self.peak = max(rate, machine.peak_flops()[0])
    self.source = "measured while training"
    self.facts |= {"peak_flops": self.total, "peak_flops_source": self.source}
    events.write_json(self._workdir, "run.json", self.facts)
    events.say_first(
      f"faster than the {self.facts['device']} was at the start: MFU is counted from"
      f" {self.total / 1e9:,.0f} GFLOP/s from here on"
    )
