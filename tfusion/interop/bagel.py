"""BAGEL's released weights (arXiv 2505.14683), without its understanding encoder.

Owns: which tensor each parameter of ours is, the knobs that make our model theirs. Not:
reading (weights.py).

The names are those of its code (modeling/bagel/bagel.py and qwen2_navit.py of
ByteDance-Seed/Bagel), the files those that its app.py opens: llm_config.json and
ema.safetensors. What a patch has of its own is called *_moe_gen there. docs/weights.md
says in what the two models differ beside their weights.
"""

from typing import Any

from tfusion.interop import llama
from tfusion.interop.layout import TURNED, VECTOR, Layout, Theirs

CONFIG, STEM = "llm_config.json", "ema"
_TEXT, _BLOCKS = "language_model.", "transformer.blocks."
# What is there twice: by its last name, or the one before.
_TWICE = (
  *("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "mlp"),
  *("input_layernorm", "post_attention_layernorm"),
)
# Ours to theirs of the layers into and out of the width.
_PATCHES = {
  "in": "vae2llm",
  "time1": "time_embedder.mlp.0",
  "time2": "time_embedder.mlp.2",
  "out": "llm2vae",
}
# The understanding encoder and its connector; and fixed sines, which follow from the
# size of the grid.
LEFT_OUT = (
  r"(vit_model|connector)\..*|vit_pos_embed\.pos_embed|latent_pos_embed\.pos_embed"
)
# t runs from 0 to 1 there. Its latents have 16 channels; the sides are ours.
KNOBS: dict[str, Any] = {
  "qk_norm": "rms",
  "untied": "all",
  "patches": "linear",
  "patch": 2,
  "image_shape": (32, 32, 16),
  "positions": "shared",
  "patch_places": "sine",
  "time_scale": 1e-3,
}
NOISE = {
  "timesteps": 1000,
  "schedule": "linear",
  "target": "v",
  "context": "both",
}


def _names() -> dict[str, Theirs]:
  found = {
    path: theirs._replace(name=_TEXT + theirs.name)
    for path, theirs in llama.NAMES.items()
  }
  for path, theirs in list(found.items()):
    if path.startswith(_BLOCKS):
      own = path.replace(_BLOCKS, f"{_BLOCKS}image.")
      found[own] = theirs._replace(name=_of_patches(theirs.name))
  found["transformer.image_norm.scale"] = Theirs(
    f"{_TEXT}model.norm_moe_gen.weight", VECTOR
  )
  for ours, name in _PATCHES.items():
    found[f"patches.w_{ours}"] = Theirs(f"{name}.weight", TURNED)
    found[f"patches.b_{ours}"] = Theirs(f"{name}.bias", VECTOR)
  return found


def _of_patches(name: str) -> str:
  """The name of the twin of a layer's tensor."""
  parts = name.split(".")
  return ".".join(f"{part}_moe_gen" if part in _TWICE else part for part in parts)


NAMES = _names()


def layout(values: Any) -> Layout:
  """The layout of a folder with this llm_config.json.

  Raises:
    ValueError: names every value that makes it another network than a Qwen2.
  """
  if isinstance(values, dict) and values.get("model_type") != "qwen2":
    raise ValueError(f"model_type={values.get('model_type')!r}: BAGEL is a qwen2")
  # Its code sets what the file does not say: qk_norm, and a head that is not tied.
  knobs = llama.read_config(values) | KNOBS
  return Layout(
    kind="BAGEL",
    knobs=knobs,
    noise=dict(NOISE),
    names=NAMES,
    tables=(_TEXT + llama.EMBEDDING, _TEXT + llama.HEAD),
    stem=STEM,
    ignored=LEFT_OUT,
  )
