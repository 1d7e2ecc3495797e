"""The models of the family give what those of `transformers` give with their numbers.

Needs torch and transformers, and is skipped without.
"""

import importlib.util

import jax
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.model.transfusion import bind

pytestmark = [
  pytest.mark.usefixtures("mesh"),
  pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="not run beside transformers: pip install torch==2.13.0 transformers",
  ),
]

# Its class and more of its config; ours.
MODELS = {
  "Llama": ("Llama", {}, {}),
  "Chameleon 34B": (
    "Chameleon",
    dict(swin_norm=True),
    dict(model__norms="after", model__qk_norm="layer"),
  ),
  "Chameleon 7B": ("Chameleon", dict(swin_norm=False), dict(model__qk_norm="layer")),
  "Qwen2": ("Qwen2", {}, dict(model__attention_bias=True)),
  "Qwen3": ("Qwen3", dict(head_dim=8), dict(model__qk_norm="rms")),
}


def theirs(kind: str, model, more: dict):
  """The language model of `transformers` of our sizes, and its head."""
  import transformers

  if kind == "Chameleon":  # its own autoencoder is made too
    small = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1)
    small |= dict(embed_dim=8, num_embeddings=8, latent_channels=8, resolution=8)
    more = more | dict(vq_config=small, vocabulary_map={"<image>": 31})
  config = getattr(transformers, f"{kind}Config")(
    vocab_size=model.vocab_size,
    hidden_size=model.width,
    intermediate_size=model.mlp,
    num_hidden_layers=model.layers,
    num_attention_heads=model.heads,
    num_key_value_heads=model.kv_heads,
    rms_norm_eps=model.norm_eps,
    rope_parameters=dict(rope_type="default", rope_theta=model.rope_theta),
    tie_word_embeddings=False,
    attn_implementation="eager",
    **more,
  )
  last = "ForConditionalGeneration" if kind == "Chameleon" else "ForCausalLM"
  whole = getattr(transformers, f"{kind}{last}")(config).eval()
  return whole.model, whole.lm_head


def in_their_form(params: dict, kind: str) -> dict[str, np.ndarray]:
  """Our numbers by the names of theirs; matrices are [outputs, inputs]."""
  blocks = params["transformer"]["blocks"]
  found = {
    "embed_tokens.weight": params["embedding"],
    "norm.weight": params["transformer"]["norm"]["scale"],
  }
  for i in range(len(blocks["mlp"]["w_up"])):
    own = jax.tree.map(lambda x: np.asarray(x[i]), blocks)  # noqa: B023
    a, m, at = own["attention"], own["mlp"], f"layers.{i}."
    width = a["wq"].shape[0]
    for name in "qkv":
      found[f"{at}self_attn.{name}_proj.weight"] = a[f"w{name}"].reshape(width, -1).T
      if f"b_{name}" in a:
        found[f"{at}self_attn.{name}_proj.bias"] = a[f"b_{name}"].reshape(-1)
    for name in {"q_norm", "k_norm"} & a.keys():
      heads = a["wq" if name == "q_norm" else "wk"].shape[1]
      for ours, its in (("scale", "weight"), ("bias", "bias")):
        if ours in a[name]:
          x = a[name][ours]
          # Chameleon's has them for every head, of which those of a shard agree.
          x = np.tile(x, (heads, 1)) if kind == "Chameleon" else x
          found[f"{at}self_attn.{name}.{its}"] = x
    found[f"{at}self_attn.o_proj.weight"] = a["wo"].reshape(-1, width).T
    for name in ("gate", "up", "down"):
      found[f"{at}mlp.{name}_proj.weight"] = m[f"w_{name}"].T
    found[f"{at}input_layernorm.weight"] = own["attention_norm"]["scale"]
    found[f"{at}post_attention_layernorm.weight"] = own["mlp_norm"]["scale"]
  return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name):
  import torch

  kind, more, ours = MODELS[name]
  config = tiny.config(model__patches="none", **ours)
  params = tiny.params(config.model)
  model, head = theirs(kind, config.model, more)
  numbers = in_their_form(params, kind)
  numbers = {k: torch.from_numpy(np.array(x)) for k, x in numbers.items()}
  left = model.load_state_dict(numbers, strict=False)
  assert not left.unexpected_keys
  assert all(key.startswith("vqmodel") for key in left.missing_keys)
  rng = np.random.default_rng(0)
  # A row each, of BOS and 23 tokens: nothing is padding.
  rows = [tiny.pack([(tiny.text(rng, 23),)], config) for _ in range(2)]
  batch = sequence.stack(rows)
  with torch.no_grad():
    ids = torch.from_numpy(batch.tokens_bl.astype(np.int64))
    x = model(input_ids=ids).last_hidden_state
    head.weight.copy_(torch.from_numpy(np.array(params["head"]).T))
    want = head(x).numpy()
  forward = jax.jit(lambda batch: bind(config.model, params)(batch, None, None)[0])
  got = np.asarray(forward(tiny.put(batch)))
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(got, want, atol=1e-4)
