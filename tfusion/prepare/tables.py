"""Tables of documents: lines of JSON, CSV and parquet files.

Owns: splitting such files into parts, reading them, whether their first rows can be
read at all. Not: the layouts of a row (rows.py, layouts/), archives (tar.py).
"""

import collections
import csv
import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tfusion import parsing
from tfusion.data import text as text_lib
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import rows as rows_lib
from tfusion.prepare.raw import Raw, Rejected

SAMPLED_BYTES = 1 << 20  # of a table, to see how long its lines are
BATCH_ROWS = 64  # of arrow, read at once
SAMPLED_ROWS = 16  # of a table, to see whether its columns are known
MAX_CSV_FIELD = 1 << 20
END = "tfusion: the end of this file"  # a line of our own, behind the last of a .csv


class Row(NamedTuple):
  """A row of a file."""

  id: str  # of the document
  values: Any  # usually a dict, as a layout wants it
  names: tuple[str, ...] = ()  # that may say whether it is held out


class Table(Protocol):
  """A share of a file of rows, and where images lie that its rows name."""

  @property
  def file(self) -> files_lib.File:
    """The file."""

  def rows(self) -> Iterator[Row | Rejected]:
    """Yields every row in order; one that cannot be read as what is lost."""

  def finder(self, row: Row) -> Callable[[str], Path | bytes]:
    """Finds images that a row names; KeyError where there is none."""


class Documents:
  """What is the same for every Table whose rows are documents as rows.py has them."""

  def read(self: Any) -> Iterator[Raw | Rejected]:
    """Yields a document for each row, and what of a row is not read."""
    passed = rows_lib.Passed()
    for row in self.rows():
      if isinstance(row, Rejected):
        yield row
        continue
      holds_out = functools.partial(self.file.holds_out, row.id)
      yield (
        document := rows_lib.document(
          row.values, row.id, holds_out=holds_out, image=self.finder(row)
        )
      )
      passed.look(row.values, document)
    yield from passed.rejected()

  def finder(self: Any, row: Row) -> Callable[[str], Path]:
    """Finds images relative to the folder of the table."""
    return functools.partial(image_in, self.file.path.parent)


def image_in(folder: Path, name: str) -> Path:
  """Where the file of an image is that a row names; KeyError where there is none."""
  path = folder / name
  if not is_file(path):
    raise KeyError(name[:100])
  return path


def is_file(path: Path) -> bool:
  """Whether a file is there; a name that no file can have is of none."""
  try:
    return path.is_file()
  except OSError as error:  # the name is too long, as of an image within it
    raw_lib.stop_if_of_machine(error)
    return False


@dataclasses.dataclass(frozen=True)
class Lines(Documents):
  """The lines of a .jsonl that begin at bytes start to stop."""

  file: files_lib.File
  start: int
  stop: int

  def rows(self) -> Iterator[Row | Rejected]:
    """Yields each line that is not blank; its id holds its offset."""
    self.file.require_unchanged()
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
            values = parsing.parse_json(text_lib.decode(line))
          except ValueError as error:
            test = self.file.holds_out(id)
            why = f"no JSON: {error}"
            yield Rejected(id, raw_lib.BAD_LAYOUT, why, test=test)
            continue
          yield Row(id, values)
    except OSError as error:
      raw_lib.stop_if_of_machine(error)
      id = f"{name}@{self.start}"
      test = self.file.holds_out(id)
      yield Rejected(id, raw_lib.UNREADABLE, str(error), test=test)


def plan_jsonl(spec: str, argument: str, documents: int) -> list[Lines]:
  """Splits .jsonl files into ranges of bytes with about so many lines each.

  Raises:
    ValueError: there are none, or one whose first rows hold nothing that is read.
  """
  files = files_lib.find(spec, argument, ".jsonl")
  check = Check(spec)
  parts = [part for file in files for part in lines_of(file, documents, check)]
  check.tell()
  return parts


