"""The suites: every arm is what its row says, and differs from others in that alone."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.ablations import plan, suites
from tfusion.ablations.plan import Spec
from tfusion.ablations.suites import MORE, SUITES, TITLES
from tfusion.config import Config, flatten
from tfusion.evaluate import published
from tfusion.training.flops import batch_flops

ARMS = {(s.name, arm.name): arm for s in SUITES.values() for arm in s.arms}
BASE = suites.BASE


def spec(arm, scale="tiny", **more):
  return Spec(arm, 0, scale, plan.EXPERIMENT, Path("runs/ablate/assets"), **more)


def base_of(arm):
  return dataclasses.replace(arm, knobs={}, start=None)


@pytest.mark.parametrize("arm", ARMS.values(), ids=map("-".join, ARMS))
@pytest.mark.parametrize("scale", ["tiny", "small", "smoke"])
def test_an_arm_differs_from_the_common_config_by_its_knobs_alone(arm, scale):
  own, base = (
    flatten(spec(arm, scale).config()),
    flatten(spec(base_of(arm), scale).config()),
  )
  changed = {name for name in own if own[name] != base[name]}
  allowed = set(arm.knobs) | ({"train.init_from"} if arm.start else set())
  assert changed <= allowed
  # A knob that changes nothing would be an arm that is none.
  same = set(arm.knobs) - changed
  assert all(base[name] == arm.knobs[name] for name in same)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_no_two_arms_of_a_suite_are_the_same_run(suite):
  keys = [spec(arm).judged for arm in suite.arms]
  assert len(set(keys)) == len(keys)
  names = [arm.name for arm in suite.arms]
  assert len(set(names)) == len(names)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_a_claim_compares_two_arms_of_the_suite_by_a_measure_of_its_table(suite):
  names = [arm.name for arm in suite.arms]
  for claim in suite.claims:
    assert claim.better in names and claim.worse in names
    assert claim.metric in suite.metrics
  assert set(suite.metrics) <= set(MORE) == set(TITLES)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_the_table_beside_ours_is_there(suite):
  if suite.table:
    assert published.table(suite.table[1], source=suite.table[0])


def test_losses_are_compared_only_where_models_predict_the_same():
  for suite in SUITES.values():
    targets = {spec(arm).config().diffusion.target for arm in suite.arms}
    grounds = {arm.ground for arm in suite.arms}
    if len(targets) > 1 or "codes" in grounds:
      assert "loss_grid" not in suite.metrics, suite.name


# What the rows say, in knobs.
SAYS = {
  ("table5", "linear, causal"): {"image_attention": "causal", "patches": "linear"},
  ("table5", "linear, bidirectional"): {"image_attention": "bidirectional"},
  ("table5", "U-Net, causal"): {"image_attention": "causal", "patches": "unet"},
  ("table5", "U-Net, bidirectional"): {"patches": "unet"},
  ("table6", "linear 1x1"): {"patch": 1, "patches_per_image": 256},
  ("table6", "linear 2x2"): {"patch": 2, "patches_per_image": 64},
  ("table6", "linear 4x4"): {"patch": 4, "patches_per_image": 16},
  ("table6", "U-Net 4x4"): {"patch": 4, "patches": "unet"},
  ("untied", "MLP untied"): {"untied": "mlp"},
  ("untied", "all untied"): {"untied": "all"},
  ("positions", "axial"): {"positions": "axial"},
  ("positions", "shared, sine"): {"positions": "shared", "patch_places": "sine"},
  ("table3", "Chameleon s"): {
    "patches": "none",
    "qk_norm": "layer",
    "norms": "after",
    "vocab_size": 1024,
  },
  ("table4", "Llama 2"): {"patches": "none", "qk_norm": "none", "norms": "before"},
  ("table4", "Chameleon, text alone"): {"qk_norm": "layer", "norms": "after"},
}


@pytest.mark.parametrize("row", SAYS, ids="-".join)
def test_a_row_is_the_model_that_it_says(row):
  model = spec(ARMS[row]).config().model
  for name, value in SAYS[row].items():
    assert getattr(model, name) == value


def test_rows_of_noise_context_and_objective_are_what_they_say():
  def noise(suite, name):
    return spec(ARMS[suite, name]).config().diffusion

  assert noise("table8", "no limit").image_first_noise_cap == 1.0
  assert noise("table8", "t up to 500").image_first_noise_cap == 0.5
  assert noise("context", "clean").image_first_clean == 1.0
  assert noise("context", "both").context == "both"
  assert noise("objective", "x0").target == "x0"
  flow = noise("objective", "flow, logit-normal t")
  assert (flow.schedule, flow.target, flow.t_logit_std) == ("linear", "v", 1.0)
  assert [noise("lambda", f"lambda {w}").image_weight for w in (1, 2, 5, 10)] == [
    1.0,
    2.0,
    5.0,
    10.0,
  ]


def test_text_alone_has_the_text_of_the_others_batches():
  text = spec(ARMS["table4", "Llama 2"]).config()
  both = spec(ARMS["table4", "Transfusion"]).config()
  assert 2 * text.train.batch_rows == both.train.batch_rows
  assert text.data.sources == ("pydoc",)
  assert text.train.steps == both.train.steps


def test_untied_weights_change_parameters_and_not_the_flops_of_an_element():
  tied, untied = (
    spec(ARMS["untied", name]).config() for name in ("tied", "all untied")
  )
  rng = np.random.default_rng(0)
  document = (tiny.text(rng, 5), tiny.image_of(rng, tied, 0))
  rows = sequence.stack([tiny.pack([document], tied)])
  assert batch_flops(tied.model, rows) == batch_flops(untied.model, rows)


def test_a_warm_start_begins_with_the_text_model_of_table_4():
  text = ARMS["table4", "Llama 2"]
  for name in ("frozen", "slow", "free"):
    arm = ARMS["warmstart", name]
    assert arm.start == text
    assert spec(arm).start.key == spec(text).key
  factors = [
    spec(ARMS["warmstart", name]).config().train.text_lr_factor
    for name in ("frozen", "slow", "free")
  ]
  assert factors == [0.0, 0.1, 1.0]


def test_suites_share_the_run_in_the_middle():
  rows = [
    *(("table5", "linear, bidirectional"), ("table6", "linear 2x2")),
    *(("table7", "linear s"), ("untied", "tied"), ("positions", "sequence")),
    *(("objective", "eps"), ("lambda", "lambda 5"), ("context", "noised")),
    *(("table4", "Transfusion"), ("table3", "Transfusion s")),
  ]
  assert len({spec(ARMS[row]).judged for row in rows}) == 1


def test_arms_can_be_chosen_by_a_part_of_their_name():
  linear = suites.with_arms(suites.TABLE5, ["linear"])
  assert [arm.name for arm in linear.arms] == [
    "linear, causal",
    "linear, bidirectional",
  ]
  assert suites.with_arms(suites.TABLE5, []) is suites.TABLE5
  with pytest.raises(ValueError, match="--arm=cubic: table5 has linear, causal; "):
    suites.with_arms(suites.TABLE5, ["linear", "cubic"])


def test_names_of_suites_are_checked():
  assert suites.chosen("all") == list(SUITES.values())
  assert [s.name for s in suites.chosen("table8, table5")] == ["table8", "table5"]
  with pytest.raises(ValueError, match="table10: no such suite; known: all, table3"):
    suites.chosen("table5,table10")
  with pytest.raises(ValueError, match="named twice"):
    suites.chosen("table5,table5")
  with pytest.raises(ValueError, match="name a suite"):
    suites.chosen(" ")


def test_every_knob_of_an_arm_is_one():
  known = flatten(Config())
  assert all(name in known for arm in ARMS.values() for name in arm.knobs)


def test_all_suites_with_two_seeds_fit_the_hours_that_they_promise():
  # At most 4 minutes a run: 1 of full length, a quarter for each try of a rate.
  arms = plan.arms(SUITES.values())
  runs = {spec(arm)._replace(seed=s).key for arm in arms for s in range(2)}
  tries = {one.key for arm in arms for one in plan.searches(spec(arm))}
  minutes = 4 * (len(runs) + len(tries) / plan.SEARCHED)
  assert minutes <= 8 * 60, f"{len(runs)} runs, {len(tries)} tries"
  assert list(itertools.islice(SUITES, 2)) == ["table3", "table4"]
