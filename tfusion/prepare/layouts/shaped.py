"""Rows of data sets that people have, as documents in the terms of rows.py.

Owns: what all such layouts share: images of which only the address is stored, several
documents of one row, planning and checking the files. Not: one layout (the files
beside this one), how files are read (tables.py, tar.py).
"""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tfusion.data.balance import Amount
from tfusion.prepare import files as files_lib
from tfusion.prepare import lists, tables, tar
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import rows as rows_lib
from tfusion.prepare.raw import Raw, Rejected

IMAGES = "images"  # a folder beside a table, for images that its rows name
ENDINGS = ("", ".jpg", ".png", ".webp")  # of a file named after a hash

Span = dict[str, Any]  # {"text": ...} or {"image": ..., "weight": ...}, as in rows.py


class BadImage(ValueError):
  """An image that cannot be read, and its document with it."""


class Address(NamedTuple):
  """An image of the web that somebody may have downloaded."""

  url: str
  names: tuple[str, ...]  # that its file may have in the folder of images


def address(url: str, *names: str | None) -> Address:
  """An image by its address: its file is called by the SHA-256 of that, or otherwise.

  Args:
    url: the address, of which OmniCorpus names its files by the SHA-256.
    *names: that the data set has for it; empty ones are passed over.
  """
  digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
  own = dict.fromkeys(name for name in names if name)
  return Address(url, (*own, *(f"{digest}{ending}" for ending in ENDINGS)))


