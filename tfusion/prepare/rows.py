"""A row of texts and images as a document: the layouts, the names that are read.

Owns: which of a row's values are its texts and images, what a row has lost, names that
look like data and are not read. Not: where rows come from (tables.py, tar.py).

A row is one of
  {"spans": [{"text": "a"}, {"image": "a.jpg"}, {"image": "b.jpg", "weight": 0}, ...]}
  {"texts": ["a", null, ...], "images": [null, "a.jpg", ...]}   two lists in step
  {"text": "a", "image": "a.jpg"}                 either may lack; "caption" is "text"
  {"text": "a", "images": ["a.jpg", "b.jpg"]}     one text, all its images behind it
  {"file_name": "a.jpg", "caption": "a"}          as a folder lists them; or "file"
  {"input": "a.jpg", "instruction": "a", "output": "b.jpg"}     an edit
and may have "split": "train", "test" or a word for that (data/heldout.py). An image is
a path relative to the table's folder, or in parquet its bytes, or {"bytes": ...,
"path": ...}; layouts/ also give a file that was found, or a page of one. `weight` 0
marks a span that is read, not learned, as the input of an edit is.

A value that is null or blank where its key is, is lost, and the document with it; in
lists nulls only hold a place.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfusion.data import heldout, pairs
from tfusion.data import text as text_lib
from tfusion.data.balance import Amount
from tfusion.data.images import Page
from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected

TEXT, FILE = ("text", "caption"), ("file_name", "file")
EDIT = ("input", "instruction", "output")
KNOWN = (
  'columns "text" or "caption" and "image", "images", "file_name" or "file"; "texts"'
  ' and "images" in step; "spans"; or "input", "instruction" and "output"; and "split"'
)

# Words in a name that looks like a text's, an image's, and that of neither.
TEXT_WORDS = frozenset(
  "alt answer caption captions comment content conversation conversations description"
  " descriptions instruction instructions message messages prompt prompts question"
  " sentence sentences summary text texts title transcript utterance".split()
)
IMAGE_WORDS = frozenset(
  "gif image images img imgs jpeg jpg photo photos pic pics picture pictures pixel"
  " pixels png thumbnail webp".split()
)
OTHER_WORDS = frozenset(
  "author camera count dataset date error exif file filename format h hash height id"
  " ids index key lang language license licence link md5 mime name num path phash score"
  " sha256 similarity size source split src status time timestamp type uri url urls"
  " user version w width".split()
)


LONGEST_NAME = 4096  # characters of a file's name or address


class _Lost(Exception):
  """The document is none, for a reason of raw.py."""


def document(
  row: Any,
  id: str,
  *,
  holds_out: Callable[..., bool],
  image: Callable[[str], Path | bytes],
) -> Raw | Rejected:
  """Reads a row in any of the layouts.

  Args:
    row: what a line of JSON or a row of a table holds.
    id: the document's.
    holds_out: names of its images -> whether it is held out, unless its "split" says.
    image: name -> what holds the image; KeyError where there is none.
  """
  spans, weights, names, reason, detail = [], [], [], "", ""
  try:
    for kind, value, weight in _spans(row):
      if kind == "image":
        name = value.get("path") if isinstance(value, dict) else value
        names += [name] if isinstance(name, str) else []
        value = _image(value, image)
      elif not isinstance(value, str):
        raise ValueError(f"text is {_quoted(value)}")
      spans.append(value)
      weights.append(_weight(weight))
    if row.get("split") is not None:
      heldout.is_split_named(row["split"])
  except _Lost as error:
    reason, detail = error.args
  except ValueError as error:
    reason, detail = raw_lib.BAD_LAYOUT, str(error)
  try:
    test = heldout.is_split_named(row["split"])
  except (KeyError, TypeError, ValueError):
    test = holds_out(*names)
  if reason:
    return Rejected(id, reason, detail, amount(row), test)
  return Raw(id, tuple(spans), test, tuple(weights))


def amount(row: Any) -> Amount:
  """What a row offers, read or not: a document, its images and texts."""
  images = texts = 0
  for kind, value in _offers(row):
    if kind == "image":
      images += 1
    elif not isinstance(value, str) or not text_lib.is_blank(value):
      texts += 1
  return Amount(1, images, texts)


def unread(row: Any) -> list[str]:
  """Names of a row's values that no layout reads, where there is a value."""
  if not isinstance(row, dict):
    return []
  used = _used(row)
  return sorted(k for k, v in row.items() if v is not None and k not in used)


