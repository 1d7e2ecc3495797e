"""What finished runs found, as files."""

from pathlib import Path

import pytest
from tiny_ablations import put, result

from tfusion.ablations import plan, results, suites
from tfusion.ablations.board import Place
from tfusion.ablations.plan import Spec

SPEC = Spec(suites.BASE, 0, "tiny", plan.EXPERIMENT, Path("runs/ablate/assets"))


def place_in(folder):
  return Place("tiny", 2, folder / "runs", folder / "out")


def test_a_result_comes_back_as_it_was(tmp_path):
  place = place_in(tmp_path)
  place.results.mkdir()
  found = put(place, SPEC, scenes_right=0.5)
  assert results.find(place.results, SPEC) == found
  assert results.find(place.results, SPEC._replace(seed=1)) is None


def test_a_result_of_other_code_is_none_of_todays(tmp_path):
  place = place_in(tmp_path)
  place.results.mkdir()
  put(place, SPEC, "0123456789ab")
  assert results.find(place.results, SPEC) is None
  assert results.find(place.results, SPEC, "0123456789ab") is not None
  put(place, SPEC)
  assert len(list(place.results.iterdir())) == 2


def test_half_a_result_is_refused_by_its_name(tmp_path):
  path = results.write(tmp_path, result(SPEC))
  path.write_text(path.read_text()[:100])
  with pytest.raises(ValueError, match=rf"{path.name}: is no whole result.*delete it"):
    results.find(tmp_path, SPEC)


def test_a_rate_is_chosen_by_what_the_run_was_trained_for():
  weight = SPEC.config().diffusion.image_weight
  loss = results.held_out_loss(SPEC, {"loss_text": 2.0, "loss_image": 0.1})
  assert loss == pytest.approx(2.0 + 0.1 * weight)
  codes = results.held_out_loss(SPEC, {"loss_text": 2.0, "loss_codes": 3.0})
  assert codes == 5.0
  nan = results.held_out_loss(SPEC, {"loss_text": float("nan"), "loss_image": 0.1})
  assert nan == float("inf")
