"""A source of documents: all that one may be asked, with plain answers to most of it.

Owns: the Source contract, what a span is, a look at some documents. Not: the sources
(digits.py, prose.py, folder.py, scenes/, shards/), how they are named (sources.py).
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from tfusion import sequence
from tfusion.data.balance import Balance
from tfusion.data.contents import Contents
from tfusion.data.shards.manifest import ImageFormat, Manifest
from tfusion.data.shards.records import Damaged

TRAIN, TEST = "train", "test"  # the splits

# A str is text for the lane to tokenise, an np.ndarray an image: f32[h, w, c] in
# [-1, 1], or one of the kind of its shape. What is tokenised, weighed or a latent
# already comes as Text, Image or Codes, and a Break stands where a longer document was
# cut.
Span = (
  str | np.ndarray | sequence.Text | sequence.Image | sequence.Codes | sequence.Break
)


class Prepared(NamedTuple):
  """What was decided when the documents of a source were prepared."""

  folder: Path  # holds the tokenizer, and the autoencoder if there is one
  manifest: Manifest


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
  """The documents of one split, by index; deterministic and picklable.

  A document is a tuple of spans in order, of which a lane makes a sequence.Document.
  The fields are those that every source has; a source adds its own behind `name`.
  """

  name: str  # what the run calls it, and called it at its beginning (identity.py)
  _: dataclasses.KW_ONLY
  spec: str = ""  # what data.sources calls it now; empty: the same
  has_images: bool = True

  # Whether a source of this kind may leave something out, so that it has a `balance`.
  leaves_out: ClassVar[bool] = False

  def __post_init__(self):
    object.__setattr__(self, "spec", self.spec or self.name)

  @abc.abstractmethod
  def __len__(self) -> int:
    """How many documents there are."""

  @abc.abstractmethod
  def __getitem__(self, index: int) -> tuple[Span, ...]:
    """Returns the spans of a document.

    Raises:
      Damaged: this document cannot be read, but others can.
    """

  @abc.abstractmethod
  def texts(self) -> Iterable[str]:
    """What a tokenizer trains on: every text as often as an epoch shows it, or of a
    source without end a fixed sample.

    Raises:
      ValueError: the source brings a tokenizer of its own.
    """

  def several(self, indices: Sequence[int]) -> list[tuple[Span, ...]]:
    """Returns documents, and raises, as [] does; some sources read several faster."""
    return [self[index] for index in indices]

  def fit(self, count: Callable[[str], int], *, room: int) -> "Source":
    """Returns the source without texts that no row holds: cut, or left out.

    Args:
      count: elements of a text.
      room: elements that a text may have.
    """
    return self

  def renamed(self, name: str) -> "Source":
    """The same source under the name by which a run began with it."""
    return dataclasses.replace(self, name=name)

  @property
  def skipped(self) -> Mapping[str, str]:
    """What was left out, and why."""
    return {}

  @property
  def balance(self) -> Balance | None:
    """What became of all that the source holds of this split; None: it is not known,
    or nothing is ever left out (`leaves_out`)."""
    return None

  def advice(self) -> str:
    """What a person should hear before training on these documents; often nothing."""
    return ""

  def contents(self) -> Contents | None:
    """Hashes by which a run knows these documents again; None: there are none."""
    return None

  @property
  def digest(self) -> str | None:
    """A hash of all documents to which the state of a lane is bound; None: their number
    has to do."""
    return None

  @property
  def prepared(self) -> Prepared | None:
    """Where the documents come from, and what was decided there, if they are tokenised
    and encoded already; else None."""
    return None

  def normalised(self, images: ImageFormat) -> "Source":
    """The source with latents scaled and shifted as another's; itself without any."""
    return self


def some_documents(
  source: Source, count: int
) -> Iterator[tuple[int, tuple[Span, ...]]]:
  """Yields up to about `count` documents from all over a source, with their indices.

  Damaged ones are passed over: they are counted when a lane meets them.
  """
  for index in range(0, len(source), max(-(-len(source) // count), 1)):
    try:
      spans = source[index]
    except Damaged:
      continue
    yield index, spans
