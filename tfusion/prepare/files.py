"""Files of a source, and the sources that are just files: captioned images, texts.

Owns: finding files and their state, which are held out, the sources `folder` and
`text`. Not: archives (tar.py), tables (tables.py).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tfusion.data import folder
from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected

MAX_TEXT_BYTES = 64 << 20  # of one document


@dataclasses.dataclass(frozen=True)
class File:
  """A file of a source and its state, so that a change is seen."""

  root: str  # absolute: a worker may run in another directory
  name: str  # relative to the root, posix
  bytes: int
  modified: int  # seconds since 1970
  apart: bool | None  # held out or not; None: a hash of each document decides

  @property
  def path(self) -> Path:
    """Where it is."""
    return Path(self.root) / self.name

  def require_unchanged(self) -> None:
    """Stops where the file is gone or another one: a document it held is not bad.

    Raises:
      OSError: names it.
    """
    try:
      now = _file(Path(self.root), self.name, self.apart)
    except FileNotFoundError:
      now = None
    if now != self:
      raise OSError(
        f"{self.path}: is gone or has changed since the job began; bring it back, or"
        " prepare into a new folder"
      )

  def holds_out(self, id: str) -> bool:
    """Whether a document of this file is held out."""
    return folder.is_held_out(id) if self.apart is None else self.apart


def find(spec: str, argument: str, *suffixes: str) -> list[File]:
  """Finds the files of a source, in order of their names.

  Where some files lie under test/ and others do not, those are held out.

  Args:
    spec: the whole source, for messages.
    argument: a file, or a folder to look through.
    *suffixes: lower-case ends of names.

  Raises:
    ValueError: no such path, or no such file in it.
  """
  path = Path(argument)
  if path.is_file():
    return [_file(path.absolute().parent, path.name, None)]
  if not path.is_dir():
    raise ValueError(
      f"--source={spec}: there is no {argument!r}; name a file or folder"
    )
  names = sorted(n for n in folder.walk(path) if n.lower().endswith(suffixes))
  if not names:
    raise ValueError(f"--source={spec}: no file ends in {' or '.join(suffixes)}")
  tests = {name for name in names if name.startswith("test/")}
  split, root = 0 < len(tests) < len(names), path.absolute()
  return [_file(root, name, name in tests if split else None) for name in names]


@dataclasses.dataclass(frozen=True)
class Captioned:
  """Some captioned images of a folder, and what of the folder was skipped."""

  pairs: tuple[tuple[File, str, str], ...]  # image, caption, id
  skipped: tuple[tuple[str, str], ...] = ()  # name, why

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields caption and image of each."""
    for name, why in self.skipped:
      reason, _, detail = why.partition(":")
      yield Rejected(raw_lib.printable(name), reason, detail.strip())
    for file, caption, id in self.pairs:
      file.require_unchanged()
      yield Raw(id, (caption, file.path), file.apart)


def plan_folder(spec: str, argument: str, documents: int) -> list[Captioned]:
  """Splits a folder of captioned images (data/folder.py has the layout) into parts.

  Raises:
    ValueError: no folder, no images or no captions.
  """
  pairs, skipped = folder.find_pairs(argument)
  names = sorted({pair.file for pair in pairs})
  held_out, root = folder.choose_held_out(set(names)), Path(argument).absolute()
  files = {name: _file(root, name, name in held_out) for name in names}
  counts: dict[str, int] = {}
  captioned = []
  for pair in pairs:
    counts[pair.file] = number = counts.get(pair.file, 0) + 1
    id = raw_lib.printable(pair.file) + (f"#{number}" if number > 1 else "")
    captioned.append((files[pair.file], pair.caption, id))
  parts = [Captioned(tuple(some)) for some in runs(captioned, documents)]
  parts[0] = dataclasses.replace(parts[0], skipped=tuple(skipped.items()))
  return parts


@dataclasses.dataclass(frozen=True)
class Texts:
  """Some text files, a document each."""

  files: tuple[File, ...]

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields the text of each."""
    for file in self.files:
      file.require_unchanged()
      id = raw_lib.printable(file.name)
      if file.bytes > MAX_TEXT_BYTES:
        yield Rejected(id, raw_lib.LONG_TEXT, f"{file.bytes:,} bytes")
        continue
      try:
        text = file.path.read_text(encoding="utf-8-sig")
      except UnicodeDecodeError as error:
        yield Rejected(id, raw_lib.BAD_TEXT, str(error))
      except OSError as error:
        raw_lib.stop_if_of_machine(error)
        yield Rejected(id, raw_lib.UNREADABLE, str(error))
      else:
        yield Raw(id, (text,), file.holds_out(id))


def plan_text(spec: str, argument: str, documents: int) -> list[Texts]:
  """Splits a folder of .txt and .md files into parts.

  Raises:
    ValueError: there are none.
  """
  files = find(spec, argument, ".txt", ".md")
  return [Texts(tuple(some)) for some in runs(files, documents)]


def runs(items: list, length: int) -> Iterator[list]:
  """Cuts a list into runs of a length, the last one shorter."""
  for start in range(0, len(items), length):
    yield items[start : start + length]


def _file(root: Path, name: str, apart: bool | None) -> File:
  stat = (root / name).stat()
  return File(str(root), name, stat.st_size, int(stat.st_mtime), apart)
