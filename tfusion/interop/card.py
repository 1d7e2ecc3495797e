"""The model card of an exported run: README.md, as Hugging Face shows it.

Owns: its words. Not: what is exported (export.py).

It names no path of the machine, and states no license: that is for who publishes it.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from tfusion.config import Config
from tfusion.interop import llama
from tfusion.version import __version__

HEAD = """---
library_name: tfusion
tags:
- transfusion
---
"""
BEGIN = "tfusion train --config experiments/warmstart.py:weights=FOLDER --workdir RUN"
TRANSFORMERS = """The text part alone is a {name}, and answers in transformers as here:

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("FOLDER")

transformers does not know the image part, and leaves it alone.
"""
NOT_TRANSFORMERS = """transformers has no class for this text part; only tfusion has.
"""


def write(
  config: Config, *, step: int, sizes: Mapping[str, int], facts: Mapping[str, Any]
) -> str:
  """The text of the card.

  Args:
    config: of the run.
    step: updates done.
    sizes: numbers in the part of text and in that of images.
    facts: what else is known, by name; numbers and words.
  """
  model, kind = config.model, llama.kind_of(config.model)
  sees = "text alone" if model.patches == "none" else "text and images in one sequence"
  lines = [
    HEAD,
    f"# A Transfusion model of {sum(sizes.values()):,} parameters\n",
    f"It models {sees}: next tokens, and images by diffusion"
    " (Transfusion, [arXiv 2408.11039](https://arxiv.org/abs/2408.11039)). Trained with"
    f" tfusion {__version__}.\n",
    "## The model\n",
    *_table(_of_model(config, sizes)),
    "## Its training\n",
    *_table(_of_training(config, step) | dict(facts)),
    "## Use\n",
    "With tfusion, as the beginning of another run, bit for bit:\n",
    f"    {BEGIN}\n",
    TRANSFORMERS.format(name=llama.CLASSES[kind])
    if kind in llama.CLASSES
    else NOT_TRANSFORMERS,
    "## Limits\n",
    "It says and draws what its data taught it, and nothing in it filters that. It has"
    " been evaluated only where a number stands above. License, languages and intended"
    " use are for who publishes it to state.\n",
  ]
  return "\n".join(lines)


def _of_model(config: Config, sizes: Mapping[str, int]) -> dict[str, Any]:
  model = config.model
  rows = {
    "parameters of text": f"{sizes['text']:,}",
    "parameters of images alone": f"{sizes['images']:,}",
    "layers, width, MLP": f"{model.layers}, {model.width}, {model.mlp}",
    "heads, key and value heads, numbers of a head": (
      f"{model.heads}, {model.kv_heads}, {model.head_dim}"
    ),
    "rows of the vocabulary": model.vocab_size,
    "weights of patches' own": model.untied,
  }
  if model.patches == "none":
    return rows
  h, w, c = model.image_shape
  return rows | {
    "an image": f"{h} x {w} x {c} in patches of {model.patch} x {model.patch},"
    f" {model.patches_per_image} of them, {model.patches}",
    "diffusion": f"schedule {config.diffusion.schedule}, target"
    f" {config.diffusion.target}, {config.diffusion.timesteps} timesteps",
  }


def _of_training(config: Config, step: int) -> dict[str, Any]:
  data, train = config.data, config.train
  sources = ", ".join(source.partition(":")[0] for source in data.sources)
  began = PurePath(train.init_from).name if train.init_from else "random numbers"
  return {
    "began with": began,
    "updates": f"{step:,} of {train.steps:,}",
    "an update": f"{train.batch_rows} rows of {data.row_length} elements",
    "sources": sources,
    "peak learning rate": config.optim.peak_lr,
    "of text, of images": f"x {train.text_lr_factor:g}, x {train.image_lr_factor:g}",
    "these weights": f"a moving average, decay {config.optim.ema_decay:g}"
    if config.optim.ema_decay
    else "those of the last update",
  }


def _table(rows: Mapping[str, Any]) -> list[str]:
  lines = ["| | |", "|---|---|"]
  for name, value in rows.items():
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    lines.append(f"| {name} | {shown} |")
  return [*lines, ""]
