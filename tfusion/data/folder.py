"""A folder of captioned images as a source.

Owns: which images are held out, which pairs are used, the survey by which sizes are
chosen. Not: finding images and captions (pairs.py), choosing sizes (sizing.py),
decoding (images.py), order and mixture (mixture.py).

Images under test/, val/ and the like (heldout.py) are held out. Where no name says so,
or all of them do, a hash of the path holds out about 5 %.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL

from tfusion.data import heldout
from tfusion.data import images as images_lib
from tfusion.data.balance import (
  Amount,
  Balance,
  Rejected,
  examples,
  free_id,
  settle,
)
from tfusion.data.collection import Collection, open_collection
from tfusion.data.contents import Contents, Hashed, hash_of, of_documents
from tfusion.data.pairs import Pair, find_pairs
from tfusion.data.source import Source, Span
from tfusion.files import cache_of
from tfusion.kinds import Kind

TOO_LONG = "caption too long"
SURVEYED = 2000  # images whose headers a survey reads, at most
EXAMPLES = 8  # captions that a survey quotes, at most


@dataclasses.dataclass(frozen=True)
class Folder(Source):
  """Pairs of caption and image of one split; images are read from the shared cache."""

  leaves_out = True

  pairs: tuple[Pair, ...]  # of both splits
  collection: Collection
  test: bool
  rejected: tuple[Rejected, ...]  # of both splits
  named: bool  # names say which are held out, else a hash does
  stated: Mapping[str, bool] = dataclasses.field(default_factory=dict)  # by lines
  _own: tuple[Pair, ...] = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    super().__post_init__()
    held_out = self._held_out()
    own = tuple(p for p in self.pairs if (p.file in held_out) == self.test)
    object.__setattr__(self, "_own", own)

  def __reduce__(self):
    given = [field.name for field in dataclasses.fields(self) if field.init]
    return functools.partial(Folder, **{n: getattr(self, n) for n in given}), ()

  def __len__(self) -> int:
    return len(self._own)

  def __getitem__(self, index: int) -> tuple[Span, ...]:
    pair = self._own[index]
    return pair.caption, self.collection[pair.file]

  @property
  def skipped(self) -> dict[str, str]:
    """What was left out of both splits, and why."""
    return {one.id: str(one) for one in self.rejected}

  @property
  def balance(self) -> Balance:
    """What became of everything in the folder that belongs to this split."""
    used = Amount(*(len(self._own),) * 3)
    return settle(used, (one for one in self.rejected if one.test == self.test))

  def texts(self) -> Iterable[str]:
    return (pair.caption for pair in self._own)

  def advice(self) -> str:
    """Names folders that sound held out and are not; nothing if there are none."""
    files = {p.file for p in self._own} - self.stated.keys()
    return "" if self.test else heldout.advice(files, file=False)

  def contents(self) -> Contents:
    """Hashes of captions and of decoded pixels; ids are the images' names."""
    seen: collections.Counter[str] = collections.Counter()
    hashed = []
    for pair in self._own:
      seen[pair.file] += 1
      more = f" {seen[pair.file]}" if seen[pair.file] > 1 else ""
      text = hash_of([pair.caption])
      image = self.collection.hash_of(pair.file)
      hashed.append(Hashed(pair.file + more, text, image))
    return of_documents(hashed, made_with=f"Pillow {PIL.__version__}")

  def fit(self, count: Callable[[str], int], *, room: int) -> "Folder":
    """Skips captions that no row can hold.

    Raises:
      ValueError: none is left.
    """
    fitting, rejected = [], list(self.rejected)
    held_out = self._held_out()
    ids = {one.id for one in rejected}
    for pair in self.pairs:
      if (elements := count(pair.caption)) <= room:
        fitting.append(pair)
        continue
      detail = f"{elements} elements, a row has room for {room}"
      whole, test = Amount(1, 1, 1), pair.file in held_out
      rejected.append(Rejected(free_id(pair.file, ids), TOO_LONG, detail, whole, test))
    if len(fitting) < len(self.pairs):
      _require_both(fitting, self.name, rejected, self.stated, named=self.named)
    return dataclasses.replace(self, pairs=tuple(fitting), rejected=tuple(rejected))

  def _held_out(self) -> set[str]:
    files = {p.file for p in self.pairs}
    return choose_held_out(files, self.stated, named=self.named)


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a folder holds, as far as choosing sizes needs it."""

  images: int  # with a caption
  captions: int
  short_side_px: int  # median over the images
  sizes: tuple[tuple[int, int], ...]  # width and height of some of them
  gray: bool  # no image has colour
  characters: int  # of all captions
  alphabet: int  # different characters
  long_caption: int  # characters; 99 of 100 captions have no more
  examples: tuple[str, ...]  # a few of those captions
  skipped: int  # documents that lack a half, as far as that shows without decoding


def open_folder(
  path: str,
  *,
  test: bool,
  image_shape: tuple[int, int, int],
  workdir: str | Path,
  others: Sequence[Kind] = (),
) -> Folder:
  """Finds, decodes and caches the images of a folder.

  Args:
    path: the folder.
    test: the held-out split instead of the training split.
    image_shape: h, w, c; c is 1 (gray) or 3 (RGB). Images are cropped about their
      centre to this shape and resized.
    workdir: gets the decoded images, under cache/, once per state of the folder.
    others: kinds of images beside the first (collection.py).

  Raises:
    ValueError: no folder, no images, no captions, fewer than two usable images.
  """
  name = f"folder:{path}"
  if image_shape[2] not in (1, 3):
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: a folder of images gives 1 channel"
      " (gray) or 3 (RGB)"
    )
  found = find_pairs(path, arrays=bool(others))
  files = sorted({p.file for p in found.pairs})
  collection, bad = open_collection(
    Path(path), files, image_shape=image_shape, others=others, cache=cache_of(workdir)
  )
  rejected, ids = list(found.rejected), {one.id for one in found.rejected}
  held_out = choose_held_out(set(files), found.stated, named=found.named)
  captions = collections.Counter(p.file for p in found.pairs)
  for file, why in bad.items():
    reason, _, detail = why.partition(": ")
    amount, apart = Amount(*(captions[file],) * 3), file in held_out
    rejected.append(Rejected(free_id(file, ids), reason, detail, amount, apart))
  usable = tuple(p for p in found.pairs if p.file not in bad)
  _require_both(usable, name, rejected, found.stated, named=found.named)
  return Folder(
    name,
    usable,
    collection,
    test,
    tuple(rejected),
    found.named,
    found.stated,
  )


def survey(path: str) -> Survey:
  """Looks at captions and image headers; decodes nothing.

  Raises:
    ValueError: no folder, no images or no captions.
  """
  found = find_pairs(path)
  pairs = found.pairs
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
    short_side_px=int(np.median([min(size) for size, _ in headers])),
    sizes=tuple(size for size, _ in headers),
    gray=all(gray for _, gray in headers),
    characters=sum(lengths),
    alphabet=len(set().union(*(p.caption for p in pairs))),
    long_caption=long_caption,
    examples=tuple(usual[:: -(-len(usual) // EXAMPLES)]),
    skipped=sum(one.amount.documents for one in found.rejected),
  )


def choose_held_out(
  files: set[str], stated: Mapping[str, bool] | None = None, *, named: bool
) -> set[str]:
  """The files for evaluation.

  Args:
    files: relative to the folder, posix.
    stated: of some files, whether they are held out, which goes first; if it says the
      same of all, it says nothing.
    named: names say of the others which; else a share by hash, at least one.
  """
  stated = {f: test for f, test in (stated or {}).items() if f in files}
  if stated.keys() == files and len(set(stated.values())) == 1:
    stated = {}
  others = files - stated.keys()
  says = heldout.is_named if named else heldout.by_hash
  chosen = {f for f in files if (stated[f] if f in stated else says(f))}
  if named or 0 < len(chosen) < len(files) or not others:
    return chosen
  return {min(others, key=heldout.place)}


def _require_both(
  pairs: Iterable[Pair],
  name: str,
  rejected: Sequence[Rejected],
  stated: Mapping[str, bool],
  *,
  named: bool,
) -> None:
  """Refuses pairs that leave nothing to train on, or nothing to hold out."""
  files = {p.file for p in pairs}
  held_out = choose_held_out(files, stated, named=named)
  if 0 < len(held_out) < len(files):
    return
  if len(files) < 2:
    what = "fewer than two usable images, one to train on and one to hold out"
  else:
    lacking = "to train on" if held_out else "to hold out"
    what = f"none of {len(files)} usable images is {lacking}, as their names say"
  lost = [one for one in rejected if one.amount.documents]
  some = f"; {len(lost)} skipped: {examples(lost)}" if lost else ""
  raise ValueError(f"{name}: {what}{some}")
