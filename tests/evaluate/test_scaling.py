"""Promises of tfusion/evaluate/scaling.py and of the results that others printed."""

import numpy as np
import pytest

from tfusion import paper
from tfusion.evaluate import published, scaling
from tfusion.evaluate.scaling import Point

ELEMENTS = 250_000 * 512 * 4096
# Of the transformers alone, with the vocabulary of Llama 2 (Table 2).
PARAMETERS = {"0.16B": 162.4e6, "0.37B": 373.9e6, "0.76B": 777.9e6, "1.4B": 1364.3e6}
PARAMETERS["7B"] = 6738.4e6
# Computed from the printed rows with numpy, apart from this code.
SLOPES = {
  "c4_ppl": (-0.172, -0.162),
  "wiki_ppl": (-0.189, -0.180),
  "llama_accuracy": (0.088, 0.077),
  "cider": (0.384, 0.205),
  "fid": (-0.160, -0.045),
  "clip": (0.066, 0.027),
}


def table_7(patches: str, metric: str) -> list[Point]:
  return [
    Point(scaling.training_flops(PARAMETERS[row["size"]], ELEMENTS), row[metric])
    for row in published.table(7)
    if row["patches"] == patches
  ]


@pytest.mark.parametrize("metric", SLOPES)
def test_the_slopes_of_table_7_follow_from_its_printed_rows(metric):
  linear, unet = SLOPES[metric]
  for patches, slope in (("Linear", linear), ("U-Net", unet)):
    points = table_7(patches, metric)
    assert len(points) == 5
    assert scaling.fit(points).slope == pytest.approx(slope, abs=5e-4)


def law(slope: float, factor: float, noise: float = 0.0, seed: int = 0) -> list[Point]:
  rng = np.random.default_rng(seed)
  return [
    Point(f, factor * f**slope * np.exp(noise * rng.standard_normal()))
    for f in np.logspace(17, 21, 9)
  ]


def test_a_power_law_is_found_again():
  found = scaling.fit(law(-0.17, 40.0))
  assert found.slope == pytest.approx(-0.17, rel=1e-9)
  assert found.value(3e19) == pytest.approx(40.0 * 3e19**-0.17, rel=1e-9)
  assert found.flops(found.value(3e19)) == pytest.approx(3e19, rel=1e-6)
  noisy = scaling.fit(law(-0.17, 40.0, noise=0.002))
  assert noisy.slope == pytest.approx(-0.17, rel=0.01)


def test_a_family_that_needs_a_third_of_the_compute_has_a_parity_ratio_of_a_third():
  theirs, slope = law(-0.2, 50.0), -0.2
  ours = [Point(point.flops / 3, point.value) for point in theirs]
  assert scaling.parity_ratio(ours, theirs) == pytest.approx(1 / 3, rel=1e-9)
  assert scaling.parity_ratio(theirs, theirs) == pytest.approx(1.0, rel=1e-9)
  # Steeper lines meet elsewhere: f^-0.3 = 50 most^-0.2 / 50.
  most = max(point.flops for point in theirs)
  steeper = law(-0.3, 50.0)
  expected = most ** (slope / -0.3) / most
  assert scaling.parity_ratio(steeper, theirs) == pytest.approx(expected, rel=1e-6)


def test_intervals_hold_the_value_and_close_where_points_lie_on_a_line():
  exact = scaling.bootstrap_slope(law(0.3, 1.0), seed=0, samples=50)
  assert exact.high - exact.low < 1e-9
  points, ours = law(-0.2, 50.0, noise=0.05), law(-0.2, 45.0, noise=0.05, seed=1)
  found = scaling.bootstrap_slope(points, seed=0, samples=200)
  assert found.low < found.value < found.high and found.low < -0.2 < found.high
  assert found == scaling.bootstrap_slope(points, seed=0, samples=200)
  assert found != scaling.bootstrap_slope(points, seed=1, samples=200)
  ratio = scaling.bootstrap_parity(ours, points, seed=0, samples=200)
  assert ratio.low < ratio.value < ratio.high < 1.5
  assert ratio.value == scaling.parity_ratio(ours, points)


def test_the_paper_s_filters_leave_out_what_cannot_draw():
  points = [Point(1e18, value) for value in (3.9, 4.0, 17.0, 100.0, 101.0)]
  values = {
    m: [p.value for p in scaling.kept(m, points)] for m in ("fid", "clip", "cider")
  }
  assert values["fid"] == [3.9, 4.0, 17.0, 100.0]
  assert values["clip"] == [17.0, 100.0, 101.0]
  assert values["cider"] == [4.0, 17.0, 100.0, 101.0]
  assert scaling.kept("c4_ppl", points) == points


@pytest.mark.parametrize(
  "points, says",
  [
    ([], "two different FLOPs"),
    ([Point(1e18, 2.0)] * 3, "two different FLOPs"),
    ([Point(1e18, 2.0), Point(1e19, 0.0)], "above 0"),
    ([Point(1e18, 2.0), Point(1e19, float("nan"))], "above 0"),
  ],
)
def test_points_without_a_line_are_refused(points, says):
  with pytest.raises(ValueError, match=says):
    scaling.fit(points)
  with pytest.raises(ValueError, match=says):
    scaling.bootstrap_slope(points, seed=0)


def test_every_table_of_results_is_there_and_its_rows_are_alike():
  for number in range(3, 10):
    rows = published.table(number)
    assert len({frozenset(row) for row in rows}) == 1, number
  sizes = {row["size"] for row in published.table(7)}
  assert sizes == {size.upper() for size in paper.SIZES}
  with pytest.raises(KeyError, match="table 10 of 2408.11039: only 3, 4, 5"):
    published.table(10)
  with pytest.raises(KeyError, match="no results of it are here"):
    published.table(1, source="0000.00000")
