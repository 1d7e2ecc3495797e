"""Tables of Lance: folders of fragments, and manifests that say which are in a version.

Owns: finding such tables, cutting their newest versions into parts, reading a part.
Not: the layouts of a row (rows.py), what of a batch is read (tables.py).

  train.lance/_versions/*.manifest   a file for each version
  train.lance/data/*.lance           the columns of a fragment
  train.lance/_deletions/*           rows of it that are gone

Files of Lance never change: a table that is written to while a job runs is read as it
was when the job began.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfusion.data import pairs
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import tables
from tfusion.prepare.look import Look
from tfusion.prepare.raw import Rejected

VERSIONS, DATA = "_versions", "data"


@dataclasses.dataclass(frozen=True)
class Rows(tables.Documents):
  """Some rows of a fragment, in order, without those that are deleted."""

  file: files_lib.File  # the manifest of the version
  data: tuple[files_lib.File, ...]  # of the fragment
  version: int
  fragment: int
  start: int
  stop: int

  def rows(self) -> Iterator[tables.Row | Rejected]:
    """Yields each row; its id holds its fragment and its number in that."""
    for file in (self.file, *self.data):
      file.require_unchanged()
    name = raw_lib.printable(self.file.name.partition(f"/{VERSIONS}/")[0])
    ids = [f"{name}@{self.fragment}.{i}" for i in range(self.start, self.stop)]
    yield from tables.rows_of_batches(self.file, ids, self._batches())

  def finder(self, row: tables.Row) -> Callable[[str], Path]:
    """Finds images relative to the folder that holds the table."""
    return functools.partial(tables.image_in, _folder(self.file).parent)

  def _batches(self) -> Iterator[Any]:
    import lance

    table = lance.dataset(_folder(self.file), version=self.version)
    fragment = table.get_fragment(self.fragment)
    yield from _scan(table, fragment, self.start, self.stop - self.start)


def _folder(manifest: files_lib.File) -> Path:
  return manifest.path.parent.parent


def _scan(table: Any, fragment: Any, start: int, count: int) -> Iterator[Any]:
  """Batches of arrow with so many rows of a fragment, from one on."""
  yield from table.scanner(
    fragments=[fragment],
    columns=tables.columns_of(table.schema),
    offset=start,
    limit=count,
    batch_size=tables.BATCH_ROWS,
    blob_handling="all_binary",  # or a blob is but where it lies
  ).to_batches()


def recognise(look: Look) -> bool:
  """Whether a directory is a table of Lance."""
  return any((look.root / VERSIONS).glob("*.manifest"))


def plan(spec: str, argument: str, documents: int) -> list[Rows]:
  """Cuts the newest version of every table into parts of at most so many rows.

  Raises:
    ValueError: there is no table, one cannot be opened or lacks a file, or its first
      rows hold nothing that is read.
  """
  parts, check = [], tables.Check(spec)
  for manifest, table in _tables(spec, argument):
    if check.is_new(str(table.schema)):
      check.look(manifest, _first_rows(table))
    for fragment in table.get_fragments():
      data, rows = _data(spec, manifest, fragment), fragment.count_rows()
      for start in range(0, rows, documents):
        stop = min(start + documents, rows)
        number = fragment.fragment_id
        parts.append(Rows(manifest, data, table.version, number, start, stop))
  check.tell()
  if not parts:
    raise ValueError(f"--source={spec}: its tables of Lance have no rows")
  return parts


def _tables(spec: str, argument: str) -> Iterator[tuple[files_lib.File, Any]]:
  """Every table, with the manifest of its newest version.

  Raises:
    ValueError: there is none, or one cannot be opened.
  """
  import lance

  path = Path(argument).absolute()
  if not path.is_dir():
    raise ValueError(f"--source={spec}: there is no folder {argument!r}; name one")
  manifests = (Path(name) for name in pairs.walk(path) if name.endswith(".manifest"))
  found = {path / m.parent.parent for m in manifests if m.parent.name == VERSIONS}
  # Branches of a table lie within it.
  found = {table for table in found if not found & {*table.parents}}
  if not found:
    raise ValueError(
      f"--source={spec}: no table of Lance is in {argument!r}: a folder with"
      f" {VERSIONS}/*.manifest and {DATA}/*.lance"
    )
  root = path.parent if path in found else path
  names = sorted(table.relative_to(root).as_posix() for table in found)
  for name, apart in files_lib.split(spec, names).items():
    try:
      table = lance.dataset(root / name)
    except (OSError, ValueError) as error:
      raw_lib.stop_if_of_machine(error)
      raise ValueError(
        f"--source={spec}: {root / name}: cannot be opened ({error})"
      ) from error
    # A version's name counts up, or down from the largest number.
    numbers = (f"{2**64 - 1 - table.version:020}", f"{table.version}")
    own = [f"{name}/{VERSIONS}/{number}.manifest" for number in numbers]
    at = next(one for one in own if (root / one).is_file())
    yield files_lib.file(root, at, apart), table


def _data(
  spec: str, manifest: files_lib.File, fragment: Any
) -> tuple[files_lib.File, ...]:
  """The files of a fragment.

  Raises:
    ValueError: one is not there.
  """
  table = manifest.name.partition(f"/{VERSIONS}/")[0]
  names = [f"{table}/{DATA}/{file.path}" for file in fragment.data_files()]
  try:
    root = Path(manifest.root)
    return tuple(files_lib.file(root, name, manifest.apart) for name in names)
  except FileNotFoundError as error:
    raise ValueError(
      f"--source={spec}: {error.filename} is not there; copy the whole folder"
    ) from error


def _first_rows(table: Any) -> list[dict[str, Any]]:
  """Some rows of a table; none where they are damaged, as reading will show."""
  from pyarrow import ArrowException

  try:
    fragment = next(iter(table.get_fragments()), None)
    batches = _scan(table, fragment, 0, tables.SAMPLED_ROWS) if fragment else ()
    rows = [row for batch in batches for row in tables.rows_of(batch)]
    return [row for row in rows if not isinstance(row, ValueError)]
  except (ArrowException, OSError, ValueError) as error:
    raw_lib.stop_if_of_machine(error)
    return []
