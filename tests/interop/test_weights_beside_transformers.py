"""What `transformers` writes gives its logits here, and what we write ours there.

Needs torch and transformers, and is skipped without.
"""

import importlib.util

import jax
import numpy as np
import pytest
import tiny_weights
from interop import test_export
from interop import test_weights as own

from tfusion.data.tokenizer import Tokenizer

pytestmark = [
  pytest.mark.usefixtures("mesh"),
  pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="not run beside transformers: pip install torch==2.13.0 transformers",
  ),
]

LLAMA3 = dict(rope_parameters=tiny_weights.LLAMA3 | {"rope_theta": 500.0})
MODELS = {
  "Llama 2": ("Llama", {}),
  "Llama 3.2": ("Llama", dict(tie_word_embeddings=True, **LLAMA3)),
  "Qwen2.5": ("Qwen2", {}),
  "tied Qwen2.5": ("Qwen2", dict(tie_word_embeddings=True)),
  "Qwen3": ("Qwen3", dict(head_dim=16)),
  "a usual Qwen3": ("Qwen3", dict(head_dim=8, tie_word_embeddings=True)),
}


def theirs(kind: str, **changes):
  """A model of theirs with random numbers, none of them a zero or a one."""
  import torch
  import transformers

  config = getattr(transformers, f"{kind}Config")(
    vocab_size=tiny_weights.ROWS,
    hidden_size=tiny_weights.WIDTH,
    intermediate_size=tiny_weights.MLP,
    num_hidden_layers=tiny_weights.LAYERS,
    num_attention_heads=tiny_weights.HEADS,
    num_key_value_heads=tiny_weights.KV_HEADS,
    attn_implementation="eager",
    **changes,
  )
  torch.manual_seed(0)
  model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(float("norm" in name), 0.2)
  return model


def logits_of(model, ids) -> np.ndarray:
  """[l, v] of theirs."""
  import torch

  with torch.no_grad():
    return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_folder_are_those_of_transformers(name, tmp_path):
  kind, changes = MODELS[name]
  model = theirs(kind, **changes)
  model.save_pretrained(tmp_path, max_shard_size="20KB")
  assert (tmp_path / "model.safetensors.index.json").is_file()
  config, params = own.load(tmp_path, model__patches="none")
  want = logits_of(model, own.IDS)
  got = own.logits(config, params, own.IDS)
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert jax.tree.leaves(params)[0].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("untied", ["none", "all"])
def test_logits_of_what_is_exported_are_those_of_transformers(kind, untied, tmp_path):
  import transformers

  tokenizer = Tokenizer(tiny_weights.tokenizer())
  changes = test_export.KINDS[kind] | dict(model__untied=untied)
  config, params = test_export.made(tmp_path / "out", tokenizer, **changes)
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", attn_implementation="eager", output_loading_info=True
  )
  assert type(model).__name__ == f"{tiny_weights.CLASSES[kind]}ForCausalLM"
  assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
  want = logits_of(model.eval(), own.IDS)
  got = own.logits(config, params, own.IDS)
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(got, want, atol=1e-4)
