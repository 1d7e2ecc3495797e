"""The table of sources: what each is called, and how it is opened.

Owns: names of sources with their arguments, which of them are folders. Not: what a
source is (source.py), order and mixture (mixture.py).

  digits                   captioned scans of handwritten digits (digits.py)
  pydoc                    the pages of Python's help (prose.py)
  shapes:KIND,OPTIONS      rendered scenes with words (scenes/)
  emoji:GROUP              emoji of a font with their names (emoji.py)
  folder:PATH              a folder of captioned images (folder.py)
  shards:PATH              what `tfusion prepare` made (shards/)
"""

import os
from collections.abc import Sequence
from pathlib import Path

from tfusion import buckets
from tfusion.data.digits import open_digits
from tfusion.data.emoji import open_emoji
from tfusion.data.folder import open_folder
from tfusion.data.mixed import open_mixed
from tfusion.data.prose import open_pydoc
from tfusion.data.scenes.source import open_shapes
from tfusion.data.shards.source import open_shards
from tfusion.data.source import TEST, Source
from tfusion.kinds import Kind


def open_sources(
  specs: Sequence[str],
  *,
  split: str,
  image_shape: tuple[int, ...],
  workdir: str | Path,
  others: Sequence[Kind] = (),
) -> tuple[Source, ...]:
  """Opens sources by name.

  Args:
    specs: `name` or `name:argument`, as in data.sources.
    split: "train" or "test".
    image_shape: h, w, c of every image.
    workdir: where a source may cache what it has read.
    others: what else it may give, as model.kinds says.

  Raises:
    ValueError: an unknown or repeated name, or a source that cannot serve.
  """
  if len(set(map(_place, specs))) < len(specs):
    raise ValueError(f"data.sources={tuple(specs)}: name each source once")
  opened = []
  for spec in specs:
    name, colon, argument = spec.partition(":")
    if name not in OPEN:
      raise ValueError(f"data.sources={spec!r}: unknown; known: {sorted(OPEN)}")
    if colon and not argument:
      raise ValueError(f"data.sources={spec!r}: nothing stands behind the colon")
    opened.append(
      OPEN[name](
        argument,
        split=split,
        image_shape=image_shape,
        workdir=workdir,
        others=others,
      )
    )
    assert opened[-1].name == spec  # data.weights and data.epochs go by it
  return tuple(opened)


def _digits(argument: str, *, split, image_shape, workdir, others) -> Source:
  _refuse_argument("digits", argument)
  return open_digits(split=split, image_shape=image_shape)


def _pydoc(argument: str, *, split, image_shape, workdir, others) -> Source:
  _refuse_argument("pydoc", argument)
  return open_pydoc(split=split)


def _folder(argument: str, *, split, image_shape, workdir, others) -> Source:
  return open_folder(
    argument,
    test=split == TEST,
    image_shape=image_shape,
    workdir=workdir,
    others=others,
  )


def _shards(argument: str, *, split, image_shape, workdir, others) -> Source:
  return open_shards(argument, split=split, image_shape=image_shape, others=others)


def _shapes(argument: str, *, split, image_shape, workdir, others) -> Source:
  return open_shapes(argument, split=split, image_shape=image_shape)


def _emoji(argument: str, *, split, image_shape, workdir, others) -> Source:
  return open_emoji(argument, split=split, image_shape=image_shape)


def _mixed(argument: str, *, split, image_shape, workdir, others) -> Source:
  _refuse_argument("mixed", argument)
  return open_mixed(split=split, image_shape=image_shape, others=others)


OPEN = {
  "digits": _digits,
  "emoji": _emoji,
  "mixed": _mixed,
  "pydoc": _pydoc,
  "folder": _folder,
  "shards": _shards,
  "shapes": _shapes,
}
OF_PATHS = ("folder", "shards")  # their argument is a folder


def _refuse_argument(name: str, argument: str) -> None:
  if argument:
    raise ValueError(
      f"data.sources={f'{name}:{argument}'!r}: takes no argument; write {name!r}"
    )


def _place(spec: str) -> str:
  """A spelling that all names of one source have in common."""
  kind, _, argument = spec.partition(":")
  if kind not in OF_PATHS or buckets.is_bucket(argument):
    return spec.rstrip("/")
  return f"{kind}:{os.path.realpath(argument)}"
