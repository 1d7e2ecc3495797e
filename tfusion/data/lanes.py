"""One lane: documents -> packed rows, and the state from which it goes on.

Owns: which documents wait, what is rejected, cut and damaged. Not: which document comes
next (mixture.py), its form (forms.py), where a long one is cut (pieces.py), what of it
stands twice (branches.py), what shares a row (packing.py), what a row is (sequence.py),
what a state holds (lane_state.py), batches of a host (pipeline.py).

A document's form and pieces depend on (seed, source, showing) alone. So the state of a
lane is counters and the names of the documents that wait.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from tfusion import sequence
from tfusion.config import Config, slots_of
from tfusion.data import branches, forms, packing, pieces
from tfusion.data.lane_state import Damage, Key, LaneState
from tfusion.data.mixture import Mixture
from tfusion.data.shards.records import Damaged
from tfusion.data.source import Source, Span
from tfusion.data.tokenizer import Tokenizer

READ_AHEAD = 8  # documents of a source, at most: they are read faster together
ENCODED_TEXTS = 1 << 16  # encodings a lane remembers
DAMAGE_QUOTED = 3  # messages a state keeps per source
HOPELESS = 10_000  # if so many documents of a shuffled source fit no row, none will


class TooLong(NamedTuple):
  """A document that fits no row, and that is not cut."""

  elements: int


class Lane(Iterator[sequence.Row]):
  """One deterministic stream of packed rows."""

  def __init__(
    self,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    config: Config,
    *,
    lane: int,
    state: LaneState | None = None,
    repeat: bool = True,
  ):
    """Starts a lane, or goes on from a state.

    Args:
      sources: the training or test sources.
      tokenizer: encodes their texts.
      config: reads seed, data, model, diffusion.image_first_* and diffusion.context.
      lane: which of data.lanes.
      state: what `state` returned; None: from the start.
      repeat: as often as data.epochs says. False gives each document of the lane once.

    Raises:
      ValueError: the state is of other sources, or more of the documents that it names
        have been damaged since than data.max_damaged.
    """
    self._config, self._tokenizer = config, tokenizer
    # Asked for at every document.
    self._slots, self._patches = slots_of(config), config.model.patches_by_kind
    self._encode = functools.lru_cache(ENCODED_TEXTS)(tokenizer.encode)
    self._sources = {source.name: source for source in sources}
    self._mixture = Mixture(sources, config, lane=lane, repeat=repeat)
    fresh = LaneState.fresh(sources)
    self._state = fresh if state is None else state.copy()
    if self._state.sizes != fresh.sizes:
      raise ValueError(
        f"data.sources held {self._state.sizes} documents when the state was saved and"
        f" hold {fresh.sizes} now; restore them or start in a new workdir"
      )
    for name, was in self._state.digests.items():
      if (now := fresh.digests[name]) != was:
        raise ValueError(
          f"{name}: its documents are others than when the state was saved (hash"
          f" {was[:16]}..., now {now[:16]}...); restore them or start in a new workdir"
        )
    self._waiting: list[tuple[Key, sequence.Elements]] = []
    self._cut: list[tuple[Key, sequence.Elements]] = []  # pieces not yet waiting
    # By source, from the next document on; not in the state, for it is read again.
    self._ahead: dict[str, list[list[sequence.Elements] | TooLong | Damaged]] = {}
    self._open_waiting()
    self._last: list[tuple[Key, int]] = []

  @property
  def last_keys(self) -> list[Key]:
    """The documents and pieces in the row that was returned last, in order."""
    return [key for key, _ in self._last]

  @property
  def last_lengths(self) -> list[int]:
    """How many positions each of these takes."""
    return [length for _, length in self._last]

  def __next__(self) -> sequence.Row:
    """Returns the next row; raises what `take` does."""
    return pack(self.take(), self._config, self._tokenizer)

  def take(self) -> list[sequence.Elements]:
    """Returns the documents of the next row, in order.

    Raises:
      StopIteration: all documents are used up.
      ValueError: a source of which no document fits a row, or more damaged records
        than data.max_damaged.
    """
    data = self._config.data
    lengths = [len(elements.tokens_l) for _, elements in self._waiting]
    length = sum(lengths)
    while length < data.packing_rows * data.row_length:
      taken = self._take()
      if taken is None:
        break
      self._waiting.append(taken)
      lengths.append(len(taken[1].tokens_l))
      length += lengths[-1]
    if not self._waiting:
      raise StopIteration
    chosen = packing.choose(
      lengths,
      [self._images(elements) for _, elements in self._waiting],
      row_length=data.row_length,
      image_slots=self._slots,
    )
    row = [self._waiting[i] for i in chosen]
    for i in reversed(chosen):
      del self._waiting[i]
    self._last = [(key, len(elements.tokens_l)) for key, elements in row]
    self._state.rows += 1
    self._state.row_elements += sum(lengths[i] for i in chosen)
    return [elements for _, elements in row]

  def state(self) -> LaneState:
    """Where the lane is after the last returned row; a copy."""
    self._state.waiting = tuple(key for key, _ in self._waiting)
    self._state.next_piece = self._cut[0][0] if self._cut else None
    return self._state.copy()

  def document_index(self, key: Key) -> int:
    """Which document of its source a key of this lane is."""
    return self._mixture.index(key.source, key.position)

  def _open_waiting(self) -> None:
    """Reads the documents that wait again; one that was damaged since is skipped."""
    opened: dict[tuple[str, int], list[tuple[Key, sequence.Elements]]] = {}
    waiting, following = self._state.waiting, self._state.next_piece
    for name, position, _ in (*waiting, *([following] if following else [])):
      if (name, position) in opened:
        continue
      (own,) = self._pieces(name, [position])
      if isinstance(own, Damaged):
        self._skip(name, position, own)
        opened[name, position] = []
        continue
      assert not isinstance(own, TooLong)  # it fitted before it was left waiting
      opened[name, position] = self._keyed(name, position, own)
    for name, position, piece in waiting:
      parts = opened[name, position]
      self._waiting += parts if piece is None else parts[piece : piece + 1]
    if following:
      self._cut = opened[following[:2]][following.piece :]

  def _take(self) -> tuple[Key, sequence.Elements] | None:
    """The next document or piece; None when all are used up."""
    while not self._cut:
      name = self._mixture.choose(self._state)
      if name is None:
        return None
      position = self._state.taken[name]
      if not self._ahead.get(name):
        self._ahead[name] = self._pieces(name, self._next_positions(name))
      own = self._ahead[name].pop(0)
      self._state.taken[name] += 1
      if isinstance(own, Damaged):
        self._skip(name, position, own)
        continue
      if isinstance(own, TooLong):
        self._reject(name, own)
        continue
      self._cut = self._keyed(name, position, own)
      self._count(name, len(own))
    return self._cut.pop(0)

  def _next_positions(self, name: str) -> range:
    """The documents to read together: a row of them, if they are as long as before."""
    taken, elements = self._state.taken[name], self._state.elements[name]
    count = self._config.data.row_length * taken // max(elements, 1)
    return self._mixture.positions(name, taken, min(max(count, 1), READ_AHEAD))

  def _keyed(
    self, name: str, position: int, own: list[sequence.Elements]
  ) -> list[tuple[Key, sequence.Elements]]:
    """Pieces, each with its branches, and what they are called."""
    parts = [part for piece in own for part in self._branch(piece)]
    if len(parts) == 1:
      return [(Key(name, position), parts[0])]
    return [(Key(name, position, n), part) for n, part in enumerate(parts)]

  def _branch(self, piece: sequence.Elements) -> list[sequence.Elements]:
    """What `diffusion.context` makes of a piece."""
    if self._config.diffusion.context != "both":
      return [piece]
    return branches.branch(
      piece,
      special=self._tokenizer.special,
      patches_per_image=self._patches,
    )

  def _pieces(
    self, name: str, positions: Sequence[int]
  ) -> list[list[sequence.Elements] | TooLong | Damaged]:
    """Documents of this lane as they go into rows."""
    indices = [self._mixture.index(name, position) for position in positions]
    return [
      spans if isinstance(spans, Damaged) else self._lay_out(spans, name, position)
      for position, spans in zip(positions, _read(self._sources[name], indices))
    ]

  def _lay_out(
    self, spans: Sequence[Span], name: str, position: int
  ) -> list[sequence.Elements] | TooLong:
    config, special = self._config, self._tokenizer.special
    document = forms.form(
      spans,
      self._encode,
      config,
      name=name,
      showing=self._mixture.showing(position),
    )
    patches = self._patches
    whole = sequence.lay_out(document, special=special, patches_per_image=patches)
    if self._fits(whole):
      return [whole]
    if config.data.too_long == "reject":
      return TooLong(len(whole.tokens_l))
    made = pieces.cut(
      whole,
      endings=self._tokenizer.endings,
      special=special,
      row_length=config.data.row_length,
      image_slots=self._slots,
      patches_per_image=patches,
      overlap=config.data.overlap,
    )
    return made or TooLong(len(whole.tokens_l))

  def _fits(self, elements: sequence.Elements) -> bool:
    if len(elements.tokens_l) > self._config.data.row_length:
      return False
    counts = zip(self._images(elements), self._slots, strict=True)
    return all(n <= most for n, most in counts)

  def _images(self, elements: sequence.Elements) -> tuple[int, ...]:
    """Images of every kind."""
    if len(self._slots) == 1:
      return (len(elements.images),)
    kinds = [image.kind for image in elements.images]
    return tuple(kinds.count(n) for n in range(len(self._slots)))

  def _count(self, name: str, pieces: int) -> None:
    """Counts what was just taken, in so many pieces; branches are elements too."""
    state, special = self._state, self._tokenizer.special
    for _, piece in self._cut:
      patches = sum(self._patches[image.kind] for image in piece.images)
      begun = np.count_nonzero(sequence.begins_image(piece.tokens_l, special))
      if begun > len(piece.images):  # codes
        patches = int(np.sum(sequence.in_image(piece, special=special)))
      state.elements[name] += len(piece.tokens_l)
      state.patches += patches
      state.text_elements += len(piece.tokens_l) - patches
    if pieces > 1:
      state.split[name] += 1
      state.pieces[name] += pieces

  def _reject(self, name: str, document: TooLong) -> None:
    """Counts a document that fits no row; stops if none of the source does."""
    self._state.rejected[name] += 1
    self._state.rejected_elements[name] += document.elements
    self._require_some(name)

  def _skip(self, name: str, position: int, error: Damaged) -> None:
    """Counts a damaged record; stops if there are too many."""
    damaged, index = self._state.damaged, self._mixture.index(name, position)
    skipped, records, last = dataclasses.astuple(damaged.get(name, Damage()))
    if index not in records:  # it comes again in every epoch
      logging.warning("%s: document %d is skipped: %s", name, index, error)
      records, last = (*records, index), (*last, str(error))[-DAMAGE_QUOTED:]
    damaged[name] = Damage(skipped + 1, records, last)
    found = sum(len(own.records) for own in damaged.values())
    if found > (limit := self._config.data.max_damaged):
      raise ValueError(
        f"data.max_damaged={limit}: one lane has met {found} damaged records, the last"
        f" of {name}: {error}; restore or prepare the data again, or raise the limit"
      )
    self._require_some(name)

  def _require_some(self, name: str) -> None:
    """Stops if none of many documents of a source could be used.

    Raises:
      ValueError: says how many are too long or damaged, and what to do.
    """
    state, data = self._state, self._config.data
    damaged = state.damaged.get(name, Damage()).skipped
    taken, rejected = state.taken[name], state.rejected[name]
    if rejected + damaged < taken or taken < min(len(self._sources[name]), HOPELESS):
      return
    if not rejected:
      raise ValueError(
        f"{name}: all {taken} documents that were tried are damaged; restore or prepare"
        " the data again"
      )
    long = state.rejected_elements[name] / rejected
    also = f", the other {damaged} are damaged" if damaged else ""
    split = "set data.too_long=split, which cuts them into pieces, or "
    raise ValueError(
      f"data.too_long={data.too_long!r}: no document of {name} fits a row of"
      f" data.row_length={data.row_length} elements and data.image_slots="
      f"{data.image_slots} images: {rejected} of {taken} that were tried are too large,"
      f" with {long:,.0f} elements on average{also};"
      f" {split if data.too_long == 'reject' else ''}raise the other two"
    )


def _read(source: Source, indices: list[int]) -> list[Sequence[Span] | Damaged]:
  """Reads documents; those that are damaged come as their error."""
  found: list[Sequence[Span] | Damaged] = []
  try:
    return [*source.several(indices)]
  except Damaged:
    pass  # one by one, to see which
  for index in indices:
    try:
      found.append(source[index])
    except Damaged as error:
      found.append(error)
  return found


def pack(
  documents: list[sequence.Elements], config: Config, tokenizer: Tokenizer
) -> sequence.Row:
  """Packs laid-out documents into a row of the run's sizes."""
  return sequence.pack(documents, **_sizes(config, tokenizer))


def pack_rows(
  rows: list[list[sequence.Elements]], config: Config, tokenizer: Tokenizer
) -> sequence.Batch:
  """Packs the documents of several rows into a batch."""
  return sequence.pack_rows(rows, **_sizes(config, tokenizer))


def _sizes(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
  return dict(
    row_length=config.data.row_length,
    kinds=kind_sizes(config),
    special=tokenizer.special,
    isolate=config.data.isolate_documents,
    causal=config.model.image_attention == "causal",
  )


@functools.cache
def kind_sizes(config: Config) -> tuple[sequence.KindSizes, ...]:
  """What a row must know of the images of every kind."""
  return tuple(
    sequence.KindSizes(
      slots,
      kind.shape,
      kind.patches,
      sequence.position_steps(config.model.positions, kind.grid),
    )
    for kind, slots in zip(config.model.every_kind, slots_of(config), strict=True)
  )
