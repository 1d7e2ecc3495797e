"""The weights of a network that others have trained, read from a file.

Owns: which files are read, what is said of one that is missing, broken or of another
network. Not: the networks (inception.py, clip.py).
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file

from tfusion import files
from tfusion.data.shards import manifest as manifest_lib

Weights = dict[str, np.ndarray]


def read(path: Path, *, remedy: str) -> Weights:
  """Reads a .safetensors or an .npz file.

  Args:
    path: of the file.
    remedy: where to get it, for the error.

  Raises:
    ValueError: it is not there, not whole or no such file.
  """
  if not path.is_file():
    files.check_there(path, option="--data")
    raise ValueError(f"{path}: there is no such file; {remedy}")
  try:
    with files.local(path) as here:
      if path.suffix == ".npz":
        with np.load(here, allow_pickle=False) as found:
          return {name: found[name] for name in found.files}
      return load_file(here)
  except (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, EOFError) as e:
    raise ValueError(
      f"{path}: is no whole .safetensors or .npz file ({e}), as after a download that"
      f" was cut off; {remedy}"
    ) from e


def check_names(found: Iterable[str], wanted: Iterable[str], *, path: Path) -> None:
  """Raises ValueError that names every weight that is missing or unknown."""
  found, wanted = set(found), set(wanted)
  parts = (("lacks", wanted - found), ("does not know", found - wanted))
  said = [f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names]
  if said:
    raise ValueError(f"{path}: are the weights of another network: {'; '.join(said)}")


def check_shape(name: str, found: np.ndarray, wanted: tuple, *, path: Path) -> None:
  """Raises ValueError for a weight of another shape; None stands for any number."""
  fits = len(found.shape) == len(wanted) and all(
    w in (None, f) for f, w in zip(found.shape, wanted)
  )
  if not fits:
    raise ValueError(f"{path}: {name} has shape {found.shape}, expected {wanted}")


def named(kind: str, path: Path) -> str:
  """What a network is called beside its numbers: its kind and its file's hash."""
  return f"{kind} {manifest_lib.sha256(path)[:16]}"
