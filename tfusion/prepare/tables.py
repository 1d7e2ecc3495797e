"""Rows of JSON lines, CSV and parquet as documents.

Owns: the layouts of a row, splitting such files into parts. Not: archives (tar.py).

A row is one of
  {"spans": [{"text": "a"}, {"image": "a.jpg"}, {"image": "b.jpg", "weight": 0}, ...]}
  {"texts": ["a", null, ...], "images": [null, "a.jpg", ...]}   two lists in step
  {"text": "a", "image": "a.jpg"}                 either may lack; "caption" is "text"
  {"input": "a.jpg", "instruction": "a", "output": "b.jpg"}     an edit
and may have "split": "test" or "train". An image is a path relative to the table's
folder, or in parquet its bytes, or {"bytes": ..., "path": ...}. `weight` 0 marks a span
that is read, not learned, as the input of an edit is.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected

SAMPLED_BYTES = 1 << 20  # of a table, to see how long its lines are
MAX_CSV_FIELD = 1 << 20


def document(
  row: Any, id: str, *, test: bool, image: Callable[[str], Path | bytes]
) -> Raw | Rejected:
  """Reads a row in any of the layouts.

  Args:
    row: what a line of JSON or a row of a table holds.
    id: the document's.
    test: held out, unless the row's "split" says.
    image: name -> what holds the image; KeyError where there is none.
  """
  try:
    spans, weights = [], []
    for kind, value, weight in _spans(row):
      if kind == "image":
        value = _image(value, image)
      elif not isinstance(value, str):
        raise TypeError(f"text is {value!r}")
      if not 0 <= float(weight) < math.inf:
        raise ValueError(f"weight is {weight}")
      spans.append(value)
      weights.append(float(weight))
    split = row.get("split")
    if split is not None:
      test = {"train": False, "test": True}[split]
  except _NoImage as error:
    return Rejected(id, raw_lib.NO_IMAGE, str(error))
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
    return Rejected(id, raw_lib.BAD_LAYOUT, f"{type(error).__name__}: {error}")
  return Raw(id, tuple(spans), test, tuple(weights))


class _NoImage(Exception):
  pass


def _spans(row: dict) -> Iterator[tuple[str, Any, float]]:
  """(text or image, value, weight) of each span."""
  if row.get("spans") is not None:
    for span in row["spans"]:
      kinds = [kind for kind in ("text", "image") if span.get(kind) is not None]
      if len(kinds) != 1:
        raise ValueError(f"a span has {sorted(span)}, expected text or image")
      weight = span.get("weight")
      yield kinds[0], span[kinds[0]], 1.0 if weight is None else weight
  elif row.get("texts") is not None:
    images = row.get("images") or [None] * len(row["texts"])
    for text, image in zip(row["texts"], images, strict=True):
      if text is not None:
        yield "text", text, 1.0
      if image is not None:
        yield "image", image, 1.0
  elif row.get("instruction") is not None:
    yield "image", row["input"], 0.0
    yield "text", row["instruction"], 1.0
    yield "image", row["output"], 1.0
  else:
    text = row.get("text") if row.get("text") is not None else row.get("caption")
    if text is None and row.get("image") is None:
      raise ValueError(f"has {sorted(row)}")
    if text is not None:
      yield "text", text, 1.0
    if row.get("image") is not None:
      yield "image", row["image"], 1.0


def _image(value: Any, image: Callable[[str], Path | bytes]) -> Path | bytes:
  if isinstance(value, dict):  # as the datasets package has them in parquet
    value = value["bytes"] if value.get("bytes") is not None else value["path"]
  if isinstance(value, bytes):
    return value
  if not isinstance(value, str):
    raise TypeError(f"image is {value!r}")
  try:
    return image(value)
  except KeyError as error:
    raise _NoImage(value[:100]) from error


def _beside(file: files_lib.File) -> Callable[[str], Path]:
  """Finds images relative to the folder of a table."""

  def find(name: str) -> Path:
    path = file.path.parent / name
    try:
      found = path.is_file()
    except OSError as error:  # the name is too long, as of an image within it
      raw_lib.stop_if_of_machine(error)
      found = False
    if not found:
      raise KeyError(name[:100])
    return path

  return find


@dataclasses.dataclass(frozen=True)
class Lines:
  """The lines of a .jsonl that begin at bytes start to stop."""

  file: files_lib.File
  start: int
  stop: int

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields a document for each line that is not blank; its id holds its offset."""
    self.file.require_unchanged()
    image = _beside(self.file)
    name = raw_lib.printable(self.file.name)
    try:
      with open(self.file.path, "rb") as stream:
        if self.start:
          # The line that begins before belongs to the part before.
          stream.seek(self.start - 1)
          stream.readline()
        while (at := stream.tell()) < self.stop and (line := stream.readline()):
          if not line.strip():
            continue
          id = f"{name}@{at}"
          try:
            row = json.loads(line.decode("utf-8-sig"))
          except (ValueError, RecursionError) as error:
            yield Rejected(id, raw_lib.BAD_LAYOUT, f"no JSON: {error}")
            continue
          yield document(row, id, test=self.file.holds_out(id), image=image)
    except OSError as error:
      raw_lib.stop_if_of_machine(error)
      yield Rejected(f"{name}@{self.start}", raw_lib.UNREADABLE, str(error))


