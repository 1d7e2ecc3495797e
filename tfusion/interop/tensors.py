"""The tensors of a folder: one safetensors file, or several with an index.

Owns: which file holds which tensor, parts of a tensor, files that are missing or
damaged, writing such files. Not: what the tensors are (llama.py).

A file is mapped, not read: what is asked for comes from the disk, and nothing else.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 by it
import numpy as np
import safetensors
from safetensors.numpy import save_file

from tfusion import parsing

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
DTYPES = ("F32", "BF16", "F16")  # which are read
AGAIN = "copy it again"
FILE_BYTES = 5_000_000_000  # of a file that is written, at most, as transformers has it


class Spec(NamedTuple):
  """What is known of a tensor before it is read."""

  shape: tuple[int, ...]
  dtype: str  # as safetensors calls it: F32, BF16 and others
  file: str


class Tensors:
  """The tensors of a folder, by name."""

  def __init__(self, folder: str | Path, *, stem: str = "model"):
    """Opens the files; reads their headers.

    Args:
      folder: with `stem`.safetensors, or `stem`.safetensors.index.json and the files
        that it names.
      stem: of these names.

    Raises:
      ValueError: there are none, the index names files that are not there, or a file is
        damaged or only half there; the message names it.
    """
    self.folder = Path(folder)
    listed = _listed(self.folder, stem)
    self.specs: dict[str, Spec] = {}
    self._files: dict[str, Any] = {}
    faults = []
    for file in sorted(set(listed.values())) or [f"{stem}{SUFFIX}"]:
      try:
        self._open(file)
      except (safetensors.SafetensorError, OSError) as error:
        faults.append(f"{file} is damaged, or only half of it is there ({error})")
    if faults:
      raise ValueError(f"{self.folder}: {'; '.join(faults)}; {AGAIN}")
    lost = [
      f"{name} in {file}"
      for name, file in listed.items()
      if name not in self.specs or self.specs[name].file != file
    ]
    if lost:
      raise ValueError(
        f"{self.folder / (stem + INDEX)}: {len(lost)} tensors are not where it says:"
        f" {some(lost)}; copy the files again, with their index"
      )

  def _open(self, name: str) -> None:
    path = self.folder / name
    opened: Any = safetensors.safe_open(path, "np")
    for key in opened.keys():
      part = opened.get_slice(key)
      shape, dtype = tuple(part.get_shape()), part.get_dtype()
      self.specs[key] = Spec(shape, dtype, name)
    self._files[name] = opened

  @property
  def files(self) -> int:
    """How many files there are."""
    return len(self._files)

  @property
  def size(self) -> int:
    """Numbers in all tensors."""
    return sum(int(np.prod(spec.shape)) for spec in self.specs.values())

  def read(self, name: str, index: Sequence[slice]) -> np.ndarray:
    """A part of a tensor, as float32.

    Args:
      name: of the tensor.
      index: a slice for each axis, with whole numbers.
    """
    spec = self.specs[name]
    part = self._files[spec.file].get_slice(name)
    return np.asarray(part[tuple(index)]).astype(np.float32)

  def other_dtypes(self, names: Iterable[str]) -> list[str]:
    """Those of the names whose tensors are no plain floats, as in quantised weights."""
    specs = self.specs
    return [f"{n} is {specs[n].dtype}" for n in names if specs[n].dtype not in DTYPES]


def exist(folder: str | Path, *, stem: str) -> bool:
  """Whether a folder has tensors of this name."""
  return any((Path(folder) / f"{stem}{end}").is_file() for end in (SUFFIX, INDEX))


def some(names: Iterable[str], *, worst: int = 8) -> str:
  """The first names of many, and how many more there are."""
  names = sorted(names)
  more = f" and {len(names) - worst} more" if len(names) > worst else ""
  return ", ".join(names[:worst]) + more


def _listed(folder: Path, stem: str) -> dict[str, str]:
  """The file of each tensor as the index says; empty without one."""
  index = folder / f"{stem}{INDEX}"
  if (folder / f"{stem}{SUFFIX}").is_file():
    return {}
  if not index.is_file():
    raise ValueError(
      f"{folder}: holds neither {stem}{SUFFIX} nor {index.name}; give the folder of a"
      " model with safetensors (pickles, as pytorch_model.bin, are not opened)"
    )
  try:
    listed = parsing.parse_json(index.read_text())["weight_map"]
    good = listed and all(isinstance(file, str) for file in listed.values())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{index}: no index of tensors ({error}); {AGAIN}") from error
  if not good:
    raise ValueError(f"{index}: names no files; {AGAIN}")
  wanted = sorted(set(listed.values()))
  if lost := [name for name in wanted if not (folder / name).is_file()]:
    raise ValueError(
      f"{folder}: {len(lost)} of {len(wanted)} files that {index.name} names are not"
      f" there: {some(lost)}; copy them too"
    )
  return dict(listed)


class Planned(NamedTuple):
  """A tensor that is to be written."""

  name: str
  bytes: int
  make: Callable[[], np.ndarray]


def write(folder: Path, stem: str, planned: Sequence[Planned]) -> None:
  """Writes tensors into one file, or into several with an index.

  Args:
    folder: is there.
    stem: of the names of the files.
    planned: in their order; those of one file are in memory together.

  Raises:
    OSError: the files cannot be written.
  """
  files: list[list[Planned]] = [[]]
  for one in planned:
    if files[-1] and sum(p.bytes for p in files[-1]) + one.bytes > FILE_BYTES:
      files.append([])
    files[-1].append(one)
  count, places = len(files), dict[str, str]()
  for number, own in enumerate(files, start=1):
    part = f"-{number:05}-of-{count:05}" if count > 1 else ""
    name = f"{stem}{part}{SUFFIX}"
    # transformers reads no file that does not say so.
    save_file({p.name: p.make() for p in own}, folder / name, {"format": "pt"})
    places |= {p.name: name for p in own}
  if count > 1:
    size = sum(p.bytes for p in planned)
    values = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / f"{stem}{INDEX}").write_text(json.dumps(values, indent=2) + "\n")
