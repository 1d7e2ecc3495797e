"""The source `digits`: captioned scans of handwritten digits.

Owns: the scans and their fixed split, the captions, what digit a text names. Not: how
well a model does on them (evaluate/digits.py).
"""

import dataclasses
import importlib.metadata
import re
from collections.abc import Iterable

import numpy as np

from tfusion.data import heldout
from tfusion.data.contents import Contents, Hashed, hash_of, of_documents
from tfusion.data.source import TRAIN, Source

SHAPE = (8, 8, 1)
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


@dataclasses.dataclass(frozen=True)
class Digits(Source):
  """Captioned scans: document i is scan i // 8 with caption template i % 8."""

  scans: np.ndarray  # u8[n, 8, 8, 1], 0..16
  labels: np.ndarray  # i64[n]

  def __len__(self) -> int:
    return len(self.scans) * len(CAPTIONS)

  def __getitem__(self, index: int) -> tuple[str | np.ndarray, ...]:
    scan, template = divmod(index, len(CAPTIONS))
    word = DIGIT_WORDS[self.labels[scan]]
    return CAPTIONS[template].format(word), _to_float(self.scans[scan])

  def contents(self) -> Contents:
    """Hashes of captions and scans; the digit's place is its id."""
    texts = [hash_of([c.format(w) for c in CAPTIONS]) for w in DIGIT_WORDS]
    hashed = [
      Hashed(str(i), texts[label], hash_of([scan.tobytes()]))
      for i, (scan, label) in enumerate(zip(self.scans, self.labels))
    ]
    version = importlib.metadata.version("scikit-learn")
    return of_documents(hashed, made_with=f"scikit-learn {version}")

  def texts(self) -> Iterable[str]:
    return (c.format(DIGIT_WORDS[i]) for i in self.labels for c in CAPTIONS)


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


def open_digits(*, split: str, image_shape: tuple[int, int, int]) -> Digits:
  """Opens a split of the scans.

  Raises:
    ValueError: the run has images of another shape.
  """
  if tuple(image_shape) != SHAPE:
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: the scans of data.sources='digits' are"
      f" {SHAPE}"
    )
  return Digits("digits", *_digits(split))


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  # Here: importing scikit-learn takes longer than opening every other source.
  from sklearn import datasets

  scans, labels = datasets.load_digits(return_X_y=True)
  order = sorted(range(len(labels)), key=lambda i: heldout.place(str(i)))
  order = order[:DIGITS_TRAIN] if split == TRAIN else order[DIGITS_TRAIN:]
  return scans[order].reshape(-1, *SHAPE).astype(np.uint8), labels[order]


def _to_float(scans: np.ndarray) -> np.ndarray:
  return scans.astype(np.float32) / 8 - 1  # 0..16
