"""The source `pydoc`, and any other of text alone.

Owns: documents of text, cutting long ones, the pages of Python's help and their fixed
split. Not: tokens (data/tokenizer.py).
"""

import dataclasses
import platform
import re
from collections.abc import Callable, Iterable

from tfusion import sequence
from tfusion.data import heldout
from tfusion.data.contents import Contents, Hashed, hash_of, of_documents
from tfusion.data.source import TEST, Source, Span

PYDOC_TEST = 0.1  # of the characters, at most


@dataclasses.dataclass(frozen=True)
class Prose(Source):
  """Text-only documents, or pieces of them."""

  documents: tuple[str, ...]
  has_images: bool = dataclasses.field(default=False, kw_only=True)
  continued: frozenset[int] = frozenset()  # those that go on in the next one

  def __len__(self) -> int:
    return len(self.documents)

  def __getitem__(self, index: int) -> tuple[Span, ...]:
    # No text begins or ends where a long one was cut: neither is to be learned.
    before = (sequence.BREAK,) if index - 1 in self.continued else ()
    after = (sequence.BREAK,) if index in self.continued else ()
    return (*before, self.documents[index], *after)

  def contents(self) -> Contents:
    """Hashes of the texts; the place of each is its id."""
    hashed = [Hashed(str(i), hash_of([text])) for i, text in enumerate(self.documents)]
    made_with = f"Python {platform.python_version()}"
    return of_documents(hashed, made_with=made_with)

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


def open_pydoc(*, split: str) -> Prose:
  """Opens a split of the pages that Python's help shows of its syntax."""
  # Here: half a megabyte that only this source needs.
  from pydoc_data import topics

  families = _families(topics.topics)
  families.sort(key=lambda names: heldout.place(names[0]))
  held_out: set[str] = set()
  size = sum(map(len, topics.topics.values()))
  for family in families:
    size_with = sum(len(topics.topics[n]) for n in held_out.union(family))
    if size_with <= PYDOC_TEST * size:
      held_out.update(family)
  own = held_out if split == TEST else topics.topics.keys() - held_out
  return Prose("pydoc", tuple(topics.topics[name] for name in sorted(own)))


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
