"""Promises of tfusion/interop/llama.py: what a config.json says in our knobs."""

import json

import pytest
import tiny
import tiny_weights

from tfusion.interop import llama
from tfusion.sequence import SpecialTokens


def refusal(**changes) -> str:
  with pytest.raises(ValueError) as error:
    llama.read_config(tiny_weights.config(**changes))
  return str(error.value)


def test_a_config_of_llama_3_is_read_in_our_knobs():
  values = tiny_weights.config(
    "llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling={
      "factor": 8.0,
      "high_freq_factor": 4.0,
      "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192,
      "rope_type": "llama3",
    },
    vocab_size=128256,
  )
  assert llama.read_config(values) == dict(
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    head_size=0,
    mlp=14336,
    vocab_size=128256,
    norms="before",
    qk_norm="none",
    attention_bias=False,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=(8.0, 1.0, 4.0, 8192.0),
  )


def test_what_a_kind_has_of_its_own_and_what_files_leave_out():
  qwen2 = llama.read_config(tiny_weights.config("qwen2"))
  assert qwen2["attention_bias"] and qwen2["qk_norm"] == "none"
  qwen3 = llama.read_config(tiny_weights.config("qwen3"))
  assert not qwen3["attention_bias"] and qwen3["qk_norm"] == "rms"
  assert qwen3["head_size"] == 16
  old = tiny_weights.config()
  for key in ("num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps"):
    del old[key]
  found = llama.read_config(old)
  assert found["kv_heads"] == 4 and found["rope_theta"] == 10_000.0
  assert found["rope_scaling"] == () and found["norm_eps"] == 1e-6


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(model_type="gemma"), "model_type='gemma': only ('llama', 'qwen2', 'qwen3')"),
    (dict(hidden_act="gelu"), "hidden_act='gelu': only 'silu'"),
    (dict(mlp_bias=True), "mlp_bias=True"),
    (dict(attention_bias=True), "of llama biases the outputs too"),
    (dict(use_sliding_window=True), "use_sliding_window=True"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "sliding_attention"),
    (dict(quantization_config={"bits": 4}), "quantization_config={'bits': 4}"),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_type='linear': only"),
    (dict(rope_scaling={"rope_type": "yarn"}), "rope_type='yarn': only 'default' and"),
    (
      dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
      "needs numbers for low_freq_factor, high_freq_factor, original_max",
    ),
    (dict(rope_theta=None), "rope_theta=None: a number"),
    (dict(num_hidden_layers="2"), "num_hidden_layers='2': a whole number"),
    (dict(hidden_size=None), "hidden_size=None: a whole number"),
  ],
)
def test_another_network_is_refused_with_the_value_that_makes_it_one(changes, says):
  assert says in refusal(**changes)


def test_all_that_is_wrong_is_said_at_once():
  text = refusal(hidden_act="gelu", mlp_bias=True, rope_scaling={"type": "dynamic"})
  assert all(part in text for part in ("hidden_act", "mlp_bias", "'dynamic'"))


SPECIAL = SpecialTokens(*range(5))
OF_KINDS = {
  "llama": {},
  "qwen2": dict(model__attention_bias=True),
  "qwen3": dict(model__qk_norm="rms", model__head_size=16),
  "tfusion": dict(model__qk_norm="layer", model__norms="after"),
}


@pytest.mark.parametrize("kind", OF_KINDS)
@pytest.mark.parametrize("scaling", [(), (8.0, 1.0, 4.0, 8192.0)])
def test_what_is_written_is_read_with_and_without_our_section(kind, scaling):
  changes = dict(model__untied="mlp", model__rope_scaling=scaling)
  model = tiny.config(**OF_KINDS[kind], **changes).model
  values = json.loads(json.dumps(llama.write_config(model, SPECIAL, positions=64)))
  assert values["model_type"] == kind
  found = llama.read_config(values)
  assert type(model)(**found) == model
  del values["tfusion"]
  if kind == "tfusion":
    with pytest.raises(ValueError, match="has no section 'tfusion'"):
      llama.read_config(values)
    return
  bare = llama.read_config(values)
  assert bare.items() <= found.items()
  assert "image_shape" in found and "image_shape" not in bare
  assert values["vocab_size"] == 32 and values["eos_token_id"] == SPECIAL.eos


def test_a_section_of_a_newer_tfusion_is_refused():
  values = llama.write_config(tiny.config().model, SPECIAL, positions=64)
  values["tfusion"]["model"]["experts"] = 8
  with pytest.raises(ValueError, match="unknown knobs.*experts.*newer tfusion"):
    llama.read_config(values)
