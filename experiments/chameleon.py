"""Chameleon (arXiv 2405.09818), as the Transfusion paper compares with it."""

import ml_collections

from tfusion import config as config_lib
from tfusion import paper

CODES = 16_384  # of the paper's VQ-VAE, 1,024 of which are an image of 256 x 256 pixels
RECIPES = ("chameleon", "chameleon_7b_original")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Text and images as tokens of one vocabulary, next-token loss on all of them.

  `recipe=chameleon` is the baseline of the Transfusion paper (arXiv 2408.11039, section
  4.1): norms of queries and keys, norms behind attention and MLP, z-loss, a rate of
  1e-4, all else as in experiments/paper.py. `recipe=chameleon_7b_original` has
  Chameleon 7B's own layers and optimizer: norms before them, dropout, eps 1e-5, a rate
  that decays exponentially. `text_only` is the third row of Table 4: the same model,
  the text half of every batch, no images.

  `images` is a folder of shards in codes, `text` one of text, of one tokenizer
  (docs/family.md):
    tfusion autoencoder --config experiments/autoencoder.py:vq,full --workdir runs/vq \\
      --config.data.sources='("folder:photos",)'
    tfusion prepare --source folder:photos --out shards/images \\
      --autoencoder runs/vq/autoencoder.safetensors --tokenizer t.model
    tfusion prepare --source text:TEXT --tokenizer t.model --out shards/text
    tfusion train --config experiments/chameleon.py:size=7b --workdir runs/chameleon
  Not run at these sizes. `smoke` is the same recipe on a toy model and prose, on a CPU
  in a minute; with `images=FOLDER` on those shards, whatever they hold:
    tfusion train --config experiments/chameleon.py:smoke --workdir runs/chameleon-smoke
  """
  known = dict(size="0.16b", recipe="chameleon", text_only=False, smoke=False)
  arg = config_lib.parse_arg(arg, **known, images="", text="")
  if arg.size not in paper.SIZES:
    raise ValueError(
      f"experiments/chameleon.py: size={arg.size!r}: choose one of {tuple(paper.SIZES)}"
    )
  if arg.recipe not in RECIPES:
    raise ValueError(
      f"experiments/chameleon.py: recipe={arg.recipe!r}: choose one of {RECIPES}"
    )
  c = config_lib.defaults()
  c.model.layers, c.model.width, c.model.heads, c.model.mlp = paper.SIZES[arg.size]
  c.model.kv_heads = c.model.heads
  c.model.vocab_size = paper.VOCAB_SIZE + CODES  # 48,640 = 2^9 x 95
  c.model.patches = "none"
  c.model.qk_norm = "layer"
  c.model.norms = "after"
  c.model.remat = "dots"  # ours
  c.data.image_slots = 1  # none is used
  c.data.too_long = "split"  # ours
  c.data.row_length = paper.ROW_LENGTH
  c.data.lanes = 64  # hosts must divide them
  c.data.workers = 4
  c.mesh.data, c.mesh.fsdp = 1, -1  # ours
  c.optim.peak_lr = 1e-4
  c.train.z_loss = 1e-5
  c.train.steps, c.train.batch_rows = 250_000, 512
  c.train.log_every_steps = 50
  c.train.eval_every_steps = 5_000
  c.train.eval_rows = 1_024
  c.train.save_every_steps = 2_500
  c.train.keep_every_steps = 25_000
  c.sample.max_elements = paper.ROW_LENGTH
  if arg.recipe == "chameleon_7b_original":
    c.model.norms, c.model.dropout = "before", 0.1
    c.optim.eps, c.optim.decay = 1e-5, "exponential"
    c.optim.end_lr = 1e-6  # ours: "to 0" in its paper, which no exponential reaches
  images, text = arg.images or "shards/images", arg.text or "shards/text"
  c.data.sources = (f"shards:{images}", f"shards:{text}")
  if arg.text_only:
    c.data.sources = c.data.sources[1:]
    c.train.batch_rows //= 2
  if arg.smoke:
    _shrink(c)
    c.data.sources = (f"shards:{images}",) if arg.images else ("pydoc",)
  return c


def _shrink(c: ml_collections.ConfigDict) -> None:
  c.model.layers, c.model.width, c.model.mlp = 2, 64, 128
  c.model.heads = c.model.kv_heads = 4
  c.model.vocab_size = 1_024
  c.data.row_length = 128
  c.data.lanes = 4
  c.data.workers = 0
  c.optim.warmup_steps = 10
  c.train.steps = 40
  c.train.batch_rows = c.train.eval_rows = 8
  c.train.log_every_steps = 5
  c.train.eval_every_steps = c.train.save_every_steps = 20
  c.train.keep_every_steps = 0
  c.sample.max_elements = 128
  c.eval.batch = 20
  c.eval.text_rows = 32
