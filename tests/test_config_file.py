"""Experiments read from Python; tests/test_cli.py has those of the command line."""

import pathlib

import pytest

import tfusion
from tfusion import autoencoder_config, config_file
from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.config import Config

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = ROOT / "experiments" / "digits.py"
AUTOENCODER = ROOT / "experiments" / "autoencoder.py"


def test_an_experiment_is_what_the_command_line_makes_of_it():
  assert tfusion.experiment(DIGITS) == config_file.read_config(str(DIGITS), [])
  overrides = [
    "--config.train.steps=7",
    "--config.sample.steps=3",
    "--config.optim.peak_lr=1",
    "--config.model.image_shape=(16,16,3)",
    "--config.seed=5",
  ]
  changed = tfusion.experiment(
    f"{DIGITS}:smoke",
    steps=7,
    peak_lr=1,
    image_shape=[16, 16, 3],
    seed=5,
    **{"sample.steps": 3},
  )
  assert changed == config_file.read_config(f"{DIGITS}:smoke", overrides)


def test_a_bare_name_is_the_knob_of_train_or_the_only_one_of_that_name():
  plain = tfusion.experiment(DIGITS)
  changed = tfusion.experiment(DIGITS, steps=7, sampler="ddim", width=640)
  assert (changed.train.steps, changed.sample.steps) == (7, plain.sample.steps)
  assert (changed.sample.sampler, changed.model.width) == ("ddim", 640)
  sampling = config_file.with_knobs(plain, {"steps": 7}, section="sample")
  assert (sampling.train.steps, sampling.sample.steps) == (plain.train.steps, 7)


def test_a_name_that_several_sections_have_is_refused_with_all_of_them():
  with pytest.raises(ValueError, match="^steps: there are train.steps and sample.ste"):
    config_file.full_names(["steps"], Config, section="model")


@pytest.mark.parametrize(
  ("knobs", "says"),
  [
    ({"stepz": 3}, "^stepz: no such knob; did you mean train.steps, sample.steps"),
    ({"train.stepz": 3}, "train.stepz: no such knob; did you mean train.steps"),
    ({"model": 3}, "^model: no such knob; did you mean "),
    ({"steps": "400"}, "train.steps='400': expected int"),
    ({"steps": 2.5}, "train.steps=2.5: expected int"),
    ({"steps": -1}, "train.steps=-1: must be above 0"),
    ({"sources": "digits"}, "data.sources='digits': expected a tuple of str"),
    ({"batch_rows": 18}, "train.batch_rows=18: must divide by"),
    ({"steps": 3, "train.steps": 4}, "steps=3: train.steps is given twice"),
  ],
)
def test_a_knob_that_cannot_be_is_named(knobs, says):
  with pytest.raises(ValueError, match=says):
    tfusion.experiment(DIGITS, **knobs)


def test_an_experiment_of_an_autoencoder_is_known_by_its_sections():
  config = tfusion.experiment(f"{AUTOENCODER}:smoke,vq", steps=3, codes=8)
  assert isinstance(config, AutoencoderConfig)
  assert (config.train.steps, config.model.codes) == (3, 8)
  with pytest.raises(ValueError, match="perceptual: no such knob; did you mean"):
    tfusion.experiment(AUTOENCODER, perceptual=1.0)


def test_an_experiment_of_another_command_is_refused_with_its_command():
  with pytest.raises(ValueError, match="an experiment of `tfusion autoencoder`; start"):
    config_file.read_config(str(AUTOENCODER), [])
  kind = config_file.KINDS[AutoencoderConfig]
  with pytest.raises(ValueError, match="is an experiment of `tfusion train`; start"):
    config_file.read_config(str(DIGITS), [], kind=kind)


def test_a_file_that_is_not_there_is_named_as_it_was_asked_for():
  with pytest.raises(ValueError, match="^experiment none.py: there is no file none.py"):
    tfusion.experiment("none.py")


def test_figures_of_a_known_good_run_are_found_beside_the_experiment(tmp_path):
  assert config_file.known_good(f"{DIGITS}:smoke") == (
    DIGITS.parent / "results" / "digits.json"
  )
  assert config_file.known_good(str(tmp_path / "digits.py")) is None


# Knobs that had other names.


KINDS = [(config_lib, str(DIGITS)), (autoencoder_config, str(AUTOENCODER))]


def names(kind) -> dict[str, str]:
  """The knobs of a config that had other names: old to new."""
  known = config_lib.flatten(kind.from_dict(kind.defaults()))
  return {old: new for old, new in workdir_lib.RENAMED.items() if new in known}


@pytest.mark.parametrize("kind, path", KINDS)
def test_an_override_by_an_old_name_is_told_the_new_one(kind, path):
  assert names(kind)
  for old, new in names(kind).items():
    with pytest.raises(ValueError) as error:
      config_file.read_config(path, [f"--config.{old}=3"], kind=kind)
    assert str(error.value) == f"--config.{old}=3: is called {new} now"
    config_file.read_config(path, [f"--config.{new}=3"], kind=kind)
    for name in (old, old.rpartition(".")[2]):
      with pytest.raises(ValueError, match=f"^{name}: is called {new} now"):
        tfusion.experiment(path, **{name: 3})


def test_a_name_that_only_the_other_command_had_is_simply_unknown():
  with pytest.raises(ValueError, match="no such knob; did you mean"):
    config_file.read_config(str(DIGITS), ["--config.train.batch_pictures=3"])


@pytest.mark.parametrize("kind, path", KINDS)
def test_an_experiment_with_an_old_name_is_told_the_new_one(tmp_path, kind, path):
  for old, new in names(kind).items():
    file = tmp_path / "mine.py"
    file.write_text(
      f"from tfusion import {kind.__name__.rpartition('.')[2]} as config_lib\n"
      "def get_config(arg):\n"
      f"  c = config_lib.defaults()\n  c.{old} = 3\n  return c\n"
    )
    with pytest.raises(
      ValueError, match=f"mine.py sets {old}, which is called {new} now"
    ):
      config_file.read_config(str(file), [], kind=kind)
