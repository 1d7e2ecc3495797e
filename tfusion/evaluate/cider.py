"""CIDEr: how much a caption of an image agrees with what people wrote of it.

Owns: the score (CIDEr-D of arXiv 1411.5726, section 5, as MS-COCO scores it), words of
a caption. Not: captions and images (coco.py).

A caption and a reference are compared by the cosine of their n-grams, of one to four
words, weighed by how few images have them. What MS-COCO's program adds is kept: counts
above the reference's do not help, another length lowers the score, and 10 is perfect.
"""

import collections
import math
import re
from collections.abc import Sequence

import numpy as np

WORDS = 4  # of an n-gram, at most
SIGMA = 6.0  # words; of the length
# What the tokenizer of MS-COCO's program (Stanford's, of the Penn Treebank) takes as
# words of their own, and then removes. It means to remove brackets as well, but looks
# for them in capitals: so they stay, under their names.
REMOVED = {*"'`.?!,:-;\"", "''", "``", "--", "..."}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-"}
BRACKETS |= {"{": "-lcb-", "}": "-rcb-"}
PIECES = re.compile(
  r"""
    \.\.\. | --+                                   # marks of several signs
  | n't\b | '(?:s|m|d|re|ve|ll|em|til)\b
  | (?:(?<!\S)-)?\d+(?:[.,:/-]\d+)*(?![^\W_])      # numbers, times, dates; not 19th
  | (?<!\S)[^\W\d_]\.(?=\s+\w)                      # initials
  | [^\W\d_]+(?:\.[^\W\d_])+\.?                     # u.s. and a.m.
  | (?:mr|mrs|ms|dr|st|jr|sr|vs|etc)\.             # and other short words
  | [^\W_]+(?:[-/&][^\W_]+)*                       # words, with hyphens inside
  | \S
  """,
  re.VERBOSE,
)
# n't is a word of its own, and so is what stands behind other apostrophes.
NOT = re.compile(r"\b(\w+)(n['\u2019]t)\b")
QUOTES = str.maketrans({"\u2019": "'", "\u2018": "`", "\u201c": "``", "\u201d": "''"})
SPLIT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na")}


def words_of(caption: str) -> list[str]:
  """The words of a caption, in lower case and without punctuation.

  It gives what Stanford's tokenizer gives for captions in plain English; a test
  compares them where Java is installed. Web addresses, emoticons and money are left to
  chance.
  """
  text = NOT.sub(r"\1 \2", caption.lower().translate(QUOTES).replace("\n", " "))
  found: list[str] = []
  for piece in PIECES.findall(text):
    found += SPLIT.get(piece, (piece,))
  return [BRACKETS.get(word, word) for word in found if word not in REMOVED]


def cider(
  captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, np.ndarray]:
  """The score of one caption for each image.

  Args:
    captions: words, of each image.
    references: words of what people wrote, at least one for each image.

  Returns:
    The mean, and the score of every image, f64[images]; tables print 100 times it.

  Raises:
    ValueError: an image lacks a caption or references, or there are none.
  """
  if len(captions) != len(references) or not references or not all(references):
    raise ValueError(
      f"{len(captions)} captions and {len(references)} images; each needs a caption"
      " and at least one reference"
    )
  counted = [[_count(words) for words in own] for own in references]
  images_with = collections.Counter(
    ngram for own in counted for ngram in set().union(*own)
  )
  log_images = math.log(len(references))

  def weigh(counts):
    return {
      ngram: times * (log_images - math.log(max(1, images_with[ngram])))
      for ngram, times in counts.items()
    }

  scores = []
  for caption, own, words in zip(captions, counted, references):
    weights = weigh(_count(caption))
    length = _pairs(caption)
    each = [
      _agreement(weights, weigh(counts), longer=length - _pairs(reference))
      for counts, reference in zip(own, words)
    ]
    scores.append(10 * float(np.mean(each)))
  return float(np.mean(scores)), np.asarray(scores)


def _count(words: Sequence[str]) -> collections.Counter:
  return collections.Counter(
    tuple(words[start : start + n])
    for n in range(1, WORDS + 1)
    for start in range(len(words) - n + 1)
  )


def _pairs(words: Sequence[str]) -> int:
  """The length of a text, which MS-COCO's program counts in pairs of words."""
  return max(len(words) - 1, 0)


def _agreement(caption: dict, reference: dict, *, longer: int) -> float:
  """The mean over the lengths of n-grams of their cosines, less for another length."""
  dots, squares = np.zeros(WORDS), np.zeros((2, WORDS))
  for ngram, weight in caption.items():
    n, theirs = len(ngram) - 1, reference.get(ngram, 0.0)
    dots[n] += min(weight, theirs) * theirs
  for side, weights in enumerate((caption, reference)):
    for ngram, weight in weights.items():
      squares[side, len(ngram) - 1] += weight**2
  norms = np.sqrt(squares[0] * squares[1])
  cosines = np.divide(dots, norms, out=dots.copy(), where=norms > 0)
  return float(np.mean(cosines) * math.exp(-(longer**2) / (2 * SIGMA**2)))
