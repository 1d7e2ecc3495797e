"""Promises of tfusion/config_file.py about knobs that have another name now."""

import pytest

from tfusion import autoencoder_config
from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.config_file import read_config

KINDS = [(config_lib, "experiments/digits.py")]
KINDS += [(autoencoder_config, "experiments/autoencoder.py")]


def names(kind) -> dict[str, str]:
  """The knobs of a config that had other names: old to new."""
  known = config_lib.flatten(kind.from_dict(kind.defaults()))
  return {old: new for old, new in workdir_lib.RENAMED.items() if new in known}


@pytest.mark.parametrize("kind, path", KINDS)
def test_an_override_by_an_old_name_is_told_the_new_one(kind, path):
  assert names(kind)
  for old, new in names(kind).items():
    with pytest.raises(ValueError) as error:
      read_config(path, [f"--config.{old}=3"], kind=kind)
    assert str(error.value) == f"--config.{old}=3: is called {new} now"
    read_config(path, [f"--config.{new}=3"], kind=kind)


def test_a_name_that_only_the_other_command_had_is_simply_unknown():
  with pytest.raises(ValueError, match="no such knob; did you mean"):
    read_config("experiments/digits.py", ["--config.train.batch_pictures=3"])


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
      read_config(str(file), [], kind=kind)
