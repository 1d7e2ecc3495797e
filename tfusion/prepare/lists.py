"""Tables that are one list in a .json, as those of LLaVA are.

Owns: reading such a file, splitting it into parts. Not: lines of JSON (tables.py), the
layouts of a row (layouts/).
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfusion import parsing
from tfusion.data import text as text_lib
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import tables
from tfusion.prepare.raw import Rejected

HEAD_BYTES = 1 << 22  # of a file, in which its first object should end


@dataclasses.dataclass(frozen=True)
class Items(tables.Documents):
  """Some items of the list in a .json, which is read in whole for them."""

  file: files_lib.File
  start: int
  stop: int

  def rows(self) -> Iterator[tables.Row | Rejected]:
    """Yields each item; its id holds its number."""
    self.file.require_unchanged()
    name = raw_lib.printable(self.file.name)
    for number in range(self.start, self.stop):
      yield tables.Row(f"{name}@{number}", _items(self.file)[number])


def items_of(file: files_lib.File, documents: int, check: tables.Check) -> list[Items]:
  """Splits the list in a .json; a file that holds something else is named, not read.

  Raises:
    ValueError: it is broken, or its first items hold nothing that is read.
  """
  if not first_item(file):
    print(f"{check.spec}: {file.name}: is no list of objects, and is not read")
    return []
  try:
    items = _items(file)
  except ValueError as error:
    raise ValueError(f"--source={check.spec}: {file.path}: no JSON: {error}") from error
  check.look(file, items)
  starts = range(0, len(items), documents)
  return [Items(file, start, min(start + documents, len(items))) for start in starts]


def first_item(file: files_lib.File) -> dict[str, Any]:
  """The first object of a list of objects; empty if a file is none."""
  with open(file.path, "rb") as stream:
    head = stream.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
  if not head.startswith(b"["):
    return {}
  try:
    item, _ = json.JSONDecoder().raw_decode(head[1:].decode("utf-8", "ignore").lstrip())
  except (ValueError, RecursionError):
    return {}
  return item if isinstance(item, dict) else {}


@functools.lru_cache(1)  # parts of a file are read one after the other
def _load(path: Path, state: tuple[int, int]) -> list[Any]:
  del state
  items = parsing.parse_json(text_lib.decode(path.read_bytes()))
  assert isinstance(items, list)  # as it begins with a bracket
  return items


def _items(file: files_lib.File) -> list[Any]:
  return _load(file.path, (file.bytes, file.modified))
