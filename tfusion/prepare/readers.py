"""Every source that can be prepared, by name.

Owns: the table of them, how each splits into parts, what a folder is taken for. Not:
reading a part (the files that the table names).

  folder:PATH    images, each with a caption beside it or in a .jsonl (data/pairs.py)
  tar:PATH       .tar shards in the WebDataset layout (tar.py)
  jsonl:PATH     lines of texts and images in any order (rows.py)
  parquet:PATH   rows of the same
  edits:PATH     .csv or .jsonl of input image, instruction, output image
  text:PATH      .txt and .md files
  tfds:NAME      a data set of tfds, or the folder of one
  digits, pydoc, shapes   the embedded sources
and data sets as people have them, with their own layouts (layouts/)
  img2dataset:PATH, obelics:PATH, mmc4:PATH, mint:PATH, bagel-t2i:PATH,
  bagel-edit:PATH, llava:PATH, energon:PATH, mds:PATH, lance:PATH
  auto:PATH      one of all these, found by looking
PATH is a file or a folder, looked through for all files of the kind.
"""

import collections
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfusion.data.shards import manifest as manifest_lib
from tfusion.prepare import datasets, files, look, plain, rows, tables, tar
from tfusion.prepare.layouts import (
  bagel,
  conversations,
  energon,
  img2dataset,
  interleaved,
  lance_tables,
  mds,
  mint,
  mmc4,
)
from tfusion.prepare.look import Look
from tfusion.prepare.raw import Part

AUTO = "auto"


class Layout(NamedTuple):
  """What can be prepared."""

  plan: Callable[[str, str, int], Sequence[Part]]
  recognise: Callable[[Look], bool]
  known: str  # what is read, for messages; docs/shards.md and docs/data.md have it all
  needs: tuple[str, ...] = ()  # modules of `extra`
  answers: bool = False  # it says which spans are answers
  extra: str = "prepare"  # of tfusion


# In the order in which `auto` looks: what has more signs comes first.
LAYOUTS = {
  "energon": Layout(
    energon.plan,
    energon.recognise,
    energon.Samples.known,
    needs=("yaml",),
    answers=True,
  ),
  "mds": Layout(
    mds.plan, mds.recognise, f"shards of MosaicML; {rows.KNOWN}", needs=("pyarrow",)
  ),
  "lance": Layout(
    lance_tables.plan,
    lance_tables.recognise,
    f"tables of Lance; {rows.KNOWN}",
    needs=("pyarrow", "lance"),
    extra="prepare,lance",
  ),
  "tfds": Layout(
    datasets.plan_tfds,
    plain.is_tfds,
    "data sets that `tfds build` prepared",
    needs=("tensorflow_datasets",),
  ),
  "img2dataset": Layout(
    img2dataset.plan,
    img2dataset.recognise,
    "archives of images and captions that img2dataset wrote, with its tables; or, in"
    f" parquet, {img2dataset.Inline.known}",
    needs=("pyarrow",),
  ),
  "mint": Layout(mint.plan, mint.recognise, mint.Scans.known),
  "mmc4": Layout(mmc4.plan, mmc4.recognise, mmc4.Sentences.known),
  "bagel-edit": Layout(
    bagel.plan_edit, bagel.recognise_edit, bagel.Edits.known, needs=("pyarrow",)
  ),
  "bagel-t2i": Layout(
    bagel.plan_t2i, bagel.recognise_t2i, bagel.Captions.known, needs=("pyarrow",)
  ),
  "obelics": Layout(
    interleaved.plan,
    interleaved.recognise,
    interleaved.Pages.known,
    needs=("pyarrow",),
  ),
  "llava": Layout(
    conversations.plan,
    conversations.recognise,
    conversations.Conversations.known,
    needs=("pyarrow",),
    answers=True,
  ),
  "edits": Layout(
    tables.plan_edits,
    plain.is_edits,
    'columns "input", "instruction" and "output" of a .csv or .jsonl',
  ),
  "tar": Layout(
    tar.plan,
    plain.is_tar,
    "members next to each other whose names agree up to the first dot: an image, such"
    ' as 0.jpg, and 0.txt, or 0.json with "caption", "text" or "spans"',
  ),
  "parquet": Layout(
    tables.plan_parquet, plain.is_parquet, rows.KNOWN, needs=("pyarrow",)
  ),
  "folder": Layout(
    files.plan_folder,
    plain.is_folder,
    "images with a .txt of the same name, or lines of a .jsonl such as"
    ' {"file": "a.jpg", "caption": "a"}',
  ),
  "jsonl": Layout(tables.plan_jsonl, plain.is_jsonl, rows.KNOWN),
  "text": Layout(
    files.plan_text,
    plain.is_text,
    "text in UTF-8, or in UTF-16 with its mark",
  ),
}
NAMES = (*LAYOUTS, *datasets.EMBEDDED, AUTO)
WHOLE = ("energon", "tfds")  # a directory of these owns all that is below it


