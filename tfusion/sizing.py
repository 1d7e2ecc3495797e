"""Sizes of a model and of its training, chosen from what a folder holds.

Owns: the rules. Not: the numbers in them, which are an experiment's
(experiments/folder.py), nor the look at the folder (data/folder.py, data/shards/).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from tfusion import files
from tfusion.data import folder
from tfusion.data.aspects import NEAR, choose, nearest
from tfusion.data.shards import manifest
from tfusion.data.shards import source as shards
from tfusion.generate import prompt

# Captions with fewer different characters than this are in an alphabet, of which a
# token has two characters or more on average; in other scripts it may have just one.
ALPHABET = 300
# FLOP/s that the training of such models reaches on two CPU cores, by what
# docs/emoji.md measured on one.
TWO_CORES = 60e9


class ModelSize(NamedTuple):
  """A transformer and how long it is trained."""

  layers: int
  width: int
  heads: int
  mlp: int
  peak_lr: float
  steps: int


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The numbers by which sizes are chosen."""

  patch: Mapping[int, int]  # side of an image in pixels -> side of its patches
  patches: int  # of a latent, or of an image of another side, where its sides allow it
  row: int  # elements of a row, at most, unless a single image has more
  models: Mapping[float, ModelSize]  # images up to -> model; ascending, the last is inf
  merges: tuple[int, int]  # merged pieces of a tokenizer, at least and at most
  characters_per_merge: int  # of all captions: each piece is seen often enough
  elements: int  # of an update


class _Found(NamedTuple):
  """What a folder holds, in a line, and what the training is chosen by."""

  said: str
  size: int  # images to train on, or documents without any
  examples: tuple[str, ...]  # texts from which images can be sampled, or text alone
  images: bool  # whether there are any
  document: float = 0.0  # elements of an image with its caption, where that is known


def fit(
  config: ml_collections.ConfigDict,
  path: str,
  bounds: Bounds,
  *,
  aspects: int = 1,
  instead: Mapping[str, Any] | None = None,
) -> None:
  """Chooses sizes for a folder, and says what it holds and what was chosen.

  Args:
    config: gets the values.
    path: a folder of captioned images, or of shards that `tfusion prepare` made.
    bounds: the numbers to choose by.
    aspects: of a folder of images, that these may have, at most; with 1 all are square.
    instead: "section.key" -> value in place of what is chosen, as for a trial run.

  Raises:
    ValueError: there is no such folder, or it holds nothing to train on; or shards are
      asked for aspects, which they have already.
  """
  if aspects < 1:
    raise ValueError(f"aspects={aspects}: must be at least 1")
  prepared = (files.to_path(path) / manifest.MANIFEST).is_file()
  if prepared and aspects > 1:
    raise ValueError(
      f"aspects={aspects}: {path} holds shards, whose images have their shapes already"
    )
  found = (
    _fit_shards(config, path, bounds)
    if prepared
    else _fit_folder(config, path, bounds, aspects)
  )
  _choose_training(config, found, bounds)
  for key, value in (instead or {}).items():
    section, _, name = key.partition(".")
    config[section][name] = value
  model = config.model
  print(
    f"{found.said}; chosen: image {tuple(model.image_shape)}, patch {model.patch},"
    f" vocabulary {model.vocab_size}, {model.layers} layers of width {model.width},"
    f" rows of {config.data.row_length}, {config.train.steps} steps"
    f"{_what_to_expect(config, found)}"
  )


