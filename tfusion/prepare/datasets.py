"""Data sets that come by name: those of tfds, and the embedded sources.

Owns: reading either by index. Not: what the embedded sources hold (data/sources.py).
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfusion import sequence
from tfusion.data import heldout
from tfusion.data.balance import Amount
from tfusion.data.source import TEST, TRAIN, Source
from tfusion.data.sources import open_sources
from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected

EMBEDDED = ("digits", "pydoc", "shapes")


@dataclasses.dataclass(frozen=True)
class Examples:
  """A range of a split of a tfds data set."""

  name: str  # as it was given
  root: str  # the folder that the name is, absolute; empty: it is none
  split: str
  start: int
  stop: int
  apart: bool | None  # held out or not; None: a hash of each document decides

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields the texts and then the images of each example."""
    builder = _builder(self.root or self.name)
    examples = _open_split(builder, self.root or self.name, self.split)
    texts, images = _features(builder.info.features)
    for index in range(self.start, self.stop):
      id = f"{self.split}/{index}"
      test = heldout.by_hash(id) if self.apart is None else self.apart
      lost = Rejected(id, "", "", Amount(1, len(images), len(texts)), test)
      try:
        example = examples[index]
        spoken = [_text(builder.info.features[name], example[name]) for name in texts]
      except UnicodeDecodeError as error:
        yield dataclasses.replace(lost, reason=raw_lib.BAD_TEXT, detail=str(error))
      except (ValueError, RuntimeError, OSError) as error:
        raw_lib.stop_if_of_machine(error)
        yield dataclasses.replace(lost, reason=raw_lib.UNREADABLE, detail=str(error))
      else:
        yield Raw(id, (*spoken, *(example[name] for name in images)), test)