def resolve(spec: str) -> str:
  """A source by the name of its layout: `auto:PATH` is looked at, others stay.

  Raises:
    ValueError: there is no such path, it is in none of the layouts, or in several.
  """
  name, _, argument = spec.partition(":")
  if name != AUTO:
    return spec
  if not argument:
    raise ValueError(f"--source={spec}: which? As in --source {AUTO}:PATH")
  root = Path(argument)
  if not root.exists():
    raise ValueError(
      f"--source={spec}: there is no {argument!r}; name a file or folder"
    )
  _require(spec, ("pyarrow", "yaml"))
  found, others = _look_through(spec, root)
  if len(found) > 1:
    found.pop("text", None)  # a README, perhaps
  if len(found) == 1:
    ((kind, places),) = found.items()
    if kind not in WHOLE or len(places) == 1:
      print(f"{spec}: taken for {kind}: {LAYOUTS[kind].known}", flush=True)
      return f"{kind}:{places[0] if kind in WHOLE else argument}"
  if not found:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(8))
    raise ValueError(
      f"--source={spec}: in none of the known layouts; found {kinds or 'no files'}; the"
      f" layouts are {', '.join(LAYOUTS)}: docs/shards.md describes each"
    )
  several = [f"{kind}:{place}" for kind, places in found.items() for place in places]
  more = f" and {len(several) - 5} more" if len(several) > 5 else ""
  raise ValueError(
    f"--source={spec}: holds several data sets; prepare each by itself:"
    f" {', '.join(several[:5])}{more}"
  )


def _look_through(
  spec: str, root: Path
) -> tuple[dict[str, list[Path]], collections.Counter[str]]:
  """The directories in each layout, and how many files of each kind are in none.

  Raises:
    ValueError: one holds what is read in another way, or not at all.
  """
  found: dict[str, list[Path]] = {}
  others: collections.Counter[str] = collections.Counter()
  for one in look.over(root):
    if any(
      place in one.root.parents for kind in WHOLE for place in found.get(kind, ())
    ):
      continue
    _refuse_otherwise(spec, one)
    kind = next((n for n, layout in LAYOUTS.items() if layout.recognise(one)), "")
    if kind:
      found.setdefault(kind, []).append(one.root)
    else:
      others.update(Path(name).suffix.lower() or name for name in one.names)
  return found, others


def _refuse_otherwise(spec: str, one: Look) -> None:
  """Refuses a directory of data that nothing here reads, by what it is.

  Raises:
    ValueError: says what to do.
  """
  said = f"--source={spec}: {one.root}"
  if manifest_lib.MANIFEST in one.names and one.first(".array_record"):
    raise ValueError(f"{said}: holds shards already; train on them: data={one.root}")


def has_answers(spec: str) -> bool:
  """Whether the layout of a source says which spans are answers."""
  layout = LAYOUTS.get(spec.partition(":")[0])
  return layout is not None and layout.answers


def _require(spec: str, modules: Sequence[str], extra: str = "prepare") -> None:
  """Refuses a source for which a library is missing.

  Raises:
    ValueError: names it.
  """
  for module in modules:
    if importlib.util.find_spec(module) is None:
      raise ValueError(
        f"--source={spec}: {module} is missing: pip install 'tfusion[{extra}]'"
      )


def plan(spec: str, *, documents: int, image_shape: tuple[int, int, int]) -> list[Part]:
  """Splits a source into parts; the same source always gives the same parts.

  Args:
    spec: as in the table above.
    documents: that a part should have, where a source can be cut.
    image_shape: h, w, c of the images to be; an embedded source makes them so.

  Raises:
    ValueError: an unknown source, or one that is not there or cannot serve.
  """
  spec = resolve(spec)
  name, _, argument = spec.partition(":")
  if name in datasets.EMBEDDED:
    return [*datasets.plan_embedded(spec, documents, image_shape)]
  if name not in LAYOUTS:
    raise ValueError(f"--source={spec}: unknown; known: {', '.join(sorted(NAMES))}")
  if not argument:
    raise ValueError(f"--source={spec}: which? As in --source {name}:PATH")
  _require(spec, LAYOUTS[name].needs, LAYOUTS[name].extra)
  return [*LAYOUTS[name].plan(spec, argument, documents)]


def listing_sha256(parts: list[Part]) -> str:
  """A hash of all that the parts name: files, their sizes and times, captions.

  The folder that they lie in does not count: it may be given in several ways.
  """

  def rootless(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name != "root"}

  digest = hashlib.sha256()
  for part in parts:
    own = dataclasses.asdict(part, dict_factory=rootless)  # type: ignore[call-overload]
    fields = [type(part).__name__, own]
    digest.update(json.dumps(fields).encode() + b"\n")
  return digest.hexdigest()
