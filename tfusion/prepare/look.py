"""What a folder holds, at a glance: the names in it, and the first row of each kind.

Owns: looking into one directory without reading its files in full. Not: what that is
taken for (readers.py and the files it names).
"""

import functools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfusion import parsing
from tfusion.data import pairs
from tfusion.data import text as text_lib
from tfusion.prepare import files as files_lib
from tfusion.prepare import lists, tables, tar
from tfusion.prepare import raw as raw_lib

HEAD_BYTES = 1 << 22  # of a .jsonl, in which its first row should end
LISTS = 16  # files of JSON that are looked into: there may be one for each image


class Look:
  """One directory, or one file of it."""

  def __init__(self, root: Path, names: list[str]):
    """Opens nothing yet.

    Args:
      root: the directory.
      names: of its files that are looked at.
    """
    self.root, self.names = root, sorted(names)

  def first(self, *suffixes: str) -> str:
    """The first file whose name ends so, in lower case; empty without one."""
    ended = (name for name in self.names if name.lower().endswith(suffixes))
    return next(ended, "")

  @functools.cached_property
  def columns(self) -> frozenset[str]:
    """The columns of the first parquet file; none where it cannot be read."""
    from pyarrow import ArrowException, parquet

    if not (name := self.first(".parquet")):
      return frozenset()
    try:
      return frozenset(parquet.read_schema(self.root / name).names)
    except (ArrowException, OSError) as error:
      raw_lib.stop_if_of_machine(error)
      return frozenset()

  @functools.cached_property
  def table_row(self) -> dict[str, Any]:
    """The first row of the first parquet file."""
    if not self.columns:
      return {}
    file = files_lib.file(self.root, self.first(".parquet"), None)
    return next(iter(tables.first_rows(file)), {})

  @functools.cached_property
  def line(self) -> dict[str, Any]:
    """The object in the first line of the first .jsonl that is not blank."""
    head = self._head(".jsonl")
    return _object(next((ln for ln in head.split(b"\n") if ln.strip()), b""))

  @functools.cached_property
  def header(self) -> list[str]:
    """What stands between the commas of the first line of the first .csv."""
    line = self._head(".csv").partition(b"\n")[0]
    names = line.decode("utf-8-sig", "replace").split(",")
    return [name.strip().strip('"') for name in names]

  @functools.cached_property
  def item(self) -> dict[str, Any]:
    """The first object of the first .json that is a list of objects."""
    names = [name for name in self.names if name.lower().endswith(".json")]
    files = (files_lib.file(self.root, name, None) for name in names[:LISTS])
    return next(filter(None, map(lists.first_item, files)), {})

  @functools.cached_property
  def sample(self) -> dict[str, bytes]:
    """What is under the first key of the first archive, by what follows the dot."""
    if not (name := self.first(*tar.SUFFIXES)):
      return {}
    stat = (self.root / name).stat()
    file = files_lib.File(str(self.root), name, stat.st_size, int(stat.st_mtime), None)
    try:
      for sample in tar.Tar(file).samples():
        if isinstance(sample, tar.Sample):
          return sample.members
    except (OSError, tarfile.TarError) as error:
      raw_lib.stop_if_of_machine(error)
    return {}

  @functools.cached_property
  def sample_json(self) -> dict[str, Any]:
    """The .json of that key."""
    return _object(self.sample.get("json", b""))

  def _head(self, suffix: str) -> bytes:
    name = self.first(suffix)
    return _head(self.root / name) if name else b""


def over(path: Path) -> Iterator[Look]:
  """Yields a look at a folder and at each one below it, or at one file."""
  if path.is_file():
    yield Look(path.parent, [path.name])
    return
  found: dict[str, list[str]] = {"": []}
  for name in pairs.walk(path):
    *folders, own = name.split("/")
    for depth in range(len(folders) + 1):  # one of folders alone may be known too
      found.setdefault("/".join(folders[:depth]), [])
    found["/".join(folders)].append(own)
  for folder in sorted(found):
    yield Look(path / folder, found[folder])


def _head(path: Path) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read(HEAD_BYTES)
  except OSError as error:
    raw_lib.stop_if_of_machine(error)
    return b""


def _object(data: bytes) -> dict[str, Any]:
  try:
    row = parsing.parse_json(text_lib.decode(data)) if data else {}
  except ValueError:
    return {}
  return row if isinstance(row, dict) else {}
