"""Folders of weights as Hugging Face has them, of random numbers, written by hand.

Not a test: shared by tests of interop, of the pages and of experiments. Names, shapes
and configs stand here as they are in published folders, and are not asked of tfusion.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

WIDTH, LAYERS, HEADS, KV_HEADS, MLP, ROWS = 32, 2, 4, 2, 48, 40
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# As in Llama 3.2, but trained on fewer positions, so that a short row shows it.
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 32.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}


def config(kind: str = "llama", **changes) -> dict:
  """A config.json."""
  values = {
    "architectures": [f"{CLASSES[kind]}ForCausalLM"],
    "model_type": kind,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": ROWS,
  }
  if kind == "qwen2":  # a window that is not used
    values |= {"sliding_window": 4096, "use_sliding_window": False}
  if kind == "qwen3":
    values |= {"head_dim": 16, "attention_bias": False}
  return values | changes


def tensors(values: dict, *, seed: int = 0) -> dict[str, np.ndarray]:
  """Random numbers by their names: matrices are [outputs, inputs]."""
  rng, d, f = (
    np.random.default_rng(seed),
    values["hidden_size"],
    values["intermediate_size"],
  )
  h, g = values["num_attention_heads"], values["num_key_value_heads"]
  k, kind = values.get("head_dim") or d // h, values["model_type"]

  def numbers(*shape: int, around: float = 0.0) -> np.ndarray:
    return (around + 0.2 * rng.normal(size=shape)).astype(np.float32)

  found = {"model.embed_tokens.weight": numbers(values["vocab_size"], d)}
  for n in range(values["num_hidden_layers"]):
    at = f"model.layers.{n}."
    for name, outputs in (("q", h * k), ("k", g * k), ("v", g * k)):
      found[f"{at}self_attn.{name}_proj.weight"] = numbers(outputs, d)
      if kind == "qwen2":
        found[f"{at}self_attn.{name}_proj.bias"] = numbers(outputs)
    if kind == "qwen3":
      found[f"{at}self_attn.q_norm.weight"] = numbers(k, around=1)
      found[f"{at}self_attn.k_norm.weight"] = numbers(k, around=1)
    found[f"{at}self_attn.o_proj.weight"] = numbers(d, h * k)
    found[f"{at}mlp.gate_proj.weight"] = numbers(f, d)
    found[f"{at}mlp.up_proj.weight"] = numbers(f, d)
    found[f"{at}mlp.down_proj.weight"] = numbers(d, f)
    found[f"{at}input_layernorm.weight"] = numbers(d, around=1)
    found[f"{at}post_attention_layernorm.weight"] = numbers(d, around=1)
  found["model.norm.weight"] = numbers(d, around=1)
  if not values["tie_word_embeddings"]:
    found["lm_head.weight"] = numbers(values["vocab_size"], d)
  return found


def write(
  folder: pathlib.Path, values: dict, found: dict[str, np.ndarray], *, files: int = 1
) -> pathlib.Path:
  """Writes config.json and the tensors, in one file or in several with an index."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(values))
  if files == 1:
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return folder
  names = [f"model-{n + 1:05}-of-{files:05}.safetensors" for n in range(files)]
  places = {key: names[i * files // len(found)] for i, key in enumerate(found)}
  for name in names:
    part = {key: x for key, x in found.items() if places[key] == name}
    save_file(part, folder / name, {"format": "pt"})
  size = sum(x.nbytes for x in found.values())
  index = {"metadata": {"total_size": size}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


def folder(
  where: pathlib.Path, kind: str = "llama", *, files: int = 1, seed: int = 0, **changes
) -> pathlib.Path:
  """A whole folder."""
  values = config(kind, **changes)
  return write(where, values, tensors(values, seed=seed), files=files)


def tokenizer(*, name: str = "<|endoftext|>", pieces: int = 0) -> bytes:
  """A tokenizer.json of the 256 bytes, a special token, and further pieces."""
  tokenizers = pytest.importorskip("tokenizers")
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merged = [a + b for a in letters[:20] for b in letters[:20]][:pieces]
  vocab = {piece: n + 1 for n, piece in enumerate([*letters, *merged])}
  model = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={name: 0} | vocab, merges=[tuple(m) for m in merged])
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  model.add_special_tokens([name])
  return model.to_str().encode()


def with_tokenizer(where: pathlib.Path, kind: str = "llama", **changes) -> pathlib.Path:
  """A whole folder with a tokenizer.json, for whose 257 pieces there are 260 rows."""
  folder(where, kind, **{"vocab_size": 260} | changes)
  (where / "tokenizer.json").write_bytes(tokenizer())
  return where
