"""One lane: documents -> packed rows, with a state to go on from.

Owns: which document of a lane comes when, in which form and in which row. Not: what a
row is (sequence.py), how lanes become batches of a host (pipeline.py).

Document g of a shuffled, repeated source goes to lane g % data.lanes; every lane mixes
and packs on its own. A document's form depends on (seed, source, g) alone, so a lane's
state is counters plus, for every row not yet full, which documents lie in it.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from tfusion import sequence
from tfusion.config import Config
from tfusion.data import sources as sources_lib
from tfusion.data.tokenizer import Tokenizer

ENCODED_TEXTS = 1 << 16  # encodings a lane remembers


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
      repeat: without end. False gives each document of the lane once.

    Raises:
      ValueError: the state is of other sources, or a source has no document that fits
        a row.
    """
    self._config, self._tokenizer, self._repeat = config, tokenizer, repeat
    self._lane, self._lanes = lane, config.data.lanes
    self._encode = functools.lru_cache(ENCODED_TEXTS)(tokenizer.encode)
    self._sources = {source.name: source for source in sources}
    self._documents = {s.name: self._stream(s) for s in sources}
    self._state = fresh_state(sources) if state is None else copy_state(state)
    sizes = {source.name: len(source) for source in sources}
    if self._state["sizes"] != sizes:
      raise ValueError(
        f"data.sources held {self._state['sizes']} documents when the state was saved"
        f" and hold {sizes} now; restore them or start in a new workdir"
      )
    self._rows = [_OpenRow() for _ in self._state["open"]]
    for row, keys in zip(self._rows, self._state["open"], strict=True):
      for name, position in keys:
        row.add((name, position), self._elements(name, position))

  def __next__(self) -> sequence.Batch:
    data = self._config.data
    while (name := self._choose()) is not None:
      position = self._state["drawn"][name]
      self._state["drawn"][name] += 1
      elements = self._elements(name, position)
      if not self._fits(_OpenRow(), elements):
        self._reject(name)
        continue
      self._count(name, elements)
      open_row = next((r for r in self._rows if self._fits(r, elements)), None)
      full = None
      if open_row is None:
        if len(self._rows) == data.packing_bins:
          full = self._close_fullest()
        open_row = _OpenRow()
        self._rows.append(open_row)
      open_row.add((name, position), elements)
      if full is not None:
        return self._pack(full)
    if not self._rows:
      raise StopIteration
    return self._pack(self._close_fullest())

  def state(self) -> dict[str, Any]:
    """JSON-able; after the last returned row."""
    self._state["open"] = [[list(key) for key in row.keys] for row in self._rows]
    return copy_state(self._state)

  def _stream(self, source: sources_lib.Source) -> grain.MapDataset:
    seed = int(_uniform(self._config.seed, source.name, 0) * 2**32)
    stream = grain.MapDataset.source(source).shuffle(seed)
    if self._repeat:
      stream = stream.repeat(None)  # shuffled anew in every epoch
    return stream[self._lane :: self._lanes]

  def _choose(self) -> str | None:
    """The source that the mixture lacks most; None when all are used up."""
    drawn, elements = self._state["drawn"], self._state["elements"]
    left = [n for n, stream in self._documents.items() if drawn[n] < len(stream)]
    wanted = self._config.data.text_per_image * self._state["patches"]
    for_image = self._state["text"] >= wanted
    lacking = [n for n in left if self._sources[n].has_images == for_image]
    return min(lacking or left, key=elements.__getitem__, default=None)

  def _elements(self, name: str, position: int) -> sequence.Elements:
    """Document `position` of this lane, tokenised, ordered and laid out."""
    index = self._lane + position * self._lanes
    spans = tuple(map(self._span, self._documents[name][position]))
    document = _arrange(spans, self._config, name, index)
    return sequence.lay_out(
      _draw_latents(document, self._config.seed, name, index),
      special=self._tokenizer.special,
      patches_per_image=self._config.model.patches_per_image,
    )

  def _span(
    self, span: sources_lib.Span
  ) -> sequence.Text | sequence.Image | sequence.Codes:
    if isinstance(span, str):
      return sequence.Text(self._encode(span))
    return sequence.Image(span) if isinstance(span, np.ndarray) else span

  def _fits(self, row: "_OpenRow", elements: sequence.Elements) -> bool:
    data = self._config.data
    return (
      row.length + len(elements.tokens_l) <= data.row_length
      and row.images + len(elements.images) <= data.image_slots
    )

  def _reject(self, name: str) -> None:
    self._state["rejected"][name] += 1
    rejected, drawn = self._state["rejected"][name], self._state["drawn"][name]
    if rejected == drawn >= len(self._sources[name]):
      raise ValueError(
        f"data.row_length={self._config.data.row_length}, data.image_slots"
        f"={self._config.data.image_slots}: no document of {name} fits; raise them"
      )

  def _count(self, name: str, elements: sequence.Elements) -> None:
    patches = int(np.sum(sequence.in_image(elements, special=self._tokenizer.special)))
    self._state["elements"][name] += len(elements.tokens_l)
    self._state["patches"] += patches
    self._state["text"] += len(elements.tokens_l) - patches

  def _close_fullest(self) -> "_OpenRow":
    fullest = max(self._rows, key=lambda row: row.length)
    self._rows.remove(fullest)
    self._state["rows"] += 1
    self._state["live"] += fullest.length
    return fullest

  def _pack(self, row: "_OpenRow") -> sequence.Batch:
    return pack(row.documents, self._config, self._tokenizer)


