"""Shards for people to read: a manifest as a table, a shard's records, one record.

Owns: the lines and pictures. Not: reading (data/shards/), the autoencoder
that turns latents into pictures (model/; the command hands it in).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tfusion.data import balance as balance_lib
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records as records_lib
from tfusion.data.shards import source as shards_lib
from tfusion.data.shards.manifest import ImageFormat, Manifest, Shard
from tfusion.data.tokenizer import OF_SHARDS, Tokenizer

LISTED = 20  # whole shards that a table names; those that are not are all named
FALSE_COLOUR_PX = 8  # side of a latent's pixel in a picture of false colours
FALSE_COLOUR_DEVIATIONS = 2.0  # from black to white, on either side of the mean


def manifest_lines(folder: str | Path) -> Iterator[str]:
  """Shows what a folder of shards holds, and which of its files are not whole.

  Raises:
    ValueError: it has no manifest, or one that cannot be read.
  """
  folder = Path(folder)
  manifest = manifest_lib.load(folder)
  counts = manifest.counts
  rejected = sum(counts.rejected.values())
  yield f"{folder}: schema {manifest.schema}, made from {manifest.source}"
  yield (
    f"  documents   {counts.read:,} read = {counts.kept:,} kept + {rejected:,} rejected"
  )
  for reason, count in sorted(counts.rejected.items(), key=lambda item: -item[1]):
    yield f"  {'':<11} {count:,} rejected: {reason}"
  if counts.splits is None:
    yield f"  {'':<11} images and texts found: unknown, of an earlier version"
  else:
    for line in balance_lib.lines(counts.splits):
      yield f"  {line}"
  yield (
    f"  tokenizer   {manifest.vocabulary:,} pieces, sha256"
    f" {manifest.tokenizer_sha256[:16]}..."
  )
  yield from _image_lines(manifest)
  yield f"  {'':<6} {'records':>13} {'tokens':>15} {'images':>13} {'MiB':>11}"
  for split in manifest_lib.SPLITS:
    own = manifest.of(split)
    yield f"  {split:<6} {_sizes(own)} {len(own):,} shards"
  yield from _shard_lines(manifest, folder)
  try:
    manifest_lib.check_files(manifest, folder, shards=manifest.shards)
    shards_lib.Reader(folder, manifest.shards).check()
  except ValueError as error:
    yield f"NOT WHOLE: {error}"


def shard_lines(path: str | Path) -> Iterator[str]:
  """Shows a shard's records: index, id, spans, tokens of each text, damage.

  Raises:
    ValueError: it is not a shard.
  """
  if not Path(path).is_file():
    raise ValueError(f"{path}: no such folder or shard")
  damaged = records = 0
  yield f"{'record':>7} {'spans':<8} {'tokens':>7} id"
  for index, record in enumerate(shards_lib.read_shard(path)):
    if isinstance(record, records_lib.Damaged):
      damaged += 1
      yield f"{index:>7} {record}"
    else:
      records += 1
      tokens = sum(map(len, record.texts))
      yield f"{index:>7} {record.spans:<8} {tokens:>7,} {record.id}"
  yield f"{path}: {records:,} records, {damaged:,} damaged"


def record_lines(
  path: str | Path,
  index: int,
  *,
  split: str,
  out: str | Path,
  decode: Callable[[Path, np.ndarray], np.ndarray],
) -> Iterator[str]:
  """Shows one record: its text decoded, its images as PNG files.

  Args:
    path: a folder of shards, or one of its shards.
    index: of the record, in the split or in the shard.
    split: "train" or "test"; a shard has its own.
    out: folder for the pictures; is made.
    decode: turns the file of an autoencoder and latents f32[n, h, w, c] or codes
      i32[n, codes] into pictures u8[n, px, px, 3]. Latents of shards without one are
      drawn in false colours, codes not at all.

  Raises:
    ValueError: no such record, or it is damaged.
  """
  path, out = Path(path), Path(out)
  folder = path if path.is_dir() else path.parent
  manifest = manifest_lib.load(folder)
  own = manifest.of(split) if path.is_dir() else _listed(manifest, path)
  reader = shards_lib.Reader(folder, own)
  if not 0 <= index < len(reader):
    raise ValueError(f"--record={index}: {path} holds records 0 to {len(reader) - 1}")
  own_tokenizer = folder / manifest_lib.TOKENIZER
  tokenizer = Tokenizer.load(own_tokenizer, key="", remedy=OF_SHARDS)
  record = reader[index]
  shard, place = reader.locate(index)
  yield f"{folder / shard.name}: record {place}, id {record.id}"
  has_autoencoder = manifest.autoencoder_sha256 is not None
  autoencoder = folder / manifest_lib.AUTOENCODER if has_autoencoder else None
  pictures, how = _pictures(record, manifest.images, autoencoder, decode)
  texts, seen = iter(record.texts), 0
  for letter, weight in zip(record.spans, record.weights, strict=True):
    note = "" if weight == 1 else f", weight {weight:g}"
    if letter == records_lib.TEXT:
      ids = next(texts)
      yield f"text of {len(ids)} tokens{note}: {tokenizer.decode(ids)!r}"
      continue
    field = next(iter(record.images.values()))[seen]
    shape = " x ".join(map(str, field.shape))
    if pictures is None:
      yield f"image: {record.kind} of {shape}{note}, {how}: {field[:8].tolist()}..."
    else:
      out.mkdir(parents=True, exist_ok=True)
      file = out / f"{shard.name.partition('.')[0]}-{place}-{seen}.png"
      Image.fromarray(pictures[seen].squeeze()).save(file)
      yield f"image: {record.kind} of {shape}{note}, {how}: {file}"
    seen += 1


def false_colours(normal: np.ndarray) -> np.ndarray:
  """Latents f32[n, h, w, c], about normal, as pictures u8[n, px, px, 3]."""
  first = normal[..., np.arange(3) % normal.shape[-1]]  # fewer channels: again
  shades = 127.5 + 127.5 / FALSE_COLOUR_DEVIATIONS * first
  enlarged = shades.repeat(FALSE_COLOUR_PX, axis=1).repeat(FALSE_COLOUR_PX, axis=2)
  return np.clip(np.round(enlarged), 0, 255).astype(np.uint8)


def _image_lines(manifest: Manifest) -> Iterator[str]:
  images = manifest.images
  if images is None:
    yield "  images      none"
    return
  codes = f", {images.codebook:,} codes" if images.codebook else ""
  yield f"  images      {images.kind} of {' x '.join(map(str, images.shape))}{codes}"
  for name in ("shift", "scale") if images.latents else ():
    numbers = " ".join(f"{number:.3g}" for number in getattr(images, name))
    yield f"  {name:<11} {numbers}  (per channel)"
  if manifest.autoencoder_sha256:
    yield f"  autoencoder sha256 {manifest.autoencoder_sha256[:16]}..."


def _shard_lines(manifest: Manifest, folder: Path) -> Iterator[str]:
  """A line per shard; of many whole ones only the first."""
  states = [_state(folder / shard.name, shard) for shard in manifest.shards]
  left_out = 0
  for number, (shard, state) in enumerate(zip(manifest.shards, states, strict=True)):
    if state == "whole" and number >= LISTED:
      left_out += 1
      continue
    yield f"  {shard.split:<6} {_sizes((shard,))} {shard.name} {state}"
  if left_out:
    yield f"  and {left_out:,} more whole shards"


def _state(path: Path, shard: Shard) -> str:
  if not path.is_file():
    return "MISSING"
  size = path.stat().st_size
  return "whole" if size == shard.bytes else f"{size:,} BYTES OF {shard.bytes:,}"


def _sizes(shards: tuple[Shard, ...]) -> str:
  records, tokens, images, size = (
    sum(getattr(shard, name) for shard in shards)
    for name in ("records", "tokens", "images", "bytes")
  )
  return f"{records:>13,} {tokens:>15,} {images:>13,} {size / 2**20:>11,.1f}"


def _listed(manifest: Manifest, path: Path) -> tuple[Shard, ...]:
  own = tuple(shard for shard in manifest.shards if shard.name == path.name)
  if not own:
    raise ValueError(f"{path}: is not listed in {path.parent / manifest_lib.MANIFEST}")
  return own


def _pictures(
  record: records_lib.Record,
  images: ImageFormat | None,
  autoencoder: Path | None,
  decode: Callable,
) -> tuple[np.ndarray | None, str]:
  """Pictures u8[n, px, px, c] of a record's images, and how they were made."""
  if not record.images:
    return None, ""
  if record.kind == "pixels":
    return record.images["pixels"], "as it is"
  codes = record.kind == "codes"
  field = record.images["codes"] if codes else record.images["mean"].astype(np.float32)
  if autoencoder:
    return decode(autoencoder, field), "decoded"
  if codes:
    return None, "not drawn, without an autoencoder"
  normal = (field - np.float32(images.shift)) / np.float32(images.scale)
  return false_colours(normal), "in false colours (channels 0, 1, 2)"