def lines_of(file: files_lib.File, documents: int, check: "Check") -> list[Lines]:
  """Splits a .jsonl into ranges of bytes with about so many lines each.

  Raises:
    ValueError: it is no such file, or its first rows hold nothing that is read.
  """
  # How long a line is, is seen at the beginning: reading it all would take hours.
  try:
    with open(file.path, "rb") as stream:
      head = stream.read(SAMPLED_BYTES)
  except OSError as error:
    raw_lib.stop_if_of_machine(error)
    return [Lines(file, 0, max(file.bytes, 1))]  # which says so
  if why := text_lib.why_no_lines(head) or _why_one_line(head):
    raise ValueError(f"--source={check.spec}: {file.path} {why}")
  lines = head.splitlines()
  if len(head) < file.bytes:
    lines = lines[:-1]  # it may be cut
  check.look(file, filter(None, map(bytes.strip, lines)), parsing.parse_json)
  step = documents * max(len(head) // max(head.count(b"\n"), 1), 1)
  starts = range(0, max(file.bytes, 1), step)
  return [Lines(file, start, min(start + step, file.bytes)) for start in starts]


def _why_one_line(head: bytes) -> str:
  """That lines end as on old Macs, which JSON lines do not; nothing if they do not."""
  ended = b"\r" in head.strip() and b"\n" not in head
  return "has lines that end with CR alone; save it with LF" if ended else ""


@dataclasses.dataclass(frozen=True)
class Rows(Documents):
  """Some row groups of a parquet file; none where the file cannot be read."""

  file: files_lib.File
  groups: tuple[tuple[int, int], ...]  # number, rows
  damage: str = ""

  def rows(self) -> Iterator[Row | Rejected]:
    """Yields each row; its id holds its row group and its number in that."""
    self.file.require_unchanged()
    name = raw_lib.printable(self.file.name)
    if self.damage:
      test = self.file.holds_out(name)
      yield Rejected(name, raw_lib.UNREADABLE, self.damage, test=test)
    for group, rows in self.groups:
      ids = [f"{name}@{group}.{number}" for number in range(rows)]
      yield from rows_of_batches(self.file, ids, self._batches(group))

  def _batches(self, group: int) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(self.file.path) as table:
      columns = columns_of(table.schema_arrow)
      yield from table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)


def rows_of_batches(
  file: files_lib.File, ids: list[str], batches: Iterator[Any]
) -> Iterator[Row | Rejected]:
  """The rows of batches of arrow, in order; what cannot be read is lost.

  Args:
    file: says what is held out.
    ids: of all the rows that there should be.
    batches: reads as it goes. With its first error all rows that it has not given are
      lost.

  Raises:
    OSError: the machine cannot read, which says nothing of the rows.
  """
  from pyarrow import ArrowException

  left = iter(ids)
  try:
    for batch in batches:
      for row, id in zip(rows_of(batch), left):
        if isinstance(row, ValueError):
          test, why = file.holds_out(id), str(row)
          yield Rejected(id, raw_lib.UNREADABLE, why, test=test)
        else:
          yield Row(id, row)
  except (ArrowException, OSError, ValueError) as error:
    raw_lib.stop_if_of_machine(error)
    for id in left:
      test = file.holds_out(id)
      yield Rejected(id, raw_lib.UNREADABLE, str(error), test=test)


def columns_of(schema: Any) -> list[str]:
  """The columns that may be read: no text and no image is a time, and Python cannot
  hold all that arrow can."""
  from pyarrow import types

  return [field.name for field in schema if not types.is_temporal(field.type)]


