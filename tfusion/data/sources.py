"""Where documents come from: embedded corpora and folders, by name.

Owns: the Source contract, the digits and pydoc corpora, their fixed splits, cutting
long text. Not: folders of images (folder.py), drawn scenes (scenes/), order and
mixture (mixture.py), the sequence (sequence.py).
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tfusion import sequence
from tfusion.data import contents as contents_lib
from tfusion.data import folder
from tfusion.data.scenes import source as shapes
from tfusion.data.shards import source as shards
from tfusion.data.shards.records import Damaged

TRAIN, TEST = "train", "test"

DIGIT_WORDS = (
  "zero one two three four five six seven eight nine".split()  # the label is the index
)
CAPTIONS = (
  "a handwritten {}",
  "the digit {}",
  "a scan of the digit {}",
  "{}, written by hand",
  "the number {} in someone's handwriting",
  "a small picture of the number {}",
  "this is the digit {}",
  "somebody wrote the number {}",
)
DIGITS_TRAIN = 1500  # of 1797 scans
PYDOC_TEST = 0.1  # of the characters, at most


Span = (
  str | np.ndarray | sequence.Text | sequence.Image | sequence.Codes | sequence.Break
)


class Source(Protocol):
  """Documents by index: spans in order, of which the lane makes a `Document`.

  A str is text for the lane to tokenise, an np.ndarray an image f32[h, w, c] in
  [-1, 1]; what is tokenised, weighed or a latent already comes as Text, Image or Codes,
  and a Break stands where a longer document was cut.
  Deterministic and picklable; `name` is what data.sources calls it, `skipped` maps
  what was left out to the reason. It may have a method `several`, which gives a list of
  documents for a list of indices faster than one by one; a `balance` of what was found,
  or None where that is not known, and without one all is used; and a method `contents`,
  by whose hashes a run knows its documents again. A run that goes on calls a source
  what it called it at its beginning (identity.py); `spec` then is the name that
  data.sources has for it.
  """

  name: str
  has_images: bool
  skipped: dict[str, str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> tuple[Span, ...]: ...

  def texts(self) -> Iterable[str]:
    """Every text, as often as an epoch shows it, or a fixed sample of texts without
    number: what a tokenizer trains on."""

  def fit(self, count: Callable[[str], int], *, room: int) -> "Source":
    """Returns the source with only texts of `count(text) <= room` elements."""


def open_sources(
  specs: Sequence[str],
  *,
  split: str,
  image_shape: tuple[int, int, int],
  workdir: str | Path,
) -> tuple[Source, ...]:
  """Opens sources by name.

  Args:
    specs: `name` or `name:argument`, as in data.sources.
    split: "train" or "test".
    image_shape: h, w, c of every image.
    workdir: where a source may cache what it prepared.

  Raises:
    ValueError: an unknown or repeated name, or a source that cannot serve.
  """
  if len(set(map(_place, specs))) < len(specs):
    raise ValueError(f"data.sources={tuple(specs)}: name each source once")
  opened = []
  for spec in specs:
    name, _, argument = spec.partition(":")
    if name not in OPEN:
      raise ValueError(f"data.sources={spec!r}: unknown; known: {sorted(OPEN)}")
    opened.append(
      OPEN[name](argument, split=split, image_shape=image_shape, workdir=workdir)
    )
    assert opened[-1].name == spec  # data.weights and data.epochs go by it
  return tuple(opened)


def rename(source: Source, name: str) -> Source:
  """The same source under the name by which a run began with it."""
  return dataclasses.replace(source, name=name, spec=source.name)


def spec_of(source: Source) -> str:
  """What data.sources calls a source."""
  return getattr(source, "spec", "") or source.name


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


@dataclasses.dataclass(frozen=True)
class Digits:
  """Captioned scans: document i is scan i // 8 with caption template i % 8."""

  scans: np.ndarray  # u8[n, 8, 8, 1], 0..16
  labels: np.ndarray  # i64[n]
  name: str = "digits"
  has_images: bool = True
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.scans) * len(CAPTIONS)

  def __getitem__(self, index: int) -> tuple[str | np.ndarray, ...]:
    scan, template = divmod(index, len(CAPTIONS))
    word = DIGIT_WORDS[self.labels[scan]]
    return CAPTIONS[template].format(word), _to_float(self.scans[scan])

  def contents(self) -> contents_lib.Contents:
    """Hashes of captions and scans; the digit's place is its id."""
    texts = [contents_lib.digest([c.format(w) for c in CAPTIONS]) for w in DIGIT_WORDS]
    hashed = [
      contents_lib.Hashed(str(i), texts[label], contents_lib.digest([scan.tobytes()]))
      for i, (scan, label) in enumerate(zip(self.scans, self.labels))
    ]
    version = importlib.metadata.version("scikit-learn")
    return contents_lib.of_documents(hashed, made_with=f"scikit-learn {version}")

  def texts(self) -> Iterable[str]:
    return (c.format(DIGIT_WORDS[i]) for i in self.labels for c in CAPTIONS)

  def fit(self, count: Callable[[str], int], *, room: int) -> "Digits":
    return self


