"""The folder of a run: its saved config, and whether a run may go on in it.

Owns: config.json. Not: the knobs (config.py), other files (their writers).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from tfusion import autoencoder_config, buckets, files, parsing
from tfusion import config as config_lib
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.config import Config, flatten

PROBE = ".write-probe"  # written and removed, to see whether others can be

C = TypeVar("C", bound=Config | AutoencoderConfig)


class Kind(NamedTuple):
  """How the workdirs of one command are treated."""

  command: str
  from_dict: Callable[[Any], Any]  # a nested dict to its config
  # Sections and knobs that a run cannot change: with another value, its parameters or
  # the state of its data mean nothing.
  bound: tuple[str, ...]
  unbound: tuple[str, ...]  # knobs in those sections that may change all the same
  # Knobs that name files. These may lie elsewhere: whether they are the same is seen
  # when they are read.
  of_content: tuple[str, ...]


KINDS = {
  Config: Kind(
    "train",
    config_lib.from_dict,
    bound=(
      "seed",
      "model",
      "diffusion.timesteps",
      "diffusion.schedule",
      "diffusion.target",
      "diffusion.context",  # says which elements the documents that wait have
      "data",
      "optim.ema_decay",
    ),
    unbound=(
      "data.workers",
      "data.max_damaged",
      "model.dtype",
      "model.gradient_dtype",
      "model.remat",
      "model.unroll",
      "model.attention",
      "model.dropout",
    ),
    of_content=("data.sources", "data.tokenizer"),
  ),
  AutoencoderConfig: Kind(
    "autoencoder",
    autoencoder_config.from_dict,
    bound=("seed", "model", "loss", "data", "optim.ema_decay"),
    unbound=("model.dtype", "data.threads"),
    of_content=("data.sources", "loss.features"),
  ),
}


# Knobs that config.json does not have in older runs, and what those runs did.
ADDED = {
  "model.gradient_dtype": "bfloat16",
  "model.patches": "linear",
  "model.kinds": (),
  "model.unet_widths": (),
  "model.image_attention": "bidirectional",
  "model.positions": "sequence",
  "model.patch_places": "none",
  "model.qk_norm": "none",
  "model.norms": "before",
  "model.attention_bias": False,
  "model.head_size": 0,
  "model.rope_scaling": (),
  "model.time_scale": 1.0,
  "model.lora_rank": 0,
  "model.untied": "none",
  "model.dropout": 0.0,
  "data.isolate_documents": True,
  "diffusion.schedule": "cosine",
  "diffusion.target": "eps",
  "diffusion.context": "noised",
  "diffusion.t_logit_std": 0.0,
  "diffusion.t_logit_mean": 0.0,
  "diffusion.t_shift": 1.0,
  "diffusion.min_snr_gamma": 0.0,
  "train.init_from": "",
  "train.text_lr_factor": 1.0,
  "train.image_lr_factor": 1.0,
  "train.z_loss": 0.0,
  "sample.image_guidance": 1.2,
  "sample.guidance_by_images": 0.0,
  "sample.code_temperature": 0.7,
  "sample.code_top_p": 0.9,
  "sample.start": 1.0,
  "sample.top_k": 0,
  "sample.top_p": 1.0,
  "sample.min_p": 0.0,
  "sample.repetition": 1.0,
  "sample.guidance_from": 0.0,
  "sample.guidance_to": 1.0,
  "sample.guidance_rescale": 0.0,
}
# The same, in the configs of all commands.
ADDED_TO_ALL = {
  "train.stall_seconds": 0,
  "train.loggers": (),
  "optim.decay": "cosine",
}

# Knobs that have another name now: old name -> new name. A run's config.json may have
# the old ones.
RENAMED = {
  "data.text_per_image": "data.text_per_patch",
  "eval.images_per_class": "eval.samples_per_class",
  "train.batch_pictures": "train.batch_images",
  "train.eval_pictures": "train.eval_images",
}


def save_config(config: Config | AutoencoderConfig, workdir: str | Path) -> None:
  """Writes workdir/config.json, whole or not at all."""
  values = {"command": KINDS[type(config)].command} | dataclasses.asdict(config)
  write_json(workdir, "config.json", values)


@overload
def load_config(workdir: str | Path) -> Config: ...


@overload
def load_config(workdir: str | Path, *, kind: type[C]) -> C: ...


@overload
def load_config(workdir: str | Path, *, kind: None) -> Config | AutoencoderConfig: ...


def load_config(workdir: str | Path, *, kind: type[Any] | None = Config) -> Any:
  """Reads the config that a run saved in its workdir.

  Args:
    workdir: of a run.
    kind: of run that it must be; None: any.

  Raises:
    ValueError: there is none, or it is of another command or version of tfusion.
  """
  path, wanted = files.to_path(workdir) / "config.json", KINDS[kind or Config]
  if not path.is_file():
    files.check_there(path.parent, option="--workdir")
    raise ValueError(
      f"--workdir={workdir}: holds no config.json; train there first with"
      f" `tfusion {wanted.command} --config FILE --workdir DIR`"
    )
  try:
    values = parsing.parse_json(path.read_text())
    # Runs of `train` from before there were others do not say whose they are.
    command = values.pop("command", "train") if isinstance(values, dict) else "train"
    if kind is None:
      wanted = next((k for k in KINDS.values() if k.command == command), wanted)
    if command == wanted.command:
      values = _with_new_names(values)
      added = ADDED_TO_ALL | (ADDED if command == "train" else {})
      return wanted.from_dict(_with_added(values, added))
  except ValueError as error:  # not JSON is one too
    raise ValueError(
      f"{path}: damaged or of another version of tfusion ({error}); restore it, or"
      " choose a new workdir"
    ) from error
  raise ValueError(
    f"--workdir={workdir}: holds a run of `tfusion {command}`, not of `tfusion"
    f" {wanted.command}`; choose another workdir"
  )


def check_same_run(
  config: Config | AutoencoderConfig, workdir: str | Path
) -> list[str]:
  """Refuses to go on in a workdir with a config that does not fit what is saved there.

  Returns:
    "key: old -> new" for every difference that is allowed, except of data.sources:
    data/identity.py says more of those.

  Raises:
    ValueError: names every differing key of the model and the data, with both values;
      or the workdir has checkpoints and no config.
  """
  if not (files.to_path(workdir) / "config.json").is_file():
    if has_checkpoint(workdir):
      raise ValueError(
        f"--workdir={workdir}: has checkpoints, but no config.json to say of which run;"
        " restore it from a copy of the workdir, or choose a new workdir"
      )
    return []
  kind = type(config)
  new, old = flatten(config), flatten(load_config(workdir, kind=kind))
  may: list[str] = []
  differing = {
    key: f"{key}: {old[key]!r} -> {new[key]!r}" for key in new if new[key] != old[key]
  }
  for key in KINDS[kind].of_content:
    if key in differing and _what(key, new[key]) == _what(key, old[key]):
      changed = differing.pop(key)
      may += [changed] * (key != "data.sources")
  refused = [text for key, text in differing.items() if _is_bound(key, KINDS[kind])]
  if refused:
    raise ValueError(
      f"--workdir={workdir} holds a run of another config; choose a new workdir or"
      " restore the values (workdir -> now):\n  " + "\n  ".join(refused)
    )
  return may + list(differing.values())


def has_checkpoint(workdir: str | Path) -> bool:
  """Whether a run has saved something in a workdir, whole or not."""
  folder = files.to_path(workdir) / "checkpoints"
  return folder.is_dir() and any(p.name[0].isdecimal() for p in folder.iterdir())


def has_begun(workdir: str | Path) -> bool:
  """Whether a run has begun in a workdir; files that a refused start has left there do
  not count."""
  return (files.to_path(workdir) / "config.json").is_file() or has_checkpoint(workdir)


def check_writable(workdir: str | Path, *, option: str = "--workdir") -> Path:
  """Creates the workdir and proves that files can be written in it.

  Args:
    workdir: or another folder to write to; no bucket is made.
    option: by which the user named it.

  Raises:
    ValueError: it is a file or cannot be written; or its bucket is not there.
  """
  path = files.to_path(workdir).expanduser()
  if there := buckets.of(path):
    buckets.check_writable(there, PROBE, option=option)
    return path
  probe = path / PROBE
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"ok")
    probe.unlink(missing_ok=True)  # several hosts probe at once
  except OSError as error:
    raise ValueError(
      f"{option}={workdir}: cannot be written ({error}); choose another directory"
    ) from error
  return path


def write_json(workdir: str | Path, name: str, values: dict[str, Any]) -> None:
  """Writes workdir/name, whole or not at all."""
  files.write_whole(files.to_path(workdir) / name, json.dumps(values, indent=2) + "\n")


def _with_new_names(values: Any) -> Any:
  """The config of a run with the names that its knobs have today."""
  for old, new in RENAMED.items():
    (section, before), now = old.split("."), new.partition(".")[2]
    own = values.get(section) if isinstance(values, dict) else None
    if isinstance(own, dict) and before in own:
      values[section] = {now if key == before else key: v for key, v in own.items()}
  return values


def _with_added(values: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
  """The config of a run as today's tfusion would have saved it."""
  for key, value in added.items():
    section, _, name = key.partition(".")
    if isinstance(values, dict) and isinstance(values.get(section), dict):
      values[section].setdefault(name, value)
  return values


def _what(key: str, value: str | tuple[str, ...]) -> Any:
  """What a knob names, apart from where that lies."""
  if key == "data.tokenizer":
    return None  # a file of any name, or one that is trained
  if isinstance(value, str):
    return value.partition(":")[0]
  return tuple(one.partition(":")[0] for one in value)


def _is_bound(key: str, kind: Kind) -> bool:
  inside = any(key == b or key.startswith(b + ".") for b in kind.bound)
  return inside and key not in kind.unbound
