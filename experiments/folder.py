"""One's own folder of captioned images; sizes are chosen from what it holds."""

import math
from pathlib import Path

import ml_collections

from tfusion import config as config_lib
from tfusion.data import folder
from tfusion.data.shards import manifest, source
from tfusion.generate import prompt

# Side of an image in pixels -> side of a patch: at most 64 patches, so that a step
# takes a laptop well under a second.
PATCH = {8: 2, 16: 2, 32: 4, 64: 8}
PATCHES = 64  # of a latent or of another size, where its sides allow it
ROW = 1_024  # elements, at most; longer documents are for data.too_long

# Images up to -> layers, width, heads, mlp, peak lr, steps. Fewer images than these
# would be learned by heart; wider models want smaller steps.
MODELS = {
  2_000: (4, 192, 4, 512, 2e-3, 2_000),
  20_000: (6, 256, 4, 704, 1.5e-3, 5_000),
  math.inf: (8, 384, 6, 1024, 1e-3, 20_000),
}

# Merged pieces of the vocabulary: one for every 100 characters of the captions, so
# that each is seen often enough, within these bounds.
MERGES = (128, 3_584)

ELEMENTS = 3_072  # per update


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """A model of the captions and images in a folder, sized for a laptop.

  Image files with a .txt of the same name beside each, or listed in a .jsonl with
  lines {"file": ..., "caption": ...}; README, "Your own pictures". Or a folder of
  shards that `tfusion prepare` made, of pictures, latents, codes or text.
    tfusion train --config experiments/folder.py:data=photos --workdir runs/photos
  Sizes are a start, not a limit: --config.model.width=512 changes one.
  """
  arg = config_lib.parse_arg(arg, data="", smoke=False)
  if not arg.data:
    raise ValueError(
      "experiments/folder.py: which folder? --config experiments/folder.py:data=PATH"
    )
  c = config_lib.defaults()
  prepared = (Path(arg.data) / manifest.MANIFEST).is_file()
  found = (_fit_shards if prepared else _fit_folder)(c, arg.data)
  if arg.smoke:
    c.model.layers = 2
    c.model.width = 64
    c.model.heads = c.model.kv_heads = 4
    c.model.mlp = 128
    c.train.batch_rows = c.train.eval_rows = 4
    c.train.steps = 10
    c.train.eval_every_steps = c.train.save_every_steps = 5
    c.train.log_every_steps = 1
    c.optim.warmup_steps = 2
    c.data.workers = 0
    c.sample.steps = 4
    c.eval.prompts = c.eval.prompts[:2]
  print(
    f"{found}; chosen: image {tuple(c.model.image_shape)}, patch {c.model.patch},"
    f" vocabulary {c.model.vocab_size}, {c.model.layers} layers of width"
    f" {c.model.width}, rows of {c.data.row_length}, {c.train.steps} steps"
  )
  return c


def _fit_folder(c: ml_collections.ConfigDict, path: str) -> str:
  """Chooses for raw images; returns what is there."""
  found = folder.survey(path)
  c.data.sources = (f"folder:{path}",)
  side = max(px for px in PATCH if px <= max(found.short_side_px, min(PATCH)))
  c.model.image_shape = (side, side, 1 if found.gray else 3)
  c.model.patch = PATCH[side]
  merges = min(max(found.characters // 100, MERGES[0]), MERGES[1])
  # Special tokens, bytes and every character have a piece of their own.
  c.model.vocab_size = _up(6 + 256 + found.alphabet + merges, 64)
  # Pieces of alphabetic scripts have at least two characters on average.
  caption = -(-found.long_caption // (2 if found.alphabet < 300 else 1))
  _choose_rows(c, text=caption, image=(side // c.model.patch) ** 2 + 3, images=1)
  c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  _choose_training(c, found.images, found.examples)
  return (
    f"{path}: {found.images} images of about {found.short_side_px} px"
    f" ({'gray' if found.gray else 'colour'}), {found.captions} captions of up to"
    f" {found.long_caption} characters, {found.skipped} skipped"
  )


def _fit_shards(c: ml_collections.ConfigDict, path: str) -> str:
  """Chooses for what is tokenised and encoded already; returns what is there."""
  found = source.survey(path)
  images = found.manifest.images
  c.data.sources = (f"shards:{path}",)
  c.model.vocab_size = found.manifest.vocabulary
  image = 0
  if images and images.kind == "codes":
    c.model.vocab_size += images.codebook
    image = images.shape[0] + 3  # with BOS, BOI and EOI
  elif images:
    c.model.image_shape = images.shape
    c.model.patch = _patch(images)
    image = math.prod(side // c.model.patch for side in images.shape[:2]) + 3
    if images.kind == "pixels":
      c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  c.model.vocab_size = _up(c.model.vocab_size, 64)
  _choose_rows(c, text=found.document_tokens, image=image, images=found.document_images)
  # Codes cannot be drawn yet, nor latents without their autoencoder.
  codes = images and images.kind == "codes"
  lost = images and images.latents and not found.manifest.autoencoder_sha256
  _choose_training(
    c,
    found.images or found.documents,
    () if codes or lost else found.examples,
    drawn=found.images > 0,
  )
  return (
    f"{path}: {found.documents} documents with {found.images} images, of up to"
    f" {found.document_tokens} tokens and {found.document_images} images"
  )


def _patch(images: manifest.ImageFormat) -> int:
  """As of raw images; else the smallest of which there are at most PATCHES."""
  sides = images.shape[:2]
  if images.kind == "pixels" and sides[0] == sides[1] and sides[0] in PATCH:
    return PATCH[sides[0]]
  fitting = [p for p in (1, 2, 4, 8) if all(side % p == 0 for side in sides)]
  few = [p for p in fitting if math.prod(side // p for side in sides) <= PATCHES]
  return min(few, default=max(fitting))


def _choose_rows(c, *, text: int, image: int, images: int) -> None:
  """Rows of a document with another picture and as much text as it has patches.

  Args:
    c: the config.
    text: elements of the text of a long document.
    image: elements of an image; 0 without images.
    images: of a document with many.
  """
  row = (images + 1) * image + text + min(text, image)
  c.data.row_length = min(_up(row, 64), max(ROW, _up(image, 64)))
  c.data.image_slots = max(c.data.row_length // max(image, 1), 1)
  c.sample.max_elements = c.data.row_length


def _choose_training(
  c: ml_collections.ConfigDict, size: int, examples: tuple[str, ...], *, drawn=True
) -> None:
  """Chooses for `size` images, or documents where no images are drawn."""
  layers, width, heads, mlp, peak_lr, steps = next(
    sizes for bound, sizes in MODELS.items() if size <= bound
  )
  c.model.layers, c.model.width, c.model.mlp = layers, width, mlp
  c.model.heads = c.model.kv_heads = heads
  c.diffusion.image_first_noise_cap = 0.5  # captions need to see the image
  c.diffusion.image_first_clean = 0.5  # what a picture in a prompt is
  c.optim.peak_lr = peak_lr
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  c.train.steps = steps
  c.train.batch_rows = max(ELEMENTS // c.data.row_length, 4) // 4 * 4  # lanes divide it
  c.train.eval_rows = c.train.batch_rows
  c.train.eval_every_steps = c.train.save_every_steps = steps // 4
  ending = " <image>" if drawn else ""
  c.eval.prompts = tuple(f"{prompt.escape(t)}{ending}" for t in examples)


def _up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
