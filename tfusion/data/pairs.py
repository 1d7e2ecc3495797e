"""Matches the images of a folder with their captions, and lists all else that is there.

Owns: finding both, which belongs to which, what is skipped and why. Not: which pairs
are trained on (folder.py), decoding (images.py).

A caption stands in a .txt of the image's name, or in any .jsonl with an object on each
line: "file", "file_name" or "image", relative to the .jsonl, "caption" or "text", and
maybe "split". Several lines may name one image, and go before its .txt. docs/data.md
describes it in full.
"""

import collections
import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tfusion import parsing
from tfusion.data import heldout
from tfusion.data import text as text_lib
from tfusion.data.balance import Amount, Rejected, free_id

FILE_KEYS = ("file", "file_name", "image")  # of a line: the image
CAPTION_KEYS = ("caption", "text")

# Images that Pillow cannot open without a plug-in, or at all.
FOREIGN = frozenset(
  ".3fr .ai .arw .avif .cr2 .cr3 .crw .dng .exr .hdr .heic .heics .heif .hif .iiq .jxl"
  " .jxr .kra .nef .nrw .orf .pef .psb .raf .raw .rw2 .sr2 .srf .svg .svgz .x3f"
  " .xcf".split()
)

# What a folder may be instead, by the ends of its names.
OTHERWISE = {
  ".array_record": "these are shards, whose manifest.json is missing: repeat the"
  " `tfusion prepare` that made them",
  ".tar": "`tfusion prepare --source tar:FOLDER` makes shards of archives",
  ".parquet": "`tfusion prepare --source parquet:FOLDER` makes shards of tables",
  ".jsonl": "`tfusion prepare --source jsonl:FOLDER` makes shards of tables",
}

HEAD_BYTES = 1 << 16  # of a listing, that show whether it is one
BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # PNG, JPEG, GIF, WebP begin so
EXPECTED = 'expected {"file": ..., "caption": ...}'
KINDS = {
  "NoneType": "null",
  "bytes": "bytes; write it as text",
  "bool": "true or false",
  "int": "a number",
  "float": "a number",
  "list": "a list; give each its own line",
  "dict": "an object",
}

ARRAY = ".npy"  # the end of names of numpy's files
NO_CAPTION = "no caption"
EMPTY_CAPTION = "empty caption"
BAD_CAPTION = "caption cannot be read"
NO_IMAGE = "no such image"
NOT_OPENED = "cannot be opened"
SHARED = "several images share a caption"
NOT_NEEDED = "caption not needed"
BAD_LINE = "no line of an image and a caption"
OTHER = "neither an image nor a caption"


@dataclasses.dataclass(frozen=True)
class Pair:
  """One document: an image file, relative to the folder, and one caption."""

  file: str
  caption: str


@dataclasses.dataclass(frozen=True)
class Found:
  """All that a folder holds."""

  pairs: tuple[Pair, ...]  # in order of the path
  rejected: tuple[Rejected, ...]
  named: bool  # names say which images are held out, else a hash does
  stated: Mapping[str, bool]  # image -> whether its line says that it is held out


@functools.cache
def openable() -> frozenset[str]:
  """Lower-case ends of names, with the dot, of images that Pillow opens."""
  kinds = Image.registered_extensions()
  return frozenset(s for s, kind in kinds.items() if kind in Image.OPEN)


def is_image_name(name: str) -> bool:
  """Whether a file is an image by its name, whoever can open it."""
  suffix = _suffix(name)
  return suffix in openable() or suffix in FOREIGN


def why_no_file(name: str) -> str:
  """Why a name is none of a file, as its spelling shows; nothing if it may be one."""
  if name.startswith(("data:", *BASE64)):
    return "it is the image itself; write that to a file and name it"
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
    return "it is an address; download the image and name its file"
  if "\\" in name:
    return "write / between folders, not \\"
  return ""


