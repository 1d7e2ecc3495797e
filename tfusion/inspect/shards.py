"""Shards for people to read: a manifest as a table, a shard's records, one record.

Owns: the lines. Not: reading (data/shards/), what latents look like
(generate/canvas.py).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfusion import files
from tfusion.data import balance as balance_lib
from tfusion.data.shards import fetch
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records as records_lib
from tfusion.data.shards import source as shards_lib
from tfusion.data.shards.manifest import ImageFormat, Manifest, Shard
from tfusion.data.tokenizer import OF_SHARDS, Tokenizer
from tfusion.generate import png

LISTED = 20  # whole shards that a table names; those that are not are all named


def lines(
  path: str | Path, *, record: int | None, split: str, out: str | Path
) -> Iterator[str]:
  """Shows a folder of shards, one of its shards, or a record of either.

  Args:
    path: of the folder or the shard.
    record: the index of the record to show; None: all of the folder or shard.
    split: "train" or "test", in which a folder's records are counted.
    out: folder for the images of a record; is made.

  Raises:
    ValueError: there is nothing such, or it cannot be read.
  """
  if record is not None:
    return record_lines(path, record, split=split, out=out)
  there = files.to_path(path)
  return manifest_lines(path) if there.is_dir() else shard_lines(path)


def manifest_lines(folder: str | Path) -> Iterator[str]:
  """Shows what a folder of shards holds, and which of its files are not whole.

  Raises:
    ValueError: it has no manifest, or one that cannot be read.
  """
  folder = files.to_path(folder)
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
    folder = fetch.to_local(folder, manifest, manifest.shards)
    manifest_lib.check_files(manifest, folder, shards=manifest.shards)
    shards_lib.Reader(folder, manifest.shards).check()
  except ValueError as error:
    yield f"NOT WHOLE: {error}"


def shard_lines(path: str | Path) -> Iterator[str]:
  """Shows a shard's records: index, id, spans, tokens of each text, damage.

  Raises:
    ValueError: it is not a shard.
  """
  there = files.to_path(path)
  if not there.is_file():
    files.check_there(there, option="shards")
    raise ValueError(f"{path}: no such folder or shard")
  with files.local(there) as copy:
    yield from _record_list(copy, path)


def _record_list(copy: Path, path: str | Path) -> Iterator[str]:
  damaged = records = 0
  yield f"{'record':>7} {'spans':<8} {'tokens':>7} id"
  for index, record in enumerate(shards_lib.read_shard(copy)):
    if isinstance(record, records_lib.Damaged):
      damaged += 1
      yield f"{index:>7} {record}"
    else:
      records += 1
      tokens = sum(map(len, record.texts))
      yield f"{index:>7} {record.spans:<8} {tokens:>7,} {record.id}"
  yield f"{path}: {records:,} records, {damaged:,} damaged"


def record_lines(
  path: str | Path, index: int, *, split: str, out: str | Path
) -> Iterator[str]:
  """Shows one record: its text decoded, its images as PNG files.

  Latents of shards without an autoencoder come in false colours, codes as numbers.

  Args:
    path: a folder of shards, or one of its shards.
    index: of the record, in the split or in the shard.
    split: "train" or "test"; a shard has its own.
    out: folder for the images; is made.

  Raises:
    ValueError: no such record, or it is damaged.
  """
  path, out = files.to_path(path), files.to_path(out)
  folder = path if path.is_dir() else path.parent
  manifest = manifest_lib.load(folder)
  own = manifest.of(split) if path.is_dir() else _listed(manifest, path)
  folder = fetch.to_local(folder, manifest, own)
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
  pixels, how = _pixels(record, manifest.images, autoencoder)
  texts, seen = iter(record.texts), 0
  stored = _in_order(record)
  for letter, weight in zip(record.spans, record.weights, strict=True):
    note = "" if weight == 1 else f", weight {weight:g}"
    if letter == records_lib.TEXT:
      ids = next(texts)
      yield f"text of {len(ids)} tokens{note}: {tokenizer.decode(ids)!r}"
      continue
    field = stored[seen]
    shape = " x ".join(map(str, field.shape))
    if pixels is None:
      yield f"image: {record.kind} of {shape}{note}, {how}: {field[:8].tolist()}..."
    else:
      out.mkdir(parents=True, exist_ok=True)
      file = out / f"{shard.name.partition('.')[0]}-{place}-{seen}.png"
      file.write_bytes(png.encode(pixels[seen]))
      yield f"image: {record.kind} of {shape}{note}, {how}: {file}"
    seen += 1


def _image_lines(manifest: Manifest) -> Iterator[str]:
  images = manifest.images
  if images is None:
    yield "  images      none"
    return
  codes = f", {images.codebook:,} codes" if images.codebook else ""
  yield f"  images      {images.kind} of {' x '.join(map(str, images.shape))}{codes}"
  for spec in images.kinds or ():
    yield f"  and of      {spec}"
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


def _pixels(
  record: records_lib.Record, images: ImageFormat | None, autoencoder: Path | None
) -> tuple[list[np.ndarray] | None, str]:
  """The images of a record as pixels u8[px, px, c], and how they were made."""
  kind = record.kind
  if kind is None:  # it has no images
    return None, ""
  stored = _in_order(record)
  if kind == "pixels":
    return stored, "as it is"
  if kind == "codes" and not autoencoder:
    return None, "not shown, without an autoencoder"
  # Here: it needs jax, and a manifest is shown sooner without.
  from tfusion.autoencoder import codec
  from tfusion.generate.canvas import Canvas

  coder = codec.load(autoencoder) if autoencoder else None
  canvas = Canvas(stored[0].shape, images, coder)
  how = "decoded" if coder else "in false colours (channels 0, 1, 2)"
  # One by one: they may have several shapes.
  return [canvas.show_stored(one[None])[0] for one in stored], how


def _in_order(record: records_lib.Record) -> list[np.ndarray]:
  """The first field of every image, in the order of the document."""
  if record.kind is None:
    return []
  name = records_lib.KINDS[record.kind][0]
  own = {
    letter: iter(record.images.get(records_lib.field_of(name, n), ()))
    for n, letter in enumerate(records_lib.IMAGES)
  }
  return [next(own[letter]) for letter in record.spans if letter in own]
