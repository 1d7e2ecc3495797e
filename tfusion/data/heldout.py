"""Which documents are held out: names of files and folders say so, else a hash does.

Owns: the words in such names, the hash. Not: which name a document has (folder.py,
prepare/).
"""

import collections
import hashlib
import os
import re
from collections.abc import Iterable

SHARE = 0.05  # of the documents, where no name says which
WORDS = ("test", "val", "valid", "validation", "dev", "eval")
TRAIN_WORDS = ("train", "training")
# Words of names that are not read as such, and may have been meant so.
ALIKE = frozenset(
  "evaluation heldout holdout testing tests testset unseen validate valset".split()
)

# A year may follow, as in val2017/.
_WORD = rf"(?:{'|'.join(WORDS)})(?:\d{{4}})?"
_FOLDER = re.compile(_WORD, re.IGNORECASE)
_FILE = re.compile(rf"{_WORD}(?:[-_.]|$)", re.IGNORECASE)


def is_named(name: str) -> bool:
  """Whether a name says that what it names is held out.

  A folder on the way is called by one of WORDS, or the file's own name begins with one
  and a "-", "_" or "." behind it; in any case. So `Val/a.png`, `photos/test/a.png` and
  `validation-00000-of-00001.parquet` are, `contest/a.png` and `latest.tar` are not.

  Args:
    name: posix, relative to the source; of a split, its name.
  """
  *folders, file = name.split("/")
  return any(map(_FOLDER.fullmatch, folders)) or bool(_FILE.match(file))


def doubtful(name: str, *, file: bool = True) -> str:
  """The part of a name that sounds held out and does not say so; nothing if none does.

  `test_images/a.png` and `holdout/a.png` are trained on: people should hear of it.

  Args:
    name: as of `is_named`.
    file: look at the file's own name, not only at folders.
  """
  *folders, own = name.split("/")
  if is_named(name):
    return ""
  for part in [*folders, own] if file else folders:
    words = re.findall(r"[a-z]+", part.lower())
    pairs = {"".join(two) for two in zip(words, words[1:])}
    if {*words, *pairs} & {*WORDS, *ALIKE} and not {*words} & {*TRAIN_WORDS}:
      return part
  return ""


def advice(names: Iterable[str], *, file: bool = True) -> str:
  """What to say of names whose documents are trained on; nothing if all is clear."""
  found = collections.Counter(doubtful(name, file=file) for name in names)
  found.pop("", None)
  if not found:
    return ""
  some = ", ".join(f"{part} ({n:,})" for part, n in found.most_common(3))
  return f"trained on, though it may have been meant for testing: {some}; name it test"


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
