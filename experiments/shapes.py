"""Shapes: captions and 32 x 32 images of scenes with one to four things."""

import ml_collections

from tfusion import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """One model that makes scenes from captions and captions scenes; a program marks it.

  25M elements; no full run has been timed or evaluated yet. On a laptop:
    tfusion train --config experiments/shapes.py --workdir runs/shapes
  A minute, to see that everything runs:
    tfusion train --config experiments/shapes.py:smoke --workdir runs/smoke
  One thing in a scene, which is learned first:
    tfusion train --config experiments/shapes.py:things=1 --workdir runs/one
  """
  arg = config_lib.parse_arg(arg, smoke=False, things=4)
  c = config_lib.defaults()
  c.model.layers = 6
  c.model.unroll = 6
  c.model.width = 320
  c.model.heads = 5
  c.model.kv_heads = 5
  c.model.mlp = 896
  c.model.vocab_size = 512
  c.model.image_shape = (32, 32, 3)
  c.model.patch = 4  # 64 patches: a small thing covers two or three
  c.data.sources = (f"shapes:pairs,things={arg.things}",)
  c.data.row_length = 256
  c.data.image_slots = 4
  c.data.caption_first = 0.65  # as in digits.py
  c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  c.diffusion.image_first_noise_cap = 0.5
  c.diffusion.image_first_clean = 0.5
  c.optim.peak_lr = 1e-3
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  c.train.steps = 6000
  c.train.batch_rows = 16
  c.train.eval_every_steps = 1000
  c.train.save_every_steps = 500
  c.sample.max_elements = 256
  c.eval.text_rows = 64
  c.eval.prompts = (
    "a red circle <image>",
    "a large blue star in the top left <image>",
    "a green ring left of a pink square <image>",
    "two yellow shapes and an orange shape <image>",
  )
  if arg.smoke:
    c.model.layers = 2
    c.model.unroll = 2
    c.model.width = 64
    c.model.heads = 4
    c.model.kv_heads = 4
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
