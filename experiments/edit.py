"""Editing: a trained model learns from a few thousand examples to change an image."""

import ml_collections

from tfusion import config as config_lib
from tfusion import warmstart


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The claim of arXiv 2408.11039, section 4.4, small: image + instruction -> image.

  First a model of captions and scenes, 32 x 32 pixels with one thing, which never sees
  one image made from another; docs/scenes.md has times and results:
    tfusion train --config experiments/edit.py --workdir runs/scenes
    tfusion eval --workdir runs/scenes --suite shapes,shapes_of:edits
    tfusion export --workdir runs/scenes --to exported
  Then its weights learn edits, mixed with what they were trained on:
    tfusion train --config experiments/edit.py:weights=exported --workdir runs/edit
  `share` is the share of captioned scenes in what they learn then, by elements; with
  share=0 they learn edits alone, and `tfusion eval --suite shapes_of:pairs` says what
  they still know. `triples` is the number of edits, `things` that of things in a scene
  at most. 2,000 and 300 updates, with edits right in none of 100, are too few
  (docs/scenes.md). A minute, to see that everything runs:
    tfusion train --config experiments/edit.py:smoke --workdir runs/smoke
  """
  known = dict(weights="", edits="", share=0.5, triples=4000, things=1, smoke=False)
  arg = config_lib.parse_arg(arg, **known)
  if not 0 <= arg.share < 1:
    raise ValueError(f"experiments/edit.py: share={arg.share:g}: from 0 to below 1")
  pairs = f"shapes:pairs,things={arg.things}"
  edits = f"shapes:edits,things={arg.things},length={arg.triples}"
  edits = f"shards:{arg.edits}" if arg.edits else edits
  c = config_lib.defaults()
  c.model.layers = 4
  c.model.unroll = 4
  c.model.width = 256
  c.model.heads = 4
  c.model.kv_heads = 4
  c.model.mlp = 704
  c.model.vocab_size = 512
  c.model.image_shape = (32, 32, 3)
  c.model.patch = 8  # 16 patches: a CPU sees three times as many scenes as with 4
  c.data.sources = (pairs,)
  c.data.row_length = 128
  c.data.image_slots = 6
  c.data.caption_first = 0.65  # as in digits.py
  # A patch has 192 numbers: the model has no need to carry the noise of them all.
  c.diffusion.target = "x0"
  c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  c.diffusion.image_first_noise_cap = 0.5
  c.diffusion.image_first_clean = 0.5
  c.optim.peak_lr = 1.5e-3
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  c.train.steps = 2400
  c.train.batch_rows = 16
  c.train.eval_every_steps = 400
  c.train.save_every_steps = 400
  c.sample.sampler = "ddim"
  c.sample.steps = 25
  c.sample.max_elements = 128
  c.eval.text_rows = 64
  c.eval.prompts = (
    "a red circle <image>",
    "a large blue star in the top left <image>",
    "a green ring <image>",
  )
  if arg.weights:
    c.data.sources = (pairs, edits) if arg.share else (edits,)
    c.data.weights = (arg.share, 1 - arg.share) if arg.share else ()
    c.optim.peak_lr = 1e-3
    c.train.steps = 600
    c.train.eval_every_steps = c.train.save_every_steps = 300
    warmstart.fit(c, arg.weights, tower="full")
  if arg.smoke:
    if not arg.weights:  # else they decide the size
      c.model.layers = 2
      c.model.unroll = 2
      c.model.width = 64
      c.model.mlp = 128
    c.train.steps = 40
    c.train.eval_every_steps = 20
    c.train.save_every_steps = 20
    c.train.log_every_steps = 5
    c.train.eval_rows = 16
    c.optim.warmup_steps = 10
    c.data.workers = 0
    c.sample.steps = 10
    c.eval.samples_per_class = 4
    c.eval.batch = 8
    c.eval.text_rows = 16
  return c
