"""From arms to runs: keys, commands."""

from pathlib import Path

import pytest

from tfusion.ablations import plan, suites
from tfusion.ablations.plan import Spec

ASSETS = Path("runs/ablate/assets")


def spec(arm=suites.BASE, seed=0, **more):
  return Spec(arm, seed, "tiny", plan.EXPERIMENT, more.pop("assets", ASSETS), **more)


def guidance(name):
  return next(arm for arm in suites.GUIDANCE.arms if arm.name == name)


def test_a_run_is_known_by_its_config_and_not_by_where_it_is_done():
  assert spec().judged == spec(assets=Path("/elsewhere/assets")).judged
  assert spec().judged != spec(seed=1).judged
  assert spec().key != spec(suites.UNET).key


def test_sampling_otherwise_is_the_same_training():
  three, eight = spec(guidance("guidance 3")), spec(guidance("guidance 8"))
  assert three.key == eight.key == spec().key
  assert three.judged == spec().judged != eight.judged


def test_a_search_is_shorter_has_another_rate_and_no_evaluation():
  found = plan.searches(spec(seed=3))
  whole = spec().config()
  for one, rate in zip(found, plan.RATES, strict=True):
    config = one.config()
    assert config.train.steps == whole.train.steps // plan.SEARCHED
    assert config.optim.peak_lr == pytest.approx(rate * whole.optim.peak_lr)
    assert config.optim.end_lr == pytest.approx(rate * whole.optim.end_lr)
    assert (config.seed, one.evaluations) == (0, "")
  assert len({one.key for one in found}) == len(plan.RATES)


def test_a_run_at_the_rate_that_is_written_is_the_same_as_without_a_search():
  assert spec(rate=1.0).key == spec().key != spec(rate=2.0).key


def test_a_run_that_starts_from_another_depends_on_it():
  arm = suites.WARMSTART.arms[1]
  one, other = spec(arm), spec(arm, start_rate=2.0)
  assert one.start is not None and one.key != other.key
  assert one.depends()["train.init_from"] == f"run {one.start.key}"


def test_the_commands_are_those_of_tfusion():
  train = spec(suites.UNET, seed=2).train(Path("w"), None)
  assert train[:2] == ["train", "--config"]
  assert "--config.seed=2" in train and "--config.model.patches=unet" in train
  evaluate = spec(guidance("guidance 8")).evaluate(Path("w"))
  assert evaluate[:5] == ["eval", "--workdir", "w", "--suite", "scenes:12,loss"]
  assert evaluate[5:] == ["--config.sample.guidance=8.0"]


def test_what_is_measured_is_what_a_model_can_do():
  assert spec(suites.TEXT_ONLY).evaluations == ""
  assert spec(suites.CHAMELEON).evaluations == "scenes:12"


def test_arms_come_before_those_that_start_from_them():
  arms = plan.arms([suites.WARMSTART])
  starts = [arm.start is not None for arm in arms]
  assert starts == sorted(starts) and suites.TEXT_ONLY in arms
