"""A run's model as a folder for other programs, and for us to begin with.

Owns: which files there are and what is in them. Not: names and config.json (llama.py),
how tensors are laid out in files (tensors.py), the words of the README (card.py).

  config.json            a Llama's, Qwen2's or Qwen3's where the text part is one, and a
                         section of ours
  model.safetensors      the text part, by the names of Hugging Face
  tfusion.safetensors    what patches alone have, by our names behind "tfusion."
  tokenizer.json         or tokenizer.model: the run's, BOI and EOI with it
  README.md              the model card

Numbers are float32, as they were trained: read back they are the same bit for bit.
"""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tfusion import buckets, files
from tfusion.config import Config
from tfusion.data.tokenizer import Tokenizer
from tfusion.interop import card, llama, tensors
from tfusion.interop.tensors import Planned
from tfusion.interop.weights import CONFIG, OURS, PREFIX, TOKENIZERS, leaves_of
from tfusion.model.lora import merged
from tfusion.model.transfusion import Params
from tfusion.version import __version__

README = "README.md"


def check(to: str | Path) -> Path:
  """The folder that is to be written, which is not there yet.

  Raises:
    ValueError: it is in a bucket, is a file, or holds something.
  """
  path = files.to_path(to)
  if buckets.of(path):
    raise ValueError(f"--to={to}: write to this machine, and copy it to the bucket")
  path = Path(path).expanduser()
  if path.is_file() or (path.is_dir() and any(path.iterdir())):
    raise ValueError(f"--to={to}: is there already; choose a new folder")
  return path


def export(
  to: str | Path,
  config: Config,
  params: Params,
  tokenizer: Tokenizer,
  *,
  step: int,
  facts: dict[str, Any] | None = None,
) -> list[Path]:
  """Writes a model; the folder is there whole or not at all.

  Args:
    to: a folder that is not there, or empty.
    config: of the run.
    params: of the model, wherever they lie on the mesh in use; all of them can be
      reached from here. Changes of low rank are added to their matrices.
    tokenizer: of the run.
    step: updates done.
    facts: what else is known of the model, by name, for its card.

  Returns:
    The files.

  Raises:
    ValueError: there is something in the folder, or the run is one of several hosts.
    OSError: it cannot be written.
  """
  path, params = check(to), dict(params)
  model = dataclasses.replace(config.model, lora_rank=0)
  if config.model.lora_rank:
    params = jax.jit(merged)(params)
    del params["lora"]
  if jax.process_count() > 1:
    raise ValueError("a model is exported by one process; start it on one host")
  aside = path.with_name(f"{path.name}.partial")
  shutil.rmtree(aside, ignore_errors=True)
  aside.mkdir(parents=True)
  text, images = _planned(params)
  tensors.write(aside, "model", text)
  if images:
    tensors.write(aside, OURS, images)
  _save_tokenizer(tokenizer, aside)
  positions = config.data.row_length
  values = llama.write_config(model, tokenizer.special, positions=positions)
  section = dict(diffusion=_plain(config.diffusion), step=step, version=__version__)
  values[llama.OURS] |= section
  (aside / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
  sizes = dict(text=_numbers(text), images=_numbers(images))
  words = card.write(config, step=step, sizes=sizes, facts=facts or {})
  (aside / README).write_text(words)
  if path.is_dir():
    path.rmdir()
  aside.rename(path)
  files.sync_folder(path.parent)
  return sorted(path.iterdir())


def _planned(params: Params) -> tuple[list[Planned], list[Planned]]:
  """The tensors of text and those of patches, in the order of layers."""
  text: list[tuple[int, Planned]] = []
  images = []
  for path, (_, leaf) in leaves_of(params).items():
    theirs = llama.NAMES.get(path)
    if theirs is None:
      make = partial(np.asarray, leaf)
      images.append(Planned(PREFIX + path, leaf.nbytes, make))
    elif "{}" in theirs.name:
      size = leaf.nbytes // len(leaf)
      for n in range(len(leaf)):
        make = partial(_of_layer, leaf, n, theirs.axes)
        text.append((n, Planned(theirs.name.format(n), size, make)))
    else:
      place = len(leaf) if theirs.name != llama.EMBEDDING else -1
      make = partial(_turned, leaf, theirs.axes)
      text.append((place, Planned(theirs.name, leaf.nbytes, make)))
  return [one for _, one in sorted(text, key=lambda pair: pair[0])], images


def _of_layer(leaf: jax.Array, n: int, axes: tuple[tuple[int, ...], ...]) -> np.ndarray:
  return _turned(jax.lax.index_in_dim(leaf, n, keepdims=False), axes)


def _turned(leaf: jax.Array, axes: tuple[tuple[int, ...], ...]) -> np.ndarray:
  """Theirs of ours: its axes in their order, joined to theirs."""
  order = [axis for own in axes for axis in own]
  part = np.asarray(leaf).transpose(order)
  sizes = [int(np.prod([leaf.shape[axis] for axis in own])) for own in axes]
  return np.ascontiguousarray(part.reshape(sizes))


def _numbers(planned: list[Planned]) -> int:
  return sum(one.bytes for one in planned) // 4


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
  """Writes it under the name that its kind has."""
  as_json, as_model = (folder / name for name in TOKENIZERS)
  tokenizer.save(as_model)
  if as_model.read_bytes().lstrip().startswith(b"{"):
    as_model.rename(as_json)


def _plain(section: Any) -> dict[str, Any]:
  return dict(vars(section))
