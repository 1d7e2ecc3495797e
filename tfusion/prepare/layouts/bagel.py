"""What BAGEL is trained on: images with several captions, and edits of several steps.

Owns: its two layouts of parquet. Not: its conversations (conversations.py).

  t2i    {"image": bytes, "captions": '{"0": "a", "1": "b"}'}, the captions as JSON
  edit   {"image_list": [bytes, ...], "instruction_list": [["a", "b"], ...]}, a list of
         wordings for each step from an image to the next

BAGEL draws a caption, or a wording, each time. Here each makes a document (ours): the
first document of a row has the first captions, the second the second ones.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from tfusion import parsing
from tfusion.prepare.layouts import shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look


@dataclasses.dataclass(frozen=True)
class Captions(shaped.Shaped):
  """Rows of an image and its captions."""

  known: ClassVar[str] = 'columns "image", its bytes, and "captions", JSON by name'
  columns: ClassVar[frozenset[str]] = frozenset({"image", "captions"})

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    return captioned(image_of(values.get("image")), values.get("captions"))


def captioned(image: Any, captions: Any) -> Iterator[list[Span]]:
  """Yields a document of each caption and the image.

  Args:
    image: as rows.py has it.
    captions: an object of captions by name, or the JSON of one.

  Raises:
    ValueError: there are none, or they are something else.
  """
  if isinstance(captions, str):
    captions = parsing.parse_json(captions)
  if not isinstance(captions, dict) or not captions:
    raise ValueError(f"captions are {str(captions)[:100]!r}, no object of texts")
  for caption in captions.values():
    yield [{"text": caption}, {"image": image}]


@dataclasses.dataclass(frozen=True)
class Edits(shaped.Shaped):
  """Rows of images, each made of the one before by an instruction."""

  known: ClassVar[str] = (
    'columns "image_list", the bytes of images, and "instruction_list", for each image'
    " but the first a list of wordings"
  )
  columns: ClassVar[frozenset[str]] = frozenset({"image_list", "instruction_list"})

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    images, wordings = values.get("image_list"), values.get("instruction_list")
    if not isinstance(images, list):
      raise ValueError(f"image_list is {str(images)[:100]!r}, no list of images")
    return edited([image_of(image) for image in images], wordings)


def edited(images: list[Any], wordings: Any) -> Iterator[list[Span]]:
  """Yields a document for each wording of the steps; the first image is only read.

  Args:
    images: as rows.py has them.
    wordings: for each image but the first, a list of texts, or one text.

  Raises:
    ValueError: there are not as many as that, or they are something else.
  """
  if not isinstance(wordings, list) or len(wordings) != len(images) - 1 or not wordings:
    count = len(wordings) if isinstance(wordings, list) else "no"
    raise ValueError(
      f"{len(images)} images and {count} lists of instructions; one for each image but"
      " the first is needed"
    )
  steps = [[own] if isinstance(own, str) else own for own in wordings]
  if not all(isinstance(own, list) and own for own in steps):
    raise ValueError("a step has no instruction")
  for number in range(max(map(len, steps))):
    spans: list[Span] = [{"image": images[0], "weight": 0.0}]
    for own, image in zip(steps, images[1:]):
      spans += [{"text": own[number % len(own)]}, {"image": image}]
    yield spans


def image_of(value: Any) -> Any:
  """An image that may be null, which counts as lost."""
  return {"bytes": None, "path": None} if value is None else value


def recognise_t2i(look: Look) -> bool:
  """Whether a directory holds images with several captions."""
  return {"image", "captions"} <= look.columns and isinstance(
    look.table_row.get("captions"), str
  )


def recognise_edit(look: Look) -> bool:
  """Whether a directory holds edits of several steps."""
  return {"image_list", "instruction_list"} <= look.columns


def plan_t2i(spec: str, argument: str, documents: int) -> list[shaped.Shaped]:
  """Splits tables of images with captions.

  Raises:
    ValueError: there are none.
  """
  return shaped.plan(Captions, spec, argument, documents, ".parquet")


def plan_edit(spec: str, argument: str, documents: int) -> list[shaped.Shaped]:
  """Splits tables of edits.

  Raises:
    ValueError: there are none.
  """
  return shaped.plan(Edits, spec, argument, documents, ".parquet")
