"""Which document a lane takes next.

Owns: the shares of the sources, their shuffled epochs, who gets which document. Not:
the form of a document (forms.py), rows and states (lanes.py).

Document g of a shuffled, repeated source goes to lane g % data.lanes; every lane mixes
on its own, from the counts in its state.
"""

from collections.abc import Sequence

import grain

from tfusion.config import Config
from tfusion.data import forms
from tfusion.data.lane_state import LaneState
from tfusion.data.source import Source

ENDLESS = 1 << 31  # epochs of a source that is repeated without end


class Mixture:
  """The order in which one lane takes documents of its sources; it has no state."""

  def __init__(
    self,
    sources: Sequence[Source],
    config: Config,
    *,
    lane: int,
    repeat: bool,
  ):
    """Works out the order of each source; reads no document.

    Args:
      sources: those of data.sources, or some of them.
      config: reads seed and data.
      lane: which of data.lanes.
      repeat: as often as data.epochs says. False gives each document once.
    """
    data = config.data
    self._lane, self._lanes = lane, data.lanes
    self._text_per_patch = data.text_per_patch
    self._has_images = {source.name: source.has_images for source in sources}
    weights = dict(zip(data.sources, data.weights))
    epochs = dict(zip(data.sources, data.epochs))
    specs = {source.name: source.spec for source in sources}
    self._weights = {n: weights[spec] for n, spec in specs.items() if weights}
    self._orders, self._lengths = {}, {}
    for source in sources:
      seed = int(forms.uniform(config.seed, source.name, 0) * 2**32)
      self._orders[source.name] = len(source), seed
      shown = (epochs.get(specs[source.name], 0) or ENDLESS) if repeat else 1
      # Showings lane, lane + lanes, ...; no len(range()), which ends at 2**63.
      self._lengths[source.name] = -(-(len(source) * shown - lane) // data.lanes)

  def choose(self, state: LaneState) -> str | None:
    """Returns the source that lacks most, or None when all are used up.

    With data.weights, that is the one with the fewest elements for its weight: so the
    shares of elements are off by a document at most. Without them, text-only sources
    and sources with images take turns by data.text_per_patch, and sources of one kind
    get equal shares. The paper mixes text and images 1:1 by tokens and patches (section
    4.1); counting captions, BOS, BOI and EOI as text is ours.

    Args:
      state: of the lane; reads taken, elements, text_elements and patches.
    """
    elements = state.elements
    left = [n for n, length in self._lengths.items() if state.taken[n] < length]
    if self._weights:
      return min(left, key=lambda n: elements[n] / self._weights[n], default=None)
    for_image = state.text_elements >= self._text_per_patch * state.patches
    lacking = [n for n in left if self._has_images[n] == for_image]
    return min(lacking or left, key=elements.__getitem__, default=None)

  def positions(self, name: str, start: int, count: int) -> range:
    """The lane's documents of a source from `start` on, at most `count` of them."""
    return range(start, min(start + count, self._lengths[name]))

  def index(self, name: str, position: int) -> int:
    """Which document of a source is the lane's document `position` of it."""
    length, seed = self._orders[name]
    # The same as grain.MapDataset.range(length).shuffle(seed), in half the time. An
    # index behind the last belongs to the next epoch, which is shuffled anew.
    epoch, at = divmod(self.showing(position), length)
    return grain.experimental.index_shuffle(
      at, max_index=length - 1, seed=(seed + epoch) % 2**32, rounds=4
    )

  def showing(self, position: int) -> int:
    """Its number in the order of the source, over all lanes."""
    return self._lane + position * self._lanes
