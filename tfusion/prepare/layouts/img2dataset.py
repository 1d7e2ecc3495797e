"""What img2dataset downloaded: CC12M, LAION, COYO, DataComp.

Owns: the tables beside its archives, which say what could not be downloaded; its
tables that hold the images themselves. Not: its archives, which are as all (tar.py).

  00000.tar           000000000.jpg, 000000000.txt, 000000000.json, ...
  00000.parquet       a row for each address, failures too: key, url, status,
                      error_message, ... and, with --output_format=parquet, jpg and txt
  00000_stats.json    their numbers, which are not read
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from tfusion.data import text as text_lib
from tfusion.data.balance import Amount
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import tables, tar
from tfusion.prepare.layouts import shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look
from tfusion.prepare.raw import Raw, Rejected

STATUS = frozenset({"key", "status", "error_message"})  # columns of every table of it
SUCCESS = "success"
FORMATS = ("jpg", "png", "webp")  # columns that hold images
BATCH = 4096  # rows of a table that are read at once


@dataclasses.dataclass(frozen=True)
class Download:
  """An archive, and the table of what was asked for."""

  archive: tar.Tar
  table: files_lib.File | None  # none where somebody has moved it away

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields the documents of the archive, and then what did not get into it."""
    keys = set()
    for document in self.archive.read():
      yield document
      keys.add(document.id.rpartition("/")[2])
    if self.table is not None:
      yield from self._failed(self.table, keys)

  def _failed(self, table: files_lib.File, keys: set[str]) -> Iterator[Rejected]:
    """Yields an entry for each kind of failure and split."""
    from pyarrow import ArrowException, parquet

    table.require_unchanged()
    name = raw_lib.printable(table.name)
    # By reason, what went wrong and split: what was asked for, and the first of it.
    found: dict[tuple[str, str, bool], tuple[Amount, str]] = {}
    try:
      with parquet.ParquetFile(table.path) as file:
        columns = [c for c in (*STATUS, "caption") if c in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH, columns=columns):
          for row in batch.to_pylist():
            if not (fault := _fault(row, keys)):
              continue
            id = f"{raw_lib.printable(self.archive.file.name)}/{row['key']}"
            kind = *fault, self.archive.file.holds_out(id, str(row["key"]))
            asked, first = found.get(kind, (Amount(), id))
            caption = row.get("caption")
            texts = int(isinstance(caption, str) and not text_lib.is_blank(caption))
            found[kind] = asked + Amount(1, 1, texts), first
    except (ArrowException, OSError, ValueError) as error:
      raw_lib.stop_if_of_machine(error)
      test = table.holds_out(name)
      yield Rejected(name, raw_lib.UNREADABLE, str(error), Amount(), test)
    for (reason, what, test), (asked, first) in sorted(found.items(), key=str):
      detail = f"{what}; {asked.documents:,} in {name}, this the first"
      yield Rejected(first, reason, detail, asked, test)


def _fault(row: dict[str, Any], keys: set[str]) -> tuple[str, str] | None:
  """Why the image of a row is not in the archive, as (reason, detail)."""
  status = row["status"]
  if status != SUCCESS:
    return raw_lib.FAILED, f"{status}: {str(row['error_message'])[:100]}"
  if row["key"] in keys:
    return None
  return raw_lib.LOST_IMAGE, "a success by its table, and not in the archive"


@dataclasses.dataclass(frozen=True)
class Inline(shaped.Shaped):
  """Rows that hold the images themselves."""

  known: ClassVar[str] = 'columns "key", "status", "jpg", and "txt" or "caption"'
  columns: ClassVar[frozenset[str]] = STATUS | {*FORMATS, "txt", "caption", "url"}

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    caption = values.get("txt") or values.get("caption")
    image = next((values[name] for name in FORMATS if values.get(name)), None)
    if image is None:
      raise ValueError(f"has no image in {', '.join(FORMATS)}")
    yield [{"text": caption}, {"image": image}]

  def documents(self, row: tables.Row, gone: shaped.Gone) -> Iterator[Raw | Rejected]:
    """Yields the document of a row, or that its image could not be downloaded."""
    values = row.values
    test = self.table.file.holds_out(row.id)
    if values.get("status") != SUCCESS:
      why = f"{values.get('status')}: {str(values.get('error_message'))[:100]}"
      yield Rejected(row.id, raw_lib.FAILED, why, Amount(1, 1), test)
    elif not (values.get("txt") or values.get("caption")):
      yield Rejected(row.id, raw_lib.NO_CAPTION, "", Amount(1, 1), test)
    else:
      yield from super().documents(row, gone)


def recognise(look: Look) -> bool:
  """Whether a directory holds what img2dataset wrote."""
  beside = bool(look.first("_stats.json") or look.columns >= STATUS)
  return bool(look.first(".tar")) and beside or _holds_images(look)


def _holds_images(look: Look) -> bool:
  return look.columns >= STATUS and bool(look.columns & {*FORMATS})


def plan(
  spec: str, argument: str, documents: int
) -> list[Download] | list[shaped.Shaped]:
  """One part for each archive; or runs of rows, where tables hold the images.

  Raises:
    ValueError: there are neither.
  """
  files = files_lib.find(spec, argument, ".tar", ".parquet", beside=("_stats.json",))
  archives = [file for file in files if file.name.lower().endswith(".tar")]
  if not archives:
    return shaped.plan(Inline, spec, argument, documents, ".parquet")
  found = [_table_of(archive) for archive in archives]
  named = {table.name for table in found if table}
  alone = [f.name for f in files if f not in archives and f.name not in named]
  if alone:
    some = ", ".join(alone[:3])
    print(f"{spec}: tables without an archive, which are not read: {some}")
  if lacking := sum(table is None for table in found):
    print(f"{spec}: {lacking:,} archives without a table: what failed is not counted")
  return [Download(tar.Tar(a), table) for a, table in zip(archives, found)]


def _table_of(archive: files_lib.File) -> files_lib.File | None:
  """The table beside an archive, if it is there."""
  name = f"{archive.name.rpartition('.')[0]}.parquet"
  there = (Path(archive.root) / name).is_file()
  return files_lib.file(Path(archive.root), name, archive.apart) if there else None
