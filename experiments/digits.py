"""Digits: captions and 8 x 8 scans of handwritten digits, and English prose."""

import ml_collections

from tfusion import config as config_lib
from tfusion.data.digits import DIGIT_WORDS


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """One model that writes text, samples digits and reads them.

  On 2 CPU cores in 10 minutes to half an hour, evaluation included; README, "Results",
  has what it reached:
    tfusion train --config experiments/digits.py --workdir runs/digits
  A minute, to see that everything runs:
    tfusion train --config experiments/digits.py:smoke --workdir runs/smoke
  """
  arg = config_lib.parse_arg(arg, smoke=False)
  c = config_lib.defaults()
  c.model.layers = 4  # wide and shallow keeps a CPU busy with matmuls
  c.model.unroll = 4
  c.model.width = 320
  c.model.heads = 5
  c.model.kv_heads = 5
  c.model.mlp = 896
  c.model.vocab_size = 512
  c.model.image_shape = (8, 8, 1)
  c.model.patch = 2
  c.data.sources = ("digits", "pydoc")
  c.data.row_length = 128
  c.data.image_slots = 6
  # The paper has 0.8; a short run that is to read as well as it writes needs more
  # images before their captions.
  c.data.caption_first = 0.65
  c.diffusion.clip = 1.0  # scans lie in [-1, 1]
  c.diffusion.image_first_noise_cap = 0.5  # captions need to see the image
  # Noise keeps the model from knowing scans by heart; clean ones are what it is shown.
  c.diffusion.image_first_clean = 0.5
  c.optim.peak_lr = 1e-3  # small model, short run
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  c.train.steps = 2000
  c.train.batch_rows = 16
  c.train.eval_every_steps = 500
  c.train.save_every_steps = 500
  c.sample.max_elements = 64
  c.eval.prompts = tuple(f"a handwritten {word} <image>" for word in DIGIT_WORDS)
  if arg.smoke:
    c.model.layers = 2
    c.model.unroll = 2
    c.model.width = 64
    c.model.heads = 4
    c.model.kv_heads = 4
    c.model.mlp = 128
    c.train.steps = 60
    c.train.eval_every_steps = 30
    c.train.save_every_steps = 30
    c.train.log_every_steps = 5
    c.optim.warmup_steps = 10
    c.data.workers = 0
    c.sample.steps = 10
    c.eval.samples_per_class = 2
    c.eval.batch = 20
    c.eval.text_rows = 32
  return c
