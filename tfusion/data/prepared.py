"""What shards decide for a run: its tokenizer, and what the numbers of images mean.

Owns: whether the sources of a run fit each other, the files that a workdir keeps of
this. Not: the shards themselves (shards/), autoencoders (autoencoder/), the use of the
tokenizer (pipeline.py).

A workdir keeps latents.json, which is the ImageFormat of its latents or codes and the
hash of their autoencoder; and autoencoder.safetensors, if the shards have one. With
these, what the model makes can be shown without the shards.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from tfusion import files, parsing
from tfusion.data import identity
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.source import Prepared, Source
from tfusion.data.tokenizer import Tokenizer

LATENTS = "latents.json"


def agree(sources: Sequence[Source]) -> tuple[Source, ...]:
  """Refuses sources that cannot be trained on together; makes the others agree.

  The latents of all shards are scaled and shifted by the numbers of the first shards.
  They are of one autoencoder, so that a number must mean the same in all of them; by
  which numbers matters little, as long as their mean is near 0 and deviation near 1.

  Raises:
    ValueError: shards with different tokenizers, autoencoders or kinds of images, or
      images that are not encoded beside some that are.
  """
  shards = {s.name: s.prepared.manifest for s in sources if s.prepared}
  _require_same("tokenizers", {n: m.tokenizer_sha256 for n, m in shards.items()})
  images = {name: own.images for name, own in shards.items() if own.images}
  autoencoders = {name: shards[name].autoencoder_sha256 for name in images}
  _require_same("kinds of images", {n: _model_kind(i) for n, i in images.items()})
  _require_same("autoencoders", autoencoders)
  encoded = {name: own for name, own in images.items() if own.kind != "pixels"}
  if not encoded:
    return tuple(sources)
  first, own = next(iter(encoded.items()))
  for source in sources:
    if source.has_images and source.name not in images:
      raise ValueError(
        f"data.sources: {source.name} gives images as they are, {first} gives"
        f" {own.kind} of an autoencoder; prepare both with `tfusion prepare`, or choose"
        " one"
      )
  return tuple(s.normalised(own) if s.name in encoded else s for s in sources)


def tokenizer_of(sources: Sequence[Source]) -> Path | None:
  """The tokenizer's file of the shards among sources that agree; None: no shards."""
  folders = (source.prepared.folder for source in sources if source.prepared)
  return next((folder / manifest_lib.TOKENIZER for folder in folders), None)


def codebook(sources: Sequence[Source]) -> int:
  """How many codes of images lie above the ids of text, in sources that agree."""
  formats = (s.prepared.manifest.images for s in sources if s.prepared)
  return max((images.codebook for images in formats if images), default=0)


def check_tokenizer(
  tokenizer: Tokenizer, origin: str, shards: Path | None, *, begun: bool = False
) -> None:
  """Refuses a tokenizer that is not the one of the shards.

  Args:
    tokenizer: the run's.
    origin: what the error calls it.
    shards: the file that shards bring; None without shards.
    begun: the run began with this tokenizer; it was not chosen just now.

  Raises:
    ValueError: names both and their hashes.
  """
  if shards is None or (theirs := manifest_lib.sha256(shards)) == tokenizer.sha256:
    return
  remedy = "choose a new workdir" if begun else "leave data.tokenizer empty"
  raise ValueError(
    f"{origin} (sha256 {tokenizer.sha256[:16]}...) is another tokenizer than {shards}"
    f" (sha256 {theirs[:16]}...), with which the shards were made: {remedy}, or prepare"
    " the data with the other tokenizer"
  )


def keep(sources: Sequence[Source], workdir: Path, *, begun: bool) -> None:
  """Puts latents.json and the autoencoder into the workdir, each whole or not at all.

  Args:
    sources: which agree.
    workdir: of the run.
    begun: the workdir holds a run already, and its files must be these.

  Raises:
    ValueError: a run has begun with other latents.
  """
  for source in sources:
    if source.prepared and _is_encoded(source.prepared.manifest.images):
      _keep(source.prepared, workdir, begun=begun)
      return  # the others agree with it


