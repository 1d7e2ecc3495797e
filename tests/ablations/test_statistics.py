"""What seeds say."""

import math

import pytest

from tfusion.ablations.statistics import compare, spread


def test_a_spread_is_the_mean_and_the_deviation_with_one_degree_less():
  assert spread([1.0, 3.0]) == (2.0, math.sqrt(2.0), 2)
  assert spread([5.0]) == (5.0, 0.0, 1)
  with pytest.raises(ValueError, match="no seeds"):
    spread([])


def test_the_interval_is_students():
  # Differences 1, 2, 3: mean 2, deviation 1, and t of 2 degrees at 97.5 % is 4.302653.
  found = compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], more=True)
  half = 4.30265272974946 / math.sqrt(3)
  assert found.mean == pytest.approx(2.0)
  assert (found.low, found.high) == pytest.approx((2.0 - half, 2.0 + half))
  assert (found.better, found.seeds) == (3, 3)


def test_what_both_arms_share_of_a_seed_falls_out_of_the_difference():
  seeds = [10.0, 50.0, 90.0]
  found = compare([x - 1 for x in seeds], seeds, more=False)
  assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
  assert found.verdict == "holds"


@pytest.mark.parametrize(
  "better,worse,verdict",
  [
    ([3.0, 3.1, 3.2], [1.0, 1.1, 1.2], "holds"),
    ([3.0, 9.0], [1.0, 1.1], "same sign"),
    ([1.0, 3.0], [2.0, 2.0], "mixed"),
    ([1.0, 1.5], [2.0, 9.0], "opposite sign"),
    ([1.0, 1.1, 1.2], [3.0, 3.1, 3.2], "does not hold: the opposite does"),
    ([2.0], [1.0], "same sign"),
    ([0.0], [0.0], "no difference"),
    ([0.0, 1.0], [0.0, 1.0], "no difference"),
  ],
)
def test_a_verdict_says_what_the_seeds_allow(better, worse, verdict):
  assert compare(better, worse, more=True).verdict == verdict
  assert compare(worse, better, more=False).verdict == verdict


def test_one_seed_has_no_interval():
  found = compare([2.0], [1.0], more=True)
  assert (found.low, found.high) == (-math.inf, math.inf)


def test_arms_of_other_seeds_cannot_be_compared():
  with pytest.raises(ValueError, match="1 and 2 seeds"):
    compare([1.0], [1.0, 2.0], more=True)
