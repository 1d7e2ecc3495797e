"""Folders that Energon prepared: archives, and .nv-meta that says what they hold.

Owns: dataset.yaml and split.yaml, the samples that a field map makes, the members that
Megatron-Bridge writes for BAGEL. Not: archives (tar.py), what a list of captions,
instructions or turns means (bagel.py, conversations.py).

  .nv-meta/dataset.yaml   sample_type: {__module__: megatron.energon,
                          __class__: CaptioningSample}
                          field_map: {image: jpg, caption: "txt,json[caption]"}
  .nv-meta/split.yaml     split_parts: {train: [shards/0.tar], val: [...]}, exclude: []

A sample loader is a program, and is not run. Samples without a field map are read if
they are those of Megatron-Bridge: KEY.json with "captions", "instruction_list" or
"conversations", beside KEY.image, or KEY.image0, KEY.image1 and so on.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from tfusion import parsing
from tfusion.data import heldout
from tfusion.data import text as text_lib
from tfusion.prepare import files as files_lib
from tfusion.prepare import raw as raw_lib
from tfusion.prepare import tables, tar
from tfusion.prepare.layouts import bagel, conversations, shaped
from tfusion.prepare.layouts.shaped import Span
from tfusion.prepare.look import Look
from tfusion.prepare.raw import Raw, Rejected

META = ".nv-meta"
CRUDE = "Crude"
# Sample type -> the fields that it needs; of these, images.
FIELDS = {
  "Captioning": ("image", "caption"),
  "Image": ("image",),
  "Text": ("text",),
  "VQA": ("image", "context", "answers"),
  CRUDE: (),
}
_FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")  # a member, and keys in its JSON
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of numbers in the name of a shard


@dataclasses.dataclass(frozen=True)
class Samples(shaped.Shaped):
  """The samples of an archive."""

  sample: str = CRUDE  # type, one of FIELDS
  fields: tuple[tuple[str, str], ...] = ()  # each and where it is, as in the field map
  excluded: tuple[str, ...] | None = ()  # keys; None: all

  known: ClassVar[str] = (
    f"samples of the types {', '.join(name for name in FIELDS if name != CRUDE)} with a"
    ' field map; or a .json with "captions", "instruction_list" or "conversations" and'
    " members .image, .image0 and so on"
  )
  columns: ClassVar[frozenset[str]] = frozenset()

  def shape(self, values: dict[str, Any]) -> Iterator[list[Span]]:
    if self.sample == CRUDE:
      yield from _bridged(values)
      return
    found = {name: _access(values, where) for name, where in self.fields}
    image: list[Span] = [{"image": found["image"]}] if "image" in found else []
    if self.sample != "VQA":
      text = found.get("caption", found.get("text"))
      yield ([] if text is None else [{"text": text}]) + image
      return
    answers = found["answers"]
    answers = answers if isinstance(answers, list) else [answers]
    for answer in dict.fromkeys(map(str, answers)):
      turns = [("human", f"{conversations.MARK}\n{found['context']}"), ("gpt", answer)]
      said = [{"from": who, "value": value} for who, value in turns]
      yield conversations.spoken(said, [found["image"]])

  def documents(self, row: tables.Row, gone: shaped.Gone) -> Iterator[Raw | Rejected]:
    """Yields the documents of a sample, unless split.yaml excludes it."""
    (key,) = row.names
    if self.excluded is None or key in self.excluded:
      test = self.table.file.holds_out(row.id, key)
      yield Rejected(row.id, raw_lib.EXCLUDED, "", self.amount(row), test)
    else:
      yield from super().documents(row, gone)


def _access(members: dict[str, bytes], where: str) -> Any:
  """The value of a field: the first that is there of some places.

  Raises:
    ValueError: there is none.
  """
  for place in where.split(","):
    match = _FIELD.fullmatch(place.strip())
    if not match or match[1] not in members:
      continue
    member, keys = match[1], re.findall(r"\[([^\[\]]+)\]", match[2])
    if not keys and member.rpartition(".")[2] not in ("txt", "json"):
      return members[member]
    value: Any = text_lib.decode(members[member])
    if member.rpartition(".")[2] == "json":
      value = parsing.parse_json(value)
    for key in keys:
      inner = value if isinstance(value, dict) else {}
      if isinstance(value, list) and key.isdigit():
        inner = dict(enumerate(value))
      value = inner.get(int(key) if isinstance(value, list) and key.isdigit() else key)
    if value is not None:
      return value
  raise ValueError(f"has {', '.join(sorted(members))}, and nothing at {where!r}")


def _bridged(members: dict[str, bytes]) -> Iterator[list[Span]]:
  """The documents of members as Megatron-Bridge writes them for BAGEL."""
  row = parsing.parse_json(text_lib.decode(members.get("json", b"")))
  if not isinstance(row, dict):
    raise ValueError("its .json is no object")
  numbered = [name for name in members if re.fullmatch(r"image\d+", name)]
  images = [members[name] for name in sorted(numbered, key=lambda n: int(n[5:]))]
  images = images or [members[name] for name in ("image",) if name in members]
  if "captions" in row:
    yield from bagel.captioned(
      bagel.image_of(images[0] if images else None), row["captions"]
    )
  elif "instruction_list" in row:
    yield from bagel.edited(images, row["instruction_list"])
  elif "conversations" in row:
    yield conversations.spoken(row["conversations"], images)
  else:
    raise ValueError(
      f"its .json has {sorted(row)}; what that means is said by a program (a cooker),"
      " which is not run"
    )


def recognise(look: Look) -> bool:
  """Whether Energon prepared a directory."""
  return (look.root / META / "dataset.yaml").is_file()


def plan(spec: str, argument: str, documents: int) -> list[Samples]:
  """One part for each archive.

  Raises:
    ValueError: its files of settings lack or are not understood, samples need a program
      to be read, or archives that it names are not there.
  """
  root = Path(argument)
  settings = _settings(spec, root / META / "dataset.yaml")
  sample, fields = _sample_type(spec, root, settings)
  splits, excluded = _splits(spec, root)
  files = {file.name: file for file in files_lib.find(spec, argument, ".tar")}
  named = {name: split for split, names in splits.items() for name in names}
  if gone := sorted(named.keys() - files.keys()):
    raise ValueError(
      f"--source={spec}: {len(gone)} archives of its split.yaml are not there, such as"
      f" {gone[0]}; copy them there, or take them out of it"
    )
  apart = {split: heldout.is_named(split) for split in splits}
  says = set(apart.values()) == {True, False}  # else a hash chooses
  parts = []
  for name, file in files.items():
    prefix = f"{name}/"
    keys = [one.removeprefix(prefix) for one in excluded if one.startswith(prefix)]
    out = name in excluded or name not in named
    file = dataclasses.replace(
      file, apart=apart[named[name]] if says and not out else None
    )
    own = None if out else tuple(sorted(keys))
    parts.append(Samples(tar.Tar(file), sample, fields, own))
  return parts


def _settings(spec: str, path: Path) -> dict[str, Any]:
  import yaml

  if not path.is_file():
    raise ValueError(
      f"--source={spec}: there is no {path}; run `energon prepare` there"
    )
  try:
    values = yaml.safe_load(text_lib.decode(path.read_bytes()))
  except (yaml.YAMLError, ValueError) as error:
    why = " ".join(str(error).split())
    raise ValueError(f"--source={spec}: {path}: no YAML: {why}") from error
  if not isinstance(values, dict):
    raise ValueError(f"--source={spec}: {path}: holds no names and values")
  return values


def _sample_type(
  spec: str, root: Path, settings: dict[str, Any]
) -> tuple[str, tuple[tuple[str, str], ...]]:
  """The type of the samples and their field map.

  Raises:
    ValueError: it is another than those of FIELDS, or its map lacks a field.
  """
  path = root / META / "dataset.yaml"
  own = settings.get("sample_type")
  named = (own if isinstance(own, dict) else settings).get("__class__")
  sample = str(named).removesuffix("Sample").removesuffix("Webdataset")
  fields = settings.get("field_map")
  if "sample_loader" in settings:
    raise ValueError(
      f"--source={spec}: {path}: samples are read by a program, sample_loader, which is"
      " not run; write a field_map, or read the archives as tar:PATH"
    )
  if sample not in FIELDS:
    raise ValueError(
      f"--source={spec}: {path}: samples of type {named!r}; known: {', '.join(FIELDS)}"
    )
  fields = fields if isinstance(fields, dict) else {}
  if lacking := [
    name for name in FIELDS[sample] if not isinstance(fields.get(name), str)
  ]:
    raise ValueError(
      f"--source={spec}: {path}: its field_map lacks {', '.join(lacking)}"
    )
  return sample, tuple((name, fields[name]) for name in FIELDS[sample])


def _splits(spec: str, root: Path) -> tuple[dict[str, list[str]], set[str]]:
  """The archives of each split, and what is excluded: archives, and ARCHIVE/KEY."""
  path = root / META / "split.yaml"
  settings = _settings(spec, path)
  parts, excluded = settings.get("split_parts"), settings.get("exclude") or []
  if not isinstance(parts, dict) or not isinstance(excluded, list):
    raise ValueError(
      f"--source={spec}: {path}: expected split_parts, names of archives by split, and"
      " exclude, a list"
    )
  splits = {
    str(split): [one for name in names or [] for one in _expand(str(name))]
    for split, names in parts.items()
  }
  return splits, {one for name in excluded for one in _expand(str(name))}


def _expand(name: str) -> list[str]:
  """The names that {000..012} in a name stands for."""
  match = _RANGE.search(name)
  if not match:
    return [name]
  first, last = match[1], match[2]
  numbers = range(int(first), int(last) + 1)
  head, tail = name[: match.start()], name[match.end() :]
  return [e for n in numbers for e in _expand(f"{head}{n:0{len(first)}}{tail}")]
