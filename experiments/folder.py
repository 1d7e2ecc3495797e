"""Your own folder of captioned images, with a model sized to suit it."""

import math

import ml_collections

from tfusion import config as config_lib
from tfusion import sizing
from tfusion.sizing import ModelSize

BOUNDS = sizing.Bounds(
  # Few patches: of the same work a model sees more images (docs/data.md).
  patch={8: 2, 16: 4, 32: 8, 64: 8},
  patches=64,
  row=1_024,  # longer documents are for data.too_long
  # Fewer images than these would be learned by heart; wider models want smaller steps.
  models={
    2_000: ModelSize(4, width=192, heads=4, mlp=512, peak_lr=2e-3, steps=6_000),
    20_000: ModelSize(6, width=256, heads=4, mlp=704, peak_lr=1.5e-3, steps=15_000),
    math.inf: ModelSize(8, width=384, heads=6, mlp=1024, peak_lr=1e-3, steps=60_000),
  },
  merges=(128, 3_584),
  characters_per_merge=100,
  elements=1_024,
)

SMOKE = {
  "model.layers": 2,
  "model.width": 64,
  "model.heads": 4,
  "model.kv_heads": 4,
  "model.mlp": 128,
  "data.workers": 0,
  "optim.warmup_steps": 2,
  "train.batch_rows": 4,
  "train.eval_rows": 4,
  "train.steps": 10,
  "train.eval_every_steps": 5,
  "train.save_every_steps": 5,
  "train.log_every_steps": 1,
  "sample.steps": 4,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """A model of the captions and images in a folder, sized for a laptop.

  Image files with a .txt of the same name beside each, or listed in a .jsonl with
  lines {"file": ..., "caption": ...}; README, "Your own images". Or a folder of
  shards that `tfusion prepare` made, of images, latents, codes or text.
    tfusion train --config experiments/folder.py:data=photos --workdir runs/photos
  Sizes are a start, not a limit: --config.model.width=512 changes one.
  aspects=3 lets images keep up to three aspects, chosen from those of the folder,
  where all are cropped to squares otherwise.
  """
  arg = config_lib.parse_arg(arg, data="", aspects=1, smoke=False)
  if not arg.data:
    raise ValueError(
      "experiments/folder.py: which folder? --config experiments/folder.py:data=PATH"
    )
  c = config_lib.defaults()
  # Not the paper's: a short run learns more by predicting the image than its noise.
  c.diffusion.schedule = "linear"
  c.diffusion.target = "x0"
  c.diffusion.t_logit_std = 1.0
  c.sample.sampler = "euler"
  c.sample.start = 1.0
  c.sample.steps = 25
  c.sample.guidance = 2.0
  c.diffusion.image_first_noise_cap = 0.5  # captions need to see the image
  c.diffusion.image_first_clean = 0.5  # what an image in a prompt is
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  instead = SMOKE if arg.smoke else {}
  sizing.fit(c, arg.data, BOUNDS, aspects=arg.aspects, instead=instead)
  if arg.smoke:
    c.eval.prompts = c.eval.prompts[:2]
  return c
