"""One lane: documents -> packed rows, with a state to go on from.

Owns: which document lies in which row, what was drawn, rejected, split and damaged.
Not: which document comes next (mixture.py), its form (forms.py), where a long one is
cut (pieces.py), what a row is (sequence.py), batches of a host (pipeline.py).

A document's form and pieces depend on (seed, source, showing) alone, so a lane's state
is counters plus, for every row not yet full, which documents lie in it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from tfusion import sequence
from tfusion.config import Config
from tfusion.data import forms, pieces
from tfusion.data import sources as sources_lib
from tfusion.data.mixture import Mixture
from tfusion.data.records import Damaged
from tfusion.data.tokenizer import Tokenizer

ENCODED_TEXTS = 1 << 16  # encodings a lane remembers
DAMAGE_QUOTED = 3  # messages a state keeps per source

# (source, position) of a whole document in this lane; and which piece of a cut one.
Key = tuple[str, int] | tuple[str, int, int]


class Lane(Iterator[sequence.Batch]):
  """One deterministic stream of packed rows (Batches without b)."""

  def __init__(
    self,
    sources: Sequence[sources_lib.Source],
    tokenizer: Tokenizer,
    config: Config,
    *,
    lane: int,
    state: dict[str, Any] | None = None,
    repeat: bool = True,
  ):
    """Starts a lane, or goes on from a state.

    Args:
      sources: the training or test sources.
      tokenizer: encodes their texts.
      config: reads seed, data, model and diffusion.image_first_*.
      lane: which of data.lanes.
      state: what `state()` returned; from the start without it.
      repeat: as often as data.epochs says. False gives each document of the lane once.

    Raises:
      ValueError: the state is of other sources.
    """
    self._config, self._tokenizer = config, tokenizer
    self._encode = functools.lru_cache(ENCODED_TEXTS)(tokenizer.encode)
    self._sources = {source.name: source for source in sources}
    self._mixture = Mixture(sources, config, lane=lane, repeat=repeat)
    self._state = fresh_state(sources) if state is None else copy_state(state)
    sizes = {source.name: len(source) for source in sources}
    if self._state["sizes"] != sizes:
      raise ValueError(
        f"data.sources held {self._state['sizes']} documents when the state was saved"
        f" and hold {sizes} now; restore them or start in a new workdir"
      )
    self._rows = [_OpenRow() for _ in self._state["open"]]
    for row, keys in zip(self._rows, self._state["open"], strict=True):
      for name, position, *piece in keys:
        own = self._pieces(name, position)[piece[0] if piece else 0]
        row.add((name, position, *piece), own)
    self._cut: list[tuple[Key, sequence.Elements]] = []  # pieces not yet placed
    if self._state["cut"]:
      name, position, piece = self._state["cut"]
      self._cut = self._keyed(name, position, self._pieces(name, position))[piece:]
    self._last_keys: list[Key] = []

  @property
  def last_keys(self) -> list[Key]:
    """What lies in the row that was returned last, in order."""
    return list(self._last_keys)

  def __next__(self) -> sequence.Batch:
    """Returns the next row.

    Raises:
      ValueError: a source of which no document fits a row, or more damaged records
        than data.max_damaged.
    """
    full = None
    while full is None and (next_piece := self._take()) is not None:
      full = self._place(*next_piece)
    if full is None and self._rows:
      full = self._close_fullest()
    if full is None:
      raise StopIteration
    self._last_keys = full.keys
    return pack(full.documents, self._config, self._tokenizer)

  def state(self) -> dict[str, Any]:
    """JSON-able; after the last returned row."""
    self._state["open"] = [[list(key) for key in row.keys] for row in self._rows]
    self._state["cut"] = list(self._cut[0][0]) if self._cut else []
    return copy_state(self._state)

  def document_index(self, key: Key) -> int:
    """Which document of its source a key of this lane is."""
    return self._mixture.index(key[0], key[1])

  def _take(self) -> tuple[Key, sequence.Elements] | None:
    """The next document or piece; None when all are used up."""
    while not self._cut:
      name = self._mixture.choose(self._state)
      if name is None:
        return None
      position = self._state["drawn"][name]
      self._state["drawn"][name] += 1
      try:
        own = self._pieces(name, position)
      except Damaged as error:
        self._skip(name, position, error)
        continue
      self._count(name, own)
      self._cut = self._keyed(name, position, own)
    return self._cut.pop(0)

  def _keyed(
    self, name: str, position: int, own: list[sequence.Elements]
  ) -> list[tuple[Key, sequence.Elements]]:
    if len(own) == 1:
      return [((name, position), own[0])]
    return [((name, position, n), piece) for n, piece in enumerate(own)]

  def _pieces(self, name: str, position: int) -> list[sequence.Elements]:
    """Document `position` of this lane as it goes into rows; none: it fits no row."""
    config, special = self._config, self._tokenizer.special
    document = forms.form(
      self._sources[name][self._mixture.index(name, position)],
      self._encode,
      config,
      name=name,
      showing=self._mixture.showing(position),
    )
    patches = config.model.patches_per_image
    whole = sequence.lay_out(document, special=special, patches_per_image=patches)
    if self._fits(_OpenRow(), whole):
      return [whole]
    if config.data.too_long == "reject":
      return []
    return pieces.cut(
      whole,
      endings=self._tokenizer.endings,
      special=special,
      row_length=config.data.row_length,
      image_slots=config.data.image_slots,
      patches_per_image=patches,
      overlap=config.data.overlap,
    )

  def _place(self, key: Key, elements: sequence.Elements) -> "_OpenRow | None":
    """Puts a piece into the first row with room; returns a row closed for it."""
    closed = None
    row = next((r for r in self._rows if self._fits(r, elements)), None)
    if row is None:
      if len(self._rows) == self._config.data.packing_bins:
        closed = self._close_fullest()
      row = _OpenRow()
      self._rows.append(row)
    row.add(key, elements)
    return closed

  def _fits(self, row: "_OpenRow", elements: sequence.Elements) -> bool:
    data = self._config.data
    return (
      row.length + len(elements.tokens_l) <= data.row_length
      and row.images + len(elements.images) <= data.image_slots
    )

  def _close_fullest(self) -> "_OpenRow":
    fullest = max(self._rows, key=lambda row: row.length)
    self._rows.remove(fullest)
    self._state["rows"] += 1
    self._state["live"] += fullest.length
    return fullest

  def _count(self, name: str, own: list[sequence.Elements]) -> None:
    state, special = self._state, self._tokenizer.special
    for piece in own:
      patches = int(np.sum(sequence.in_image(piece, special=special)))
      state["elements"][name] += len(piece.tokens_l)
      state["patches"] += patches
      state["text"] += len(piece.tokens_l) - patches
    if len(own) > 1:
      state["split"][name] += 1
      state["pieces"][name] += len(own)
    if not own:
      state["rejected"][name] += 1
      self._require_some(name)

  def _skip(self, name: str, position: int, error: Damaged) -> None:
    """Counts a damaged record, and stops where there are too many."""
    state, index = self._state, self._mixture.index(name, position)
    before = state["damaged"].get(name, {"skipped": 0, "records": [], "last": []})
    records, last = before["records"], before["last"]
    if index not in records:  # it comes again in every epoch
      logging.warning("%s: document %d is skipped: %s", name, index, error)
      records, last = [*records, index], [*last, str(error)][-DAMAGE_QUOTED:]
    # Replaced, not changed: states that were handed out share the lists.
    state["damaged"][name] = {
      "skipped": before["skipped"] + 1,
      "records": records,
      "last": last,
    }
    found, limit = (
      sum(len(d["records"]) for d in state["damaged"].values()),
      self._config.data.max_damaged,
    )
    if found > limit:
      raise ValueError(
        f"data.max_damaged={limit}: one lane has met {found} damaged records, the last"
        f" of {name}: {error}; restore or prepare the data again, or raise the limit"
      )
    self._require_some(name)

  def _require_some(self, name: str) -> None:
    state, data = self._state, self._config.data
    damaged = state["damaged"].get(name, {"skipped": 0})["skipped"]
    drawn = state["drawn"][name]
    if state["rejected"][name] + damaged == drawn >= len(self._sources[name]):
      raise ValueError(
        f"data.row_length={data.row_length}, data.image_slots={data.image_slots}: no"
        f" document of {name} fits and is whole; raise them"
      )


@dataclasses.dataclass(eq=False)
class _OpenRow:
  """Documents placed in a row that may take more."""

  keys: list[Key] = dataclasses.field(default_factory=list)
  documents: list[sequence.Elements] = dataclasses.field(default_factory=list)
  length: int = 0
  images: int = 0

  def add(self, key: Key, elements: sequence.Elements) -> None:
    self.keys.append(key)
    self.documents.append(elements)
    self.length += len(elements.tokens_l)
    self.images += len(elements.images)


def fresh_state(sources: Sequence[sources_lib.Source]) -> dict[str, Any]:
  """The state of a lane that has given nothing yet."""
  zeros = dict.fromkeys((source.name for source in sources), 0)
  return {
    "sizes": {source.name: len(source) for source in sources},
    # Documents taken from the source: also those that fit no row, or are damaged.
    "drawn": dict(zeros),
    "rejected": dict(zeros),  # documents that fit no row
    "split": dict(zeros),  # documents cut into pieces
    "pieces": dict(zeros),  # and how many pieces those gave
    # Source -> how often one was skipped, which, and what was said of the last few.
    "damaged": {},
    "elements": dict(zeros),
    "text": 0,  # elements that are neither patches nor codes
    "patches": 0,  # or codes
    "rows": 0,
    "live": 0,  # elements in those rows
    "open": [],  # the keys of what lies in every row not yet full
    "cut": [],  # the key of the next piece, where a document is not yet all placed
  }


def pack(
  documents: list[sequence.Elements], config: Config, tokenizer: Tokenizer
) -> sequence.Batch:
  """Packs laid-out documents into a row (a Batch without b) of the run's sizes."""
  return sequence.pack(
    documents,
    row_length=config.data.row_length,
    image_slots=config.data.image_slots,
    latent_shape=config.model.image_shape,
    special=tokenizer.special,
    patches_per_image=config.model.patches_per_image,
  )


def copy_state(state: dict) -> dict:
  """Copies nested dicts; lists in them are never changed, only replaced."""
  return {
    key: copy_state(value) if isinstance(value, dict) else value
    for key, value in state.items()
  }