class Passed:
  """Texts and images that stand in used documents under names that are not read."""

  def __init__(self):
    """Has met nothing yet."""
    # By name and split: what it was in all, in how many rows, and the first of them.
    self._met: dict[tuple[str, bool], tuple[Amount, int, str]] = {}

  def look(self, row: Any, document: Raw | Rejected) -> None:
    """Counts what a row holds beside what its document took."""
    if isinstance(document, Rejected):
      return  # all of it was counted there
    for name in unread(row):
      kind = _looks(name, row[name])
      # An address beside an image is that of the same one.
      if not kind or (kind == "image" and _words(name) & OTHER_WORDS):
        continue
      value = row[name]
      count = sum(v is not None for v in value) if isinstance(value, list) else 1
      key = name, document.test
      amount, rows, first = self._met.get(key, (Amount(), 0, document.id))
      one = Amount(0, count) if kind == "image" else Amount(0, 0, count)
      self._met[key] = amount + one, rows + 1, first

  def rejected(self) -> Iterator[Rejected]:
    """Yields an entry for each name; its id is that of the first document."""
    for (name, test), (amount, rows, first) in sorted(self._met.items()):
      detail = f"{name!r} in {rows:,} row{'s' * (rows != 1)}"
      yield Rejected(f"{first} {name!r}", raw_lib.UNREAD, detail, amount, test)


def _spans(row: Any) -> Iterator[tuple[str, Any, float]]:
  """(text or image, value, weight) of each span; raises _Lost in the end."""
  if not isinstance(row, dict):
    what = pairs.KINDS.get(type(row).__name__, "a text").partition(";")[0]
    raise ValueError(f"{what} instead of names and values")
  layout, found = _layout(row), {"text": 0, "image": 0}
  for kind, value, weight in layout(row):
    found[kind] += 1
    yield kind, value, weight
  _require_whole(row, layout, found)


def _layout(row: dict) -> Callable[[dict], Iterator[tuple[str, Any, float]]]:
  """Which of the layouts a row has."""

  def has(*keys: str) -> bool:
    return any(row.get(key) is not None for key in keys)

  if has("spans"):
    return _in_order
  if has("texts"):
    return _in_step
  if has("instruction") or (
    "instruction" in row and has("input", "output") and not has(*TEXT, "image")
  ):
    return _edit
  return _together


def _in_order(row: dict) -> Iterator[tuple[str, Any, float]]:
  if not isinstance(row["spans"], list):
    raise ValueError(f"spans are {_quoted(row['spans'])}; a list is needed")
  for span in row["spans"]:
    if not isinstance(span, dict):
      raise ValueError(f'a span is {_quoted(span)}; write {{"text": ...}}')
    given = {key for key, value in span.items() if value is not None}
    kinds = given & {"text", "image"}
    if len(kinds) != 1 or any(_looks(k, span[k]) for k in given - {*kinds, "weight"}):
      raise ValueError(f"a span has {sorted(span)}, expected text or image")
    (kind,) = kinds
    weight = span.get("weight")
    yield kind, span[kind], 1.0 if weight is None else weight


def _in_step(row: dict) -> Iterator[tuple[str, Any, float]]:
  texts, images = row["texts"], row.get("images")
  for name, value in (("texts", texts), ("images", images)):
    if value and not isinstance(value, list):
      raise ValueError(f"{name} are {_quoted(value)}; a list is needed")
  images = images or [None] * len(texts)
  if len(images) != len(texts):
    raise ValueError(
      f"has {len(texts)} texts and {len(images)} images; let null hold a place"
    )
  for text, image in zip(texts, images):
    if text is not None:
      yield "text", text, 1.0
    if image is not None and image != "":
      yield "image", image, 1.0


