"""The range of numbers in training images, to see whether sampled images leave it.

Owns: measuring it, the file that a workdir keeps, the warning. Not: what latents are
scaled by (shards/manifest.py), bounds in sampling (diffusion/).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfusion import files, parsing, sequence
from tfusion.data.source import Source, some_documents

FILE = "numbers.json"
MEASURED = 256  # documents of each source, at most
# By which share of the range sampled images may leave it: few images were measured.
MARGIN = 0.25
IMAGE_AXES = 3  # h, w, c: what has others is no image, and has a range of its own


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Of training images as the model gets them: pixels in [-1, 1], or latents."""

  least: float
  most: float
  deviation: float  # root mean square around the mean
  images: int  # measured


def measure(sources: Sequence[Source]) -> Numbers | None:
  """Reads documents from all over the sources; None where they have no image."""
  found = []
  for source in sources:
    if not source.has_images:
      continue
    for _, spans in some_documents(source, MEASURED):
      for span in spans:
        image = span.latent if isinstance(span, sequence.Image) else span
        if isinstance(image, np.ndarray) and image.ndim == IMAGE_AXES:
          found.append(image)
  if not found:
    return None
  flat = np.concatenate([image.ravel() for image in found])
  return Numbers(
    float(flat.min()), float(flat.max()), float(flat.std(dtype=np.float64)), len(found)
  )


def keep(sources: Sequence[Source], workdir: Path) -> None:
  """Measures once in a run, and writes workdir/numbers.json.

  Raises:
    ValueError: the file is there and damaged.
  """
  path = workdir / FILE
  if kept(workdir) is None and (numbers := measure(sources)):
    files.write_whole(path, json.dumps(dataclasses.asdict(numbers)) + "\n")


def kept(workdir: str | Path) -> Numbers | None:
  """What `keep` wrote; None for a run without images, or an older one.

  Raises:
    ValueError: the file is damaged.
  """
  path = files.to_path(workdir) / FILE
  if not path.is_file():
    return None
  try:
    return parsing.build(Numbers, parsing.parse_json(path.read_text()))
  except ValueError as error:
    raise ValueError(
      f"{path}: damaged ({error}); delete it, and the next start of training writes it"
      " anew"
    ) from error


def warning(images: Sequence[np.ndarray], numbers: Numbers | None) -> str:
  """Says that sampled images have numbers that no training image has; else nothing.

  Args:
    images: f32[h, w, c] each, as the model made them; others are passed over.
    numbers: of the training images.
  """
  images = [image for image in images if image.ndim == IMAGE_AXES]
  if numbers is None or not images:
    return ""
  room = MARGIN * (numbers.most - numbers.least)
  low, high = numbers.least - room, numbers.most + room
  outside = [np.mean(~((low <= x) & (x <= high))) for x in images]  # nan is outside too
  bad = sum(share > 0 for share in outside)
  if not bad:
    return ""
  farthest = max((float(x.flat[np.argmax(np.abs(x))]) for x in images), key=abs)
  return (
    f"{bad} of {len(images)} sampled images have numbers that no training image has:"
    f" {100 * np.mean(outside):.2g} % lie outside {numbers.least:.3g} .."
    f" {numbers.most:.3g}, the farthest at {farthest:.3g}; lower sample.guidance, set"
    " diffusion.clip, or train longer"
  )
