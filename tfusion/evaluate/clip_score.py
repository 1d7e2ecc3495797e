"""How well images fit their texts, as CLIP sees it.

Owns: the score of pairs of features, of images and texts. Not: CLIP (networks/clip.py).

n pairs  d numbers of a feature
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tfusion.evaluate.networks.clip import Clip

WEIGHT = 2.5  # w of arXiv 2104.08718, section 3
PREFIX = "A photo depicts "  # which that section puts before a caption


class Scores(NamedTuple):
  """Means over pairs, of one CLIP."""

  clip: float  # 100 cos, as tables of text-to-image models have it
  clip_hessel: float  # CLIP-S of arXiv 2104.08718: 2.5 cos, captions with PREFIX


def cosines(image_nd: np.ndarray, text_nd: np.ndarray) -> np.ndarray:
  """Of each pair, f64[n], and 0 where it is negative."""
  image_nd, text_nd = (np.asarray(x, np.float64) for x in (image_nd, text_nd))
  lengths_n = np.linalg.norm(image_nd, axis=1) * np.linalg.norm(text_nd, axis=1)
  found_n = np.sum(image_nd * text_nd, axis=1) / np.maximum(lengths_n, 1e-300)
  return np.maximum(found_n, 0.0)


def score(
  clip: Clip, parts: Iterable[Sequence[np.ndarray]], texts: Sequence[str]
) -> Scores:
  """The scores of images and their texts; all hosts give the same.

  Args:
    clip: the model.
    parts: images u8[h, w, 1 or 3], in parts, in the order of the texts.
    texts: one for each image.

  Raises:
    ValueError: there is another number of images than of texts, or none.
  """
  bare: list[float] = []
  with_prefix: list[float] = []
  done = 0
  for images in parts:
    own = list(texts[done : done + len(images)])
    if len(own) < len(images):
      raise ValueError(f"there are more images than the {len(texts)} texts")
    image_nd = clip.images.features(clip.prepare(images))
    for prefix, found in (("", bare), (PREFIX, with_prefix)):
      text_nd = clip.texts.features(clip.encode([prefix + text for text in own]))
      found += cosines(image_nd, text_nd).tolist()
    done += len(images)
  if done != len(texts) or not done:
    raise ValueError(f"{done} images for {len(texts)} texts; each needs one")
  return Scores(100 * float(np.mean(bare)), WEIGHT * float(np.mean(with_prefix)))
