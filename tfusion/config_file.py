"""An experiment file and some knobs set otherwise -> a checked config.

Owns: running the file, `--config.a.b=value` and its form in Python, saying what is
wrong in either. Not: the knobs and their checks (config.py, autoencoder_config.py).
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import ml_collections
from absl import flags
from ml_collections import config_flags

from tfusion import autoencoder_config
from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.config import Config

KINDS = {Config: config_lib, AutoencoderConfig: autoencoder_config}

C = TypeVar("C", bound=Config | AutoencoderConfig)
Made = TypeVar("Made", covariant=True)


class ConfigModule(Protocol[Made]):
  """The module of a command's config: tfusion.config or autoencoder_config."""

  def defaults(self) -> ml_collections.ConfigDict:
    """The default config, for an experiment file to change."""

  def from_dict(self, values: Any) -> Made:
    """A checked config of a nested dict."""


# `Config | Any`, not a union of both: with that, an editor would offer nothing and a
# type checker would reject `config.sample` of every experiment that has one.
def experiment(path: str | os.PathLike[str], **knobs: Any) -> Config | Any:
  """Reads an experiment file as `tfusion train --config` does, with knobs changed.

    tfusion.experiment("experiments/digits.py", steps=400)
    tfusion.experiment("experiments/folder.py:data=photos", **{"sample.steps": 50})

  Args:
    path: of the file, and behind a colon its argument, if it takes one.
    **knobs: a bare name is the knob of section `train`, if it has one of that name,
      else of the only section that has it; others are written with their section, as
      `**{"model.width": 512}`.

  Returns:
    The config, checked: a Config, or an AutoencoderConfig from an experiment of
    `tfusion autoencoder`. Which one is seen by its sections.

  Raises:
    ValueError: a missing file, an unknown or ambiguous name, a wrong type or value.
  """
  path = os.fspath(path)
  values = _run(path, name=f"experiment {path}")
  return _changed(values.to_dict(), knobs, _kind_of(values), section="train")


def with_knobs(config: C, knobs: Mapping[str, Any], *, section: str) -> C:
  """A config with knobs changed.

  Args:
    config: of either kind.
    knobs: by name, as for `experiment`.
    section: whose knobs bare names are first.

  Raises:
    ValueError: as for `experiment`.
  """
  return _changed(dataclasses.asdict(config), knobs, type(config), section=section)


def full_names(knobs: Iterable[str], kind: type[C], *, section: str) -> list[str]:
  """Finds "section.name" of knobs that may be named without their section.

  Raises:
    ValueError: an unknown name, or one that several sections have.
  """
  known = list(config_lib.flatten(kind()))
  return [_full_name(name, known, section) for name in knobs]


@overload
def read_config(path: str, overrides: list[str]) -> Config:
  """Of an experiment of `tfusion train`."""


@overload
def read_config(path: str, overrides: list[str], *, kind: ConfigModule[C]) -> C:
  """Of an experiment of the command whose config is `kind`'s."""


def read_config(
  path: str,
  overrides: list[str],
  *,
  kind: ConfigModule[Config | AutoencoderConfig] = config_lib,
) -> Config | AutoencoderConfig:
  """Reads `file.py[:arg]`, applies `--config.a.b=value`, checks everything.

  Args:
    path: of the experiment, and its argument.
    overrides: from the command line.
    kind: the module of the command's config: tfusion.config or autoencoder_config.

  Raises:
    ValueError: a missing file, an experiment of another command, an unknown key, a
      wrong type or value.
  """
  values = _run(path, name=f"--config={path}")
  found = _kind_of(values)
  if KINDS[found] is not kind:
    command = workdir_lib.KINDS[found].command
    raise ValueError(
      f"--config={path}: is an experiment of `tfusion {command}`; start it with that"
    )
  known = config_lib.flatten(kind.from_dict(kind.defaults()))
  for old, new in workdir_lib.RENAMED.items():
    section, name = old.split(".")
    if new in known and name in values.get(section, {}):
      file = path.partition(":")[0]
      raise ValueError(f"--config={path}: {file} sets {old}, which is called {new} now")
  return _with_overrides(values, overrides, kind)