def walk(root: Path) -> Iterator[str]:
  """Names below a folder, posix and relative to it; hidden ones left out.

  Links to nothing are among them. A folder that links lead to twice is read once.

  Raises:
    ValueError: a folder on the way cannot be listed.
  """

  def refuse(error: OSError):
    raise ValueError(
      f"{error.filename}: cannot be listed ({error.strerror}); allow that, or move it"
      " away"
    ) from error

  seen = set()  # links may lead in circles
  for directory, inner, files in os.walk(root, followlinks=True, onerror=refuse):
    if (real := os.path.realpath(directory)) in seen:
      inner.clear()
      continue
    seen.add(real)
    inner[:] = sorted(d for d in inner if not d.startswith("."))
    for file in files:
      if not file.startswith("."):
        yield (Path(directory) / file).relative_to(root).as_posix()


def find_pairs(path: str, *, arrays: bool = False) -> Found:
  """Matches images with captions; lists everything that is in no pair.

  Args:
    path: the folder.
    arrays: files of numpy, .npy, count as images too.

  Raises:
    ValueError: no folder, no images in it, or no caption for any of them.
  """
  root = Path(path)
  if not root.is_dir():
    raise ValueError(f"folder:{path}: no such folder; name one with images in it")
  found = _Finding(root, arrays=arrays)
  if not found.images:
    others = collections.Counter(map(_suffix, found.names))
    raise ValueError(
      f"folder:{path}: holds no images that Pillow can open; found"
      f" {len(found.names)} other files {[s for s, _ in others.most_common(3)]}"
      + next((f"; {how}" for suffix, how in OTHERWISE.items() if others[suffix]), "")
    )
  for listing in found.listings:
    found.read_listing(listing)
  for file in found.images:
    found.match(file)
  found.list_texts()
  found.list_others()
  if not found.pairs:
    first = {one.reason: one for one in reversed(found.rejected)}
    why = "; ".join(f"{one.id}: {one}" for one in reversed(first.values()))
    raise ValueError(
      f"folder:{path}: {len(found.images)} images, but no caption that can be used"
      f" ({why}); put a .txt of the same name beside each image, or a .jsonl with lines"
      ' {"file": ..., "caption": ...}'
    )
  named = {heldout.is_named(file) for file in found.images} == {True, False}
  by_name = heldout.is_named if named else heldout.by_hash
  return Found(
    tuple(found.pairs),
    tuple(
      dataclasses.replace(
        one,
        test=found.stated.get(of := found.image_of.get(one.id, one.id), by_name(of)),
      )
      for one in found.rejected
    ),
    named,
    found.stated,
  )


class _Finding:
  """What was found so far; each file is used or listed in the end."""

  def __init__(self, root: Path, *, arrays: bool = False):
    self.root = root
    self.names = sorted(walk(root))
    opened = openable() | {ARRAY} if arrays else openable()
    self.images = [n for n in self.names if _suffix(n) in opened]
    # Foreign images count where there are others; a folder of them alone is refused.
    foreign = [n for n in self.names if _suffix(n) in FOREIGN - opened]
    if self.images:
      self.images = sorted(self.images + foreign)
    self._foreign = set(foreign)
    self.listings = [n for n in self.names if _suffix(n) == ".jsonl"]
    self._captions: dict[str, list[str]] = {file: [] for file in self.images}
    self._images_of = _by_stem(self.images)
    texts = [n for n in self.names if _suffix(n) == ".txt"]
    self._others = set(self.names) - {*self.images, *self.listings, *texts}
    # Of a.TXT and a.txt the latter.
    self._texts_of = {
      stem: sorted(own, key=lambda n: not n.endswith(".txt"))
      for stem, own in _by_stem(texts).items()
    }
    self._faults = {file: fault for file in self.images if (fault := self._fault(file))}
    # Lines that name an image and lack its caption, and why.
    self._unusable: dict[str, list[tuple[str, str]]] = {f: [] for f in self.images}
    self.image_of: dict[str, str] = {}  # these lines, by their ids
    self._told: set[str] = set()  # .txt files that images account for
    self._ids: set[str] = set()  # of what is rejected
    self.pairs: list[Pair] = []
    self.rejected: list[Rejected] = []
    self.stated: dict[str, bool] = {}  # image -> held out, as a line's "split" says
    self._alike: dict[str, str] = {}  # images by a loose spelling of their names
    for image in reversed(self.images):
      self._alike[_loose(_stem(image).rpartition("/")[2])] = image
    for image in reversed(self.images):
      self._alike[_loose(image)] = image

  def reject(self, id: str, reason: str, detail: str = "", amount: Amount = Amount(1)):
    """Lists what is skipped; an image may be there for several captions."""
    self.rejected.append(Rejected(free_id(id, self._ids), reason, detail, amount))

  def read_listing(self, listing: str) -> None:
    """Adds the captions of a .jsonl to those of its images."""
    try:
      data = (self.root / listing).read_bytes()
    except OSError as error:
      is_link = not (self.root / listing).exists()
      why = "is a link to nothing" if is_link else str(error)
      self.reject(listing, BAD_CAPTION, why)
      return
    if why := text_lib.why_no_lines(data[:HEAD_BYTES]):
      self.reject(listing, BAD_LINE, f"the file {why}")
      return
    for number, line in enumerate(data.splitlines(), start=1):
      if not line.strip():
        continue
      where = f"{listing}:{number}"
      try:
        entry = _read_line(line)
        name, test = _named(entry), _stated(entry)
        file = os.path.normpath(os.path.join(os.path.dirname(listing), name))
      except ValueError as error:
        self.reject(where, BAD_LINE, str(error))
        continue
      file = Path(file).as_posix()
      try:
        captions, faults = [_caption(entry)], []
      except ValueError as error:
        captions, faults = [], [(where, str(error))]
      if file in self._captions:
        self._captions[file] += captions
        self._unusable[file] += faults
        if test is not None:  # of two that differ, held out: then it is not trained on
          self.stated[file] = test or self.stated.get(file, False)
      else:
        why = self._why_not(name, file)
        amount = Amount(1, 0, len(captions))
        self.reject(where, NO_IMAGE, f"{name[:100]} {why}", amount)

  def match(self, file: str) -> None:
    """Makes pairs of an image and its captions, or lists it."""
    captions, stem = self._captions[file], _stem(file)
    beside = self._texts_of.get(stem, [])[:1]
    rivals = [f for f in self._images_of[stem] if self._wants_text(f)]
    if fault := self._faults.get(file):
      alone = beside and not captions and not rivals
      texts = len(captions) + (1 if alone else 0)
      self._told.update(beside if alone else ())
      documents = max(len(captions) + len(self._unusable[file]), 1)
      self.reject(file, NOT_OPENED, fault, Amount(documents, documents, texts))
      return
    for line, why in self._unusable[file]:
      self.reject(line, BAD_LINE, f"of {file}: {why}", Amount(1, 1))
      self.image_of[line] = file
    if not captions and beside and len(rivals) > 1:
      others = ", ".join(f for f in rivals if f != file)
      self.reject(file, SHARED, f"{beside[0]} is of {others} too", Amount(1, 1))
      return
    if not captions and beside:
      self._told.add(beside[0])
      try:
        captions = [text_lib.decode((self.root / beside[0]).read_bytes())]
      except (OSError, UnicodeDecodeError) as error:
        self.reject(file, BAD_CAPTION, str(error), Amount(1, 1, 1))
        return
    if not captions and not self._unusable[file]:
      detail = "no .txt of its name, no line in a .jsonl"
      self.reject(file, NO_CAPTION, detail, Amount(1, 1))
    for caption in captions:
      if fault := text_lib.fault(caption):
        self.reject(file, BAD_CAPTION, fault, Amount(1, 1, 1))
      elif text_lib.is_blank(caption):
        self.reject(file, EMPTY_CAPTION, amount=Amount(1, 1))
      else:
        self.pairs.append(Pair(file, caption.strip()))

  def list_texts(self) -> None:
    """Lists every .txt that is no image's caption."""
    for stem, texts in self._texts_of.items():
      images = self._images_of.get(stem, [])
      for name in texts:
        if name in self._told:
          continue
        if not images:
          why = "none has its name" + self._hint(stem)
          self.reject(name, NO_IMAGE, why, Amount(1, 0, 1))
        elif sum(map(self._wants_text, images)) > 1 and name == texts[0]:
          self.reject(name, SHARED, ", ".join(images), Amount(0, 0, 1))
        else:
          why = f"{', '.join(images)} took another"
          self.reject(name, NOT_NEEDED, why, Amount(0, 0, 1))

  def list_others(self) -> None:
    """Lists files of other kinds, in a line for each."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(self._others):
      kinds.setdefault(_suffix(name), []).append(name)
    for suffix, own in sorted(kinds.items()):
      self.reject(f"*{suffix}", OTHER, f"{len(own)} such as {own[0]}", Amount())

  def _why_not(self, name: str, file: str) -> str:
    """Why what a line names is no image of the folder.

    Args:
      name: as the line has it.
      file: relative to the folder.
    """
    if file in self._others:
      return "is no image by its name"
    if os.path.isabs(name):
      return (
        "is not there"
        if not os.path.isfile(name)
        else ("is the name from the root on; write it relative to the .jsonl")
      )
    if why := why_no_file(name):
      return f"is not there: {why}"
    return "is not there" + self._hint(file)

  def _hint(self, file: str) -> str:
    """Names an image that may be meant: spelled alike, or in another folder."""
    stem = file.rpartition("/")[2]
    for name in (file, stem, _stem(stem), _stem(_stem(stem))):
      if near := self._alike.get(_loose(name)):
        return f"; there is {near}"
    return ""

  def _wants_text(self, file: str) -> bool:
    """Whether an image that can be opened has no other caption than a .txt."""
    return not self._captions[file] and file not in self._faults

  def _fault(self, file: str) -> str:
    if file in self._foreign:
      return f"Pillow opens no {_suffix(file)}; convert it"
    if not (self.root / file).is_file():
      return "is a link to nothing, or no file"
    return ""


def _read_line(line: bytes) -> dict[str, Any]:
  """The object in a line of a listing.

  Raises:
    ValueError: says what it is instead.
  """
  try:
    entry = parsing.parse_json(text_lib.decode(line))
  except ValueError as error:
    raise ValueError(f"no JSON ({error}); {EXPECTED}") from error
  if not isinstance(entry, dict):
    raise ValueError(f"{KINDS.get(type(entry).__name__, 'a text')}; {EXPECTED}")
  return entry


def _named(entry: dict[str, Any]) -> str:
  """The image that a line names.

  Raises:
    ValueError: says what it has instead.
  """
  if not (file := _spoken(entry, FILE_KEYS)):
    raise ValueError(f"names no file; {EXPECTED}")
  return file


def _caption(entry: dict[str, Any]) -> str:
  """The caption in a line.

  Raises:
    ValueError: says what it has instead.
  """
  return _spoken(entry, CAPTION_KEYS).strip()


def _stated(entry: dict[str, Any]) -> bool | None:
  """Whether a line says that its image is held out."""
  split = entry.get("split")
  return None if split is None else heldout.is_split_named(split)


def _spoken(entry: dict, keys: Iterable[str]) -> str:
  """The text that stands under one of some keys."""
  value = _only(entry, keys)
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character
      raise ValueError(f"not Unicode: {error}") from error
    return value
  there = [key for key in keys if key in entry]
  if not there:
    raise ValueError(f"has {sorted(entry)}; {EXPECTED}")
  raise ValueError(f"{there[0]!r} is {KINDS[type(value).__name__]}; {EXPECTED}")


def _only(entry: dict, keys: Iterable[str]) -> Any:
  """The value of one of some keys; None if there is none."""
  values = [entry[key] for key in keys if entry.get(key) is not None]
  if any(value != values[0] for value in values):
    raise ValueError(f"has several of {', '.join(keys)}, and they differ")
  return values[0] if values else None


def _suffix(name: str) -> str:
  """The lower-case end of a name with its dot, as Path.suffix has it, but quicker."""
  stem, dot, end = name[name.rfind("/") + 1 :].rpartition(".")
  return f".{end.lower()}" if stem and end else ""


def _loose(name: str) -> str:
  """A spelling that names have in common which look alike to people."""
  return unicodedata.normalize("NFC", name.replace("\\", "/").strip()).casefold()


def _stem(name: str) -> str:
  return name.rpartition(".")[0] if _suffix(name) else name


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
  stems: dict[str, list[str]] = {}
  for name in names:
    stems.setdefault(_stem(name), []).append(name)
  return stems