def _edit(row: dict) -> Iterator[tuple[str, Any, float]]:
  for key in EDIT:
    if row.get(key) is None:
      reason = raw_lib.NO_TEXT if key == "instruction" else raw_lib.LOST_IMAGE
      raise _Lost(reason, f"{key!r} is null or not there")
  yield "image", row["input"], 0.0
  yield "text", row["instruction"], 1.0
  yield "image", row["output"], 1.0


def _together(row: dict) -> Iterator[tuple[str, Any, float]]:
  """A text and then its image, or its images."""
  texts = [row[key] for key in TEXT if row.get(key) is not None]
  if any(text != texts[0] for text in texts):
    raise ValueError("has a text and another caption; keep one of the columns")
  if texts:
    yield "text", texts[0], 1.0
  for image in _images(row):
    if image is not None and image != "":
      yield "image", image, 1.0


def _images(row: dict) -> list[Any]:
  """The images of a row that has them beside one text or none."""
  single, several = row.get("image"), row.get("images")
  if single is not None and several:
    raise ValueError('has "image" and "images"; keep one of the columns')
  if several is not None:
    if not isinstance(several, list):
      raise ValueError(f"images are {_quoted(several)}; a list is needed, or 'image'")
    return several
  if "image" in row or "images" in row:
    return [] if single is None else [single]
  return [row[key] for key in FILE if _names_image(row, key)][:1]


def _names_image(row: dict, key: str) -> bool:
  """Whether a row's file is its image; that of a "text" may be where it is from."""
  name = row.get(key)
  if not isinstance(name, str):
    return False
  other = Path(name).suffix and not pairs.is_image_name(name)
  return "caption" in row or not other


def _require_whole(row: dict, layout: Callable, found: dict[str, int]) -> None:
  """Raises _Lost for a row that lacks what its keys promise, or what is not read."""
  texts = {_in_step: ("texts",), _together: (*TEXT, "texts")}.get(layout, ())
  images = {_in_step: ("images",), _together: ("image", "images", *FILE)}
  promised = {"text": texts, "image": images.get(layout, ())}
  lost = {"text": raw_lib.NO_TEXT, "image": raw_lib.LOST_IMAGE}
  for kind, keys in promised.items():
    # An empty list says that there is none.
    missing = [key for key in keys if key in row and row[key] != []]
    missing = [k for k in missing if k not in FILE or _promises(row, k)]
    if not found[kind] and missing:
      raise _Lost(lost[kind], f"nothing in {' or '.join(map(repr, missing))}")
  if found["text"] and found["image"]:
    return  # what else is there is in no one's place
  left = unread(row)
  for kind in promised:
    names = [key for key in left if _looks(key, row[key]) == kind]
    if not found[kind] and names:
      raise _Lost(raw_lib.UNKNOWN, _advice(kind, names, row, layout))
  if not found["text"] and not found["image"]:
    raise ValueError(f"has {sorted(row)}")


def _promises(row: dict, key: str) -> bool:
  """Whether "file" or "file_name" is null where an image's name should be."""
  return not row[key] and (key == "file_name" or "caption" in row)


def _advice(kind: str, names: list[str], row: dict, layout: Callable) -> str:
  """What to do with names that are not read, of what may be a text or an image."""
  what, values = "a text" if kind == "text" else "an image", [row[n] for n in names]
  how = f"rename it to {kind!r}"
  if layout is _in_order:
    how = "put it into 'spans'"
  elif layout is _in_step:
    how = f"only '{kind}s' is read beside 'texts': put it there"
  elif any(str(value).startswith(("http://", "https://")) for value in values):
    how = f"download it, name the file as {kind!r}"
  elif kind == "text" and not all(isinstance(value, str) for value in values):
    how = "give each text a row of its own, as 'text'"
  elif kind == "image" and any(isinstance(value, list) for value in values):
    how = "rename it to 'images'"
  named = ", ".join(map(repr, names))
  return f"{named} may be {what} and is not read; {how}, or leave it out"


