"""Conversations about images, as LLaVA, LLaVA-OneVision and BAGEL's "vlm" have them.

Owns: their turns as spans. Not: files of rows (tables.py, lists.py).

  {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
                                       {"from": "gpt", "value": "A cat."}]}

An image is a name, a list of names, or in parquet {"bytes": ..., "path": ...}. Each
"<image>" stands for the next of them; without one, they come before the first turn. A
turn ends with a line end (ours), but for the last, which the end of the document ends.
Only answers are learned, that is turns of the model.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

from tfusion.data import text as text_lib
from tfusion.prepare.layouts import shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look

MARK = "<image>"
# Who speaks -> the weight of it.
ROLES = {
  **dict.fromkeys(("human", "user", "system"), 0.0),
  **dict.fromkeys(("gpt", "assistant"), 1.0),
}


@dataclasses.dataclass(frozen=True)
class Conversations(shaped.Shaped):
  """Rows of a conversation each."""

  known: ClassVar[str] = (
    '"conversations", a list of {"from": "human" or "gpt", "value": ...} in which'
    ' <image> stands for an image, and "image" or "images"'
  )
  columns: ClassVar[frozenset[str]] = frozenset(
    {"conversations", "image", "images", "id", "data_source"}
  )

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    if values.get("video") is not None:
      raise ValueError("it has a video, which is not read")
    images = values.get("image")
    images = values.get("images") if images is None else images
    if images is None:
      images = []
    yield spoken(
      values.get("conversations"), images if isinstance(images, list) else [images]
    )


def spoken(turns: Any, images: list[Any]) -> list[Span]:
  """The spans of a conversation.

  Args:
    turns: a list of {"from": ..., "value": ...}.
    images: as rows.py has them.

  Raises:
    ValueError: it has no answer, or not as many marks as images.
  """
  said = [_turn(turn) for turn in turns] if isinstance(turns, list) else []
  if not any(weight and not text_lib.is_blank(text) for weight, text in said):
    raise ValueError("a conversation without an answer")
  marks = sum(text.count(MARK) for _, text in said)
  spans: list[Span] = []
  if not marks:
    spans += [{"image": image, "weight": 0.0} for image in images]
  elif marks != len(images):
    raise ValueError(f"{len(images)} images and {marks} marks {MARK}")
  left = iter(images)
  for number, (weight, text) in enumerate(said, 1):
    pieces = [piece.strip() for piece in text.split(MARK)]
    if number < len(said) and pieces[-1]:
      pieces[-1] += "\n"
    for piece, image in itertools.zip_longest(
      pieces, itertools.islice(left, len(pieces) - 1)
    ):
      spans += [{"text": piece, "weight": weight}] if piece else []
      spans += [{"image": image, "weight": weight}] if image is not None else []
  return spans


def _turn(turn: Any) -> tuple[float, str]:
  """Weight and text of a turn."""
  who = turn.get("from") if isinstance(turn, dict) else None
  if not isinstance(who, str) or who not in ROLES:
    raise ValueError(f"a turn is from {str(who)[:100]!r}, none of {', '.join(ROLES)}")
  value = turn.get("value")
  if not isinstance(value, str):
    raise ValueError(f"a turn says {str(value)[:100]!r}, no text")
  return ROLES[who], value


def recognise(look: Look) -> bool:
  """Whether a directory holds conversations."""
  rows = (look.line, look.item, look.table_row)
  return any(isinstance(row.get("conversations"), list) for row in rows)


def plan(spec: str, argument: str, documents: int) -> list[shaped.Shaped]:
  """Splits tables of conversations.

  Raises:
    ValueError: there are none.
  """
  kinds = (".jsonl", ".json", ".parquet")
  return shaped.plan(Conversations, spec, argument, documents, *kinds)
