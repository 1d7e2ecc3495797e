"""A document as its source has it, before it is tokenised and encoded.

Owns: raw documents, why one is rejected, cleaning. Not: where they come from (the
files named in readers.py), what becomes of them (part.py).
"""

import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from tfusion.data import text as text_lib
from tfusion.data.balance import Amount, Rejected
from tfusion.data.images import Page

# Reasons for which documents are counted as rejected; details are listed with the id.
NO_CAPTION = "no caption"
NO_TEXT = "its text is missing"
NO_IMAGE = "no such image"
LOST_IMAGE = "its image is missing"
NOT_STORED = "image of which only the address is here"
FAILED = "img2dataset did not get its image"
EXCLUDED = "excluded by split.yaml"
NOT_LEARNED = "nothing in it is learned"
UNKNOWN = "unknown name"
UNUSED = "its document does not name it"
UNREAD = "its name is not read"
BAD_IMAGE = "image cannot be decoded"
LARGE_IMAGE = "image has too many pixels"
ASPECT = "image has none of the aspects"
NOT_FINITE = "latents are not finite numbers"
EMPTY = "text is empty"
BAD_TEXT = "text is not Unicode"
LONG_TEXT = "text is too large for one document"
BAD_LAYOUT = "not a document in a known layout"
UNREADABLE = "cannot be read"
OUTSIDE = "name leads out of the archive"
LINK = "link or device in an archive"
TWICE = "id occurs twice"
OTHER_SPLIT = "of a split that is not read"

# Errors of the name of a file, whoever reads it; all others are of the machine.
OF_THE_NAME = (
  errno.ENOENT,
  errno.EACCES,
  errno.EISDIR,
  errno.ENOTDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.EINVAL,
)

# A text; an image: its file, its bytes, a page of a file's bytes, or u8[h, w, c].
Span = str | Path | bytes | Page | np.ndarray


@dataclasses.dataclass(frozen=True)
class Raw:
  """One document: texts and images in order."""

  id: str  # unique in the source
  spans: tuple[Span, ...]
  test: bool  # held out
  weights: tuple[float, ...] = ()  # per span, 0: read, not learned; empty: all 1

  @property
  def amount(self) -> Amount:
    """What is in it; blank text is none."""
    texts = [span for span in self.spans if isinstance(span, str)]
    shown = sum(not text_lib.is_blank(text) for text in texts)
    return Amount(1, len(self.spans) - len(texts), shown)

  def reject(self, reason: str, detail: str = "") -> Rejected:
    """The document as one that is left out, for one of the reasons above."""
    return Rejected(self.id, reason, detail, self.amount, self.test)


@runtime_checkable  # Beam compares the types of what it hands on
class Part(Protocol):
  """A share of a source that one worker reads in one go; picklable.

  Its fields say everything that reading depends on: parts with equal fields give equal
  documents, unless the source was changed.
  """

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields every document of the part, in a fixed order."""


def clean(raw: Raw) -> Raw | Rejected:
  """Normalises line ends, drops spans of blank text; nothing else is changed.

  A document whose texts are all blank is rejected; else an image with an empty caption
  would become an image without a caption.
  """
  weights = raw.weights or (1.0,) * len(raw.spans)
  kept = []
  for span, weight in zip(raw.spans, weights, strict=True):
    if isinstance(span, str):
      span = span.replace("\r\n", "\n").replace("\r", "\n")
      try:
        span.encode()
      except UnicodeEncodeError as error:  # JSON can spell half a character
        return raw.reject(BAD_TEXT, str(error))
      if fault := text_lib.fault(span):
        return raw.reject(BAD_TEXT, fault)
      if text_lib.is_blank(span):
        continue
    kept.append((span, weight))
  had = any(isinstance(span, str) for span in raw.spans)
  if not kept or (had and not any(isinstance(span, str) for span, _ in kept)):
    return raw.reject(EMPTY)
  spans, weights = zip(*kept)
  return dataclasses.replace(raw, spans=spans, weights=weights)


def stop_if_of_machine(error: BaseException) -> None:
  """Raises an error that another try may not meet, such as of a disk or a network.

  If such documents were left out, the next try would give other shards.
  """
  number = getattr(error, "errno", None)
  if isinstance(error, OSError) and number not in (None, *OF_THE_NAME):
    raise error


def printable(name: str) -> str:
  """The name with what is not Unicode spelled out, as file names may hold any bytes."""
  return name.encode("utf-8", "backslashreplace").decode()
