"""Pages of the web: OBELICS, OmniCorpus-CC, and MINT-1T of HTML.

Owns: rows of texts and images in step, whose images are addresses. Not: MMC4, which
has its own layout (mmc4.py), and MINT-1T of PDF files (mint.py).

  {"texts": ["a", null, "b"], "images": [null, "https://...", null], "metadata": ...,
   "general_metadata": ...}

In OBELICS, metadata is JSON in a text, a list in step with the images; in OmniCorpus a
list of structs. Both may name the file of an image. Texts without an image between
them are paragraphs of one text (ours).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from tfusion import parsing
from tfusion.prepare.layouts import shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look

PARAGRAPH = "\n\n"
FILES = ("formatted_filename", "img_url_sha")  # of OBELICS and of OmniCorpus


@dataclasses.dataclass(frozen=True)
class Pages(shaped.Shaped):
  """Rows of a page each."""

  known: ClassVar[str] = (
    '"texts" and "images", two lists in step, where a null holds a place; with'
    ' "metadata" or "general_metadata"'
  )
  columns: ClassVar[frozenset[str]] = frozenset(
    {"texts", "images", "metadata", "general_metadata"}
  )
  joint: ClassVar[str] = PARAGRAPH

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    metadata = values.get("metadata")
    if isinstance(metadata, str):
      try:
        metadata = parsing.parse_json(metadata)
      except ValueError as error:
        raise ValueError(f"metadata: {error}") from error
    images = values.get("images")
    if isinstance(images, list):
      about = metadata if isinstance(metadata, list) else []
      about += [None] * (len(images) - len(about))
      images = [_image(image, own) for image, own in zip(images, about)]
    yield in_step(values.get("texts"), images)


def in_step(texts: Any, images: Any) -> list[Span]:
  """Spans of two lists in step, where a null or an empty text holds a place.

  Raises:
    ValueError: they are no lists of one length, or hold nothing.
  """
  if not isinstance(texts, list) or not isinstance(images, list):
    raise ValueError("texts and images have to be two lists")
  if len(texts) != len(images):
    raise ValueError(f"{len(texts)} texts and {len(images)} images")
  spans: list[Span] = []
  for text, image in zip(texts, images):
    spans += [{"text": text}] if text not in (None, "") else []
    spans += [{"image": image}] if image not in (None, "") else []
  if not spans:
    raise ValueError("has neither texts nor images")
  return spans


def _image(image: Any, about: Any) -> Any:
  """An image, by its address and the names that a page's metadata has for it."""
  if isinstance(image, dict) and image.get("bytes") is None:
    image = image.get("path")
  if not isinstance(image, str) or "://" not in image:
    return image
  about = about if isinstance(about, dict) else {}
  names = (about.get(key) for key in FILES)
  return shaped.address(image, *(n for n in names if isinstance(n, str)))


def recognise(look: Look) -> bool:
  """Whether a directory holds pages."""
  names = {"texts", "images"}, {"metadata", "general_metadata"}
  for found in (look.columns, look.line.keys()):
    if names[0] <= found and names[1] & found:
      return True
  return False


def plan(spec: str, argument: str, documents: int) -> list[shaped.Shaped]:
  """Splits tables of pages.

  Raises:
    ValueError: there are none.
  """
  return shaped.plan(Pages, spec, argument, documents, ".parquet", ".jsonl")
