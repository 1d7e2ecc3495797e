"""Every source that can be prepared, by name.

Owns: the table of them, how each splits into parts. Not: reading a part (files.py,
tar.py, tables.py, datasets.py).

  folder:PATH    images, each with a caption beside it or in a .jsonl (data/pairs.py)
  tar:PATH       .tar shards in the WebDataset layout (tar.py)
  jsonl:PATH     lines of texts and images in any order (rows.py)
  parquet:PATH   rows of the same
  edits:PATH     .csv or .jsonl of input image, instruction, output image
  text:PATH      .txt and .md files
  tfds:NAME      a data set of tfds, or the folder of one
  digits, pydoc, shapes   the embedded sources
PATH is a file or a folder, looked through for all files of the kind.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from tfusion.prepare import datasets, files, rows, tables, tar
from tfusion.prepare.raw import Part

# What each reads, for errors; docs/data.md tells it all.
KNOWN = {
  "edits": 'columns "input", "instruction" and "output" of a .csv or .jsonl',
  "folder": "images with a .txt of the same name, or lines of a .jsonl such as"
  ' {"file": "a.jpg", "caption": "a"}',
  "jsonl": rows.KNOWN,
  "parquet": rows.KNOWN,
  "tar": "members next to each other whose names agree up to the first dot: an image,"
  ' such as 0.jpg, and 0.txt, or 0.json with "caption", "text" or "spans"',
  "text": "text in UTF-8, or in UTF-16 with its mark",
}

PLANS: dict[str, Callable[[str, str, int], Sequence[Part]]] = {
  "edits": tables.plan_edits,
  "folder": files.plan_folder,
  "jsonl": tables.plan_jsonl,
  "parquet": tables.plan_parquet,
  "tar": tar.plan,
  "text": files.plan_text,
  "tfds": datasets.plan_tfds,
}


def plan(spec: str, *, documents: int, image_shape: tuple[int, int, int]) -> list[Part]:
  """Splits a source into parts, the same whenever the source is the same.

  Args:
    spec: as in the table above.
    documents: that a part should have, where a source can be cut.
    image_shape: h, w, c of the images to be; an embedded source makes them so.

  Raises:
    ValueError: an unknown source, or one that is not there or cannot serve.
  """
  name, _, argument = spec.partition(":")
  if name in datasets.EMBEDDED:
    return [*datasets.plan_embedded(spec, documents, image_shape)]
  if name not in PLANS:
    known = sorted([*PLANS, *datasets.EMBEDDED])
    raise ValueError(f"--source={spec}: unknown; known: {', '.join(known)}")
  if not argument:
    raise ValueError(f"--source={spec}: which? As in --source {name}:PATH")
  return [*PLANS[name](spec, argument, documents)]


def listing_sha256(parts: list[Part]) -> str:
  """A hash of all that the parts name: files, their sizes and times, captions.

  Not of the folder they lie in: that is as the source was given, relative or not.
  """

  def rootless(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name != "root"}

  digest = hashlib.sha256()
  for part in parts:
    own = dataclasses.asdict(part, dict_factory=rootless)  # type: ignore[call-overload]
    fields = [type(part).__name__, own]
    digest.update(json.dumps(fields).encode() + b"\n")
  return digest.hexdigest()
