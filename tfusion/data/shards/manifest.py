"""manifest.json: what a folder of shards holds, and whether all of it is there.

Owns: the Manifest, its file, the checks of a folder against it. Not: the shards' own
bytes (source.py), records (records.py), how data got there (prepare/).
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfusion import files, parsing
from tfusion import kinds as kinds_lib
from tfusion.data.balance import Balance
from tfusion.data.shards import records
from tfusion.kinds import FIRST, Kind

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
AUTOENCODER = "autoencoder.safetensors"
REJECTED = "rejected.jsonl"  # a line for each: id, reason, detail, split, amount
AGAIN = "run `tfusion prepare` again: it rewrites only what is missing"
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class ImageFormat:
  """What the numbers of an image mean.

  A model is given (z - shift) / scale of latents, per channel, and u8 / 127.5 - 1 of
  pixels. Scale and shift are the standard deviation and mean over the training split.
  """

  kind: str  # pixels, mean, mean_logvar or codes
  shape: tuple[int, ...]  # h, w, c; of codes: (codes,)
  scale: tuple[float, ...] = ()  # per channel, of latents
  shift: tuple[float, ...] = ()  # per channel, of latents
  codebook: int = 0  # how many different codes there are
  # Images of other shapes, as model.kinds has them: "192x320:24x40x8,like=image".
  # None: all have one shape.
  kinds: tuple[str, ...] | None = None

  @property
  def shapes(self) -> tuple[tuple[int, ...], ...]:
    """Of every kind: `shape`, then those of `kinds`. Raises ValueError for one that
    cannot be."""
    first = Kind(FIRST, self.shape, (1,) * (len(self.shape) - 1))
    return tuple(kind.shape for kind in kinds_lib.parse(self.kinds or (), first))

  def to_json(self) -> dict[str, Any]:
    """Its values; without `kinds` where there are none, as before there were any."""
    values = dataclasses.asdict(self)
    return {k: v for k, v in values.items() if k != "kinds" or v is not None}

  @property
  def latents(self) -> bool:
    """Whether the images are latents of an autoencoder."""
    return self.kind in ("mean", "mean_logvar")


@dataclasses.dataclass(frozen=True)
class Shard:
  """One ArrayRecord file."""

  name: str  # of the file in the folder
  split: str  # train or test
  records: int
  bytes: int
  tokens: int  # of all texts
  images: int
  sha256: str  # of the file


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of the source's documents: read = kept + all rejected."""

  read: int
  kept: int
  rejected: dict[str, int]  # reason -> documents
  # Split -> what became of its documents, images and texts; None in older manifests,
  # which did not count these.
  splits: dict[str, Balance] | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a folder of shards holds."""

  source: str  # as given to `tfusion prepare`
  images: ImageFormat | None  # None: text only
  tokenizer_sha256: str
  vocabulary: int  # pieces of the tokenizer; codes lie above
  autoencoder_sha256: str | None
  shards: tuple[Shard, ...]  # in the order of their records
  counts: Counts
  schema: int = records.SCHEMA

  def of(self, split: str) -> tuple[Shard, ...]:
    """The shards of a split, in order."""
    return tuple(shard for shard in self.shards if shard.split == split)


def save(manifest: Manifest, folder: str | Path) -> None:
  """Writes folder/manifest.json, whole or not at all.

  Raises:
    ValueError: what it says does not add up.
  """
  folder = files.to_path(folder)
  _check(manifest, folder / MANIFEST)
  values = dataclasses.asdict(manifest)
  values["images"] = manifest.images and manifest.images.to_json()
  text = json.dumps(values, indent=1) + "\n"
  files.write_whole(folder / MANIFEST, text)


def load(folder: str | Path) -> Manifest:
  """Reads folder/manifest.json.

  Raises:
    records.OtherSchema: it is of another version of tfusion.
    ValueError: there is none, or it does not say what a manifest must.
  """
  path = files.to_path(folder) / MANIFEST
  if not path.is_file():
    files.check_there(path.parent, option="shards")
    raise ValueError(
      f"{folder}: no folder of shards, it holds no {MANIFEST}; make one with"
      " `tfusion prepare --source SOURCE --out FOLDER`, or if that was interrupted,"
      f" {AGAIN}"
    )
  try:
    values = parsing.parse_json(path.read_text())
    if isinstance(values, dict) and values.get("schema") != records.SCHEMA:
      raise records.OtherSchema(
        f"{path}: has schema {values.get('schema')}, this version of tfusion reads"
        f" schema {records.SCHEMA}: prepare the data again with this version, or read"
        " it with the one that wrote it"
      )
    manifest = parsing.build(Manifest, values)
  except records.OtherSchema:
    raise
  except ValueError as error:  # not JSON is one too
    raise ValueError(f"{path}: damaged ({error}); restore it, or {AGAIN}") from error
  _check(manifest, path)
  return manifest


def check_files(
  manifest: Manifest, folder: str | Path, *, shards: tuple[Shard, ...]
) -> None:
  """Proves that the folder holds what its manifest lists.

  Args:
    manifest: of the folder.
    folder: holds the files.
    shards: of the manifest; their names and sizes are checked.

  Raises:
    ValueError: a shard is missing or has another size, or the tokenizer or the
      autoencoder is another file than the shards were made with.
  """
  folder, wrong = files.to_path(folder), []
  for shard in shards:
    try:
      size = (folder / shard.name).stat().st_size
    except FileNotFoundError:
      wrong.append(f"{shard.name} is missing")
      continue
    if size != shard.bytes:
      wrong.append(f"{shard.name} has {size:,} bytes of {shard.bytes:,}")
  if wrong:
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise ValueError(
      f"{folder}: {len(wrong)} of {len(shards)} shards are not whole:"
      f" {', '.join(wrong[:5])}{more}; {AGAIN}"
    )
  _check_hash(folder / TOKENIZER, manifest.tokenizer_sha256)
  if manifest.autoencoder_sha256:
    _check_hash(folder / AUTOENCODER, manifest.autoencoder_sha256)


def sha256(path: str | Path) -> str:
  """The hash of a file, as hexadecimal digits."""
  with files.to_path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(path: Path, expected: str) -> None:
  if not path.is_file():
    raise ValueError(f"{path}: is missing; {AGAIN}")
  if (found := sha256(path)) != expected:
    raise ValueError(
      f"{path}: is another file (sha256 {found[:16]}...) than the shards were made"
      f" with ({expected[:16]}...); put that one back, or prepare into a new folder"
    )


def _check(manifest: Manifest, path: Path) -> None:
  def require(holds: bool, what: str) -> None:
    if not holds:
      raise ValueError(f"{path}: {what}")

  counts, images = manifest.counts, manifest.images
  kept = sum(shard.records for shard in manifest.shards)
  require(
    counts.read == counts.kept + sum(counts.rejected.values()) and counts.kept == kept,
    f"counts: {counts.read} read, {counts.kept} kept, {counts.rejected} rejected and"
    f" {kept} records in shards do not add up",
  )
  _check_balances(manifest, require)
  names = [shard.name for shard in manifest.shards]
  require(len(set(names)) == len(names), "shards: a name occurs twice")
  for shard in manifest.shards:
    local = shard.name == os.path.basename(shard.name) not in ("", ".", "..")
    require(local, f"shards: {shard.name!r} is not the name of a file in the folder")
    require(shard.split in SPLITS, f"shards: {shard.split!r} is none of {SPLITS}")
  if images is None:
    return
  known = list(records.KINDS)
  require(images.kind in known, f"images.kind={images.kind!r}: none of {known}")
  codes = images.kind == "codes"
  shape = images.shape
  require(len(shape) == (1 if codes else 3), f"images.shape={shape}")
  require(codes == (images.codebook > 0), f"images.codebook={images.codebook}")
  require(not (codes and images.kinds), f"images.kinds={images.kinds}: codes have none")
  images.shapes  # noqa: B018 - raises where one cannot be
  for name in ("scale", "shift"):
    values = getattr(images, name)
    fits = len(values) == (shape[-1] if images.latents else 0)
    require(
      fits and all(math.isfinite(v) and (name == "shift" or v > 0) for v in values),
      f"images.{name}={values}: expected a number per channel of latents",
    )


def _check_balances(manifest: Manifest, require: Callable[[bool, str], None]) -> None:
  """Refuses balances that do not add up, or are not of what the shards hold."""
  counts = manifest.counts
  if counts.splits is None:
    return
  require(set(counts.splits) == set(SPLITS), f"counts.splits: {sorted(counts.splits)}")
  for split, balance in counts.splits.items():
    own = manifest.of(split)
    held = sum(s.records for s in own), sum(s.images for s in own)
    require(
      balance.adds_up and held == (balance.used.documents, balance.used.images),
      f"counts.splits.{split}: {balance} and {held[0]} records with {held[1]} images in"
      " shards do not add up",
    )
  read = sum(balance.found.documents for balance in counts.splits.values())
  require(read == counts.read, f"counts: {counts.read} read, but {read} in the splits")
