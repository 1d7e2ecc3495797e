"""MMC4: sentences of a page, and images that belong to some of them.

Owns: its layout, in lines of JSON and in archives. Not: files of rows (tables.py,
tar.py).

  {"text_list": ["a", "b"], "image_info": [{"image_name": "0.jpg", "raw_url": ...,
   "matched_text_index": 1}]}

An image comes before the sentence that it belongs to, as OpenFlamingo has it; the
sentences are joined by spaces. OpenFlamingo's archives hold such an object as a .json
each, with the images in it: "image_base64".
"""

import base64
import binascii
import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from tfusion import parsing
from tfusion.data import text as text_lib
from tfusion.prepare import files as files_lib
from tfusion.prepare import look as look_lib
from tfusion.prepare import tar
from tfusion.prepare.layouts import shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look


@dataclasses.dataclass(frozen=True)
class Sentences(shaped.Shaped):
  """Rows of a page each."""

  known: ClassVar[str] = (
    '"text_list", sentences, and "image_info", for each image "matched_text_index" and'
    ' "image_base64", or "image_name" and "raw_url"'
  )
  columns: ClassVar[frozenset[str]] = frozenset(
    {"text_list", "image_info", "url", "similarity_matrix", "could_have_url_duplicate"}
  )
  joint: ClassVar[str] = " "

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    sentences, infos = values.get("text_list"), values.get("image_info")
    if not isinstance(sentences, list) or not isinstance(infos, list):
      raise ValueError("text_list and image_info have to be two lists")
    before = collections.defaultdict(list)
    for number, info in enumerate(infos):
      place = info.get("matched_text_index") if isinstance(info, dict) else None
      if not isinstance(place, int) or not 0 <= place < len(sentences):
        raise ValueError(f"image {number}: matched_text_index is {str(place)[:100]!r}")
      before[place].append(_image(info, number))
    spans: list[Span] = []
    for place, sentence in enumerate(sentences):
      if not isinstance(sentence, str):
        raise ValueError(f"sentence {place} is {str(sentence)[:100]!r}, no text")
      spans += [{"image": image} for image in before[place]]
      spans.append({"text": sentence})
    yield spans


@dataclasses.dataclass(frozen=True)
class Archived(Sentences):
  """An archive with such an object as a .json each."""

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    row = parsing.parse_json(text_lib.decode(values.get("json", b"")))
    if not isinstance(row, dict):
      raise ValueError("its .json is no object")
    return super().shape(row)


def _image(info: dict[str, Any], number: int) -> Any:
  coded, name, url = (info.get(k) for k in ("image_base64", "image_name", "raw_url"))
  if isinstance(coded, str):
    try:
      return base64.b64decode(coded, validate=True)
    except binascii.Error as error:
      raise ValueError(f"image {number}: image_base64: {error}") from error
  if not isinstance(url, str) and not isinstance(name, str):
    raise ValueError(f"image {number}: neither image_base64 nor image_name nor raw_url")
  own = name if isinstance(name, str) else None
  return shaped.address(url if isinstance(url, str) else str(name), own)


def recognise(look: Look) -> bool:
  """Whether a directory holds MMC4."""
  return any({"text_list", "image_info"} <= row.keys() for row in _rows(look))


def _rows(look: Look) -> Iterator[dict[str, Any]]:
  yield look.line
  yield look.sample_json


def plan(spec: str, argument: str, documents: int) -> list[shaped.Shaped]:
  """Splits lines of JSON, or one part for each archive where there are archives.

  Raises:
    ValueError: there are neither.
  """
  if any(look.first(*tar.SUFFIXES) for look in look_lib.over(Path(argument))):
    files = files_lib.find(spec, argument, *tar.SUFFIXES)
    return [Archived(tar.Tar(file)) for file in files]
  return shaped.plan(Sentences, spec, argument, documents, ".jsonl")