@dataclasses.dataclass(eq=False)
class _OpenRow:
  """Documents placed in a row that may take more."""

  keys: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  documents: list[sequence.Elements] = dataclasses.field(default_factory=list)
  length: int = 0
  images: int = 0

  def add(self, key: tuple[str, int], elements: sequence.Elements) -> None:
    self.keys.append(key)
    self.documents.append(elements)
    self.length += len(elements.tokens_l)
    self.images += len(elements.images)


def fresh_state(sources: Sequence[sources_lib.Source]) -> dict[str, Any]:
  """The state of a lane that has given nothing yet."""
  zeros = dict.fromkeys((source.name for source in sources), 0)
  return {
    "sizes": {source.name: len(source) for source in sources},
    "drawn": dict(zeros),  # documents taken from the source, rejected ones included
    "rejected": dict(zeros),  # documents that fit no row
    "elements": dict(zeros),
    "text": 0,  # elements that are not patches
    "patches": 0,  # or codes
    "rows": 0,
    "live": 0,  # elements in those rows
    "open": [],  # (source, position) of every document in every row not yet full
  }


def _arrange(
  document: sequence.Document, config: Config, name: str, index: int
) -> sequence.Document:
  """Orders a captioned image, or drops its caption; leaves all else as it is.

  Where one of the two is there to be read only, the order is the source's. arXiv
  2408.11039, section 4.1 (caption first in 80 %); the paper leaves dropout open.
  """
  images = sum(map(sequence.is_image, document))
  if len(document) != 2 or images != 1 or not all(s.weight for s in document):
    return document
  if _uniform(config.seed, f"{name}/order", index) >= config.data.caption_first:
    diffusion, u = config.diffusion, _uniform(config.seed, f"{name}/clean", index)
    clean = u < diffusion.image_first_clean
    cap = 0.0 if clean else diffusion.image_first_noise_cap
    return sequence.image_first(document, noise_cap=cap)
  if _uniform(config.seed, f"{name}/drop", index) < config.data.caption_dropout:
    return sequence.drop_text(document)
  return tuple(sorted(document, key=sequence.is_image))


def _draw_latents(
  document: sequence.Document, seed: int, name: str, index: int
) -> sequence.Document:
  """Samples the posteriors of the images that have one, anew for every index."""
  drawn = list(document)
  for i, span in enumerate(document):
    if isinstance(span, sequence.Image) and span.std is not None:
      rng = np.random.default_rng(int(_uniform(seed, f"{name}/std/{i}", index) * 2**48))
      normal = rng.standard_normal(span.latent.shape, np.float32)
      latent = span.latent + span.std * normal
      drawn[i] = dataclasses.replace(span, latent=latent, std=None)
  return tuple(drawn)


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


def _uniform(seed: int, stream: str, index: int) -> float:
  """A number in [0, 1) that depends on the arguments alone."""
  key = f"{seed}/{stream}/{index}".encode()
  return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest()) / 2**48


def copy_state(state: dict) -> dict:
  """Copies nested dicts; lists in them are never changed, only replaced."""
  return {
    key: copy_state(value) if isinstance(value, dict) else value
    for key, value in state.items()
  }
