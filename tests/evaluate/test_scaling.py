"""Promises of tfusion/evaluate/scaling.py and of the results that others printed."""

import functools
import json
import math
import pathlib

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


def column(source: str, name: str, metric: str) -> list:
  return [row[metric] for row in published.table(name, source=source)]


def test_the_results_of_others_are_those_copied_by_hand():
  mot = functools.partial(column, "2411.04996", "sizes")
  assert mot("size") == ["163M", "760M", "1.4B", "7B", "7B", "7B"]
  assert mot("c4_loss") == [2.665, 2.33, 2.244, None, None, None]
  assert mot("wiki_loss") == [2.144, 1.78, 1.683, None, None, None]
  assert mot("fid") == [27.43, 25.58, 19.32, None, 9.22, 8.14]
  assert mot("cider") == [14.2, 25.1, 28.6, 31.5, None, 40.6]
  assert mot("clip") == [18.5, 20.2, 20.6, None, None, None]
  assert mot("guidance") == [1, 1, 1, None, 1.6, 1.6]
  assert mot("elements") == ["0.524T"] * 4 + ["1T", "0.5T"]
  lmfusion = functools.partial(column, "2412.15188", "7b")
  assert lmfusion("model") == ["Transfusion"] * 2 + ["LMFusion"] * 3
  assert lmfusion("cider") == [32.0, None, 38.3, None, None]
  assert lmfusion("fid") == [8.7, 14.4, 8.75, 8.61, 13.9]
  assert lmfusion("hellaswag") == [51.0, None, 60.0, None, None]
  assert lmfusion("guidance") == [1.55, 1, 1.55, 1.55, 1]
  assert lmfusion("flops_share") == [1.0, 1.0, 0.5, 1.0, None]
  assert column("2603.03276", "stack", "ppl") == [15.93, 15.13, 15.06, 12.49, None]
  assert column("2603.03276", "stack", "dpg") == [0.45, 0.47, 0.57, 0.63, 0.65]
  bagel = functools.partial(column, "2505.14683", "readme")
  assert bagel("geneval") == [0.82, 0.88, None]
  assert bagel("wise") == [0.52, None, 0.7]
  assert bagel("kris") == [56.21, None, 60.18] and bagel("rise") == [6.1, None, 11.9]
  one = [bagel(k)[0] for k in ("mmmu", "mmbench", "mm_vet", "mathvista", "gedit_en")]
  assert one == [55.3, 85.0, 67.2, 73.1, 6.52]


def test_the_models_trained_again_have_the_perplexities_of_the_paper():
  sizes = {"163M": "0.16B", "760M": "0.76B", "1.4B": "1.4B"}
  printed = {
    row["size"]: row for row in published.table(7) if row["patches"] == "U-Net"
  }
  for row in published.table("sizes", source="2411.04996"):
    if row["size"] in sizes:
      beside = printed[sizes[row["size"]]]
      assert round(math.exp(row["c4_loss"]), 1) == beside["c4_ppl"]
      assert round(math.exp(row["wiki_loss"]), 1) == beside["wiki_ppl"]


def test_every_row_of_others_says_where_it_was_read_and_what_differs():
  file = pathlib.Path(published.__file__).with_name("published.json")
  works = json.loads(file.read_text())
  for source in works.keys() - {published.PAPER}:
    for name in works[source]["tables"]:
      rows = published.table(name, source=source)
      assert len({frozenset(row) for row in rows}) == 1, source
      for row in rows:
        assert row["read"] and set(row["from_plot"]) <= row.keys()
        assert all(row[metric] is not None for metric in row["from_plot"])
        # FID at other guidance than the paper's is not to be compared with its own.
        guided = any("FID" in note and "guidance" in note for note in row["notes"])
        assert guided == (row.get("fid") is not None), row


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
