"""Emoji: a model that draws an emoji from its name, and names one that it is shown."""

import ml_collections

from tfusion import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The emoji of Noto Color Emoji with their Unicode names, at 32 x 32 pixels.

  200 faces, animals and food, and five gestures in every skin tone, of which one is
  held out:
    tfusion train --config experiments/emoji.py:few --workdir runs/few
  All of them, about 2,000:
    tfusion train --config experiments/emoji.py --workdir runs/emoji
  A minute, to see that everything runs:
    tfusion train --config experiments/emoji.py:smoke --workdir runs/smoke
  The font is that of Debian's package fonts-noto-color-emoji, or of font=PATH.
  """
  arg = config_lib.parse_arg(arg, few=False, font="", smoke=False)
  c = config_lib.defaults()
  few = arg.few or arg.smoke
  font = f",font={arg.font}" if arg.font else ""
  c.data.sources = (f"emoji:{'few' if few else 'all'}{font}",)
  c.model.layers = c.model.unroll = 4
  c.model.width = 256
  c.model.heads = c.model.kv_heads = 4
  c.model.mlp = 704
  c.model.vocab_size = 768
  c.model.image_shape = (32, 32, 3)
  c.model.patch = 8  # 16 patches: four times as many images for the same work
  c.data.row_length = 320
  c.data.image_slots = 12
  c.data.lanes = 2
  c.diffusion.schedule = "linear"
  c.diffusion.target = "x0"
  c.diffusion.t_logit_std = 1.0
  c.diffusion.clip = 1.0  # pixels lie in [-1, 1]
  c.diffusion.image_first_clean = 1.0
  c.optim.peak_lr = 2e-3
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  c.train.steps = 4_000 if few else 24_000
  c.train.batch_rows = 2
  c.train.eval_every_steps = 1000
  c.train.save_every_steps = 500
  c.sample.sampler = "euler"
  c.sample.start = 1.0
  c.sample.steps = 25
  c.sample.guidance = 2.0
  c.sample.max_elements = 128
  c.eval.samples_per_class = 2000
  c.eval.prompts = (
    "grinning face <image>",
    "cat <image>",
    "slice of pizza <image>",
    "waving hand sign, dark skin <image>",
  )
  if arg.smoke:
    c.model.layers = c.model.unroll = 1
    c.model.width = 32
    c.model.heads = c.model.kv_heads = 2
    c.model.mlp = 64
    c.data.workers = 0
    c.train.steps = 8
    c.train.eval_rows = 2
    c.train.eval_every_steps = c.train.save_every_steps = 8
    c.train.log_every_steps = 2
    c.optim.warmup_steps = 2
    c.sample.steps = 2
    c.eval.samples_per_class = 4
    c.eval.batch = 4
    c.eval.text_rows = 4
  return c
