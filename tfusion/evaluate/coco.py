"""MS-COCO with the splits of Karpathy: images and what five people wrote of each.

Owns: dataset_coco.json and where its images lie, which captions are drawn. Not: what is
measured of them (pictured.py).

  DIR/coco/dataset_coco.json       arXiv 1412.2306; in caption_datasets.zip
  DIR/coco/val2014/COCO_val2014_000000391895.jpg
  DIR/coco/train2014/...
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfusion.data.contents import hash_of

FILE = "dataset_coco.json"
SPLITS = ("train", "restval", "val", "test")
REMEDY = (
  "MS-COCO takes dataset_coco.json of Karpathy's caption_datasets.zip"
  " (cs.stanford.edu/people/karpathy/deepimagesent) and val2014.zip of cocodataset.org"
  " in the folder `coco` of --data"
)
DRAW_SEED = 0  # the same captions for every run


class Captioned(NamedTuple):
  """An image and its captions."""

  path: Path
  captions: tuple[str, ...]


def folder_of(data: Path | None) -> Path:
  """The folder of MS-COCO in that of --data.

  Raises:
    ValueError: there is no --data.
  """
  if data is None:
    raise ValueError(f"--data is not given; {REMEDY}")
  return data / "coco"


def read(folder: Path, *, split: str = "", images: str = "") -> list[Captioned]:
  """Reads the captions of a split, or of a folder of images, in the order of the file.

  Args:
    folder: with dataset_coco.json.
    split: of SPLITS; empty: all.
    images: the folder that an image lies in, as in val2014; empty: any.

  Raises:
    ValueError: the file is missing or is another, or nothing in it is of the split.
  """
  path = folder / FILE
  if not path.is_file():
    raise ValueError(f"{path}: there is no such file; {REMEDY}")
  try:
    whole = _load(path, path.stat().st_mtime_ns)["images"]
    found = [_captioned(folder, one) for one in whole if _is(one, split, images)]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: is not Karpathy's dataset_coco.json ({error!r}); {REMEDY}"
    ) from error
  if not found:
    raise ValueError(f"{path}: holds no image of {split or images}; {REMEDY}")
  return found


def check_images(found: Sequence[Captioned]) -> None:
  """Raises ValueError if an image file is missing; names the first and counts them."""
  missing = [one.path for one in found if not one.path.is_file()]
  if missing:
    raise ValueError(
      f"{missing[0]}: there is no such file, and {len(missing)} of {len(found)} images"
      f" are missing; {REMEDY}"
    )


def draw(found: Sequence[Captioned], count: int) -> list[str]:
  """So many captions, none of them twice, always the same.

  Raises:
    ValueError: there are fewer.
  """
  captions = [text for one in found for text in one.captions]
  if count > len(captions):
    raise ValueError(
      f"{count} captions are asked for, and MS-COCO's file here holds {len(captions)}"
    )
  order = np.random.default_rng(DRAW_SEED).permutation(len(captions))
  return [captions[i] for i in order[:count]]


def contents(found: Sequence[Captioned]) -> str:
  """A hash of names and captions."""
  return hash_of(part for one in found for part in (one.path.name, *one.captions))[:16]


@functools.lru_cache(1)
def _load(path: Path, changed: int) -> Any:
  """The file, which is large and asked for often; `changed` tells it from another."""
  return json.loads(path.read_text())


def _is(one: dict[str, Any], split: str, images: str) -> bool:
  return (not split or one["split"] == split) and (
    not images or one["filepath"] == images
  )


def _captioned(folder: Path, one: dict[str, Any]) -> Captioned:
  captions = tuple(" ".join(own["raw"].split()) for own in one["sentences"])
  if not captions:
    raise ValueError(f"{one['filename']} has no sentences")
  return Captioned(folder / one["filepath"] / one["filename"], captions)
