"""A run that begins with the weights of a language model: what their folder decides.

Owns: the knobs that follow from a folder and from what is to become of its weights.
Not: the rest of the run (experiments/warmstart.py), reading weights (interop/).
"""

from pathlib import Path
from typing import NamedTuple

import ml_collections

from tfusion.config import SAMPLERS
from tfusion.data.tokenizer import Tokenizer
from tfusion.interop.weights import TOKENIZERS, Weights

# A vocabulary that has to grow becomes a multiple of this, so that it divides over the
# devices of mesh.tensor; ours.
MULTIPLE = 64


class Tower(NamedTuple):
  """What becomes of the weights that text has."""

  text_lr_factor: float
  untied: str
  lora_rank: int = 0


TOWERS = {
  # LMFusion (arXiv 2412.15188): what it says of text alone never changes.
  "frozen": Tower(0.0, "all"),
  "low": Tower(0.1, "all"),  # ours
  "lora": Tower(0.0, "all", lora_rank=16),  # ours
  # As Transfusion has it: one set of weights for both.
  "full": Tower(1.0, "none"),
}


def fit(config: ml_collections.ConfigDict, folder: str, *, tower: str) -> None:
  """Gives a config the model, the noise and the tokenizer of a folder, and says what it
  found.

  Args:
    config: gets the values.
    folder: of a Llama or a Qwen as Hugging Face has it, with its tokenizer; or one that
      `tfusion export` wrote, or BAGEL's, whose image part is taken too, as it is, with
      the noise that it knows.
    tower: one of TOWERS.

  Raises:
    ValueError: no folder, no weights or no tokenizer that can be used in it, or an
      unknown tower.
  """
  if not folder:
    raise ValueError(
      "experiments/warmstart.py: which weights? --config"
      " experiments/warmstart.py:weights=DIR"
    )
  if tower not in TOWERS:
    raise ValueError(
      f"experiments/warmstart.py: tower={tower!r}: choose one of {tuple(TOWERS)}"
    )
  weights = Weights(folder)
  path, tokenizer = _tokenizer(weights.folder)
  for name, value in weights.knobs.items():
    config.model[name] = value
  for name, value in weights.layout.noise.items():
    config.diffusion[name] = value
  known = SAMPLERS[config.diffusion.schedule]
  if config.sample.sampler not in known:
    config.sample.sampler = known[0]
  if "untied" not in weights.knobs:
    config.model.untied = TOWERS[tower].untied
  config.model.lora_rank = TOWERS[tower].lora_rank
  config.train.text_lr_factor = TOWERS[tower].text_lr_factor
  config.train.init_from = folder
  config.data.tokenizer = str(path)
  if tokenizer.vocab_size > weights.rows:
    config.model.vocab_size = -(-tokenizer.vocab_size // MULTIPLE) * MULTIPLE
  new = config.model.vocab_size - weights.rows
  print(
    f"{folder}: {weights.describe()}; {tokenizer.vocab_size} pieces with BOI and EOI in"
    f" {config.model.vocab_size} rows, of which {new} are new"
  )


def _tokenizer(folder: Path) -> tuple[Path, Tokenizer]:
  """The first of its tokenizers that is of a kind that is read."""
  faults = []
  for name in TOKENIZERS:
    if (folder / name).is_file():
      try:
        return folder / name, Tokenizer.load(folder / name, key="")
      except ValueError as error:  # Llama 2's tokenizer.json, beside a .model
        faults.append(str(error))
  if faults:
    raise ValueError("\n".join(faults))
  raise ValueError(
    f"{folder}: holds no {' or '.join(TOKENIZERS)}: its weights would not know the"
    " pieces of another tokenizer; copy its own too"
  )
