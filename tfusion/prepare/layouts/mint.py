"""MINT-1T of PDF files: archives with the text of a document and its images in a TIFF.

Owns: its layout. Not: MINT-1T of HTML (interleaved.py), archives (tar.py).

  0a1b.json   {"texts": ["a", null, "b"], "images": [null, "page_0_image_85", null]}
  0a1b.tiff   a page for each image that is named, in order
"""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, ClassVar

from PIL import Image

from tfusion import parsing
from tfusion.data import text as text_lib
from tfusion.data.images import Page
from tfusion.prepare import files as files_lib
from tfusion.prepare import tar
from tfusion.prepare.layouts import interleaved, shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look

TIFF = ("tiff", "tif")


@dataclasses.dataclass(frozen=True)
class Scans(shaped.Shaped):
  """An archive of documents."""

  known: ClassVar[str] = (
    'a .json with "texts" and "images", two lists in step, and a .tiff with a page for'
    " each image"
  )
  columns: ClassVar[frozenset[str]] = frozenset({"json", *TIFF})
  joint: ClassVar[str] = interleaved.PARAGRAPH

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    row = parsing.parse_json(text_lib.decode(values.get("json", b"")))
    if not isinstance(row, dict):
      raise ValueError("its .json is no object")
    names = row.get("images")
    if not isinstance(names, list):
      raise ValueError(f"images are {str(names)[:100]!r}, no list")
    data = next((values[name] for name in TIFF if name in values), b"")
    named, pages = sum(name is not None for name in names), _count(data)
    if pages != named:
      raise ValueError(f"{named} images are named, the .tiff has {pages} pages")
    number = iter(range(pages))
    images = [name if name is None else Page(data, next(number)) for name in names]
    yield interleaved.in_step(row.get("texts"), images)


def _count(data: bytes) -> int:
  """How many pages a TIFF has; none where there is none."""
  if not data:
    return 0
  try:
    with Image.open(io.BytesIO(data)) as image:
      return getattr(image, "n_frames", 1)
  except Exception as error:  # Pillow's decoders raise almost any kind
    raise shaped.BadImage(f"its .tiff: {error}") from error


def recognise(look: Look) -> bool:
  """Whether a directory holds such archives."""
  names = look.sample.keys()
  return "json" in names and bool(names & {*TIFF}) and "images" in look.sample_json


def plan(spec: str, argument: str, documents: int) -> list[shaped.Shaped]:
  """One part for each archive.

  Raises:
    ValueError: there are none.
  """
  return [Scans(tar.Tar(f)) for f in files_lib.find(spec, argument, *tar.SUFFIXES)]