def _fit_folder(
  c: ml_collections.ConfigDict, path: str, bounds: Bounds, aspects: int
) -> _Found:
  """Chooses images, vocabulary and rows for images with captions."""
  found = folder.survey(path)
  c.data.sources = (f"folder:{path}",)
  smallest = max(found.short_side_px, min(bounds.patch))
  side = max(px for px in bounds.patch if px <= smallest)
  channels = 1 if found.gray else 3
  c.model.patch = bounds.patch[side]
  shapes = [(side, side)]
  if aspects > 1:
    # Multiples of a few patches, so that there are few shapes to choose from.
    cell = max(c.model.patch, side // 8)
    shapes = choose(found.sizes, side=side, cell=cell, count=aspects)
  c.model.image_shape = (*shapes[0], channels)
  c.model.kinds = tuple(f"{h}x{w}:{h}x{w}x{channels},like=image" for h, w in shapes[1:])
  least, most = bounds.merges
  merges = min(max(found.characters // bounds.characters_per_merge, least), most)
  # Special tokens, bytes and every character have a piece of their own.
  c.model.vocab_size = _up(6 + 256 + found.alphabet + merges + len(shapes) - 1, 64)
  caption = -(-found.long_caption // (2 if found.alphabet < ALPHABET else 1))
  patches = max(h // c.model.patch * (w // c.model.patch) for h, w in shapes)
  image = patches + 3  # with BOS, BOI and EOI
  _choose_rows(c, bounds, text=caption, image=image, images=1)
  c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  said = (
    f"{path}: {found.images} images of about {found.short_side_px} px"
    f" ({'gray' if found.gray else 'colour'}), {found.captions} captions of up to"
    f" {found.long_caption} characters, {found.skipped} skipped"
  )
  if aspects > 1:
    said += f"; aspects, height x width: {_of_aspects(found.sizes, shapes)}"
  spoken = found.characters / found.captions / (2 if found.alphabet < ALPHABET else 1)
  return _Found(
    said, found.images, found.examples, images=True, document=image + spoken
  )


def _of_aspects(
  sizes: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, int]]
) -> str:
  """Which share of the images goes to each shape, and of which none is near."""
  near = NEAR if len(shapes) > 1 else math.inf  # to one shape all are cropped
  found = [nearest(size, shapes, near=near) for size in sizes]
  shares = [
    f"{h}x{w} {found.count(n) / len(found):.0%}" for n, (h, w) in enumerate(shapes)
  ]
  lost = found.count(None)
  return ", ".join(shares) + (f", none {lost / len(found):.0%}" if lost else "")


def _fit_shards(c: ml_collections.ConfigDict, path: str, bounds: Bounds) -> _Found:
  """Chooses images, vocabulary and rows for what is tokenised and encoded already."""
  found = shards.survey(path)
  images = found.manifest.images
  c.data.sources = (f"shards:{path}",)
  c.model.vocab_size = found.manifest.vocabulary
  image = 0
  if images and images.kind == "codes":
    c.model.vocab_size += images.codebook
    image = images.shape[0] + 3  # with BOS, BOI and EOI
  elif images:
    c.model.image_shape = images.shape
    c.model.kinds = images.kinds or ()
    c.model.vocab_size += len(c.model.kinds)
    c.model.patch = _patch(images, bounds)
    patches = (h // c.model.patch * (w // c.model.patch) for h, w, _ in images.shapes)
    image = max(patches) + 3
    if images.kind == "pixels":
      c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  c.model.vocab_size = _up(c.model.vocab_size, 64)
  rows = dict(text=found.document_tokens, image=image, images=found.document_images)
  _choose_rows(c, bounds, **rows)
  # Latents and codes cannot be sampled without their autoencoder.
  encoded = images and images.kind != "pixels"
  lost = encoded and not found.manifest.autoencoder_sha256
  said = (
    f"{path}: {found.documents} documents with {found.images} images, of up to"
    f" {found.document_tokens} tokens and {found.document_images} images"
  )
  examples = () if lost else found.examples
  size = found.images or found.documents
  return _Found(said, size, examples, images=found.images > 0)


def _patch(images: manifest.ImageFormat, bounds: Bounds) -> int:
  """As of raw images; else the smallest of which there are few enough."""
  sides = images.shape[:2]
  if images.kind == "pixels" and sides[0] == sides[1] and sides[0] in bounds.patch:
    return bounds.patch[sides[0]]
  every = [side for shape in images.shapes for side in shape[:2]]
  fitting = [p for p in (1, 2, 4, 8) if all(side % p == 0 for side in every)]
  patches = {p: math.prod(side // p for side in sides) for p in fitting}
  few = [p for p in fitting if patches[p] <= bounds.patches]
  return min(few, default=max(fitting))


def _choose_rows(
  c: ml_collections.ConfigDict, bounds: Bounds, *, text: int, image: int, images: int
) -> None:
  """Rows of a document with another image and as much text as that has patches.

  Args:
    c: gets the values.
    bounds: the numbers to choose by.
    text: elements of the text of a long document.
    image: elements of an image; 0 without images.
    images: of a document with many.
  """
  row = (images + 1) * image + text + min(text, image)
  c.data.row_length = min(_up(row, 64), max(bounds.row, _up(image, 64)))
  c.data.image_slots = max(c.data.row_length // max(image, 1), 1)
  c.sample.max_elements = c.data.row_length


def _choose_training(
  c: ml_collections.ConfigDict, found: _Found, bounds: Bounds
) -> None:
  """Chooses the model, how long it is trained, and what it is asked meanwhile."""
  model = next(own for size, own in bounds.models.items() if found.size <= size)
  c.model.layers, c.model.width, c.model.mlp = model.layers, model.width, model.mlp
  c.model.heads = c.model.kv_heads = model.heads
  c.optim.peak_lr = model.peak_lr
  c.train.steps = model.steps
  lanes = c.data.lanes  # they divide the rows of an update
  c.train.batch_rows = max(bounds.elements // c.data.row_length, lanes) // lanes * lanes
  c.train.eval_rows = c.train.batch_rows
  c.train.eval_every_steps = c.train.save_every_steps = model.steps // 4
  ending = " <image>" if found.images else ""
  c.eval.prompts = tuple(f"{prompt.escape(t)}{ending}" for t in found.examples)


def _what_to_expect(c: ml_collections.ConfigDict, found: _Found) -> str:
  """How long it will take, and how often each image is learned."""
  width, mlp = c.model.width, c.model.mlp
  layer = 2 * width * width * (1 + c.model.kv_heads / c.model.heads) + 3 * width * mlp
  parameters = c.model.layers * layer + 2 * c.model.vocab_size * width
  elements = c.train.steps * c.train.batch_rows * c.data.row_length
  minutes = 6 * parameters * elements / TWO_CORES / 60
  said = f"; on two CPU cores about {max(round(minutes), 1)} min"
  if found.document:
    times = elements / found.document / found.size
    said += (
      f", in which each image is learned about {times:.0f} times (docs/data.md says"
      " what to expect of that)"
    )
  return said


def _up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
