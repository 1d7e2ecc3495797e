"""Whether a directory is in one of the plain layouts, which are nobody's data set.

Owns: the signs by which `auto` knows them. Not: reading them (tables.py, tar.py,
files.py, datasets.py), layouts of known data sets (layouts/).
"""

from pathlib import Path
from typing import Any

from tfusion.data import pairs
from tfusion.prepare import files, rows
from tfusion.prepare.look import Look
from tfusion.prepare.raw import Raw


def is_tfds(look: Look) -> bool:
  """Whether `tfds build` prepared a directory."""
  return all((look.root / f"{n}.json").is_file() for n in ("dataset_info", "features"))


def is_edits(look: Look) -> bool:
  """Whether a directory holds tables of edits."""
  return {*rows.EDIT} <= look.line.keys() or {*rows.EDIT} <= set(look.header)


def is_tar(look: Look) -> bool:
  """Whether a directory holds archives of images with captions."""
  names = look.sample.keys()
  texts = any(name.rpartition(".")[2] in ("txt", "json") for name in names)
  return texts and any(pairs.is_image_name(f"_.{name}") for name in names)


def is_parquet(look: Look) -> bool:
  """Whether a directory holds parquet files whose columns are known."""
  return _is_document(look.table_row)


def is_jsonl(look: Look) -> bool:
  """Whether a directory holds lines of JSON whose keys are known."""
  return _is_document(look.line)


def is_folder(look: Look) -> bool:
  """Whether a directory holds images with captions."""
  images = {Path(name).stem for name in look.names if pairs.is_image_name(name)}
  texts = {Path(name).stem for name in look.names if name.lower().endswith(".txt")}
  listed = all(
    look.line.keys() & {*keys} for keys in (pairs.FILE_KEYS, pairs.CAPTION_KEYS)
  )
  return bool(images & texts) or bool(images and listed)


def is_text(look: Look) -> bool:
  """Whether a directory holds texts."""
  return bool(look.first(*files.TEXTS))


def _is_document(row: dict[str, Any]) -> bool:
  found = rows.document(row, "", holds_out=lambda *names: False, image=lambda name: b"")
  return bool(row) and isinstance(found, Raw)
