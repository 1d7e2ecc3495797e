"""BAGEL without its understanding encoder, in plain numpy and float64.

Not a test: a folder as it is released, of random numbers, and what its model makes of a
row. Written from modeling/bagel/bagel.py and qwen2_navit.py of ByteDance-Seed/Bagel.
Which positions elements have and what they see is told, as in that code.
"""

import json
import pathlib

import numpy as np
import tiny_weights
from interop.plain_llama import frequencies, norm
from safetensors.numpy import save_file

CHANNELS, PATCH, SIDE = 2, 2, 8  # SIDE: patches of the largest image
TWICE = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "mlp")
TWICE += ("input_layernorm", "post_attention_layernorm")


def config(**changes) -> dict:
  """Its llm_config.json; that queries and keys are normed stands in its code alone."""
  return tiny_weights.config("qwen2", tie_word_embeddings=False, **changes)


def grid_waves(side: int, d: int) -> np.ndarray:
  """Its table of places, [side^2, d]: columns, then rows; of each sines, cosines."""
  turns = 1 / 10000 ** (np.arange(d // 4) / (d / 4))
  row, column = np.divmod(np.arange(side**2), side)
  parts = [f(np.outer(x, turns)) for x in (column, row) for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def tensors(values: dict, *, seed: int = 0) -> dict[str, np.ndarray]:
  """Random numbers by the names of ema.safetensors."""
  rng, d = np.random.default_rng(seed), values["hidden_size"]

  def numbers(*shape: int, around: float = 0.0) -> np.ndarray:
    return (around + 0.2 * rng.normal(size=shape)).astype(np.float32)

  found = {}
  plain = tiny_weights.tensors(values, seed=seed)
  k = d // values["num_attention_heads"]
  for n in range(values["num_hidden_layers"]):
    for name in ("q_norm", "k_norm"):
      plain[f"model.layers.{n}.self_attn.{name}.weight"] = numbers(k, around=1)
  for name, x in plain.items():
    found[f"language_model.{name}"] = x
    parts = name.split(".")
    if "layers" in parts:
      own = ".".join(f"{p}_moe_gen" if p in TWICE else p for p in parts)
      found[f"language_model.{own}"] = numbers(*x.shape, around=float("norm" in name))
  found["language_model.model.norm_moe_gen.weight"] = numbers(d, around=1)
  cells = CHANNELS * PATCH**2
  shapes = {"vae2llm": (d, cells), "llm2vae": (cells, d)}
  shapes |= {"time_embedder.mlp.0": (d, 256), "time_embedder.mlp.2": (d, d)}
  for name, shape in shapes.items():
    found[f"{name}.weight"] = numbers(*shape)
    found[f"{name}.bias"] = numbers(shape[0])
  found["latent_pos_embed.pos_embed"] = grid_waves(SIDE, d)
  # The understanding encoder, of which nothing is read.
  found["vit_pos_embed.pos_embed"] = grid_waves(3, d)
  found["connector.fc1.weight"] = numbers(d, 7)
  found["vit_model.vision_model.encoder.layers.0.mlp.fc1.bias"] = numbers(5)
  return found


def write(folder: pathlib.Path, values: dict, found: dict) -> pathlib.Path:
  """Writes a folder as it is released."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "llm_config.json").write_text(json.dumps(values))
  (folder / "config.json").write_text("{}")
  save_file(found, folder / "ema.safetensors", {"format": "pt"})
  save_file({"a": np.zeros(2, np.float32)}, folder / "ae.safetensors")
  return folder


def embed_image(w: dict, noisy_hwc: np.ndarray, t: float) -> np.ndarray:
  """[patches, d] of a noised image; t is 0 to 1."""
  h, width, c = noisy_hwc.shape
  rows, columns = h // PATCH, width // PATCH
  latent = noisy_hwc.transpose(2, 0, 1).reshape(c, rows, PATCH, columns, PATCH)
  flat = np.einsum("chpwq->hwpqc", latent).reshape(rows * columns, -1)
  turns = np.exp(-np.log(10000) * np.arange(128) / 128)
  time = np.concatenate([np.cos(t * turns), np.sin(t * turns)])
  time = w["time_embedder.mlp.0.weight"] @ time + w["time_embedder.mlp.0.bias"]
  time = time / (1 + np.exp(-time))
  time = w["time_embedder.mlp.2.weight"] @ time + w["time_embedder.mlp.2.bias"]
  place = (np.arange(rows)[:, None] * SIDE + np.arange(columns)).reshape(-1)
  made = flat @ w["vae2llm.weight"].T + w["vae2llm.bias"]
  return made + time + w["latent_pos_embed.pos_embed"][place]


def run(values: dict, found: dict, x_ld, is_gen_l, positions_l, sees_lm) -> np.ndarray:
  """Last hidden states [l, d] of embedded elements.

  Args:
    values: its config.
    found: its tensors.
    x_ld: embedded.
    is_gen_l: whether an element is a patch of a noised image.
    positions_l: of RoPE.
    sees_lm: whether l sees m.
  """
  w = {name: np.asarray(x, np.float64) for name, x in found.items()}
  eps, h = values["rms_norm_eps"], values["num_attention_heads"]
  k, group = values["hidden_size"] // h, h // values["num_key_value_heads"]
  angle = np.asarray(positions_l)[:, None] * frequencies(values, k)

  def both(apply, name):
    """Every element by the weight of its own."""
    parts = name.split(".")
    gen = ".".join(f"{p}_moe_gen" if p in (*TWICE, "norm") else p for p in parts)
    one, other = (apply(f"language_model.model.{n}") for n in (name, gen))
    where = np.reshape(is_gen_l, (-1,) + (1,) * (one.ndim - 1))
    return np.where(where, other, one)

  def linear(x, name):
    return both(lambda n: x @ w[f"{n}.weight"].T + w.get(f"{n}.bias", 0), name)

  def normed(x, name):
    return both(lambda n: norm(x, w[f"{n}.weight"], eps), name)

  def turned(x_lhk):
    z = x_lhk[..., : k // 2] + 1j * x_lhk[..., k // 2 :]
    z = z * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)

  x = np.asarray(x_ld, np.float64)
  for n in range(values["num_hidden_layers"]):
    at = f"layers.{n}"
    own = normed(x, f"{at}.input_layernorm")
    q, key, v = (
      linear(own, f"{at}.self_attn.{name}_proj").reshape(len(x), -1, k)
      for name in "qkv"
    )
    q = turned(normed(q, f"{at}.self_attn.q_norm"))
    key = turned(normed(key, f"{at}.self_attn.k_norm"))
    key, v = (np.repeat(y, group, axis=1) for y in (key, v))
    score = np.einsum("lhk,mhk->hlm", q, key) / np.sqrt(k)
    score = np.where(sees_lm, score, -np.inf)
    share = np.exp(score - score.max(axis=-1, keepdims=True))
    share = share / share.sum(axis=-1, keepdims=True)
    out = np.einsum("hlm,mhk->lhk", share, v).reshape(len(x), -1)
    x = x + linear(out, f"{at}.self_attn.o_proj")
    own = normed(x, f"{at}.post_attention_layernorm")
    gate, up = (linear(own, f"{at}.mlp.{name}_proj") for name in ("gate", "up"))
    x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj")
  return normed(x, "norm")
