"""One's own folder of captioned images; sizes are chosen from what it holds."""

import math

import ml_collections

from tfusion import config as config_lib
from tfusion.data import folder

# Side of an image in pixels -> side of a patch: at most 64 patches, so that a step
# takes a laptop well under a second.
PATCH = {8: 2, 16: 2, 32: 4, 64: 8}

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
  lines {"file": ..., "caption": ...}; README, "Your own pictures".
    tfusion train --config experiments/folder.py:data=photos --workdir runs/photos
  Sizes are a start, not a limit: --config.model.width=512 changes one.
  """
  arg = config_lib.parse_arg(arg, data="", smoke=False)
  if not arg.data:
    raise ValueError(
      "experiments/folder.py: which folder? --config experiments/folder.py:data=PATH"
    )
  found = folder.survey(arg.data)
  c = config_lib.defaults()
  c.data.sources = (f"folder:{arg.data}",)
  _choose_sizes(c, found)
  _choose_training(c, found)
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
    f"{arg.data}: {found.images} images of about {found.short_side_px} px"
    f" ({'gray' if found.gray else 'colour'}), {found.captions} captions of up to"
    f" {found.long_caption} characters, {found.skipped} skipped; chosen: image"
    f" {tuple(c.model.image_shape)}, patch {c.model.patch}, vocabulary"
    f" {c.model.vocab_size}, {c.model.layers} layers of width {c.model.width}, rows of"
    f" {c.data.row_length}, {c.train.steps} steps"
  )
  return c


def _choose_sizes(c: ml_collections.ConfigDict, found: folder.Survey) -> None:
  side = max(px for px in PATCH if px <= max(found.short_side_px, min(PATCH)))
  c.model.image_shape = (side, side, 1 if found.gray else 3)
  c.model.patch = PATCH[side]
  merges = min(max(found.characters // 100, MERGES[0]), MERGES[1])
  # Special tokens, bytes and every character have a piece of their own.
  c.model.vocab_size = _up(6 + 256 + found.alphabet + merges, 64)
  # Pieces of alphabetic scripts have at least two characters on average.
  caption = -(-found.long_caption // (2 if found.alphabet < 300 else 1))
  image = (side // c.model.patch) ** 2 + 3  # with BOS, BOI and EOI
  c.data.row_length = _up(2 * image + caption + min(caption, image), 64)
  c.data.image_slots = max(c.data.row_length // image, 1)
  c.sample.max_elements = c.data.row_length


def _choose_training(c: ml_collections.ConfigDict, found: folder.Survey) -> None:
  layers, width, heads, mlp, peak_lr, steps = next(
    sizes for bound, sizes in MODELS.items() if found.images <= bound
  )
  c.model.layers, c.model.width, c.model.mlp = layers, width, mlp
  c.model.heads = c.model.kv_heads = heads
  c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
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
  # "<" begins an image in a prompt.
  c.eval.prompts = tuple(f"{t} <image>" for t in found.examples if "<" not in t)


def _up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
