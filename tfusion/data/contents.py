"""What a split of a source holds, as hashes.

Owns: how documents are hashed. Not: when two runs of hashes are the same run's
(identity.py), the documents themselves (the sources).
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple


class Hashed(NamedTuple):
  """One document."""

  id: str  # by which a person finds it, as the name of its file
  text: str  # hash of its text
  image: str = ""  # hash of its image


class Contents(NamedTuple):
  """All documents of one split, in order."""

  sha256: str  # of texts and images; names are no part of it
  documents: int
  made_with: str = ""  # what may give others in another version: "Python 3.11.2"
  hashed: tuple[Hashed, ...] = ()  # each, where a source knows them


def digest(parts: Iterable[str | bytes]) -> str:
  """A SHA-256 of parts, each of which keeps its ends: hexadecimal digits."""
  whole = hashlib.sha256()
  for part in parts:
    data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
    whole.update(len(data).to_bytes(8, "little"))
    whole.update(data)
  return whole.hexdigest()


def of_documents(hashed: Iterable[Hashed], *, made_with: str = "") -> Contents:
  """The contents of documents that are hashed one by one, in order."""
  hashed = tuple(hashed)
  sha256 = digest(part for own in hashed for part in (own.text, own.image))
  return Contents(sha256, len(hashed), made_with, hashed)
