"""The images of a folder as the model takes them, each of its kind.

Owns: which kind takes an image file or an array, reading them by name. Not: decoding
and its cache (images.py), which files belong to a folder (pairs.py), aspects
(aspects.py).

An image file goes to that of `image` and the kinds with its layers whose aspect is
nearest; with one kind, each is cropped to it. An array, a .npy of numpy, is what the
model takes already, and goes to the kind of its shape.
"""

import concurrent.futures
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfusion import sequence
from tfusion.data import aspects
from tfusion.data import images as images_lib
from tfusion.data.pairs import ARRAY
from tfusion.kinds import Kind

FAR = "no kind of a like aspect"
UNLIKE = "no kind of its shape"


class Place(NamedTuple):
  """Where an image is kept."""

  kind: int
  row: int  # of the decoded images of that kind; of an array, -1


class Collection:
  """Images of some files below a folder; picklable."""

  def __init__(
    self, root: Path, places: dict[str, Place], caches: dict[int, Path]
  ) -> None:
    """Opens the decoded images.

    Args:
      root: the folder.
      places: of every file that can be used, relative to the folder.
      caches: by kind, a directory that images.decode_all gave.
    """
    self._root, self._places, self._caches = root, places, caches
    # Mapped, not read: worker processes share the pages.
    self._decoded = {
      kind: np.load(cache / "images.npy", mmap_mode="r")
      for kind, cache in caches.items()
    }

  def __reduce__(self):
    return Collection, (self._root, self._places, self._caches)

  def __getitem__(self, file: str) -> np.ndarray | sequence.Image:
    """The image of a file, f32 in [-1, 1], or as its array has it."""
    kind, row = self._places[file]
    if row < 0:
      return sequence.Image(load_array(self._root / file), kind=kind)
    image = self._decoded[kind][row].astype(np.float32) / 127.5 - 1
    return sequence.Image(image, kind=kind) if kind else image

  def hash_of(self, file: str) -> str:
    """The SHA-256 of what the file holds, hexadecimal."""
    kind, row = self._places[file]
    if row < 0:
      with open(self._root / file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    return self._hashes[kind][row]

  @functools.cached_property
  def _hashes(self) -> dict[int, list[str]]:
    """Of the decoded images, by kind."""
    return {kind: images_lib.hashes(cache) for kind, cache in self._caches.items()}


def open_collection(
  root: Path,
  files: Sequence[str],
  *,
  image_shape: tuple[int, ...],
  others: Sequence[Kind],
  cache: Path,
) -> tuple[Collection, dict[str, str]]:
  """Decodes and checks all files.

  Args:
    root: the folder.
    files: relative to it.
    image_shape: h, w, c of the first kind.
    others: the kinds behind it.
    cache: gets the decoded images.

  Returns:
    The collection, and the files that it lacks, each with the reason.
  """
  shapes = {0: tuple(image_shape)}
  shapes |= {n: kind.shape for n, kind in enumerate(others, 1) if kind.like == "image"}
  every = [tuple(image_shape), *(kind.shape for kind in others)]
  bad: dict[str, str] = {}
  arrays = [file for file in files if file.lower().endswith(ARRAY)]
  images = [file for file in files if not file.lower().endswith(ARRAY)]
  places = {}
  for file in arrays:
    found = _kind_of_array(root / file, every)
    if isinstance(found, str):
      bad[file] = found
    else:
      places[file] = Place(found, -1)
  caches = {}
  for kind, own in _by_aspect(root, images, shapes, bad).items():
    height, width, channels = shapes[kind]
    caches[kind], broken = images_lib.decode_all(
      root, own, image_shape=(height, width, channels), cache=cache
    )
    bad |= broken
    rows = ((file, row) for row, file in enumerate(own) if file not in broken)
    places |= {file: Place(kind, row) for file, row in rows}
  return Collection(root, places, caches), bad


def _by_aspect(
  root: Path,
  files: Sequence[str],
  shapes: dict[int, tuple[int, ...]],
  bad: dict[str, str],
) -> dict[int, list[str]]:
  """The image files of every kind that has some; `bad` gets those that are of none."""
  if len(shapes) == 1:
    return {0: list(files)} if files else {}
  with concurrent.futures.ThreadPoolExecutor(images_lib.DECODE_THREADS) as pool:
    sizes = [*pool.map(lambda file: images_lib.size_of(root / file), files)]
  kinds = list(shapes)
  chosen: dict[int, list[str]] = {kind: [] for kind in kinds}
  for file, size in zip(files, sizes, strict=True):
    if size is None:  # it is named with its reason where it is decoded
      chosen[0].append(file)
    elif (at := aspects.nearest(size, [shapes[kind] for kind in kinds])) is None:
      bad[file] = f"{FAR}: {size[0]} x {size[1]} pixels"
    else:
      chosen[kinds[at]].append(file)
  return {kind: own for kind, own in chosen.items() if own}


def _kind_of_array(path: Path, shapes: Sequence[tuple[int, ...]]) -> int | str:
  """The kind of an array, or what is wrong with it."""
  try:
    array = load_array(path)
  except ValueError as error:
    return f"cannot be decoded: {error}"
  if array.shape not in shapes:
    return f"{UNLIKE}: {array.shape}"
  return shapes.index(array.shape)


def load_array(path: Path) -> np.ndarray:
  """Reads a .npy as f32.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is none, or not of finite real numbers.
  """
  try:
    array = np.load(path, allow_pickle=False)
  except FileNotFoundError:
    raise
  except Exception as error:  # of numpy, zipfile and pickle, by what is in the file
    raise ValueError("it is no .npy file of numbers") from error
  return check_array(array)


def check_array(array: Any) -> np.ndarray:
  """Returns an array as f32.

  Raises:
    ValueError: it is none, or not of finite real numbers.
  """
  if not isinstance(array, np.ndarray):  # as of an .npz
    raise ValueError("it is no array")
  if array.dtype.kind not in "fiu":
    raise ValueError(f"it holds {array.dtype}, not real numbers")
  with np.errstate(over="ignore"):
    numbers = array.astype(np.float32)
  if not np.all(np.isfinite(numbers)):
    raise ValueError("not all of its numbers are finite")
  return numbers
