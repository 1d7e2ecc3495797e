"""Several kinds in one run: pictures of two shapes and sine waves, drawn for this."""

import ml_collections

from tfusion import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Discs on pictures of 16 x 16 and of 8 x 24 pixels, and waves of 64 numbers.

  On 2 CPU cores in about 10 minutes; docs/kinds.md has what it reached:
    tfusion train --config experiments/kinds.py --workdir runs/kinds
  A minute, to see that everything runs:
    tfusion train --config experiments/kinds.py:smoke --workdir runs/smoke
  """
  arg = config_lib.parse_arg(arg, smoke=False)
  c = config_lib.defaults()
  c.model.layers = 4
  c.model.width = 128
  c.model.mlp = 352
  c.model.vocab_size = 384
  c.model.image_shape = (16, 16, 3)
  c.model.patch = 4
  c.model.kinds = ("wide:8x24x3,like=image", "wave:64x1,patch=4")
  c.data.sources = ("mixed",)
  c.data.row_length = 160
  c.data.caption_first = 0.5
  c.diffusion.image_first_noise_cap = 0.5
  c.diffusion.image_first_clean = 0.5
  c.diffusion.clip = 1.0  # all numbers lie in [-1, 1]
  c.optim.peak_lr = 2e-3
  c.optim.end_lr = 2e-5
  c.optim.warmup_steps = 50
  c.optim.ema_decay = 0.99
  c.train.steps = 2000
  c.train.batch_rows = 16
  c.train.eval_rows = 16
  c.train.eval_every_steps = 500
  c.train.save_every_steps = 500
  c.sample.sampler = "ddim"
  c.sample.steps = 25
  c.sample.guidance = 2.0
  c.sample.max_elements = 96
  c.eval.samples_per_class = 8
  c.eval.prompts = (
    "a red disc, left <image>",
    "a blue disc, right <image:wide>",
    "a wave of 2 <wave>",
    "a wave of 5 <wave>",
  )
  if arg.smoke:
    c.model.layers = 1
    c.model.width = 32
    c.model.mlp = 64
    c.data.workers = 0
    c.train.steps = 6
    c.train.batch_rows = 4
    c.train.eval_rows = 4
    c.train.eval_every_steps = 3
    c.train.save_every_steps = 3
    c.train.log_every_steps = 1
    c.sample.steps = 2
    c.eval.samples_per_class = 1
    c.eval.text_rows = 4
  return c
