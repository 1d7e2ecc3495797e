"""Networks of others with random weights, in files as theirs are but narrow.

Not a test: shared by the tests of whatever opens such files.
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from tfusion.evaluate.networks import inception


def inception_weights(*, seed: int = 0, width: int = 3) -> dict[str, np.ndarray]:
  """Weights of an Inception whose every convolution has `width` outputs."""
  rng, found = np.random.default_rng(seed), {}

  def add(name: str, own: inception.Convolution, channels: int) -> int:
    shape = (width, channels, *own.kernel)
    spread = np.sqrt(2 / np.prod(shape[1:]))
    found[f"{name}.conv.weight"] = spread * rng.normal(size=shape)
    for part, low, high in (
      ("weight", 0.5, 1.5),
      ("bias", -0.2, 0.2),
      ("running_mean", -0.2, 0.2),
      ("running_var", 0.5, 1.5),
    ):
      found[f"{name}.bn.{part}"] = rng.uniform(low, high, width)
    return width

  channels = 3
  for own in inception.STEM:
    if not isinstance(own, str):
      channels = add(own.name, own, channels)
  for block, branches in inception.BLOCKS:
    joined = 0
    for branch in branches:
      inner = channels
      for step in branch:
        if isinstance(step, list):
          inner = sum(add(f"{block}.{own.name}", own, inner) for own in step)
        elif not isinstance(step, str):
          inner = add(f"{block}.{step.name}", step, inner)
      joined += inner
    channels = joined
  return {name: x.astype(np.float32) for name, x in found.items()}


def inception_file(path: pathlib.Path, **how) -> pathlib.Path:
  """The same in a .safetensors file; returns its path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  save_file(inception_weights(**how), path)
  return path


CLIP = {
  "model_type": "clip",
  "projection_dim": 6,
  "text_config": {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "max_position_embeddings": 9,
    "hidden_act": "quick_gelu",
    "bos_token_id": 30,
    "eos_token_id": 31,
  },
  "vision_config": {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
  },
}
WORDS = "a photo depicts red green ring star of and the".split()


def clip_weights(*, seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights of a CLIP of these sizes, under the names of transformers."""
  rng = np.random.default_rng(seed)
  text, vision = CLIP["text_config"], CLIP["vision_config"]
  shapes = {
    "logit_scale": (),
    "text_model.embeddings.token_embedding.weight": (32, 16),
    "text_model.embeddings.position_embedding.weight": (9, 16),
    "text_model.final_layer_norm": 16,
    "vision_model.embeddings.class_embedding": (12,),
    "vision_model.embeddings.patch_embedding.weight": (12, 3, 8, 8),
    "vision_model.embeddings.position_embedding.weight": (5, 12),
    "vision_model.pre_layrnorm": 12,
    "vision_model.post_layernorm": 12,
    "visual_projection.weight": (6, 12),
    "text_projection.weight": (6, 16),
  }
  for kind, own in (("text", text), ("vision", vision)):
    d, f = own["hidden_size"], own["intermediate_size"]
    for i in range(own["num_hidden_layers"]):
      prefix = f"{kind}_model.encoder.layers.{i}"
      for x in "qkv":
        shapes[f"{prefix}.self_attn.{x}_proj"] = (d, d)
      shapes[f"{prefix}.self_attn.out_proj"] = (d, d)
      shapes |= {f"{prefix}.mlp.fc1": (f, d), f"{prefix}.mlp.fc2": (d, f)}
      shapes |= {f"{prefix}.layer_norm1": d, f"{prefix}.layer_norm2": d}
  found = {}
  for name, shape in shapes.items():
    norm, linear = isinstance(shape, int), name.endswith(("proj", "fc1", "fc2"))
    if norm or linear:
      size = (shape,) if norm else shape
      found[f"{name}.weight"] = norm + 0.4 * rng.normal(size=size)
      found[f"{name}.bias"] = 0.2 * rng.normal(size=size[:1])
    else:
      found[name] = 0.4 * rng.normal(size=shape)
  return {name: np.asarray(x, np.float32) for name, x in found.items()}


def clip_folder(folder: pathlib.Path, *, seed: int = 0) -> pathlib.Path:
  """A folder as the hub has them; its tokenizer knows WORDS. Returns it."""
  from tokenizers import Tokenizer, models, pre_tokenizers, processors

  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(CLIP))
  save_file(clip_weights(seed=seed), folder / "model.safetensors")
  ids = {word: i for i, word in enumerate(WORDS)} | {"?": 29, "<s>": 30, "</s>": 31}
  tokenizer = Tokenizer(models.WordLevel(ids, unk_token="?"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 30), ("</s>", 31)]
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder
