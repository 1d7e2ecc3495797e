"""A folder of captioned images as a source.

Owns: finding images and captions, the split, what is skipped and why, the survey that
an experiment chooses sizes from. Not: that choice (experiments/folder.py), decoding
(images.py), order and mixture (lanes.py).

Captions stand in a .txt of the same stem beside the image, or in any .jsonl with one
object per line: "file" (or "file_name", relative to the .jsonl) and "caption" (or
"text"); several lines may name one image. Images under test/ are held out; without
that folder, about 5 % by a hash of the path.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from tfusion.data import contents as contents_lib
from tfusion.data import images as images_lib

TEST_SHARE = 0.05  # of the images, where the folder has no test/
SURVEYED = 2000  # images whose headers a survey reads, at most
EXAMPLES = 8  # captions that a survey quotes, at most


@dataclasses.dataclass(frozen=True)
class Pair:
  """One document: an image file, relative to the folder, and one caption."""

  file: str
  caption: str


@dataclasses.dataclass(frozen=True)
class Folder:
  """Documents (caption, image) of one split, images read from the shared cache."""

  name: str
  pairs: tuple[Pair, ...]  # of both splits
  row_of: dict[str, int]  # file -> row of the cache
  cache: Path  # .npy, u8[images, h, w, c]
  test: bool
  skipped: dict[str, str]
  has_images: bool = True
  spec: str = ""  # in data.sources, where the run calls it by another name

  def __post_init__(self):
    held_out = choose_held_out({p.file for p in self.pairs})
    own = tuple(p for p in self.pairs if (p.file in held_out) == self.test)
    object.__setattr__(self, "_own", own)
    # Mapped, not read: worker processes share the pages.
    object.__setattr__(self, "_images", np.load(self.cache, mmap_mode="r"))

  def __reduce__(self):
    return Folder, tuple(getattr(self, f.name) for f in dataclasses.fields(self))

  def __len__(self) -> int:
    return len(self._own)

  def __getitem__(self, index: int) -> tuple[str | np.ndarray, ...]:
    pair = self._own[index]
    image = self._images[self.row_of[pair.file]]
    return pair.caption, image.astype(np.float32) / 127.5 - 1

  def texts(self) -> Iterable[str]:
    return (pair.caption for pair in self._own)

  def contents(self) -> contents_lib.Contents:
    """Hashes of captions and of decoded pixels; ids are the images' names."""
    pixels, seen = images_lib.hashes(self.cache.parent), collections.Counter()
    hashed = []
    for pair in self._own:
      seen[pair.file] += 1
      more = f" {seen[pair.file]}" if seen[pair.file] > 1 else ""
      text = contents_lib.digest([pair.caption])
      picture = pixels[self.row_of[pair.file]]
      hashed.append(contents_lib.Hashed(pair.file + more, text, picture))
    return contents_lib.of_documents(hashed, made_with=f"Pillow {PIL.__version__}")

  def fit(self, count: Callable[[str], int], *, room: int) -> "Folder":
    """Skips captions that no row can hold.

    Raises:
      ValueError: none is left.
    """
    skipped, fitting = dict(self.skipped), []
    for pair in self.pairs:
      elements = count(pair.caption)
      if elements <= room:
        fitting.append(pair)
      else:
        skipped[_caption_id(pair, skipped)] = (
          f"caption too long: {elements} elements, a row has room for {room}"
        )
    _require_two(fitting, self.name, skipped)
    return dataclasses.replace(self, pairs=tuple(fitting), skipped=skipped)


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a folder holds, as far as choosing sizes needs it."""

  images: int  # with a caption
  captions: int
  short_side_px: int  # median over the images
  gray: bool  # no image has colour
  characters: int  # of all captions
  alphabet: int  # different characters
  long_caption: int  # characters; 99 of 100 captions have no more
  examples: tuple[str, ...]  # a few of those captions
  skipped: int  # without a usable caption


def open_folder(
  path: str, *, test: bool, image_shape: tuple[int, int, int], workdir: str | Path
) -> Folder:
  """Finds, decodes and caches the images of a folder.

  Args:
    path: the folder.
    test: the held-out split instead of the training split.
    image_shape: h, w, c; c is 1 (gray) or 3 (RGB). Images are cropped about their
      centre to this shape and resized.
    workdir: gets the decoded images, under cache/, once per state of the folder.

  Raises:
    ValueError: no folder, no images, no captions, fewer than two usable images.
  """
  name = f"folder:{path}"
  if image_shape[2] not in (1, 3):
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: a folder of images gives 1 channel"
      " (gray) or 3 (RGB)"
    )
  pairs, skipped = find_pairs(path)
  files = sorted({p.file for p in pairs})
  cache, bad = images_lib.decode_all(
    Path(path), files, image_shape=image_shape, cache=Path(workdir) / "cache"
  )
  skipped |= bad
  usable = tuple(p for p in pairs if p.file not in bad)
  _require_two(usable, name, skipped)
  rows = {file: row for row, file in enumerate(files)}
  return Folder(name, usable, rows, cache / "images.npy", test, skipped)


def survey(path: str) -> Survey:
  """Looks at captions and image headers; decodes nothing.

  Raises:
    ValueError: no folder, no images or no captions.
  """
  pairs, skipped = find_pairs(path)
  files = sorted({p.file for p in pairs})
  some = files[:: -(-len(files) // SURVEYED)]
  with (
    warnings.catch_warnings(action="ignore"),
    concurrent.futures.ThreadPoolExecutor(images_lib.DECODE_THREADS) as pool,
  ):
    headers = [
      h for h in pool.map(images_lib.header, (Path(path) / f for f in some)) if h
    ]
  if not headers:
    raise ValueError(f"folder:{path}: none of {len(files)} images can be opened")
  lengths = sorted(len(p.caption) for p in pairs)
  long_caption = lengths[int(0.99 * (len(lengths) - 1))]
  usual = sorted({p.caption for p in pairs if len(p.caption) <= long_caption})
  return Survey(
    images=len(files),
    captions=len(pairs),
    short_side_px=int(np.median([side for side, _ in headers])),
    gray=all(gray for _, gray in headers),
    characters=sum(lengths),
    alphabet=len(set().union(*(p.caption for p in pairs))),
    long_caption=long_caption,
    examples=tuple(usual[:: -(-len(usual) // EXAMPLES)]),
    skipped=len(skipped),
  )


def find_pairs(path: str) -> tuple[list[Pair], dict[str, str]]:
  """Matches images with captions, in order of the path.

  Returns:
    The pairs, and what was skipped: file -> reason.

  Raises:
    ValueError: no folder, no images in it, or no caption for any of them.
  """
  root = Path(path)
  if not root.is_dir():
    raise ValueError(f"folder:{path}: no such folder; name one with images in it")
  suffixes = {s for s, k in Image.registered_extensions().items() if k in Image.OPEN}
  found = sorted(walk(root))
  images = [f for f in found if Path(f).suffix.lower() in suffixes]
  if not images:
    others = collections.Counter(Path(f).suffix for f in found).most_common(3)
    raise ValueError(
      f"folder:{path}: holds no images that Pillow can open; found"
      f" {len(found)} other files {[s for s, _ in others]}"
    )
  captions: dict[str, list[str]] = {file: [] for file in images}
  skipped: dict[str, str] = {}
  for listing in (f for f in found if f.endswith(".jsonl")):
    _read_listing(root, listing, captions, skipped)
  pairs = []
  for file in images:
    beside = (root / file).with_suffix(".txt")
    try:
      if not captions[file] and beside.is_file():
        captions[file].append(beside.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
      skipped[file] = f"caption cannot be read: {error}"
      continue
    if not captions[file]:
      skipped[file] = "no caption: no .txt of its name, no line in a .jsonl"
    for caption in captions[file]:
      pair = Pair(file, caption.strip())
      if pair.caption:
        pairs.append(pair)
      else:
        skipped[_caption_id(pair, skipped)] = "empty caption"
  if not pairs:
    raise ValueError(
      f"folder:{path}: {len(images)} images, but no caption; put a .txt of the same"
      ' name beside each image, or a .jsonl with lines {"file": ..., "caption": ...}'
    )
  return pairs, skipped


def choose_held_out(files: set[str]) -> set[str]:
  """The files for evaluation: those in test/, else a share by hash, at least one."""
  apart = {f for f in files if f.startswith("test/")}
  if apart and len(apart) < len(files):
    return apart
  chosen = {f for f in files if is_held_out(f)}
  if 0 < len(chosen) < len(files):
    return chosen
  return {min(files, key=_place)}


def is_held_out(name: str) -> bool:
  """Whether a hash of the name puts it into the 5 % that are held out."""
  return _place(name)[0] < int(TEST_SHARE * 256)


def _place(name: str) -> bytes:
  return hashlib.sha256(os.fsencode(name)).digest()


def walk(root: Path) -> Iterator[str]:
  """Files below a folder, as posix paths relative to it; hidden ones left out."""
  seen = set()  # links may lead in circles
  for directory, inner, files in os.walk(root, followlinks=True):
    if (real := os.path.realpath(directory)) in seen:
      inner.clear()
      continue
    seen.add(real)
    inner[:] = sorted(d for d in inner if not d.startswith("."))
    for file in files:
      path = Path(directory) / file
      if not file.startswith(".") and path.is_file():  # not a link to nothing
        yield path.relative_to(root).as_posix()


def _read_listing(
  root: Path, listing: str, captions: dict[str, list[str]], skipped: dict[str, str]
) -> None:
  """Adds the captions of a .jsonl to those of its images."""
  lines = (root / listing).read_bytes().splitlines()
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    where = f"{listing}:{number}"
    try:
      entry: Any = json.loads(line.decode("utf-8-sig"))
      file = entry["file"] if "file" in entry else entry["file_name"]
      caption = entry["caption"] if "caption" in entry else entry["text"]
      file = os.path.normpath(os.path.join(os.path.dirname(listing), file))
      caption = caption.strip()
      caption.encode()  # JSON can spell half a character
    except (ValueError, KeyError, TypeError, AttributeError):
      skipped[where] = 'not a line like {"file": ..., "caption": ...}'
      continue
    file = Path(file).as_posix()
    if file in captions:
      captions[file].append(caption)
    else:
      skipped[where] = f"no such image: {file}"


def _require_two(pairs: Iterable[Pair], name: str, skipped: dict[str, str]) -> None:
  if len({p.file for p in pairs}) < 2:
    some = [f"{file}: {reason}" for file, reason in list(skipped.items())[:5]]
    raise ValueError(
      f"{name}: fewer than two usable images, one to train on and one to hold out;"
      f" {len(skipped)} skipped, such as " + "; ".join(some)
    )


def _caption_id(pair: Pair, skipped: dict[str, str]) -> str:
  """Names a skipped caption; an image may have several."""
  if pair.file not in skipped:
    return pair.file
  return f"{pair.file} {sum(key.startswith(pair.file) for key in skipped) + 1}"
