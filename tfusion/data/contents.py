"""What a split of a source holds, as hashes.

Owns: how documents are hashed. Not: what follows when hashes differ (identity.py), the
documents themselves (the sources).
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple


class Hashed(NamedTuple):
  """One document."""

  id: str  # how a person finds it: the name of its file, or its number
  text: str  # hash of its text
  image: str = ""  # hash of its image


class Contents(NamedTuple):
  """All documents of one split, in order."""

  sha256: str  # of texts and images, not of names
  documents: int
  made_with: str = ""  # the library whose version matters: "Python 3.11.2"
  hashed: tuple[Hashed, ...] = ()  # each document, where a source knows them one by one


def hash_of(parts: Iterable[str | bytes]) -> str:
  """SHA-256 of some parts as hexadecimal digits; where each part ends counts too."""
  whole = hashlib.sha256()
  for part in parts:
    data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
    whole.update(len(data).to_bytes(8, "little"))
    whole.update(data)
  return whole.hexdigest()


def of_documents(hashed: Iterable[Hashed], *, made_with: str = "") -> Contents:
  """The contents of documents that are hashed one by one, in order."""
  hashed = tuple(hashed)
  sha256 = hash_of(part for own in hashed for part in (own.text, own.image))
  return Contents(sha256, len(hashed), made_with, hashed)
