"""Promises of untied_step.py, at its smallest size."""

import pathlib

import pytest
from bench import untied_step

from tfusion.config_file import read_config

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.slow
def test_each_kind_of_weights_is_timed_on_the_same_rows_beside_none():
  knobs = "data.workers=0 model.layers=1 model.width=32 model.mlp=32 train.batch_rows=4"
  config = read_config(
    str(ROOT / "experiments" / "digits.py:smoke"),
    [f"--config.{knob}" for knob in knobs.split()],
  )
  none, mlp, everything = untied_step.measure(config, steps=1)
  assert [x["untied"] for x in (none, mlp, everything)] == ["none", "mlp", "all"]
  assert none["over_none"] == 0
  assert min(x["step_ms"] for x in (none, mlp, everything)) > 0
