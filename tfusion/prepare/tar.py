"""Archives of images and captions in the WebDataset layout.

Owns: reading a .tar without unpacking it, and what in it is not trusted. Not: rows of
JSON (tables.py), decoding images.

Members that share a path up to the first dot of their name are one document, and stand
next to each other: `0/cat.jpg`, `0/cat.txt`. The caption is the .txt, or "caption" or
"text" of the .json; a .json with "spans" (tables.py) orders several texts and images,
which it names by what follows the first dot: {"image": "1.jpg"}.
"""

import dataclasses
import itertools
import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any

from PIL import Image

from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import tables
from tfusion.prepare.raw import Raw, Rejected

BLOCK_BYTES = 512  # members begin at multiples; two blocks of zeros end an archive


@dataclasses.dataclass(frozen=True)
class Tar:
  """One archive."""

  file: files_lib.File

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields its documents in order, and what is not one."""
    self.file.require_unchanged()
    suffixes = {s for s, k in Image.registered_extensions().items() if k in Image.OPEN}
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
      if twice is not None:
        what = f"several members called .{twice}"
        yield Rejected(f"{self._id}/{key}", raw_lib.BAD_LAYOUT, what)
      elif sample:
        yield self._document(f"{self._id}/{key}", sample, suffixes)

  @property
  def _id(self) -> str:
    return raw_lib.printable(self.file.name)

  def _members(self) -> Iterator[tuple[str, bytes | Rejected]]:
    """Name and data of each member; what must not or cannot be read is rejected."""
    end = 0
    try:
      with (
        open(self.file.path, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r:") as archive,
      ):
        for member in archive:
          name = raw_lib.printable(member.name)
          end = member.offset_data + (-(-member.size // BLOCK_BYTES)) * BLOCK_BYTES
          id = f"{self._id}/{name}"
          if member.isdir():
            end = member.offset_data
          elif posixpath.isabs(name) or ".." in name.split("/"):
            yield name, Rejected(id, raw_lib.OUTSIDE)
          elif not member.isfile():  # a link could name any file of this machine
            end = member.offset_data
            yield name, Rejected(id, raw_lib.LINK)
          else:
            yield name, archive.extractfile(member).read()
          archive.members = []  # it would remember them all
        stream.seek(end)
        # tarfile takes a header it cannot read for the end.
        if stream.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
          raise tarfile.ReadError("is damaged or cut short")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
      raw_lib.stop_if_of_machine(error)
      yield "", Rejected(f"{self._id}@{end}", raw_lib.UNREADABLE, str(error))

  def _document(
    self, id: str, sample: dict[str, bytes], suffixes: set[str]
  ) -> Raw | Rejected:
    """Orders what an archive has under one key."""
    images = {n: d for n, d in sample.items() if f".{n.rpartition('.')[2]}" in suffixes}
    try:
      row: Any = json.loads(sample["json"]) if "json" in sample else {}
      if "txt" in sample and isinstance(row, dict):
        row["caption"] = sample["txt"].decode("utf-8-sig")
    except UnicodeDecodeError as error:
      return Rejected(id, raw_lib.BAD_TEXT, str(error))
    except (ValueError, RecursionError) as error:
      return Rejected(id, raw_lib.BAD_LAYOUT, f"its .json: {error}")
    if isinstance(row, dict) and "spans" not in row:
      if not images:
        return Rejected(id, raw_lib.NO_IMAGE, f"only {sorted(sample)}")
      caption = row.get("caption", row.get("text"))
      if not isinstance(caption, str) or not caption.strip():
        return Rejected(id, raw_lib.NO_CAPTION, f"only {sorted(sample)}")
      spans = [{"text": caption.strip()}, *({"image": name} for name in images)]
      row = {"spans": spans, "split": row.get("split")}
    return tables.document(
      row, id, test=self.file.holds_out(id), image=lambda name: images[name.lower()]
    )


def plan(spec: str, argument: str, documents: int) -> list[Tar]:
  """One part for each archive.

  Raises:
    ValueError: there are none.
  """
  return [Tar(file) for file in files_lib.find(spec, argument, ".tar")]


def _key(member: tuple[str, bytes | Rejected]) -> str:
  directory, name = posixpath.split(member[0])
  return posixpath.join(directory, name.partition(".")[0])
