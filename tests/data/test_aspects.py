"""Shapes for pictures of many aspects: the nearest one, and which to have."""

import itertools

import numpy as np
import pytest

from tfusion.data import aspects

SHAPES = [(16, 16, 3), (12, 20, 3), (20, 12, 3)]


@pytest.mark.parametrize(
  "size, want",
  [
    ((100, 100), 0),
    ((1920, 1080), 1),
    ((1080, 1920), 2),
    ((120, 100), 0),
    ((150, 100), 1),
    ((250, 100), 1),  # 1.5 times 20 / 12
    ((251, 100), None),
    ((100, 251), None),
  ],
)
def test_a_picture_goes_where_least_of_it_is_lost_or_nowhere(size, want):
  assert aspects.nearest(size, SHAPES) == want


def lost(sizes, shapes):
  """What pictures lose at their edges, each in the shape that suits it best."""
  total = 0.0
  for width, height in sizes:
    ratios = [height / width * w / h for h, w in shapes]
    total += min(1 - min(r, 1 / r) for r in ratios)
  return total


def test_of_pictures_of_few_aspects_just_these_are_chosen():
  sizes = [(300, 200)] * 3 + [(200, 300)] * 5 + [(256, 256)] * 2
  found = aspects.choose(sizes, side=24, cell=4, count=8)
  assert found == [(28, 20), (20, 28), (24, 24)]
  assert all(h % 4 == w % 4 == 0 and h * w <= 24 * 24 for h, w in found)


@pytest.mark.parametrize("seed", range(5))
def test_one_after_the_other_loses_hardly_more_than_the_best_of_all_choices(seed):
  rng = np.random.default_rng(seed)
  ratios = np.exp(rng.normal(0, 0.5, 60)).clip(0.3, 3)
  sizes = [(1000, int(1000 * r)) for r in ratios]
  every = aspects._candidates(32, 4)
  best = min(lost(sizes, own) for own in itertools.combinations(every, 3))
  found = aspects.choose(sizes, side=32, cell=4, count=3)
  assert len(found) == 3
  assert best <= lost(sizes, found) <= 1.35 * best  # a limit of ours
  assert lost(sizes, found) < 0.7 * lost(sizes, [(32, 32)])


def test_more_shapes_never_lose_more():
  rng = np.random.default_rng(0)
  sizes = [(int(w), int(h)) for w, h in rng.integers(100, 300, (50, 2))]
  all_lost = [
    lost(sizes, aspects.choose(sizes, side=32, cell=8, count=n)) for n in (1, 2, 3, 5)
  ]
  assert all_lost == sorted(all_lost, reverse=True)
