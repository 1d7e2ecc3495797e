"""Archives of images and captions in the WebDataset layout.

Owns: reading a .tar without unpacking it, members that are not trusted. Not: rows of
JSON (rows.py), decoding images.

Members that share a path up to the first dot of their name are one document, and stand
next to each other: `0/cat.jpg`, `0/cat.txt`. The caption is the .txt, or "caption" or
"text" of the .json; a .json with "spans" (rows.py) orders several texts and images,
which it names by what follows the first dot: {"image": "1.jpg"}. Archives compressed by
gzip, bzip2 or xz are read as they are.
"""

import bz2
import dataclasses
import functools
import gzip
import itertools
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from tfusion import parsing
from tfusion.data import pairs
from tfusion.data import text as text_lib
from tfusion.data.balance import Amount
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import rows as rows_lib
from tfusion.prepare import tables
from tfusion.prepare.raw import Raw, Rejected

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OPEN: dict[bytes, Callable[..., Any]] = {
  b"\x1f\x8b": gzip.open,
  b"BZh": bz2.open,
  b"\xfd7zXZ\x00": lzma.open,
}
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
BLOCK_BYTES = 512  # members begin at multiples; two blocks of zeros end an archive
READ_BYTES = 1 << 20  # of what lies behind the end, at once


class Sample(NamedTuple):
  """The members of an archive that share a path up to the first dot of their name."""

  key: str  # that path
  members: dict[str, bytes]  # by what follows the dot, in lower case
  twice: str | None  # what follows the dot of several; the first of them is kept