def rows_of(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
  """The rows of a batch; of one that cannot be made values, why."""
  try:
    yield from batch.to_pylist()
    return
  except ValueError:  # of one of them: not UTF-8, perhaps
    pass
  for number in range(batch.num_rows):
    try:
      yield from batch.slice(number, 1).to_pylist()
    except ValueError as error:
      yield error


def plan_parquet(spec: str, argument: str, documents: int) -> list[Rows]:
  """Splits parquet files into runs of row groups.

  Raises:
    ValueError: there are none, or one whose first rows hold nothing that is read.
  """
  files, check = files_lib.find(spec, argument, ".parquet"), Check(spec)
  parts = [part for file in files for part in groups_of(file, documents, check)]
  check.tell()
  return parts


def groups_of(file: files_lib.File, documents: int, check: "Check") -> list[Rows]:
  """Splits a parquet file into runs of row groups with about so many rows each.

  Raises:
    ValueError: two columns of it share a name, or its first rows hold nothing that is
      read.
  """
  from pyarrow import ArrowException, parquet

  try:
    metadata = parquet.read_metadata(file.path)
  except (ArrowException, OSError) as error:
    raw_lib.stop_if_of_machine(error)
    return [Rows(file, (), f"{type(error).__name__}: {error}")]
  schema = metadata.schema.to_arrow_schema()
  if check.is_new(str(schema)):
    _refuse_twice(check.spec, file, schema.names)
    check.look(file, first_rows(file))
  parts, groups = [], []
  for group in range(metadata.num_row_groups):
    groups.append((group, metadata.row_group(group).num_rows))
    if sum(rows for _, rows in groups) >= documents:
      parts.append(Rows(file, tuple(groups)))
      groups = []
  return [*parts, Rows(file, tuple(groups))] if groups else parts


def first_rows(file: files_lib.File) -> list[dict[str, Any]]:
  """Some rows of a parquet file; none where they are damaged, as reading will show."""
  from pyarrow import ArrowException, parquet

  try:
    with parquet.ParquetFile(file.path) as table:
      columns = columns_of(table.schema_arrow)
      batch = next(table.iter_batches(SAMPLED_ROWS, columns=columns), None)
      rows = list(rows_of(batch)) if batch else []
      return [row for row in rows if not isinstance(row, ValueError)]
  except (ArrowException, OSError, ValueError) as error:
    raw_lib.stop_if_of_machine(error)
    return []


@dataclasses.dataclass(frozen=True)
class Edits(Documents):
  """Some rows of a .csv with the columns input, instruction and output."""

  file: files_lib.File
  start: int
  stop: int

  def rows(self) -> Iterator[Row | Rejected]:
    """Yields each row; its id holds its number."""
    self.file.require_unchanged()
    name = raw_lib.printable(self.file.name)
    for number, row in enumerate(_csv_rows(self.file)):
      if number >= self.stop:
        break
      if number >= self.start:
        id = f"{name}@{number}"
        if any(row.pop(None, ())):  # a comma that no quotes hold, perhaps
          test, why = self.file.holds_out(id), "has more fields than columns"
          amount = rows_lib.amount(row)
          yield Rejected(id, raw_lib.BAD_LAYOUT, why, amount, test)
        else:
          yield Row(id, row)


def plan_edits(spec: str, argument: str, documents: int) -> list[Edits | Lines]:
  """Splits tables of edits: .csv by rows, .jsonl as any other.

  Raises:
    ValueError: there are none, or a .csv that lacks a column.
  """
  parts: list[Edits | Lines] = []
  check = Check(spec)
  for file in files_lib.find(spec, argument, ".csv", ".jsonl"):
    if file.name.lower().endswith(".jsonl"):
      parts += lines_of(file, documents, check)
      continue
    try:
      columns = _csv_columns(file)
      rows = list(_csv_rows(file))
    except (ValueError, csv.Error) as error:
      raise ValueError(f"--source={spec}: {file.path}: {error}") from error
    if lacking := {"input", "instruction", "output"} - set(columns):
      raise ValueError(
        f"--source={spec}: {file.path} has no column {sorted(lacking)}; its columns, up"
        f" to each comma, are {columns}: rename them"
      )
    _refuse_twice(spec, file, columns)
    if not rows:
      raise ValueError(f"--source={spec}: {file.path} has columns and no rows")
    check.look(file, rows[:SAMPLED_ROWS])
    for start in range(0, len(rows), documents):
      parts.append(Edits(file, start, min(start + documents, len(rows))))
  check.tell()
  return parts


def _refuse_twice(spec: str, file: files_lib.File, columns: list[str]) -> None:
  """Refuses a table with two columns of a name, of which a row can hold but one."""
  counts = collections.Counter(columns)
  if twice := [name for name in counts if counts[name] > 1]:
    raise ValueError(
      f"--source={spec}: {file.path} has several columns called"
      f" {', '.join(map(repr, twice))}; rename or drop all but one"
    )


def _csv_columns(file: files_lib.File) -> list[str]:
  """The names of the columns.

  Raises:
    ValueError: a quote is opened that nothing closes: it holds all rows from there on.
  """
  csv.field_size_limit(MAX_CSV_FIELD)
  text = text_lib.decode(file.path.read_bytes())
  lines = io.StringIO(f"{text.rstrip()}\n{END}\n", newline="")
  rows = list(csv.reader(lines))
  if rows[-1] != [END]:
    raise ValueError(f'row {len(rows) - 1} opens a quote (") that is never closed')
  return next(filter(None, rows[:-1]), [])


def _csv_rows(file: files_lib.File) -> Iterator[dict[Any, Any]]:
  csv.field_size_limit(MAX_CSV_FIELD)
  text = text_lib.decode(file.path.read_bytes())
  yield from csv.DictReader(io.StringIO(text, newline=""))


class Check:
  """Whether the first rows of files can be read, before any work."""

  def __init__(
    self,
    spec: str,
    document: Callable[[Any], Raw | Rejected] | None = None,
    *,
    known: str = rows_lib.KNOWN,
    unread: Callable[[Any], Iterable[str]] = rows_lib.unread,
  ):
    """Has looked at nothing yet.

    Args:
      spec: the whole source, for messages.
      document: a row -> what becomes of it, its images aside; as rows.py reads it, if
        it is not given.
      known: what is read, for messages.
      unread: a row -> the names of its values that are not read.
    """
    self.spec = spec
    self._document = document or _as_document
    self._known, self._unread_of = known, unread
    self._unread: set[str] = set()
    self._schemas: set[str] = set()

  def is_new(self, schema: str) -> bool:
    """Whether no table of this schema was met before."""
    new = schema not in self._schemas
    self._schemas.add(schema)
    return new

  def look(
    self,
    file: files_lib.File,
    rows: Iterable[Any],
    parse: Callable[[Any], Any] = lambda row: row,
  ) -> None:
    """Looks at a file.

    Args:
      file: whose rows they are.
      rows: its first ones, of which SAMPLED_ROWS are looked at.
      parse: makes a row of each; ValueError where it is none.

    Raises:
      ValueError: none of them is in a known layout, or all lack a text or an image
        that may stand under an unknown name.
    """
    faults: list[str] = []
    columns: set[str] = set()
    for row in itertools.islice(rows, SAMPLED_ROWS):
      try:
        row = parse(row)
      except ValueError as error:
        faults.append(f"no JSON: {error}")
        continue
      columns.update(map(str, row) if isinstance(row, dict) else ())
      found = self._document(row)
      if not isinstance(found, Rejected):
        self._unread.update(self._unread_of(row))
        faults.append("")
      else:
        of_names = found.reason in (raw_lib.BAD_LAYOUT, raw_lib.UNKNOWN)
        faults.append(str(found) if of_names else "")
    if faults and all(faults):
      raise ValueError(
        f"--source={self.spec}: {file.path}: none of its first {len(faults)} rows can"
        f" be read ({faults[0]}); its columns are {sorted(columns)}; what is read:"
        f" {self._known}"
      )

  def tell(self) -> None:
    """Says once which columns of the rows that were looked at are not read."""
    if self._unread:
      names = ", ".join(sorted(map(str, self._unread)))
      print(f"{self.spec}: columns that are not read: {names}", flush=True)


def _as_document(row: Any) -> Raw | Rejected:
  return rows_lib.document(
    row, "", holds_out=lambda *names: False, image=lambda name: b""
  )
