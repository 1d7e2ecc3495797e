"""Promises of tfusion/workdir.py: a run goes on only where its state fits."""

import dataclasses
import json
import os
import stat

import pytest
from tiny import build

from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.autoencoder_config import AutoencoderConfig, LossConfig
from tfusion.config import Config


def test_a_saved_config_comes_back_equal(tmp_path):
  config = build(
    model__image_shape=(16, 8, 3), eval__prompts=("a <image>",), optim__peak_lr=1e-3
  )
  workdir_lib.save_config(config, tmp_path)
  assert workdir_lib.load_config(tmp_path) == config
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_workdir_without_a_config_says_what_to_do(tmp_path):
  with pytest.raises(ValueError, match="tfusion train --config FILE"):
    workdir_lib.load_config(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"seed": 0}', '{"seed": "x"}'])
def test_an_unreadable_saved_config_is_named(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="config.json"):
    workdir_lib.load_config(tmp_path)


def test_another_model_in_an_old_workdir_is_refused_with_the_keys_that_differ(tmp_path):
  assert workdir_lib.check_same_run(Config(), tmp_path) == []  # a new workdir
  workdir_lib.save_config(Config(), tmp_path)
  assert workdir_lib.check_same_run(Config(), tmp_path) == []
  other = build(model__layers=5, data__row_length=256, seed=3, optim__peak_lr=1e-2)
  with pytest.raises(ValueError) as error:
    workdir_lib.check_same_run(other, tmp_path)
  text = str(error.value)
  for line in (
    "seed: 0 -> 3",
    "model.layers: 4 -> 5",
    "data.row_length: 128 -> 256",
  ):
    assert line in text
  assert str(tmp_path) in text
  assert "peak_lr" not in text and "width" not in text


@pytest.mark.parametrize(
  "values",
  [
    {"train__steps": 9},
    {"optim__peak_lr": 1e-2},
    {"data__workers": 3},
    {"model__remat": "full"},
    {"model__dropout": 0.1},
    {"model__unroll": 2},
    {"model__attention": "dense"},
    {"model__dtype": "bfloat16"},
    {"mesh__fsdp": 2},
    {"mesh__context": 2},
    {"sample__guidance": 1.5},
    {"train__batch_rows": 32},
  ],
)
def test_what_the_state_does_not_depend_on_may_change_and_is_told(tmp_path, values):
  workdir_lib.save_config(Config(), tmp_path)
  (text,) = workdir_lib.check_same_run(build(**values), tmp_path)
  ((key, value),) = values.items()
  key = key.replace("__", ".")
  was = config_lib.flatten(Config())[key]
  assert text == f"{key}: {was!r} -> {value!r}"


def test_a_workdir_is_made_and_left_clean(tmp_path):
  path = workdir_lib.check_writable(tmp_path / "a" / "b")
  assert path.is_dir() and not list(path.iterdir())


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="--workdir=.*choose another directory"):
    workdir_lib.check_writable(tmp_path / "file")
  with pytest.raises(ValueError, match="cannot be written"):
    workdir_lib.check_writable(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_write_permission_is_refused(tmp_path):
  tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
  with pytest.raises(ValueError, match="cannot be written"):
    workdir_lib.check_writable(tmp_path)


def test_an_autoencoders_workdir_and_a_models_are_not_taken_for_each_other(tmp_path):
  (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
  small = AutoencoderConfig(seed=3)
  workdir_lib.save_config(small, tmp_path / "a")
  workdir_lib.save_config(Config(), tmp_path / "b")
  assert workdir_lib.load_config(tmp_path / "a", kind=AutoencoderConfig) == small
  with pytest.raises(ValueError, match="a run of `tfusion autoencoder`, not of"):
    workdir_lib.check_same_run(Config(), tmp_path / "a")
  with pytest.raises(ValueError, match="a run of `tfusion train`, not of"):
    workdir_lib.check_same_run(small, tmp_path / "b")


def test_an_autoencoder_goes_on_with_its_own_model_loss_and_images_alone(tmp_path):
  workdir_lib.save_config(AutoencoderConfig(), tmp_path)
  train = dataclasses.replace(AutoencoderConfig().train, steps=7)
  longer = AutoencoderConfig(train=train)
  assert workdir_lib.check_same_run(longer, tmp_path) == ["train.steps: 1000000 -> 7"]
  other = AutoencoderConfig(loss=LossConfig(kl_weight=1.0))
  with pytest.raises(ValueError, match=r"loss.kl_weight: 1e-06 -> 1.0"):
    workdir_lib.check_same_run(other, tmp_path)


def test_a_config_from_before_it_named_its_command_is_read(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(Config())))
  assert workdir_lib.load_config(tmp_path) == Config()


@pytest.mark.parametrize("config", [Config(), AutoencoderConfig()])
def test_a_config_from_before_knobs_were_renamed_opens_with_their_values(
  tmp_path, config
):
  workdir_lib.save_config(config, tmp_path)
  path = tmp_path / "config.json"
  values, known = json.loads(path.read_text()), config_lib.flatten(config)
  renamed = {old: new for old, new in workdir_lib.RENAMED.items() if new in known}
  assert len(renamed) == 2 and not known.keys() & workdir_lib.RENAMED.keys()
  for number, (old, new) in enumerate(renamed.items()):
    section, name = new.split(".")
    del values[section][name]
    values[section][old.partition(".")[2]] = type(known[new])(3 + number)
  path.write_text(json.dumps(values))
  read = config_lib.flatten(workdir_lib.load_config(tmp_path, kind=type(config)))
  expected = {new: 3 + number for number, new in enumerate(renamed.values())}
  assert read == known | expected
  # With the same values, the run may go on.
  same = workdir_lib.load_config(tmp_path, kind=type(config))
  assert workdir_lib.check_same_run(same, tmp_path) == []


def test_every_renamed_knob_is_there_under_its_new_name():
  known = config_lib.flatten(Config()) | config_lib.flatten(AutoencoderConfig())
  assert workdir_lib.RENAMED and set(workdir_lib.RENAMED.values()) <= known.keys()


def test_a_config_from_before_a_key_was_there_is_what_the_run_did_then(tmp_path):
  values = dataclasses.asdict(Config()) | {"command": "train"}
  for key in workdir_lib.ADDED:
    section, name = key.split(".")
    del values[section][name]
  (tmp_path / "config.json").write_text(json.dumps(values))
  read = config_lib.flatten(workdir_lib.load_config(tmp_path))
  assert read == config_lib.flatten(Config()) | workdir_lib.ADDED
  del values["model"]["width"]  # always there: the file is damaged
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(ValueError, match="missing .'width'"):
    workdir_lib.load_config(tmp_path)