def _quoted(value: Any) -> str:
  """A value and what it is, for messages."""
  what = pairs.KINDS.get(type(value).__name__, type(value).__name__)
  return f"{str(value)[:100]!r}, {what}"


def _weight(value: Any) -> float:
  """The weight of a span: finite, and not below 0."""
  try:
    weight = float(value)
  except (TypeError, ValueError, OverflowError):
    weight = math.nan
  if not 0 <= weight < math.inf:
    raise ValueError(f"weight is {str(value)[:100]}; a number from 0 on is needed")
  return weight


@functools.lru_cache(1024)
def _words(key: str) -> frozenset[str]:
  """The words of a column's name: of "altText" and "alt_text" alt and text."""
  apart = re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower()
  return frozenset(re.findall(r"[a-z0-9]+", apart))


def _looks(key: str, value: Any) -> str:
  """What a value that is not read looks like: "text", "image", or "" for neither."""
  if isinstance(value, list):
    value = next((v for v in value if v is not None), None)
  words = _words(key)
  if isinstance(value, bytes) or (
    isinstance(value, dict) and value.keys() & {"bytes", "path"}
  ):
    return "image"
  if isinstance(value, dict):
    return "text" if words & TEXT_WORDS else ""
  if not isinstance(value, str) or text_lib.is_blank(value):
    return ""
  bare = re.split(r"[?#]", value[:LONGEST_NAME])[0]
  if value.startswith("data:image/") or (
    len(value) < LONGEST_NAME and "\n" not in bare and pairs.is_image_name(bare)
  ):
    return "image"
  if words & OTHER_WORDS and not words & TEXT_WORDS:
    return ""
  if words & IMAGE_WORDS and not words & TEXT_WORDS:
    return "image"
  prose = re.search(r"\w\W*\s+\w", value) or not value.isascii()
  return "text" if words & TEXT_WORDS or prose else ""


def _used(row: dict) -> set[str]:
  """The keys that the row's layout reads."""
  layout = _layout(row)
  if layout is _in_order:
    return {"split", "spans"}
  if layout is _in_step:
    return {"split", "texts", "images"}
  if layout is _edit:
    return {"split", *EDIT}
  used = {"split", *TEXT, "image", "images"}
  if not used & {"image", "images"} & row.keys():
    used.update([key for key in FILE if _names_image(row, key)][:1])
  return used


def _offers(row: Any) -> Iterator[tuple[str, Any]]:
  """Everything in a row that is a text or an image, or looks like one."""
  if not isinstance(row, dict):
    return
  kinds = dict.fromkeys((*TEXT, "texts", "instruction"), "text")
  kinds |= dict.fromkeys(("image", "images", "input", "output"), "image")
  for key, value in row.items():
    if key == "spans" and isinstance(value, list):
      for span in value:
        given = span if isinstance(span, dict) else {}
        for kind in ("text", "image"):
          if given.get(kind) not in (None, ""):
            yield kind, given[kind]
      continue
    if key in ("input", "output") and _layout(row) is not _edit:
      continue
    if key == "caption" and value == row.get("text"):
      continue  # the same, said twice
    kind = kinds.get(key) or _looks(key, value)
    for one in value if isinstance(value, list) else [value]:
      if kind and one is not None and one != "":
        yield kind, one


def _image(value: Any, image: Callable[[str], Path | bytes]) -> Path | bytes | Page:
  if isinstance(value, dict):  # as the datasets package has them in parquet
    value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
      raise _Lost(raw_lib.LOST_IMAGE, "neither bytes nor a path")
  if isinstance(value, bytes | Path | Page):
    return value
  if not isinstance(value, str):
    raise ValueError(f"image is {_quoted(value)}")
  if not value:
    raise _Lost(raw_lib.LOST_IMAGE, "its name is empty")
  try:
    return image(value)
  except KeyError as error:
    why = pairs.why_no_file(value)
    detail = value[:100] + (f": {why}" if why else "")
    raise _Lost(raw_lib.NO_IMAGE, detail) from error