def load_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the scans f32[n, 8, 8, 1] in [-1, 1] and the labels i64[n] of a split.

  1797 scans of handwritten digits (UCI Optical Recognition of Handwritten Digits),
  of which 1500 are for training, chosen by a hash that no library version changes.
  """
  scans, labels = _digits(split)
  return _to_float(scans), labels


def caption_label(text: str) -> int | None:
  """Returns the digit that a text names in a word; None for none or several."""
  named = {w for w in re.findall(r"[a-z]+", text.lower()) if w in DIGIT_WORDS}
  return DIGIT_WORDS.index(named.pop()) if len(named) == 1 else None


@dataclasses.dataclass(frozen=True)
class Prose:
  """Text-only documents, or pieces of them."""

  name: str
  documents: tuple[str, ...]
  has_images: bool = False
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  continued: frozenset[int] = frozenset()  # those that go on in the next one

  def __len__(self) -> int:
    return len(self.documents)

  def __getitem__(self, index: int) -> tuple[Span, ...]:
    # No text begins or ends where a long one was cut: neither is to be learned.
    before = (sequence.BREAK,) if index - 1 in self.continued else ()
    after = (sequence.BREAK,) if index in self.continued else ()
    return (*before, self.documents[index], *after)

  def contents(self) -> contents_lib.Contents:
    """Hashes of the texts; the place of each is its id."""
    hashed = [
      contents_lib.Hashed(str(i), contents_lib.digest([text]))
      for i, text in enumerate(self.documents)
    ]
    made_with = f"Python {platform.python_version()}"
    return contents_lib.of_documents(hashed, made_with=made_with)

  def texts(self) -> Iterable[str]:
    return self.documents

  def fit(self, count: Callable[[str], int], *, room: int) -> "Prose":
    """Cuts long documents; nothing is dropped."""
    documents: list[str] = []
    continued: set[int] = set()
    for document in self.documents:
      pieces = split_text(document, count, limit=room)
      last = len(documents) + len(pieces) - 1
      continued.update(range(len(documents), last))
      documents += pieces
    return dataclasses.replace(
      self, documents=tuple(documents), continued=frozenset(continued)
    )


def split_text(text: str, count: Callable[[str], int], *, limit: int) -> list[str]:
  """Cuts a text where it hurts least: paragraph, line, word, at worst character.

  Args:
    text: any text.
    count: elements of a piece; a shorter piece may not have more.
    limit: elements of a piece, at least 4 (a character may take four bytes).

  Returns:
    Non-empty pieces of at most `limit` elements that join to the text.
  """
  words = re.findall(r"\s+|\S+\s*", text)
  # A tokenizer binds a space to the word behind it, so that is where it is counted.
  spaces = [""] + [w[len(w.rstrip()) :] for w in words]
  costs = [count(s + w.rstrip()) for s, w in zip(spaces, words)]
  pieces, start = [], 0
  while start < len(words):
    stop, cost = start + 1, costs[start]
    while stop < len(words) and cost + costs[stop] <= limit:
      cost += costs[stop]
      stop += 1
    if stop < len(words):
      stop = _nicest_cut(words, start, stop)
    while stop > start + 1 and count("".join(words[start:stop])) > limit:
      stop -= 1
    piece = "".join(words[start:stop])
    pieces += [piece] if count(piece) <= limit else _split_word(piece, count, limit)
    start = stop
  return pieces


def _nicest_cut(words: list[str], start: int, stop: int) -> int:
  """The last paragraph or line end in the second half of words[start:stop]."""
  half = (start + stop + 1) // 2
  for mark in ("\n\n", "\n"):
    for end in range(stop, half, -1):
      if mark in words[end - 1]:
        return end
  return stop


def _split_word(word: str, count: Callable[[str], int], limit: int) -> list[str]:
  pieces = [""]
  for character in word:
    if pieces[-1] and count(pieces[-1] + character) > limit:
      pieces.append("")
    pieces[-1] += character
  return pieces


def _open_digits(argument: str, *, split, image_shape, workdir) -> Digits:
  if tuple(image_shape) != (8, 8, 1):
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: the scans of data.sources='digits' are"
      " (8, 8, 1)"
    )
  return Digits(*_digits(split))


def _open_pydoc(argument: str, *, split, image_shape, workdir) -> Prose:
  # Here: half a megabyte that only this source needs.
  from pydoc_data import topics

  held_out, size = set(), sum(map(len, topics.topics.values()))
  for family in sorted(_families(topics.topics), key=lambda names: _hash(names[0])):
    size_with = sum(len(topics.topics[n]) for n in held_out.union(family))
    if size_with <= PYDOC_TEST * size:
      held_out.update(family)
  chosen = (n for n in sorted(topics.topics) if (n in held_out) == (split == TEST))
  return Prose("pydoc", tuple(topics.topics[n] for n in chosen))


def _families(topics: dict[str, str]) -> list[list[str]]:
  """Groups topics that share a paragraph.

  The topics are sections of one manual, and some contain others: split one by one,
  most of the held-out text would also be in the training text.
  """
  family_of: dict[str, list[str]] = {}
  owner: dict[str, str] = {}
  for name in sorted(topics):
    family_of[name] = [name]
    for paragraph in topics[name].split("\n\n"):
      words = " ".join(paragraph.split())
      if len(words) < 40:  # headings and one-line examples recur by chance
        continue
      other = family_of[owner.setdefault(words, name)]
      if other is not family_of[name]:
        merged = sorted(other + family_of[name])
        family_of.update(dict.fromkeys(merged, merged))
  return list({names[0]: names for names in family_of.values()}.values())


def _open_folder(argument: str, *, split, image_shape, workdir) -> folder.Folder:
  return folder.open_folder(
    argument, test=split == TEST, image_shape=image_shape, workdir=workdir
  )


def _open_shards(argument: str, *, split, image_shape, workdir) -> shards.Shards:
  return shards.open_shards(argument, split=split, image_shape=image_shape)


def _open_shapes(argument: str, *, split, image_shape, workdir) -> shapes.Shapes:
  return shapes.open_shapes(argument, split=split, image_shape=image_shape)


OPEN = {
  "digits": _open_digits,
  "pydoc": _open_pydoc,
  "folder": _open_folder,
  "shards": _open_shards,
  "shapes": _open_shapes,
}
OF_PATHS = ("folder", "shards")  # their argument is a folder


def _place(spec: str) -> str:
  """A spelling that all names of one source have in common."""
  kind, _, argument = spec.partition(":")
  return f"{kind}:{os.path.realpath(argument)}" if kind in OF_PATHS else spec


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  # Here: importing scikit-learn takes longer than opening every other source.
  from sklearn import datasets

  scans, labels = datasets.load_digits(return_X_y=True)
  order = sorted(range(len(labels)), key=lambda i: _hash(str(i)))
  order = order[:DIGITS_TRAIN] if split == TRAIN else order[DIGITS_TRAIN:]
  return scans[order].reshape(-1, 8, 8, 1).astype(np.uint8), labels[order]


def _to_float(scans: np.ndarray) -> np.ndarray:
  return scans.astype(np.float32) / 8 - 1  # 0..16


def _hash(text: str) -> float:
  """A number in [0, 1) that depends on the text alone."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
