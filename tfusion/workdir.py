"""The folder of a run: its saved config, and whether a run may go on in it.

Owns: config.json. Not: the knobs (config.py), other files (their writers).
"""

import dataclasses
import json
import os
import uuid
from pathlib import Path

from tfusion.config import Config, flatten, from_dict

# A workdir is bound to these: its parameters or its data state mean nothing without.
BOUND = ("seed", "model", "diffusion.timesteps", "data", "optim.ema_decay")
UNBOUND = (
  "data.workers",
  "model.dtype",
  "model.remat",
  "model.unroll",
  "model.attention",
)


def save_config(config: Config, workdir: str | Path) -> None:
  """Writes workdir/config.json, whole or not at all."""
  path = Path(workdir) / "config.json"
  aside = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # several hosts write the same
  aside.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
  os.replace(aside, path)


def load_config(workdir: str | Path) -> Config:
  """Reads the config that a run saved in its workdir.

  Raises:
    ValueError: there is none, or it is of another version of tfusion.
  """
  path = Path(workdir) / "config.json"
  if not path.is_file():
    raise ValueError(
      f"--workdir={workdir}: holds no config.json; train there first with"
      " `tfusion train --config FILE --workdir DIR`"
    )
  try:
    return from_dict(json.loads(path.read_text()))
  except ValueError as error:  # not JSON is one too
    raise ValueError(
      f"{path}: damaged or of another version of tfusion ({error}); restore it, or"
      " choose a new workdir"
    ) from error


def check_same_run(config: Config, workdir: str | Path) -> list[str]:
  """Refuses to continue a workdir with a config that its state does not fit.

  Returns:
    What differs and may: "key: old -> new" each.

  Raises:
    ValueError: names every differing key of the model and the data, with both values.
  """
  if not (Path(workdir) / "config.json").is_file():
    return []
  new, old = flatten(config), flatten(load_config(workdir))
  differing = {
    key: f"{key}: {old[key]!r} -> {new[key]!r}" for key in new if new[key] != old[key]
  }
  refused = [text for key, text in differing.items() if _is_bound(key)]
  if refused:
    raise ValueError(
      f"--workdir={workdir} holds a run of another config; choose a new workdir or"
      " restore the values (workdir -> now):\n  " + "\n  ".join(refused)
    )
  return list(differing.values())


def check_writable(workdir: str | Path, *, option: str = "--workdir") -> Path:
  """Creates the workdir and proves that files can be written in it.

  Args:
    workdir: or another folder to write to.
    option: by which the user named it.

  Raises:
    ValueError: it is a file or cannot be written.
  """
  path = Path(workdir).expanduser()
  probe = path / ".write-probe"
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"ok")
    probe.unlink(missing_ok=True)  # several hosts probe at once
  except OSError as error:
    raise ValueError(
      f"{option}={workdir}: cannot be written ({error}); choose another directory"
    ) from error
  return path


def _is_bound(key: str) -> bool:
  inside = any(key == b or key.startswith(b + ".") for b in BOUND)
  return inside and key not in UNBOUND
