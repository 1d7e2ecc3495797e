"""Llama, Qwen2 and Qwen3 in plain numpy and float64, from their tensors and config.

Not a test: what tests of interop compare with. Written from the description of the
models, with one loop over layers and one over heads, and nothing of tfusion.
"""

import numpy as np


def norm(x, weight, eps: float):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def frequencies(values: dict, k: int) -> np.ndarray:
  """Of the pairs of a head; slow ones are stretched by the kind llama3."""
  found, scaling = [], values.get("rope_scaling")
  for pair in range(k // 2):
    frequency = values["rope_theta"] ** (-2 * pair / k)
    if scaling:
      before = scaling["original_max_position_embeddings"]
      low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
      wave = 2 * np.pi / frequency
      if wave > before / low:
        frequency /= scaling["factor"]
      elif wave > before / high:
        share = (before / wave - low) / (high - low)
        frequency = (1 - share) * frequency / scaling["factor"] + share * frequency
    found.append(frequency)
  return np.asarray(found)


def turn(x_lk, frequency_k):
  """RoPE in the layout of Hugging Face: pairs (i, i + k / 2)."""
  angle = np.arange(len(x_lk))[:, None] * frequency_k
  half = x_lk.shape[1] // 2
  z = (x_lk[:, :half] + 1j * x_lk[:, half:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], axis=1)


def logits(values: dict, tensors: dict[str, np.ndarray], ids) -> np.ndarray:
  """[l, v] of a text."""
  w = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
  d, h, g = (
    values[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads")
  )
  k, eps = values.get("head_dim") or d // h, values["rms_norm_eps"]
  turns, x = frequencies(values, k), w["model.embed_tokens.weight"][ids]
  hidden = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
  for n in range(values["num_hidden_layers"]):
    at = f"model.layers.{n}."
    own = norm(x, w[f"{at}input_layernorm.weight"], eps)
    heads = {}
    for name in "qkv":
      made = own @ w[f"{at}self_attn.{name}_proj.weight"].T
      made = made + w.get(f"{at}self_attn.{name}_proj.bias", 0)
      made = made.reshape(len(ids), -1, k)
      if f"{at}self_attn.{name}_norm.weight" in w:
        made = norm(made, w[f"{at}self_attn.{name}_norm.weight"], eps)
      heads[name] = made
    out = np.zeros((len(ids), h, k))
    for head in range(h):
      shared = head * g // h
      q = turn(heads["q"][:, head], turns)
      keys = turn(heads["k"][:, shared], turns)
      score = q @ keys.T / np.sqrt(k) + hidden
      share = np.exp(score - score.max(axis=1, keepdims=True))
      share /= share.sum(axis=1, keepdims=True)
      out[:, head] = share @ heads["v"][:, shared]
    x = x + out.reshape(len(ids), -1) @ w[f"{at}self_attn.o_proj.weight"].T
    own = norm(x, w[f"{at}post_attention_layernorm.weight"], eps)
    gate = own @ w[f"{at}mlp.gate_proj.weight"].T
    up = own @ w[f"{at}mlp.up_proj.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}mlp.down_proj.weight"].T
  head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
  return norm(x, w["model.norm.weight"], eps) @ head.T
