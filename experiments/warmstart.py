"""A language model with published weights that learns images."""

import ml_collections

from tfusion import config as config_lib
from tfusion import paper, warmstart


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Begins with the weights of a Llama, a Qwen or a SmolLM, and trains on images too.

  `weights` is the folder of a Llama 2 or 3, Qwen2, 2.5 or 3, or SmolLM 1 or 2 with
  config.json, safetensors and tokenizer, or one that `tfusion export` wrote. It
  decides the size of the model. From your own images and text, with its tokenizer:
    tfusion prepare --source tar:IMAGES --autoencoder FILE \\
      --tokenizer llama/tokenizer.json --out shards/images
    tfusion prepare --source text:TEXT --tokenizer llama/tokenizer.json \\
      --out shards/text
    tfusion train --config experiments/warmstart.py:weights=llama --workdir runs/warm
  `images` and `text` name other folders of shards.

  `tower` is what becomes of the weights of text: `frozen`, they stay, and patches have
  their own, as in LMFusion (arXiv 2412.15188); `low`, the same at a tenth of the rate;
  `lora`, they stay, and a change of rank 16 is learned (arXiv 2106.09685); `full`, both
  share all weights and learn them at the full rate, as in Transfusion.

  Rate, rows and batch are ours, and not run at a published model's size. `smoke` trains
  the same weights on the digits for some steps, to see that everything works.
  """
  known = dict(weights="", tower="frozen", smoke=False)
  known |= dict(images="shards/images", text="shards/text")
  arg = config_lib.parse_arg(arg, **known)
  c = config_lib.defaults()
  c.model.image_shape, c.model.patch = paper.LATENT_SHAPE, 2
  c.model.remat = "dots"
  c.data.sources = (f"shards:{arg.images}", f"shards:{arg.text}")
  c.data.too_long = "split"
  c.data.row_length = paper.ROW_LENGTH
  c.data.lanes = 64  # hosts must divide them
  c.data.workers = 4
  c.mesh.data, c.mesh.fsdp = 1, -1  # all chips of a slice share the parameters
  c.optim.peak_lr = 1e-4
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 2_000
  c.train.steps = 100_000
  c.train.batch_rows = 256
  c.train.log_every_steps = 50
  c.train.eval_every_steps = c.train.save_every_steps = 2_500
  c.train.eval_rows = 512
  c.sample.guidance = 5.0
  c.sample.max_elements = paper.ROW_LENGTH
  if arg.smoke:
    _shrink(c)
  warmstart.fit(c, arg.weights, tower=arg.tower)
  # An image alone is BOS, BOI, its patches and EOI.
  patches = (c.model.image_shape[0] // c.model.patch) ** 2
  c.data.image_slots = c.data.row_length // (patches + 3)
  return c


def _shrink(c: ml_collections.ConfigDict) -> None:
  c.model.image_shape = (8, 8, 1)
  c.data.sources = ("digits", "pydoc")
  c.data.row_length = 128
  c.data.lanes = 4
  c.data.workers = 0
  c.optim.warmup_steps = 10
  c.train.steps = 20
  c.train.batch_rows = c.train.eval_rows = 8
  c.train.log_every_steps = 5
  c.train.eval_every_steps = c.train.save_every_steps = 10
  c.sample.steps = 10
  c.sample.max_elements = 128
  c.eval.samples_per_class = 2
  c.eval.batch = 20
  c.eval.text_rows = 32