def plan_jsonl(spec: str, argument: str, documents: int) -> list[Lines]:
  """Splits .jsonl files into ranges of bytes with about so many lines each.

  Raises:
    ValueError: there are none.
  """
  files = files_lib.find(spec, argument, ".jsonl")
  return [part for file in files for part in _lines(file, documents)]


def _lines(file: files_lib.File, documents: int) -> list[Lines]:
  # How long a line is, is seen at the beginning: reading it all would take hours.
  with open(file.path, "rb") as stream:
    head = stream.read(SAMPLED_BYTES)
  step = documents * max(len(head) // max(head.count(b"\n"), 1), 1)
  starts = range(0, max(file.bytes, 1), step)
  return [Lines(file, start, min(start + step, file.bytes)) for start in starts]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Some row groups of a parquet file; none where the file cannot be read."""

  file: files_lib.File
  groups: tuple[tuple[int, int], ...]  # number, rows
  damage: str = ""

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields a document for each row."""
    from pyarrow import ArrowException, parquet

    self.file.require_unchanged()
    name, image = raw_lib.printable(self.file.name), _beside(self.file)
    if self.damage:
      yield Rejected(name, raw_lib.UNREADABLE, self.damage)
    for group, rows in self.groups:
      number = 0
      try:
        with parquet.ParquetFile(self.file.path) as table:
          for batch in table.iter_batches(64, row_groups=[group]):
            for row in batch.to_pylist():
              id = f"{name}@{group}.{number}"
              number += 1
              yield document(row, id, test=self.file.holds_out(id), image=image)
      except (ArrowException, OSError, ValueError) as error:
        raw_lib.stop_if_of_machine(error)
        for lost in range(number, rows):
          yield Rejected(f"{name}@{group}.{lost}", raw_lib.UNREADABLE, str(error))


def plan_parquet(spec: str, argument: str, documents: int) -> list[Rows]:
  """Splits parquet files into runs of row groups.

  Raises:
    ValueError: there are none.
  """
  from pyarrow import ArrowException, parquet

  parts = []
  for file in files_lib.find(spec, argument, ".parquet"):
    try:
      metadata = parquet.read_metadata(file.path)
    except (ArrowException, OSError) as error:
      raw_lib.stop_if_of_machine(error)
      parts.append(Rows(file, (), f"{type(error).__name__}: {error}"))
      continue
    groups: list[tuple[int, int]] = []
    for group in range(metadata.num_row_groups):
      groups.append((group, metadata.row_group(group).num_rows))
      if sum(rows for _, rows in groups) >= documents:
        parts.append(Rows(file, tuple(groups)))
        groups = []
    if groups:
      parts.append(Rows(file, tuple(groups)))
  return parts


@dataclasses.dataclass(frozen=True)
class Edits:
  """Some rows of a .csv with the columns input, instruction and output."""

  file: files_lib.File
  start: int
  stop: int

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields image, instruction, image of each row; the first is not learned."""
    self.file.require_unchanged()
    name, image = raw_lib.printable(self.file.name), _beside(self.file)
    for number, row in enumerate(_csv_rows(self.file)):
      if number >= self.stop:
        return
      if number >= self.start:
        id = f"{name}@{number}"
        row.pop(None, None)  # fields beyond the named columns
        yield document(row, id, test=self.file.holds_out(id), image=image)


def plan_edits(spec: str, argument: str, documents: int) -> list[Edits | Lines]:
  """Splits tables of edits: .csv by rows, .jsonl as any other.

  Raises:
    ValueError: there are none, or a .csv that lacks a column.
  """
  parts = []
  for file in files_lib.find(spec, argument, ".csv", ".jsonl"):
    if file.name.endswith(".jsonl"):
      parts += _lines(file, documents)
      continue
    try:
      rows = list(_csv_rows(file))
    except (ValueError, csv.Error) as error:
      raise ValueError(f"--source={spec}: {file.path}: {error}") from error
    lacking = {"input", "instruction", "output"} - set(rows[0] if rows else ())
    if lacking:
      raise ValueError(
        f"--source={spec}: {file.path} has no rows or no column {sorted(lacking)}"
      )
    for start in range(0, len(rows), documents):
      parts.append(Edits(file, start, min(start + documents, len(rows))))
  return parts


def _csv_rows(file: files_lib.File) -> Iterator[dict[str, str]]:
  csv.field_size_limit(MAX_CSV_FIELD)
  text = file.path.read_text(encoding="utf-8-sig")
  yield from csv.DictReader(io.StringIO(text, newline=""))