@dataclasses.dataclass(frozen=True)
class Shaped(abc.ABC):
  """A share of the rows of a data set in one layout."""

  table: tables.Table

  known: ClassVar[str]  # what is read, for people
  columns: ClassVar[frozenset[str]]  # names that the layout has; others are told of
  # What stands between texts without an image between them, as where it is not stored;
  # None: they stay apart.
  joint: ClassVar[str | None] = None

  @abc.abstractmethod
  def shape(self, values: dict[str, Any]) -> Iterable[list[Span]]:
    """Yields the spans of each document that a row makes.

    Images are as rows.py has them, or an Address.

    Raises:
      BadImage: the file of its images is broken.
      ValueError: the row is not in the layout.
    """

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields the documents of every row, and in the end the images that they lack."""
    gone = Gone(self.table)
    for row in self.table.rows():
      if isinstance(row, Rejected):
        yield row
      else:
        yield from self.documents(row, gone)
    yield from gone.rejected()

  def documents(self, row: tables.Row, gone: "Gone") -> Iterator[Raw | Rejected]:
    """Yields the documents of a row, and notes the images that they lack."""
    holds_out = functools.partial(self.table.file.holds_out, row.id, *row.names)
    try:
      if not isinstance(row.values, dict):
        raise ValueError("no object of names and values")
      documents = list(self.shape(row.values))
    except ValueError as error:
      broken = isinstance(error, BadImage)
      reason = raw_lib.BAD_IMAGE if broken else raw_lib.BAD_LAYOUT
      yield Rejected(row.id, reason, str(error), self.amount(row), holds_out())
      return
    find = _in_images_too(self.table.finder(row))
    for number, spans in enumerate(documents, 1):
      id = row.id if number == 1 else f"{row.id}#{number}"
      there, lost = gone.sift(spans)
      if lost and not there:
        amount = Amount(1, len(lost))
        yield Rejected(id, raw_lib.NOT_STORED, lost[0][:200], amount, holds_out())
        continue
      spans = there if self.joint is None else _join(there, self.joint)
      document = rows_lib.document(
        {"spans": spans}, id, holds_out=holds_out, image=find
      )
      gone.add(document, lost)
      yield document

  def amount(self, row: tables.Row) -> Amount:
    """What a row offers that cannot be read."""
    if isinstance(self.table, tar.Tar):
      return tar.amount(row.values)
    return rows_lib.amount(row.values)


class Gone:
  """Images of documents that are used, of which only the address is stored."""

  def __init__(self, table: tables.Table):
    """Has met none yet."""
    folder = table.file.path.parent / IMAGES
    # Looked for once: who has none of the images has no such folder.
    self._folder = folder if folder.is_dir() else None
    # By split: images, documents, the first document and its first address.
    self._met: dict[bool, tuple[int, int, str, str]] = {}

  def sift(self, spans: list[Span]) -> tuple[list[Span], list[str]]:
    """Parts what is there from the addresses of images that are not."""
    there, lost = [], []
    for span in spans:
      image = span.get("image")
      if not isinstance(image, Address):
        there.append(span)
      elif file := self._find(image):
        there.append(span | {"image": file})
      else:
        lost.append(image.url)
    return there, lost

  def _find(self, image: Address) -> Path | None:
    if self._folder is None:
      return None
    files = (self._folder / name for name in image.names)
    return next(filter(tables.is_file, files), None)

  def add(self, document: Raw | Rejected, lost: list[str]) -> None:
    """Notes the images that a document lacks."""
    if lost:
      first = (0, 0, document.id, lost[0])
      images, documents, id, url = self._met.get(document.test, first)
      self._met[document.test] = images + len(lost), documents + 1, id, url

  def rejected(self) -> Iterator[Rejected]:
    """Yields an entry for each split; its id is that of the first document."""
    for test, (images, documents, id, url) in sorted(self._met.items()):
      detail = f"of {documents:,} document{'s' * (documents != 1)}, first {url[:200]}"
      amount = Amount(0, images)
      yield Rejected(f"{id} images", raw_lib.NOT_STORED, detail, amount, test)


def _join(spans: list[Span], joint: str) -> list[Span]:
  """Spans of which no two texts follow each other."""
  joined: list[Span] = []
  for span in spans:
    if joined and "text" in joined[-1] and "text" in span:
      span = {"text": f"{joined.pop()['text']}{joint}{span['text']}"}
    joined.append(span)
  return joined


def _in_images_too(find: Callable[[str], Any]) -> Callable[[str], Any]:
  """Looks for an image in the folder of images too."""

  def found(name: str) -> Path | bytes:
    try:
      return find(name)
    except KeyError:
      return find(f"{IMAGES}/{name}")

  return found


def plan(
  kind: type[Shaped], spec: str, argument: str, documents: int, *suffixes: str
) -> list[Shaped]:
  """Splits the tables of a data set into parts.

  Args:
    kind: the layout.
    spec: the whole source, for messages.
    argument: a file, or a folder to look through.
    documents: that a part should have.
    *suffixes: of .jsonl, .json and .parquet those that the layout has.

  Raises:
    ValueError: there are none, or one whose first rows are in another layout.
  """
  check = tables.Check(
    spec,
    functools.partial(_try, kind),
    known=kind.known,
    unread=lambda row: row.keys() - kind.columns,
  )
  split: dict[str, Callable[..., Sequence[tables.Table]]] = {
    ".jsonl": tables.lines_of,
    ".json": lists.items_of,
    ".parquet": tables.groups_of,
  }
  parts: list[Shaped] = []
  for file in files_lib.find(spec, argument, *suffixes):
    suffix = Path(file.name).suffix.lower()
    if suffix not in suffixes:
      raise ValueError(
        f"--source={spec}: {file.name} ends in none of {', '.join(suffixes)}"
      )
    parts += [kind(table) for table in split[suffix](file, documents, check)]
  check.tell()
  if not parts:
    raise ValueError(f"--source={spec}: holds no rows; what is read: {kind.known}")
  return parts


def _try(kind: type[Shaped], values: Any) -> Raw | Rejected:
  """Whether a row is in a layout, its images aside."""
  try:
    if not isinstance(values, dict):
      raise ValueError("no object of names and values")
    list(kind(None).shape(values))  # type: ignore[arg-type]  # no file is read
  except ValueError as error:
    return Rejected("", raw_lib.BAD_LAYOUT, str(error))
  return Raw("", (), False)