@dataclasses.dataclass(frozen=True)
class Tar:
  """One archive."""

  file: files_lib.File

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields its documents in order, and what is not one."""
    passed = rows_lib.Passed()
    for sample in self.samples():
      if isinstance(sample, Rejected):
        yield sample
      else:
        yield from self._document(*sample, passed)
    yield from passed.rejected()

  def samples(self) -> Iterator[Sample | Rejected]:
    """Yields what is under each key, in order, and what is under none."""
    self.file.require_unchanged()
    for key, members in itertools.groupby(self._members(), key=_key):
      sample, twice = {}, None
      for name, data in members:
        suffix = posixpath.basename(name).partition(".")[2].lower()
        if isinstance(data, Rejected):
          yield data
        elif suffix in sample:
          twice = suffix
        else:
          sample[suffix] = data
      if sample:
        yield Sample(key, sample, twice)

  def rows(self) -> Iterator[tables.Row | Rejected]:
    """Yields the members under each key as a row: data by what follows the dot."""
    for sample in self.samples():
      if isinstance(sample, Rejected):
        yield sample
        continue
      id = f"{self._id}/{sample.key}"
      if sample.twice is not None:
        why, test = _said_twice(sample.twice), self.file.holds_out(id, sample.key)
        yield Rejected(id, raw_lib.BAD_LAYOUT, why, amount(sample.members), test)
      else:
        yield tables.Row(id, sample.members, (sample.key,))

  def finder(self, row: tables.Row) -> Callable[[str], bytes]:
    """Finds images among the members under a key, by what follows the dot."""
    return row.values.__getitem__

  @property
  def _id(self) -> str:
    return raw_lib.printable(self.file.name)

  def _members(self) -> Iterator[tuple[str, bytes | Rejected]]:
    """Name and data of each member; what must not or cannot be read is rejected."""
    end = 0
    try:
      with (
        _open(self.file.path) as stream,
        tarfile.open(fileobj=stream, mode="r:") as archive,
      ):
        for member in archive:
          name = raw_lib.printable(member.name)
          end = member.offset_data + (-(-member.size // BLOCK_BYTES)) * BLOCK_BYTES
          if member.isdir():
            end = member.offset_data
          elif posixpath.isabs(name) or ".." in name.split("/"):
            yield name, self._refused(name, raw_lib.OUTSIDE)
          elif not member.isfile():  # a link could name any file of this machine
            end = member.offset_data
            yield name, self._refused(name, raw_lib.LINK)
          else:
            file = archive.extractfile(member)
            assert file is not None  # as of any that is a file
            yield name, file.read()
          archive.members = []  # type: ignore[attr-defined]  # it would keep them all
        stream.seek(end)
        # tarfile takes a header it cannot read for the end.
        if stream.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
          raise tarfile.ReadError("is damaged or cut short")
        while rest := stream.read(READ_BYTES):
          if rest.strip(b"\0"):
            raise tarfile.ReadError(
              "holds more behind its end, as archives do that cat has joined; give each"
              " a file of its own"
            )
    except (*DAMAGE, ValueError) as error:
      raw_lib.stop_if_of_machine(error)
      id, test = f"{self._id}@{end}", self.file.holds_out(self._id)
      why = text_lib.why_packed(_head(self.file.path)) if not end else ""
      yield "", Rejected(id, raw_lib.UNREADABLE, why or str(error), test=test)

  def _refused(self, name: str, reason: str) -> Rejected:
    """A member that is not read, as a document of which the other half is not known."""
    id, image = f"{self._id}/{name}", pairs.is_image_name(name)
    lost = Amount(1, int(image), int(name.lower().endswith(".txt")))
    return Rejected(id, reason, "", lost, self.file.holds_out(id))

  def _document(
    self, key: str, sample: dict[str, bytes], twice: str | None, passed: rows_lib.Passed
  ) -> Iterator[Raw | Rejected]:
    """Orders what an archive has under one key, and lists what of it is not used."""
    id = f"{self._id}/{key}"
    images, texts = _images(sample), _texts(sample)
    holds_out = functools.partial(self.file.holds_out, id, key)
    lost = Rejected(id, "", amount=amount(sample), test=holds_out())
    named: set[str] = set()

    def find(name: str) -> bytes:
      named.add(name.lower())
      return images[name.lower()]

    try:
      if twice is not None:
        raise ValueError(_said_twice(twice))
      row = _row(sample, images)
    except _Unpaired as error:
      reason, detail = error.args
      if reason == raw_lib.NO_CAPTION:
        lost = dataclasses.replace(lost, amount=Amount(1, len(images)))
      yield dataclasses.replace(lost, reason=reason, detail=detail)
      return
    except UnicodeDecodeError as error:
      yield dataclasses.replace(lost, reason=raw_lib.BAD_TEXT, detail=str(error))
      return
    except ValueError as error:
      yield dataclasses.replace(lost, reason=raw_lib.BAD_LAYOUT, detail=str(error))
      return
    found = rows_lib.document(row, id, holds_out=holds_out, image=find)
    if isinstance(found, Rejected):  # all that was there goes with it
      texts_lost = max(found.amount.texts, lost.amount.texts)
      of_all = Amount(1, len(images), texts_lost)
      yield dataclasses.replace(found, amount=of_all)
      return
    yield found
    passed.look(_beside(sample, found), found)
    used = {"json"} if "spans" in row else {"json", "txt"}
    for name in sorted((images.keys() | texts) - named - used):
      unused = Amount(0, 1) if name in images else Amount(0, 0, 1)
      yield Rejected(f"{id}.{name}", raw_lib.UNUSED, "", unused, found.test)


def amount(members: dict[str, bytes]) -> Amount:
  """What the members under a key offer, read or not."""
  return Amount(1, len(_images(members)), len(_texts(members)))


def _images(members: dict[str, bytes]) -> dict[str, bytes]:
  return {n: d for n, d in members.items() if pairs.is_image_name(f"_.{n}")}


def _texts(members: dict[str, bytes]) -> set[str]:
  texts = {name for name in members if name.rpartition(".")[2] == "txt"}
  return texts or members.keys() & {"json"}


def _said_twice(suffix: str) -> str:
  return f"several members called .{suffix}"


def _beside(sample: dict[str, bytes], found: Raw) -> dict[str, Any]:
  """What the .json of a document that is used holds, but for what the document took."""
  row = parsing.parse_json(sample["json"]) if "json" in sample else {}
  if row.get("spans") is not None:
    return row
  taken = {span.strip() for span in found.spans if isinstance(span, str)}
  said = {k: v for k, v in row.items() if not (_is_text(v) and v.strip() in taken)}
  # Under its own name it would count as read.
  return {f".json's {k}" if k in rows_lib.TEXT else k: v for k, v in said.items()}


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


class _Unpaired(Exception):
  """The members of a key are no document, for a reason of raw.py."""


def _row(sample: dict[str, bytes], images: dict[str, bytes]) -> Any:
  """The members of a key as a row.

  Raises:
    _Unpaired: they lack a half.
    ValueError: a text or the .json cannot be read.
  """
  try:
    row: Any = parsing.parse_json(sample["json"]) if "json" in sample else {}
  except UnicodeDecodeError:
    raise
  except ValueError as error:
    raise ValueError(f"its .json: {error}") from error
  dotted = [name for name in sample if name.endswith((".txt", ".json"))]
  if dotted and not sample.keys() & {"txt", "json"}:
    some = ", ".join([*dotted, *images][:4])
    raise ValueError(
      f"its name ends at the first dot, behind which are {some}; write names with no"
      " other dots than that of the ending"
    )
  if not isinstance(row, dict) or row.get("spans") is not None:
    return row
  if "txt" in sample:
    row["caption"] = text_lib.decode(sample["txt"])
  elif row.get("caption") is None:
    row["caption"] = row.get("text")
  there = f"has {', '.join(f'.{name}' for name in sorted(sample))}"
  if not images:
    raise _Unpaired(raw_lib.NO_IMAGE, there)
  caption = row["caption"]
  if not isinstance(caption, str):
    known = 'a caption is a .txt, or "caption" or "text" of a .json'
    inside = f" with {sorted(row.keys() - {'caption'})}" if "json" in sample else ""
    if caption is not None:
      inside += f", whose caption is {pairs.KINDS[type(caption).__name__]}"
    raise _Unpaired(raw_lib.NO_CAPTION, f"{there}{inside}; {known}")
  if text_lib.is_blank(caption):
    raise _Unpaired(raw_lib.NO_CAPTION, f"{there}; it is empty")
  return {"text": caption.strip(), "images": [*images], "split": row.get("split")}


def plan(spec: str, argument: str, documents: int) -> list[Tar]:
  """One part for each archive.

  Raises:
    ValueError: there are none.
  """
  return [Tar(file) for file in files_lib.find(spec, argument, *SUFFIXES)]


def _open(path: Path) -> IO[bytes]:
  """Opens an archive, whether it is compressed or not."""
  head = _head(path)
  for magic, how in OPEN.items():
    if head.startswith(magic):
      return how(path, "rb")
  return open(path, "rb")


def _head(path: Path) -> bytes:
  with open(path, "rb") as file:
    return file.read(8)


def _key(member: tuple[str, bytes | Rejected]) -> str:
  directory, name = posixpath.split(member[0])
  return posixpath.join(directory, name.partition(".")[0])
