"""What a client asks for: the JSON of a request as a prompt, a seed and knobs.

Owns: its keys and their checks, images in base64. Not: the written form of prompts
(generate/prompt.py), which knobs there are (a Run knows), HTTP (application.py).

  {"prompt": "like <image:a.png> <image>", "images": {"a.png": "data:image/png;base64,
  ..."}, "seed": 1, "knobs": {"steps": 25}}

A prompt is as on the command line, but `<image:NAME>` is one of `images`: a client
names no files of this machine.
"""

import base64
import binascii
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from tfusion import parsing
from tfusion.config import SampleConfig
from tfusion.data import images as images_lib
from tfusion.generate.prompt import Mark, escape, mark_of, split
from tfusion.kinds import FIRST, Kind
from tfusion.numerals import SEEDS

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # what browsers show too
SAMPLING = {field.name for field in dataclasses.fields(SampleConfig)}
HEAD = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")


class Asked(NamedTuple):
  """A request, read."""

  prompt: tuple[str | np.ndarray, ...]  # in parts, as Run.sample takes it
  # What it gives before, between and behind the images that the model is to make.
  given: list[list[str | np.ndarray]]
  seed: int
  knobs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Body:
  """What may stand in the JSON beside knobs."""

  prompt: str
  images: dict[str, str] | None = None
  seed: int | None = None


def read(data: bytes, kinds: Sequence[Kind]) -> Asked:
  """Reads the body of a request.

  Args:
    data: JSON.
    kinds: of the run, which marks may name.

  Raises:
    ValueError: it is no JSON, a key is unknown or of another type, the seed is out of
      range, or an image is missing, left over, or none that can be read.
  """
  try:
    values = parsing.parse_json(data)
  except ValueError as error:
    raise ValueError(f"the body is no JSON ({error})") from error
  knobs = values.pop("knobs", {}) if isinstance(values, dict) else {}
  if not isinstance(knobs, dict):
    raise ValueError(f"knobs={knobs!r}: expected keys and values")
  if unknown := sorted(knobs.keys() - SAMPLING):
    raise ValueError(f"knobs.{unknown[0]}: is unknown; known: {sorted(SAMPLING)}")
  body = parsing.build(_Body, values, whole="the body")
  seed = 0 if body.seed is None else body.seed
  if not 0 <= seed < SEEDS:
    raise ValueError(f"seed={seed}: must be at least 0 and below {SEEDS}")
  images = {n: _pixels(n, coded) for n, coded in (body.images or {}).items()}
  return Asked(*_prompt(body.prompt, images, kinds), seed, knobs)


def _prompt(
  text: str, images: Mapping[str, np.ndarray], kinds: Sequence[Kind]
) -> tuple[tuple[str | np.ndarray, ...], list[list[str | np.ndarray]]]:
  """A prompt in parts, with the images that it names in their places; what it gives."""
  parts: list[str | np.ndarray] = []
  given: list[list[str | np.ndarray]] = [[]]
  unused = set(images)
  for part in split(text, kinds):
    if not isinstance(part, Mark):
      parts.append(escape(part))
      given[-1].append(part)
    elif part.file is None:
      parts.append(mark_of(kinds[part.kind]))
      given.append([])
    elif kinds[part.kind].name != FIRST:
      raise ValueError(
        f"<{kinds[part.kind].name}:{part.file}>: only images can be sent; show this one"
        " with `tfusion sample`"
      )
    elif part.file not in images:
      sent = ", ".join(sorted(images)) or "none"
      raise ValueError(
        f"<image:{part.file}>: is none of the images that were sent ({sent}); put it"
        ' into "images" under this name'
      )
    else:
      parts.append(images[part.file])
      given[-1].append(images[part.file])
      unused.discard(part.file)
  if unused:
    name = min(unused)
    raise ValueError(
      f"images.{name}: the prompt does not show it; write <image:{name}> where it is to"
      " stand"
    )
  return tuple(parts), given


def _pixels(name: str, coded: str) -> np.ndarray:
  """An image in base64 as pixels u8[h, w, 3], upright and on white."""
  remedy = f"send a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file in base64"
  head = HEAD.match(coded)
  try:
    data = base64.b64decode(coded[head.end() if head else 0 :], validate=True)
  except (binascii.Error, ValueError) as error:
    raise ValueError(f"images.{name}: is no base64 ({error}); {remedy}") from error
  try:
    with Pillow.open(io.BytesIO(data), formats=FORMATS):
      pass
    width, height = images_lib.size_of(data) or (1, 1)
    return images_lib.decode(data, (height, width, 3))
  except Exception as error:  # Pillow's decoders raise almost any kind
    raise ValueError(
      f"images.{name}: not an image that can be read"
      f" ({str(error) or type(error).__name__}); {remedy}"
    ) from error
