"""An experiment file and `--config.a.b=value` -> a checked config.

Owns: running the file, applying the overrides, naming what is wrong in either. Not: the
knobs and their checks (config.py, autoencoder_config.py).
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import traceback
import types
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from tfusion import autoencoder_config
from tfusion import config as config_lib
from tfusion import workdir as workdir_lib


def read_config(
  path: str, overrides: list[str], *, kind: types.ModuleType = config_lib
) -> config_lib.Config | autoencoder_config.AutoencoderConfig:
  """Reads `file.py[:arg]`, applies `--config.a.b=value`, checks everything.

  Args:
    path: of the experiment, and its argument.
    overrides: from the command line.
    kind: the module of the command's config: tfusion.config or autoencoder_config.

  Raises:
    ValueError: a missing file, an unknown key, a wrong type or value.
  """
  file, _, arg = path.partition(":")
  if not Path(file).is_file():
    raise ValueError(f"--config={path}: there is no file {file}")
  # Not DEFINE_config_file: it answers an experiment's own ValueError with a traceback.
  spec = importlib.util.spec_from_file_location("experiment", file)
  if spec is None:
    raise ValueError(f"--config={path}: {file} is not a Python file")
  experiment = importlib.util.module_from_spec(spec)
  with _naming_line(path, file):
    spec.loader.exec_module(experiment)
    if not hasattr(experiment, "get_config"):
      raise ValueError(f"--config={path}: {file} has no function get_config")
    values = experiment.get_config(arg)
  if not isinstance(values, ml_collections.ConfigDict):
    raise ValueError(
      f"--config={path}: get_config returned {type(values).__name__}, not the"
      " ConfigDict that tfusion.config.defaults() gives"
    )
  known = config_lib.flatten(kind.from_dict(kind.defaults()))
  for old, new in workdir_lib.RENAMED.items():
    section, name = old.split(".")
    if new in known and name in values.get(section, {}):
      raise ValueError(f"--config={path}: {file} sets {old}, which is called {new} now")
  return _with_overrides(values, overrides, kind)


@contextlib.contextmanager
def _naming_line(path: str, file: str):
  """Names the line of an experiment that fails, as a ValueError."""
  try:
    yield
  except (ValueError, OSError):  # these say themselves what to mend
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if frame.filename == file]
    line = getattr(error, "lineno", None) or (own[-1] if own else "?")
    raise ValueError(
      f"--config={path}: line {line} of {file}: {type(error).__name__}: {error}"
    ) from error


def read_saved_config(workdir: str, overrides: list[str]) -> config_lib.Config:
  """Reads workdir/config.json and applies `--config.a.b=value`."""
  saved = dataclasses.asdict(workdir_lib.load_config(workdir))
  return _with_overrides(ml_collections.ConfigDict(saved), overrides, config_lib)


def _with_overrides(
  config: ml_collections.ConfigDict, args: list[str], kind: types.ModuleType
) -> config_lib.Config | autoencoder_config.AutoencoderConfig:
  known = config_lib.flatten(kind.from_dict(kind.defaults()))
  for arg in args:
    key = arg.partition("=")[0].removeprefix("--config.")
    if arg.startswith("--config.") and workdir_lib.RENAMED.get(key) in known:
      raise ValueError(f"{arg}: is called {workdir_lib.RENAMED[key]} now")
    if arg.startswith("--config.") and key not in known:
      near = difflib.get_close_matches(key, known, n=3) or known
      raise ValueError(f"{arg}: no such knob; did you mean {', '.join(near)}?")
  args, values = ["tfusion", *args], flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=args)
    left = values(args)
  except (flags.Error, TypeError) as error:
    raise ValueError(str(error)) from error
  if left[1:]:
    raise ValueError(f"unknown arguments: {' '.join(left[1:])}")
  return kind.from_dict(values.config)