@dataclasses.dataclass(frozen=True)
class FirstExamples(Examples):
  """The first range, which accounts for the splits that are not read."""

  left_out: tuple[tuple[str, int], ...]  # their names and numbers of examples

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields what is left out of each split as one, then the examples."""
    texts, images = _features(_builder(self.root or self.name).info.features)
    for split, size in self.left_out:
      amount = Amount(size, size * len(images), size * len(texts))
      why = 'only "train" is, and splits whose names say held out'
      yield Rejected(split, raw_lib.OTHER_SPLIT, why, amount)
    yield from super().read()


def plan_tfds(spec: str, argument: str, documents: int) -> list[Examples]:
  """Splits a prepared tfds data set into ranges of examples.

  Splits whose names say so, such as "test" and "validation" (data/heldout.py), are held
  out beside "train"; other splits are left out, named, and counted as skipped.

  Args:
    spec: the whole source, for messages.
    argument: a name as tfds has it, or the folder of a prepared data set.
    documents: of a part.

  Raises:
    ValueError: no such data set, it is not on this machine or not all of it is, or it
      holds neither text nor images.
  """
  builder = _builder(argument)
  sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
  if not sizes and Path(argument).is_dir():
    raise ValueError(
      f"--source={spec}: its dataset_info.json names no split; copy the whole folder of"
      " a prepared data set there"
    )
  if not sizes:
    raise ValueError(
      f"--source={spec}: not on this machine; prepare it with `tfds build {argument}"
      " --file_format=array_record`, or name its folder: tfds:FOLDER"
    )
  _check_features(spec, builder.info.features)
  apart: dict[str, bool | None] = {
    name: heldout.is_named(name)
    for name in sizes
    if name == "train" or heldout.is_named(name)
  }
  if set(apart.values()) != {True, False}:
    apart = dict.fromkeys(sizes)
  if left := sorted(set(sizes) - set(apart)):
    print(f"{spec}: left out: " + ", ".join(f"{s} ({sizes[s]:,})" for s in left))
  for split in apart:
    _require_files(spec, builder, split)
  root = str(Path(argument).absolute()) if Path(argument).is_dir() else ""
  parts = [
    Examples(argument, root, split, start, min(start + documents, sizes[split]), test)
    for split, test in apart.items()
    for start in range(0, sizes[split], documents)
  ]
  if left and parts:
    lost = tuple((split, sizes[split]) for split in left if sizes[split])
    parts[0] = FirstExamples(**vars(parts[0]), left_out=lost)
  return parts


def _require_files(spec: str, builder: Any, split: str) -> None:
  """Refuses a split of which not every file is there.

  Raises:
    ValueError: names some that lack.
  """
  paths = builder.info.splits[split].filepaths  # of a disk or a bucket
  folders = {path.parent for path in paths}
  there = {path for folder in folders if folder.exists() for path in folder.iterdir()}
  if gone := [path for path in paths if path not in there]:
    more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
    raise ValueError(
      f"--source={spec}: {len(gone)} of {len(paths)} files of its split {split!r} are"
      f" not there: {', '.join(p.name for p in gone[:3])}{more}; copy them to"
      f" {gone[0].parent}, or prepare the data set again"
    )
  _open_split(builder, spec, split)


def _open_split(builder: Any, name: str, split: str) -> Any:
  """The examples of a split by index.

  Raises:
    ValueError: it has none, or in a format that cannot be read by index.
  """
  try:
    return builder.as_data_source(split)
  except Exception as error:  # KeyError where another machine holds another version
    raw_lib.stop_if_of_machine(error)
    why = " ".join(str(error).split())[:300]
    raise ValueError(
      f"{name}: its split {split!r} cannot be read ({type(error).__name__}: {why}); it"
      " has to lie in whole on every machine that works, in --file_format=array_record"
    ) from error


@functools.lru_cache(1)
def _builder(name: str) -> Any:
  import tensorflow_datasets as tfds

  try:
    if Path(name).is_dir():
      return tfds.builder_from_directory(name)
    return tfds.builder(name)
  except Exception as error:  # it runs the data set's own code, which may need anything
    why = str(error).partition("\n")[0]
    raise ValueError(
      f"--source=tfds:{name}: cannot be opened ({why}); name the folder of a prepared"
      " data set: tfds:FOLDER"
    ) from error


def _features(features: Any) -> tuple[list[str], list[str]]:
  """Names of the texts, labels where there are none, and of the images."""
  import tensorflow_datasets as tfds

  def of(kind: type) -> list[str]:
    return sorted(name for name, f in features.items() if isinstance(f, kind))

  texts = of(tfds.features.Text) or of(tfds.features.ClassLabel)
  return texts, of(tfds.features.Image)


def _check_features(spec: str, features: Any) -> None:
  """Says which features are not read, and refuses where those hold texts or images.

  Raises:
    ValueError: there is neither text nor image, or the only ones lie deeper.
  """
  import tensorflow_datasets as tfds

  texts, images = _features(features)
  if not texts and not images:
    raise ValueError(
      f"--source={spec}: none of its features {sorted(features)} is an image, a text or"
      " a label"
    )
  if unread := sorted(set(features) - {*texts, *images}):
    print(f"{spec}: features that are not read: {', '.join(unread)}", flush=True)
  spoken = [name for name in texts if isinstance(features[name], tfds.features.Text)]
  kinds = ((spoken, tfds.features.Text), (images, tfds.features.Image))
  for found, kind in kinds:
    if not found and (deeper := [n for n in unread if _holds(features[n], kind)]):
      raise ValueError(
        f"--source={spec}: {', '.join(deeper)} holds {kind.__name__}s in a list or in"
        " itself, which is not read; write the examples as jsonl or parquet"
      )


def _holds(feature: Any, kind: type) -> bool:
  """Whether a feature of a kind lies anywhere in another."""
  if isinstance(feature, kind):
    return True
  inner = getattr(feature, "feature", None)  # of a sequence
  inside = feature.values() if hasattr(feature, "values") else [inner]
  return any(_holds(one, kind) for one in inside if one is not None)


def _text(feature: Any, value: Any) -> str:
  if hasattr(feature, "int2str"):
    return feature.int2str(int(value))
  return value.decode() if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(frozen=True)
class Embedded:
  """A range of an embedded source's documents."""

  spec: str
  split: str
  image_shape: tuple[int, int, int]
  start: int
  stop: int

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields them as the source gives them."""
    source = _open(self.spec, self.split, self.image_shape)
    for index in range(self.start, self.stop):
      spans: list[str | np.ndarray] = []
      weights: list[float] = []
      for span in source[index]:
        image = span.latent if isinstance(span, sequence.Image) else span
        if isinstance(image, np.ndarray):
          image = np.round((image + 1) * 127.5).astype(np.uint8)
        assert isinstance(image, str | np.ndarray)  # no source of these gives more
        spans.append(image)
        weights.append(span.weight if isinstance(span, sequence.Image) else 1.0)
      test = self.split == TEST
      yield Raw(f"{self.split}/{index}", tuple(spans), test, tuple(weights))


def plan_embedded(
  spec: str, documents: int, image_shape: tuple[int, int, int]
) -> list[Embedded]:
  """Splits both splits of an embedded source into ranges.

  Raises:
    ValueError: it has no images of that shape.
  """
  parts = []
  for split in (TRAIN, TEST):
    size = len(_open(spec, split, image_shape))
    for start in range(0, size, documents):
      stop = min(start + documents, size)
      parts.append(Embedded(spec, split, image_shape, start, stop))
  return parts


@functools.lru_cache(2)
def _open(spec: str, split: str, image_shape: tuple[int, int, int]) -> Source:
  return open_sources((spec,), split=split, image_shape=image_shape, workdir=".")[0]
