"""How far a lane is: what it has taken, and what waits for a row.

Owns: LaneState, the names that checkpoints have for its fields. Not: what changes it
(lanes.py), sums over lanes (tally.py), where checkpoints lie (checkpoint.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfusion.data.source import Source


class Key(NamedTuple):
  """A document of a lane, or a piece of one that was cut."""

  source: str  # its name
  position: int  # among the lane's documents of that source, in order
  piece: int | None = None  # of a document that was cut


@dataclasses.dataclass(frozen=True)
class Damage:
  """The documents of a source that could not be read."""

  skipped: int = 0  # how often one was: it comes again in every epoch
  records: tuple[int, ...] = ()  # their indices in the source
  last: tuple[str, ...] = ()  # what was wrong with the last few


@dataclasses.dataclass
class LaneState:
  """All that a lane needs to go on, and all that it has counted.

  Dicts are by source. An element is a token, a patch or a code: a position of a row.
  """

  # Documents of each source, and hashes of them all where a source has one: with other
  # documents the rest of a state means nothing.
  sizes: dict[str, int]
  digests: dict[str, str]
  taken: dict[str, int]  # documents, those rejected or damaged too
  rejected: dict[str, int]  # documents that fit no row
  rejected_elements: dict[str, int]  # of those
  split: dict[str, int]  # documents cut into pieces
  pieces: dict[str, int]  # that those gave
  damaged: dict[str, Damage]  # of sources that have met some
  elements: dict[str, int]  # of documents that were used
  text_elements: int = 0  # elements that are neither patches nor codes
  patches: int = 0  # elements that are
  rows: int = 0  # given so far
  row_elements: int = 0  # in those rows
  waiting: tuple[Key, ...] = ()  # taken, but in no row yet
  next_piece: Key | None = None  # of a document of which not every piece waits yet

  @classmethod
  def fresh(cls, sources: Sequence[Source]) -> "LaneState":
    """The state of a lane that has given nothing yet."""
    zeros = dict.fromkeys((source.name for source in sources), 0)
    return cls(
      sizes={source.name: len(source) for source in sources},
      digests=digests(sources),
      taken=dict(zeros),
      rejected=dict(zeros),
      rejected_elements=dict(zeros),
      split=dict(zeros),
      pieces=dict(zeros),
      damaged={},
      elements=dict(zeros),
    )

  def copy(self) -> "LaneState":
    """The same, to be changed without changing this one."""
    copy = dataclasses.replace(self)
    for name, value in vars(self).items():
      if isinstance(value, dict):
        setattr(copy, name, dict(value))
    return copy

  def to_json(self) -> dict[str, Any]:
    """The state as checkpoints keep it: lists, dicts by str, numbers and strings."""
    values = {key: getattr(self.copy(), name) for name, key in _KEYS.items()}
    values["damaged"] = {
      source: {
        "skipped": own.skipped,
        "records": list(own.records),
        "last": list(own.last),
      }
      for source, own in self.damaged.items()
    }
    values["waiting"] = [_to_list(key) for key in self.waiting]
    values["cut"] = _to_list(self.next_piece) if self.next_piece else []
    return values

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "LaneState":
    """The inverse of `to_json`; what was not counted in older states is 0.

    Raises:
      ValueError: this is no state of a lane.
    """
    try:
      # States from before these were counted lack them.
      values = {"lost": dict.fromkeys(values["sizes"], 0)} | dict(values)
      state = cls(**{name: values[key] for name, key in _KEYS.items()}).copy()
      state.damaged = {
        source: Damage(own["skipped"], tuple(own["records"]), tuple(own["last"]))
        for source, own in values["damaged"].items()
      }
      state.waiting = tuple(Key(*key) for key in values["waiting"])
      state.next_piece = Key(*values["cut"]) if values["cut"] else None
    except (KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"no state of a data lane ({type(error).__name__}: {error}); restore the"
        " checkpoint, or go on from another one"
      ) from error
    return state


# What checkpoints call each field, in their order.
_KEYS = {
  "sizes": "sizes",
  "digests": "digests",
  "taken": "drawn",
  "rejected": "rejected",
  "rejected_elements": "lost",
  "split": "split",
  "pieces": "pieces",
  "damaged": "damaged",
  "elements": "elements",
  "text_elements": "text",
  "patches": "patches",
  "rows": "rows",
  "row_elements": "live",
  "waiting": "waiting",
  "next_piece": "cut",
}


def digests(sources: Sequence[Source]) -> dict[str, str]:
  """Hashes of the documents, of sources that know one: those made of shards."""
  return {s.name: s.digest for s in sources if s.digest is not None}


def _to_list(key: Key) -> list[str | int]:
  end = [] if key.piece is None else [key.piece]
  return [key.source, key.position, *end]
