"""Promises of tfusion/data/packing.py."""

import itertools

import numpy as np
import pytest

from tfusion import config
from tfusion.data import packing
from tfusion.data.packing import choose


def fullest(elements, images, row_length, image_slots) -> int:
  """By trying every subset that holds the first document."""
  best = 0
  for others in itertools.product((0, 1), repeat=len(elements) - 1):
    taken = (1, *others)
    if np.dot(taken, images) <= image_slots:
      size = int(np.dot(taken, elements))
      best = max(best, size if size <= row_length else 0)
  return best


@pytest.mark.parametrize("image_slots", [1, 2, 3, 100])
def test_no_other_choice_fills_a_row_more(image_slots):
  rng = np.random.default_rng(image_slots)
  for _ in range(40):
    count = int(rng.integers(1, 10))
    elements = rng.integers(1, 41, count).tolist()
    images = rng.integers(0, min(3, image_slots + 1), count).tolist()
    own = [(n,) for n in images]
    chosen = choose(elements, own, row_length=40, image_slots=(image_slots,))
    assert chosen == sorted(set(chosen)) and chosen[0] == 0
    assert sum(images[i] for i in chosen) <= image_slots
    size = sum(elements[i] for i in chosen)
    assert size == fullest(elements, images, 40, image_slots)


def test_of_equally_full_rows_that_of_earlier_documents():
  sizes = [10, 10, 10, 10, 10]
  assert choose(sizes, [(0,)] * 5, row_length=30, image_slots=(0,)) == [0, 1, 2]
  assert choose(sizes, [(1,)] * 5, row_length=30, image_slots=(2,)) == [0, 1]


def test_where_slots_run_out_in_a_very_long_row_what_fits_is_taken(monkeypatch):
  rng = np.random.default_rng(0)
  elements = rng.integers(100, 400, 900).tolist()
  # Two images a document, and room for half of those that the row could hold.
  long = dict(row_length=1 << 17, image_slots=(500,))
  chosen = choose(elements, [(2,)] * 900, **long)
  assert chosen == list(range(250))
  few = dict(row_length=1000, image_slots=(4,))
  exact = choose(elements[:20], [(2,)] * 20, **few)
  monkeypatch.setattr(packing, "SUMS_BITS", 1)
  simple = choose(elements[:20], [(2,)] * 20, **few)
  assert simple == [0, 1] and sum(elements[i] for i in exact) >= sum(elements[:2])


def test_the_longest_row_is_filled_in_no_more_memory_than_a_short_one():
  longest = config.LONGEST_ROW
  chosen = choose([100] * 60_000, [(0,)] * 60_000, row_length=longest, image_slots=(8,))
  assert chosen == list(range(longest // 100))  # by subset sums: 63 GB


@pytest.mark.parametrize("documents", [1, 2, 500])
def test_a_row_may_be_filled_by_one_document_or_by_many(documents):
  sizes = [64 // documents or 1] * documents
  chosen = choose(sizes, [(0,)] * documents, row_length=64, image_slots=(0,))
  assert chosen == list(range(min(documents, 64)))


def test_pairs_of_256_patches_with_short_captions_fill_98_of_100():
  """The paper's rows (arXiv 2408.11039, section 4.1) with captions of 20 tokens."""
  rng = np.random.default_rng(0)
  captions = np.clip(rng.lognormal(2.9, 0.5, 4000), 3, 120).astype(int)
  sizes = (captions + 256 + 3).tolist()
  waiting, rows, live = [], 0, 0
  while sizes:
    while sizes and sum(waiting) < 3 * 4096:
      waiting.append(sizes.pop())
    ones = [(1,)] * len(waiting)
    chosen = choose(waiting, ones, row_length=4096, image_slots=(15,))
    live += sum(waiting[i] for i in chosen)
    rows += 1
    waiting = [s for i, s in enumerate(waiting) if i not in chosen]
  assert live / rows / 4096 >= 0.98
