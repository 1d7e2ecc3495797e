"""What a source holds: documents, and the images and texts in them.

Owns: counting them, by looking at some documents. Not: what was found and not used
(folder.py, prepare/), what has been read so far (tally.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfusion import sequence
from tfusion.data.shards.records import Damaged
from tfusion.data.source import TEST, TRAIN, Source

LOOKED_AT = 64  # documents of a source


def of(train: Sequence[Source], test: Sequence[Source]) -> dict[str, dict[str, Any]]:
  """Counts what is trained on and what is held out.

  Args:
    train: the training sources.
    test: their held-out splits, in the same order.

  Returns:
    Source -> "train" and "test" -> documents, images, texts, and whether the last two
    are exact: they are if all documents that were looked at have equally many.
  """
  splits = (TRAIN, TEST)
  return {
    pair[0].name: {split: _count(own) for split, own in zip(splits, pair, strict=True)}
    for pair in zip(train, test, strict=True)
  }


def _count(source: Source) -> dict[str, Any]:
  size, seen = len(source), []
  for index in range(0, size, max(-(-size // LOOKED_AT), 1)):
    try:
      spans = source[index]
    except (Damaged, ValueError):  # logged when a lane meets it
      continue
    texts = sum(isinstance(span, str | sequence.Text) for span in spans)
    images = (np.ndarray, sequence.Image, sequence.Codes)
    seen.append((sum(isinstance(span, images) for span in spans), texts))
  images, texts = np.mean(seen or [(0, 0)], axis=0) * size
  return {
    "documents": size,
    "images": round(float(images)),
    "texts": round(float(texts)),
    "exact": len(set(seen)) <= 1,
  }