def read_saved_config(workdir: str, overrides: list[str]) -> Config:
  """Reads workdir/config.json and applies `--config.a.b=value`."""
  saved = dataclasses.asdict(workdir_lib.load_config(workdir))
  return _with_overrides(ml_collections.ConfigDict(saved), overrides, config_lib)


def known_good(path: str) -> Path | None:
  """The figures of a known-good run that are kept beside an experiment, if any.

  Args:
    path: of the experiment, and its argument.
  """
  file = Path(path.partition(":")[0])
  results = file.parent / "results" / f"{file.stem}.json"
  return results if results.is_file() else None


def _run(path: str, *, name: str) -> ml_collections.ConfigDict:
  """What get_config of `file.py[:arg]` returns; errors begin with `name`."""
  file, _, arg = path.partition(":")
  if not Path(file).is_file():
    raise ValueError(f"{name}: there is no file {file}")
  # Not DEFINE_config_file: it answers an experiment's own ValueError with a traceback.
  spec = importlib.util.spec_from_file_location("experiment", file)
  if spec is None or spec.loader is None:
    raise ValueError(f"{name}: {file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  with _naming_line(name, file):
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise ValueError(f"{name}: {file} has no function get_config")
    values = module.get_config(arg)
  if not isinstance(values, ml_collections.ConfigDict):
    raise ValueError(
      f"{name}: get_config returned {type(values).__name__}, not the ConfigDict that"
      " tfusion.config.defaults() gives"
    )
  return values


@contextlib.contextmanager
def _naming_line(name: str, file: str):
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
      f"{name}: line {line} of {file}: {type(error).__name__}: {error}"
    ) from error


def _kind_of(values: ml_collections.ConfigDict) -> type[Config | AutoencoderConfig]:
  """Config, unless the sections are those of an AutoencoderConfig."""
  fields = {field.name for field in dataclasses.fields(AutoencoderConfig)}
  return AutoencoderConfig if set(values) == fields else Config


def _changed(
  values: dict[str, Any],
  knobs: Mapping[str, Any],
  kind: type[C],
  *,
  section: str,
) -> C:
  """Puts knobs into a nested dict, and makes a checked config of it."""
  names = dict(zip(knobs, full_names(knobs, kind, section=section), strict=True))
  for name, full in names.items():
    if list(names.values()).count(full) > 1:
      raise ValueError(f"{name}={knobs[name]!r}: {full} is given twice")
    inner, _, key = full.rpartition(".")
    (values[inner] if inner else values)[key] = knobs[name]
  return KINDS[kind].from_dict(values)


def _full_name(name: str, known: list[str], section: str) -> str:
  if name in known:
    return name
  if f"{section}.{name}" in known:
    return f"{section}.{name}"
  found = [key for key in known if key.endswith(f".{name}")]
  if len(found) > 1:
    raise ValueError(
      f"{name}: there are {' and '.join(found)}; name one of them, as in"
      f' **{{"{found[0]}": ...}}'
    )
  for old, new in workdir_lib.RENAMED.items():
    if new in known and name in (old, old.rpartition(".")[2]):
      raise ValueError(f"{name}: is called {new} now")
  if not found:
    raise ValueError(f"{name}: no such knob; did you mean {_nearest(name, known)}?")
  return found[0]


def _nearest(name: str, known: list[str]) -> str:
  """Knobs of about that name; all if there is none."""
  if "." in name:
    near = difflib.get_close_matches(name, known, n=3)
  else:
    last = {key.rpartition(".")[2] for key in known}
    alike = difflib.get_close_matches(name, last, n=3)
    near = [key for key in known if key.rpartition(".")[2] in alike]
  return ", ".join(near or known)


def _with_overrides(
  config: ml_collections.ConfigDict, args: list[str], kind: ConfigModule[C]
) -> C:
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
