"""Which documents are held out: by the names of files and folders, else by a hash.

Owns: the names that say so, the hash. Not: which name a document has (folder.py,
prepare/).
"""

import hashlib
import os
import re

SHARE = 0.05  # of the documents, where no name says which
WORDS = ("test", "val", "valid", "validation", "dev", "eval")
TRAIN_WORDS = ("train", "training")

# A year may follow, as in val2017/.
_WORD = rf"(?:{'|'.join(WORDS)})(?:\d{{4}})?"
_FOLDER = re.compile(_WORD, re.IGNORECASE)
_FILE = re.compile(rf"{_WORD}(?:[-_.]|$)", re.IGNORECASE)


def is_named(name: str) -> bool:
  """Whether a name says that what it names is for testing.

  A folder on the way is called by one of WORDS, or the file's own name begins with one
  and a "-", "_" or "." behind it; in any case. So `Val/a.png`, `photos/test/a.png` and
  `validation-00000-of-00001.parquet` are, `contest/a.png` and `latest.tar` are not.

  Args:
    name: posix, relative to the source; of a split, its name.
  """
  *folders, file = name.split("/")
  return any(map(_FOLDER.fullmatch, folders)) or bool(_FILE.match(file))


def is_split_named(split: object) -> bool:
  """Whether the "split" that a row states is held out.

  Raises:
    ValueError: it is no known word.
  """
  word = split.strip().lower() if isinstance(split, str) else split
  if word in WORDS or word in TRAIN_WORDS:
    return word in WORDS
  known = ", ".join((*TRAIN_WORDS[:1], *WORDS))
  raise ValueError(f'"split" is {split!r}, none of {known}')


def by_hash(name: str) -> bool:
  """Whether a hash of the name puts it into the 5 % that are held out."""
  return place(name)[0] < int(SHARE * 256)


def place(name: str) -> bytes:
  """Where a hash puts a name among others; the lowest are held out."""
  return hashlib.sha256(os.fsencode(name)).digest()
