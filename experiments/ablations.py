"""What every run of `tfusion ablate` begins with: small twins of the paper's models."""

import ml_collections

from tfusion import config as config_lib

# layers, width, heads, mlp; widths of a U-Net are 32 and up at every size, so that it
# adds less to a large model, as in Table 7.
SIZES = {"xs": (2, 96, 2, 256), "s": (3, 128, 2, 352), "m": (4, 192, 3, 512)}
STEPS = {"tiny": 2_000, "small": 40_000}
GROUNDS = ("latents", "codes", "text")
BOOK = 512  # codes of experiments/autoencoder.py:vq


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """A model of scenes of 64 x 64 pixels and of prose, as docs/ablations.md has it.

  `ground` is what it stands on: latents, 16 x 16 x 4 numbers of an image; codes, 256 of
  an image (Chameleon); or text, prose alone (Llama 2). `assets` is the folder where
  `tfusion ablate` puts shards of these. `scale` says how long: tiny is meant for 2 CPU
  cores, two runs at once; small is for a GPU.
    tfusion ablate table5 --scale tiny
  One of its runs alone, when it has made the assets:
    tfusion train --config experiments/ablations.py --workdir runs/base
  """
  known = dict(ground="latents", size="s", scale="tiny", smoke=False)
  arg = config_lib.parse_arg(arg, **known, assets="runs/ablate/assets")
  if arg.ground not in GROUNDS or arg.size not in SIZES or arg.scale not in STEPS:
    raise ValueError(
      f"experiments/ablations.py: ground={arg.ground}, size={arg.size} and scale="
      f"{arg.scale}: choose from {GROUNDS}, {tuple(SIZES)} and {tuple(STEPS)}"
    )
  c = config_lib.defaults()
  c.model.layers, c.model.width, c.model.heads, c.model.mlp = SIZES[arg.size]
  c.model.unroll, c.model.kv_heads = c.model.layers, c.model.heads
  c.model.vocab_size = 512
  c.model.image_shape = (16, 16, 4)
  c.model.patch = 2  # 64 patches; codes are four times as many, as in the paper
  c.data.sources = (f"shards:{arg.assets}/{arg.ground}", "pydoc")
  c.data.tokenizer = f"{arg.assets}/tokenizer.model"
  c.data.row_length = 576
  c.data.image_slots = 8
  # The paper has 0.8; what images say is learned from the others alone, and a short run
  # sees few.
  c.data.caption_first = 0.5
  c.data.lanes = 1  # which the one row of text alone divides by
  c.optim.peak_lr = 3e-3
  c.optim.end_lr = 3e-5
  c.optim.warmup_steps = 50
  c.optim.ema_decay = 0.99
  c.train.steps = STEPS[arg.scale]
  c.train.batch_rows = 2  # small batches learn faster from few images
  c.train.eval_rows = 32
  c.train.eval_every_steps = c.train.save_every_steps = c.train.steps
  c.sample.sampler = "ddim"
  c.sample.steps = 20
  c.sample.max_elements = 352
  c.eval.batch = 48
  c.eval.text_rows = 32
  c.eval.prompts = ("a red circle <image>",)
  if arg.ground == "codes":
    _chameleon(c)
  if arg.ground == "text":
    c.data.sources = ("pydoc",)
    c.model.patches = "none"
    c.train.batch_rows //= 2  # the text half of the others' batches, as in Table 4
    c.eval.prompts = ()
  if arg.smoke:
    _smoke(c)
  return c


def _chameleon(c: ml_collections.ConfigDict) -> None:
  """As experiments/chameleon.py, at half of the rate."""
  c.model.vocab_size += BOOK
  c.model.patches = "none"
  c.model.qk_norm = "layer"
  c.model.norms = "after"
  c.train.z_loss = 1e-5
  c.data.image_slots = 1
  c.optim.peak_lr = 1e-3


def _smoke(c: ml_collections.ConfigDict) -> None:
  c.model.layers = c.model.unroll = 1
  c.model.width, c.model.heads, c.model.kv_heads, c.model.mlp = 32, 2, 2, 64
  c.data.workers = 0
  c.optim.warmup_steps = 2
  c.train.steps = c.train.eval_every_steps = c.train.save_every_steps = 8
  c.train.eval_rows = 4
  c.train.log_every_steps = 2
  c.sample.steps = 2
  c.eval.text_rows = 4
