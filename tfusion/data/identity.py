"""What a run remembers of its data, so that it goes on with the same or not at all.

Owns: identity.json and documents.json of a workdir, comparing data with them, what a
run calls its sources, its tokenizer's file. Not: hashes of a source's documents
(contents.py and the sources), the config (workdir.py), what shards decide
(prepared.py).

identity.json has hashes of every source's documents, in order, apart for training and
held-out ones; and hashes of the files without which a trained model means nothing.
documents.json has the hashes of single documents, where a source knows them. It is read
only to say what differs.

A run calls its sources what data.sources called them when it began: their order and
the states of its lanes go by these names. Where they are read from may change, as long
as the documents are the same.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfusion import files, parsing
from tfusion import workdir as workdir_lib
from tfusion.data.contents import Contents, Hashed
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.source import TEST, TRAIN, Source
from tfusion.data.sources import OF_PATHS
from tfusion.data.tokenizer import OF_RUN, Tokenizer

FILE, DOCUMENTS = "identity.json", "documents.json"
TOKENIZER = manifest_lib.TOKENIZER
SPLITS = (TRAIN, TEST)
QUOTED = 3  # documents of each kind that a message names

Opened = Mapping[str, Sequence[Source]]  # by split


class Identity(NamedTuple):
  """What identity.json and documents.json say, and what to print when they are kept."""

  sources: tuple[dict[str, Any], ...]  # name, path and splits of each, in order
  documents: dict[str, dict[str, tuple[Hashed, ...]]]  # source -> split -> each
  files: dict[str, str]  # file, or key of the config that names one -> SHA-256
  said: tuple[str, ...]


def recognise(
  opened: Opened, specs: Sequence[str], workdir: str | Path
) -> tuple[dict[str, tuple[Source, ...]], Identity]:
  """Gives sources the names by which a run knows them, if they are the same.

  Args:
    opened: the sources of both splits, in the order of `specs`; not yet fitted.
    specs: data.sources.
    workdir: of a run that may have begun.

  Returns:
    The sources with the run's names, and what the run has to keep.

  Raises:
    ValueError: names what has changed in every source, and what to do.
  """
  workdir = files.to_path(workdir)
  begun = workdir_lib.has_begun(workdir)
  before = _load(workdir) if begun else None
  found = {split: [source.contents() for source in opened[split]] for split in SPLITS}
  said: list[str] = []
  if before:
    names = [own["name"] for own in before["sources"]]
    if len(names) != len(specs):
      raise _damaged(workdir / FILE, f"it names {len(names)} of {len(specs)} sources")
    _refuse_others(workdir, before, found, specs)
    said += _moved(before["sources"], specs)
  elif begun:
    names = _names_of_old(workdir, specs)
    said.append(
      f"{workdir / FILE}: is written now, as this run began without one; what changed"
      " in its data before this start cannot be seen"
    )
  else:
    names = list(specs)
  named = {
    split: tuple(
      source if source.name == name else source.renamed(name)
      for source, name in zip(opened[split], names, strict=True)
    )
    for split in SPLITS
  }
  sources, documents = [], {}
  for number, (name, spec) in enumerate(zip(names, specs)):
    own = {split: found[split][number] for split in SPLITS}
    sources.append(
      {"name": name, "path": place(spec)}
      | {split: _summary(contents) for split, contents in own.items()}
    )
    documents[name] = {split: c.hashed for split, c in own.items() if c and c.hashed}
  kept = dict(before["files"]) if before else {}
  return named, Identity(tuple(sources), documents, kept, tuple(said))


def keep(identity: Identity, workdir: str | Path) -> None:
  """Writes what `recognise` found, if it is not there already, and prints its lines.

  Only for the process that holds the workdir's lock, before it writes config.json.
  """
  workdir = files.to_path(workdir)
  texts = {
    DOCUMENTS: json.dumps(identity.documents) + "\n",
    FILE: json.dumps({"sources": identity.sources, "files": identity.files}, indent=1)
    + "\n",
  }
  for name, text in texts.items():
    path = workdir / name
    if not path.is_file() or path.read_text() != text:
      files.write_whole(path, text)
  for line in identity.said:
    print(line, flush=True)


def digests(identity: Identity) -> dict[str, str]:
  """A hash of everything that a run reads, by its name."""
  found = {
    f"the {split} documents of {own['name']}": own[split]["sha256"][:16]
    for own in identity.sources
    for split in SPLITS
    if own[split]
  }
  return found | {name: sha256[:16] for name, sha256 in identity.files.items()}


def remembered(workdir: str | Path, name: str) -> str | None:
  """The SHA-256 of a file with which the run in a workdir began; None if it has not
  begun, began without the file, or began before such hashes were kept."""
  workdir = files.to_path(workdir)
  before = _load(workdir) if workdir_lib.has_begun(workdir) else None
  return before["files"].get(name) if before else None


def check_file(workdir: str | Path, name: str, path: str | Path) -> str:
  """Refuses a file that is not the one a run began with; returns its SHA-256.

  Args:
    workdir: of the run.
    name: key of the config that names the file.
    path: of the file.

  Raises:
    ValueError: it is another.
  """
  found, expected = manifest_lib.sha256(path), remembered(workdir, name)
  if expected not in (None, found):
    raise ValueError(
      f"{name}: {path} is another file (sha256 {found[:16]}...) than the run in"
      f" {workdir} began with ({expected[:16]}...); name that one, or choose a new"
      " workdir"
    )
  return found


def open_tokenizer(
  workdir: str | Path, *, copies: Sequence[str | Path | None] = ()
) -> Tokenizer:
  """Reads the tokenizer of a run that has begun.

  Args:
    workdir: of the run.
    copies: files to put the same one back from, if it is missing or another; those
      that are empty are passed over.

  Raises:
    ValueError: it is missing or another, and no copy is the same.
  """
  path, expected = files.to_path(workdir) / TOKENIZER, remembered(workdir, TOKENIZER)
  there = path.is_file()
  if there and expected in (None, manifest_lib.sha256(path)):
    return Tokenizer.load(path, key="", remedy=OF_RUN)
  for copy in copies:
    if copy and expected and files.to_path(copy).is_file():
      tokenizer = Tokenizer.load(copy)
      if tokenizer.sha256 == expected:
        tokenizer.save(path)
        print(f"{path}: is put back from {copy}, which is the same", flush=True)
        return tokenizer
  which = f" (sha256 {expected[:16]}...)" if expected else ""
  raise ValueError(
    f"{path}: {'is another file than' if there else 'is missing,'} the tokenizer that"
    f" this run began with{which}, and its model knows no other: restore it from a copy"
    " of the workdir, from the shards or the data.tokenizer that it came from, or from"
    " a run that began on the same texts with the same model.vocab_size; or choose a"
    " new workdir"
  )


def place(spec: str) -> str:
  """The absolute path of the folder that a source is read from; empty without one."""
  kind, _, path = spec.partition(":")
  return files.to_absolute(path) if kind in OF_PATHS else ""


def _summary(contents: Contents | None) -> dict[str, Any] | None:
  """What identity.json keeps of the documents of a split."""
  return contents and dict(zip(Contents._fields, contents[:-1]))


def _load(workdir: Path) -> dict[str, Any] | None:
  path = workdir / FILE
  if not path.is_file():
    return None
  try:
    values = parsing.parse_json(path.read_text())
    for own in values["sources"]:
      own["name"], own["path"]
      for split in SPLITS:
        own[split] = own[split] and Contents(**own[split])
    values["files"].items()
    return values
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, repr(error)) from error


def _damaged(path: Path, why: str) -> ValueError:
  return ValueError(
    f"{path}: damaged ({why}); restore it, or remove it if the data of this run are as"
    " they were: it is then written anew"
  )


def _names_of_old(workdir: Path, specs: Sequence[str]) -> list[str]:
  """The names of a run without identity.json; its data must be where they were."""
  names = list(workdir_lib.load_config(workdir, kind=None).data.sources)
  for name, spec in zip(names, specs, strict=True):
    if name != spec and not (place(name) and place(name) == place(spec)):
      raise ValueError(
        f"data.sources={spec!r}: the run in {workdir} began with {name!r} and has no"
        f" {FILE} to see by whether the documents are the same; start it once with the"
        " data where they were (a link there will do), and they may move from then on"
      )
  return names


def _moved(before: Sequence[dict[str, Any]], specs: Sequence[str]) -> list[str]:
  return [
    f"{own['name']}: is read from {place(spec) or spec} now; its documents are the"
    " same, and the run goes on calling it so"
    for own, spec in zip(before, specs, strict=True)
    if own["path"] != place(spec) or (not own["path"] and own["name"] != spec)
  ]


def _refuse_others(
  workdir: Path,
  before: dict[str, Any],
  found: dict[str, list[Contents | None]],
  specs: Sequence[str],
) -> None:
  wrong = []
  for number, (own, spec) in enumerate(zip(before["sources"], specs, strict=True)):
    now = {split: found[split][number] for split in SPLITS}
    if any(_differs(own[split], now[split]) for split in SPLITS):
      called = own["name"] if own["name"] == spec else f"{own['name']} (now {spec})"
      wrong.append(f"{called}: {_difference(workdir, own, now)}")
  if wrong:
    unsaved = (
      f". It has no checkpoint yet: to begin anew there, remove {workdir / FILE} and"
      f" {workdir / 'config.json'}"
      if not workdir_lib.has_checkpoint(workdir)
      else ""
    )
    raise ValueError(
      f"--workdir={workdir}: the data of this run are not what they were:\n  "
      + "\n  ".join(wrong)
      + f"\nrestore them, or choose a new workdir{unsaved}"
    )


def _difference(
  workdir: Path, own: dict[str, Any], now: dict[str, Contents | None]
) -> str:
  """What differs between the documents of a source then and now, in words."""
  made = {c.made_with for c in (own[s] for s in SPLITS) if c}
  made_now = {c.made_with for c in now.values() if c}
  with_ = ""
  if made != made_now:
    old, new = (", ".join(sorted(m)) for m in (made, made_now))
    with_ = f"; they were made with {old}, now with {new}: go on with the former"
  said = _by_document(_old_documents(workdir, own), now)
  if not said:
    names = {TRAIN: "training", TEST: "held-out"}
    said = [
      f"the {names[split]} documents differ ({own[split].documents:,}, hash"
      f" {own[split].sha256[:16]}...; now {found.documents:,}, {found.sha256[:16]}...)"
      for split, found in now.items()
      if found and _differs(own[split], found)
    ]
  return ", ".join(said) + with_


def _differs(before: Contents | None, now: Contents | None) -> bool:
  """Whether documents differ; not if one side is unknown."""
  return bool(before and now and before.sha256 != now.sha256)


def _old_documents(workdir: Path, own: dict[str, Any]) -> dict[str, list[Hashed]]:
  try:
    documents = parsing.parse_json((workdir / DOCUMENTS).read_text())[own["name"]]
    return {split: [Hashed(*d) for d in documents[split]] for split in SPLITS}
  except (OSError, ValueError, KeyError, TypeError):
    return {}  # it only helps to say what differs


def _by_document(
  before: dict[str, list[Hashed]], now: dict[str, Contents | None]
) -> list[str]:
  """Says what became of how many documents; nothing if they are not known."""
  hashed = {
    split: contents.hashed if contents else () for split, contents in now.items()
  }
  if not before or not all(hashed.values()):
    return []
  old = {d.id: (split, d) for split in SPLITS for d in before[split]}
  new = {d.id: (split, d) for split in SPLITS for d in hashed[split]}
  found: dict[int, list[str]] = collections.defaultdict(list)

  def compare(id: str, was: tuple[str, Hashed], split: str) -> None:
    if was[0] != split:
      held = split == TRAIN
      found[_TRAINED if held else _HELD_OUT].append(id)

  for id in old.keys() & new.keys():
    (_, a), (split, b) = old[id], new[id]
    if a.text != b.text:
      found[_CAPTION if a.image else _TEXT].append(id)
    if a.image != b.image:
      found[_IMAGE].append(id)
    compare(id, old[id], split)
  # A document that has another name now is still the same.
  gone = collections.defaultdict(list)
  for id in sorted(old.keys() - new.keys()):
    gone[old[id][1][1:]].append(id)
  for id in sorted(new.keys() - old.keys()):
    split, own = new[id]
    if gone[own[1:]]:
      compare(id, old[gone[own[1:]].pop()], split)
    else:
      found[_NEW].append(id)
  found[_GONE] += [id for ids in gone.values() for id in ids]
  said = [
    f"{len(found[kind])} {words[len(found[kind]) != 1]} ({_some(found[kind])})"
    for kind, words in _WORDS.items()
    if found[kind]
  ]
  return said or ["their order differs"]


def _some(ids: list[str]) -> str:
  more = f" and {len(ids) - QUOTED} more" if len(ids) > QUOTED else ""
  return ", ".join(sorted(ids)[:QUOTED]) + more


_CAPTION, _TEXT, _IMAGE, _TRAINED, _HELD_OUT, _GONE, _NEW = range(7)
_WORDS = {  # of one, of several
  _CAPTION: ("caption differs", "captions differ"),
  _TEXT: ("text differs", "texts differ"),
  _IMAGE: ("image differs", "images differ"),
  _TRAINED: (
    "held-out document would now be trained on",
    "held-out documents would now be trained on",
  ),
  _HELD_OUT: (
    "training document would now be held out",
    "training documents would now be held out",
  ),
  _GONE: ("document is gone", "documents are gone"),
  _NEW: ("document is new", "documents are new"),
}
