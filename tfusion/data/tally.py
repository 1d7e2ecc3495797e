"""What lanes have given so far, by source: for the console, the report and data.json.

Owns: the sums over lanes. Not: the states they come from (lane_state.py), collecting
those from all hosts (sharding.py).
"""

from collections.abc import Collection, Sequence
from typing import Any

from tfusion.config import Config
from tfusion.data import lanes
from tfusion.data.lane_state import LaneState
from tfusion.data.source import Source
from tfusion.numerals import percent

MUCH = 0.05  # share of a source's elements that may fit no row before a warning


class Tally:
  """Sums over the states of some lanes, or of all lanes of a run."""

  def __init__(
    self,
    sources: Sequence[Source],
    config: Config,
    states: Collection[LaneState],
  ):
    """Keeps the states as they are.

    Args:
      sources: of the run.
      config: reads data.lanes and data.row_length.
      states: of the lanes, in their order.
    """
    self._sources, self._config, self._states = sources, config, states

  def counts(self) -> dict[str, dict[str, Any]]:
    """What each source has given.

    Returns:
      Source -> documents; how many of these were rejected, split (and into how many
      pieces) and skipped as damaged; how many different records were damaged, and what
      was wrong with the last few; elements and their share of all; epochs; the share of
      the source's own elements that went with the rejected documents.
    """
    total: dict[str, dict[str, Any]] = {}
    states = self._states
    own_share = len(states) / self._config.data.lanes
    elements = sum(sum(state.elements.values()) for state in states)
    for source in self._sources:
      name = source.name
      taken = sum(state.taken[name] for state in states)
      own = sum(state.elements[name] for state in states)
      lost = sum(state.rejected_elements[name] for state in states)
      damaged = [s.damaged[name] for s in states if name in s.damaged]
      total[name] = {
        "documents": taken,
        "rejected": sum(state.rejected[name] for state in states),
        "split": sum(state.split[name] for state in states),
        "pieces": sum(state.pieces[name] for state in states),
        "elements": own,
        "skipped": sum(d.skipped for d in damaged),
        "damaged": len(set().union(*(d.records for d in damaged))),
        "damage": [text for d in damaged for text in d.last][-lanes.DAMAGE_QUOTED :],
        "share": own / max(elements, 1),
        "lost_share": lost / max(lost + own, 1),
        "epochs": taken / max(own_share * len(source), 1),
      }
    return total

  def summary(self) -> str:
    """The epochs and shares of the sources, and what was lost, in one line."""
    parts = []
    for name, source in self.counts().items():
      lost = []
      if source["rejected"]:
        share = percent(source["lost_share"])
        lost.append(f"{source['rejected']:,} rejected ({share} of its elements)")
      if source["damaged"]:
        lost.append(f"{source['damaged']:,} damaged")
      share, epochs = percent(source["share"]), source["epochs"]
      parts.append(", ".join([f"{name} {epochs:.2f} epochs, {share}", *lost]))
    return "; ".join(parts)

  def warnings(self) -> list[str]:
    """Which sources lose many of their elements, and what to do about it."""
    return [
      f"{name}: {percent(source['lost_share'])} of its elements are left out, in"
      f" {source['rejected']:,} documents that fit no row of data.row_length="
      f"{self._config.data.row_length} and data.image_slots="
      f"{self._config.data.image_slots}; data.too_long=split cuts them into pieces"
      for name, source in self.counts().items()
      if source["lost_share"] > MUCH
    ]

  def fill(self) -> float:
    """Share of the positions in all rows so far that are not padding."""
    rows = sum(state.rows for state in self._states)
    elements = sum(state.row_elements for state in self._states)
    return elements / max(rows * self._config.data.row_length, 1)