def _is_encoded(images: manifest_lib.ImageFormat | None) -> bool:
  return images is not None and images.kind != "pixels"


def _keep(shards: Prepared, workdir: Path, *, begun: bool) -> None:
  folder, manifest = shards
  assert manifest.images is not None
  values = manifest.images.to_json()
  values["autoencoder_sha256"] = manifest.autoencoder_sha256
  path = workdir / LATENTS
  text = json.dumps(values, indent=1) + "\n"
  there = path.is_file() and path.read_bytes() == text.encode()
  begun_with = identity.remembered(workdir, LATENTS)
  # If the hash of what it began with is known, an altered file is just written again.
  same = begun_with == hashlib.sha256(text.encode()).hexdigest()
  if begun and not there and not same:
    _check_begun(manifest, folder, workdir)
  if manifest.autoencoder_sha256:
    _copy(folder, workdir, manifest.autoencoder_sha256)
  if not there:  # a look at a run, maybe another person's, changes nothing
    files.write_whole(path, text)


def hashes(workdir: str | Path) -> dict[str, str]:
  """Hashes of the files that `keep` wrote and that a run has to remember."""
  path = files.to_path(workdir) / LATENTS
  return {LATENTS: manifest_lib.sha256(path)} if path.is_file() else {}


def kept(workdir: str | Path) -> tuple[manifest_lib.ImageFormat, str | None] | None:
  """What `keep` put into a workdir.

  Returns:
    The images' format and the hash of their autoencoder's file, if they have one. None
    for a run on pixels or on text alone.

  Raises:
    ValueError: latents.json is damaged, or not there and the run began with one.
  """
  path = files.to_path(workdir) / LATENTS
  begun_with = identity.remembered(workdir, LATENTS)
  if begun_with not in (None, hashes(workdir).get(LATENTS)):
    state = "is not what it was" if path.is_file() else "is missing"
    raise ValueError(
      f"{path}: {state}, and without it the latents of this run mean nothing; restore"
      " it, or start training again, which writes it anew from the shards"
    )
  if not path.is_file():
    return None
  try:
    values = parsing.parse_json(path.read_text())
    sha256 = values.pop("autoencoder_sha256")
    return parsing.build(manifest_lib.ImageFormat, values), sha256
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: damaged ({type(error).__name__}: {error}); `tfusion train` writes it"
      " anew from the shards"
    ) from error


def _check_begun(manifest: manifest_lib.Manifest, folder: Path, workdir: Path) -> None:
  """Refuses latents that a run did not begin with, where it still says with which."""
  try:
    before = kept(workdir)
  except ValueError as error:  # the state of the lanes knows the shards as well
    logging.warning("%s", error)
    return
  now = manifest.images, manifest.autoencoder_sha256
  if before is not None and before != now:
    raise ValueError(
      f"{workdir / LATENTS}: this run has begun with other latents than {folder} holds"
      f" now ({before} and {now}); restore the shards, or choose a new workdir"
    )


def _model_kind(images: manifest_lib.ImageFormat) -> str:
  """What a model is given; a mean with or without its deviation is a latent."""
  if images.kind == "codes":
    return f"{images.codebook} codes, {images.shape[0]} an image"
  return "latents" if images.latents else images.kind


def _require_same(what: str, of_source: Mapping[str, str | None]) -> None:
  """Refuses shards that differ in something; the keys are the sources' names."""
  for (name, one), (other, another) in itertools.pairwise(of_source.items()):
    if one != another:
      raise ValueError(
        f"data.sources: {name} and {other} have different {what}: {one} and {another};"
        " prepare both with the same, or choose one"
      )


def _copy(folder: Path, workdir: Path, sha256: str) -> None:
  kept = workdir / manifest_lib.AUTOENCODER
  if kept.is_file() and manifest_lib.sha256(kept) == sha256:
    return
  with files.whole(kept) as aside:
    with files.local(folder / manifest_lib.AUTOENCODER) as source:
      shutil.copyfile(source, aside)
