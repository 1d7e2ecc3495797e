"""Files of a source; and the sources that are just files: captioned images, texts.

Owns: finding files and their state, which are held out, the sources `folder` and
`text`. Not: archives (tar.py), tables (tables.py).
"""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tfusion.data import folder, heldout, pairs
from tfusion.data import text as text_lib
from tfusion.data.balance import Amount
from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected

MAX_TEXT_BYTES = 64 << 20  # of one document
TEXTS = (".txt", ".md")  # ends of the names of texts


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
    """Stops if the file is gone or has changed: that says nothing of its documents.

    Raises:
      OSError: names it.
    """
    try:
      now = file(Path(self.root), self.name, self.apart)
    except FileNotFoundError:
      now = None
    if now != self:
      raise OSError(
        f"{self.path}: is gone or has changed since the job began; bring it back where"
        " every worker sees it, or prepare into a new folder"
      )

  def holds_out(self, id: str, *names: str) -> bool:
    """Whether a document of this file is held out.

    Args:
      id: the document's.
      *names: of files in it, posix; where the files of the source do not say, these do.
    """
    if self.apart is not None:
      return self.apart
    return any(map(heldout.is_named, names)) or heldout.by_hash(id)


def find(
  spec: str, argument: str, *suffixes: str, beside: tuple[str, ...] = ()
) -> list[File]:
  """Finds the files of a source, in order of their names.

  Where the names of some files say that they are held out, and those of others do not,
  that is the split. What has another end is named once.

  Args:
    spec: the whole source, for messages.
    argument: a file, or a folder to look through.
    *suffixes: lower-case ends of names.
    beside: ends of other names that belong to these, and are not worth a word.

  Raises:
    ValueError: no such path, no such file in it, or a link that leads to nothing.
  """
  path = Path(argument)
  if path.is_file():
    if heldout.is_named(path.name):
      print(f"{spec}: its name says held out, but it is all, so a hash chooses")
    return [file(path.absolute().parent, path.name, None)]
  if not path.is_dir():
    raise ValueError(
      f"--source={spec}: there is no {argument!r}; name a file or folder"
    )
  everything = sorted(pairs.walk(path))
  names = [n for n in everything if n.lower().endswith(suffixes)]
  others = collections.Counter(
    Path(n).suffix or n
    for n in everything
    if not n.lower().endswith((*suffixes, *beside)) and not pairs.is_image_name(n)
  )
  kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(8))
  if not names:
    found = f"; found {kinds}" if others else ""
    raise ValueError(f"--source={spec}: no file ends in {' or '.join(suffixes)}{found}")
  if others:
    print(f"{spec}: other files, which are not read: {kinds}", flush=True)
  if gone := [name for name in names if not (path / name).is_file()]:
    raise ValueError(
      f"--source={spec}: {', '.join(gone[:5])}: a link to nothing, or no file; mend it,"
      " or move it away"
    )
  root = path.absolute()
  return [file(root, name, apart) for name, apart in split(spec, names).items()]


def split(spec: str, names: list[str]) -> dict[str, bool | None]:
  """Which files are held out by their names, and says what may be a mistake.

  Args:
    spec: the whole source, for messages.
    names: of all its files, relative to its folder, posix.

  Returns:
    name -> whether it is held out; all None: a hash of each document decides.
  """
  tests = {name for name in names if heldout.is_named(name)}
  if len(tests) == len(names):
    print(f"{spec}: every file's name says held out, so a hash chooses", flush=True)
  if said := heldout.advice(set(names) - tests):
    print(f"{spec}: {said}", flush=True)
  named = 0 < len(tests) < len(names)
  return {name: name in tests if named else None for name in names}


@dataclasses.dataclass(frozen=True)
class Captioned:
  """Some captioned images of a folder, and what of the folder was skipped."""

  pairs: tuple[tuple[File, str, str], ...]  # image, caption, id
  skipped: tuple[Rejected, ...] = ()

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields caption and image of each."""
    yield from self.skipped
    for file, caption, id in self.pairs:
      file.require_unchanged()
      assert file.apart is not None  # known of every image of a folder
      yield Raw(id, (caption, file.path), file.apart)


def plan_folder(spec: str, argument: str, documents: int) -> list[Captioned]:
  """Splits a folder of captioned images (data/pairs.py has the layout) into parts.

  Raises:
    ValueError: no folder, no images or no captions.
  """
  found = pairs.find_pairs(argument)
  names = sorted({pair.file for pair in found.pairs})
  held_out = folder.choose_held_out(set(names), found.stated, named=found.named)
  if said := heldout.advice(set(names) - held_out - found.stated.keys(), file=False):
    print(f"{spec}: {said}", flush=True)
  root = Path(argument).absolute()
  files = {name: file(root, name, name in held_out) for name in names}
  counts: dict[str, int] = {}
  captioned = []
  for pair in found.pairs:
    counts[pair.file] = number = counts.get(pair.file, 0) + 1
    id = raw_lib.printable(pair.file) + (f"#{number}" if number > 1 else "")
    captioned.append((files[pair.file], pair.caption, id))
  parts = [Captioned(tuple(some)) for some in runs(captioned, documents)]
  skipped = tuple(
    dataclasses.replace(
      one, id=raw_lib.printable(one.id), detail=raw_lib.printable(one.detail)
    )
    for one in found.rejected
  )
  parts[0] = dataclasses.replace(parts[0], skipped=skipped)
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
      lost = Rejected(id, "", amount=Amount(1, 0, 1), test=file.holds_out(id))
      if file.bytes > MAX_TEXT_BYTES:
        why = f"{file.bytes:,} bytes"
        yield dataclasses.replace(lost, reason=raw_lib.LONG_TEXT, detail=why)
        continue
      try:
        text = text_lib.decode(file.path.read_bytes())
      except (UnicodeDecodeError, OSError) as error:
        raw_lib.stop_if_of_machine(error)
        undecoded = isinstance(error, UnicodeDecodeError)
        reason = raw_lib.BAD_TEXT if undecoded else raw_lib.UNREADABLE
        yield dataclasses.replace(lost, reason=reason, detail=str(error))
      else:
        yield Raw(id, (text,), lost.test)


def plan_text(spec: str, argument: str, documents: int) -> list[Texts]:
  """Splits a folder of .txt and .md files into parts.

  Raises:
    ValueError: there are none.
  """
  files = find(spec, argument, *TEXTS)
  return [Texts(tuple(some)) for some in runs(files, documents)]


def runs(items: list, length: int) -> Iterator[list]:
  """Cuts a list into runs of a length, the last one shorter."""
  for start in range(0, len(items), length):
    yield items[start : start + length]


def file(root: Path, name: str, apart: bool | None) -> File:
  """A file as it is now.

  Args:
    root: absolute.
    name: relative to it, posix.
    apart: whether it is held out; None: a hash of each document decides.

  Raises:
    FileNotFoundError: it is not there.
  """
  stat = (root / name).stat()
  return File(str(root), name, stat.st_size, int(stat.st_mtime), apart)
