"""Language models of the Llama kind, as the folders of Hugging Face have them.

Owns: what their config.json is in our knobs and what ours is in theirs, which tensor of
theirs each parameter of ours is. Not: reading files (tensors.py), parameters on devices
(weights.py), writing a folder (export.py).

RoPE turns the pairs (i, i + k/2) of a head in both, so no matrix is reordered; theirs
are [outputs, inputs]. Tied embeddings become two parameters of the same numbers, which
are free to part when they are trained: ours.
"""

import dataclasses
from typing import Any

from tfusion.config import ModelConfig
from tfusion.interop.layout import (
  BIASES,
  OF_HEADS,
  TABLE,
  TO_WIDTH,
  TURNED,
  VECTOR,
  Layout,
  Theirs,
)
from tfusion.sequence import SpecialTokens

# What the attention of a kind has beside Llama's: model.attention_bias, model.qk_norm.
KINDS = {"llama": (False, "none"), "qwen2": (True, "none"), "qwen3": (False, "rms")}
CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
OURS = "tfusion"  # the kind of any other model of ours; the section with our knobs
# Whole numbers that a config must have, and our names for them.
SIZES = {
  "num_hidden_layers": "layers",
  "hidden_size": "width",
  "num_attention_heads": "heads",
  "intermediate_size": "mlp",
  "vocab_size": "vocab_size",
}
# Other values than these are other networks. What is left out has this value.
ONLY = {
  "hidden_act": "silu",
  "mlp_bias": False,
  "use_sliding_window": False,
  "partial_rotary_factor": 1.0,
  "quantization_config": None,
}
# Of llama3's scaling of RoPE, in the order of model.rope_scaling.
SCALING = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
)
# How a program is run, which a folder of weights says nothing of.
OF_NOISE = "timesteps schedule target context".split()  # of an exported model's
OF_RUNS = "dropout dtype gradient_dtype remat unroll attention".split()


_BLOCKS, _LAYERS = "transformer.blocks.", "model.layers.{}."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Parameters of text by their dotted path.
NAMES = {
  "embedding": Theirs(EMBEDDING, TABLE),
  "head": Theirs(HEAD, TURNED),
  "transformer.norm.scale": Theirs("model.norm.weight", VECTOR),
} | {
  f"{_BLOCKS}{ours}": Theirs(f"{_LAYERS}{theirs}", axes)
  for ours, theirs, axes in (
    ("attention_norm.scale", "input_layernorm.weight", VECTOR),
    ("attention.wq", "self_attn.q_proj.weight", OF_HEADS),
    ("attention.wk", "self_attn.k_proj.weight", OF_HEADS),
    ("attention.wv", "self_attn.v_proj.weight", OF_HEADS),
    ("attention.b_q", "self_attn.q_proj.bias", BIASES),
    ("attention.b_k", "self_attn.k_proj.bias", BIASES),
    ("attention.b_v", "self_attn.v_proj.bias", BIASES),
    ("attention.q_norm.scale", "self_attn.q_norm.weight", VECTOR),
    ("attention.k_norm.scale", "self_attn.k_norm.weight", VECTOR),
    ("attention.q_norm.bias", "self_attn.q_norm.bias", VECTOR),
    ("attention.k_norm.bias", "self_attn.k_norm.bias", VECTOR),
    ("attention.wo", "self_attn.o_proj.weight", TO_WIDTH),
    ("mlp_norm.scale", "post_attention_layernorm.weight", VECTOR),
    ("mlp.w_gate", "mlp.gate_proj.weight", TURNED),
    ("mlp.w_up", "mlp.up_proj.weight", TURNED),
    ("mlp.w_down", "mlp.down_proj.weight", TURNED),
  )
}
# No parameters: frequencies of RoPE in old files, which follow from the config.
FREQUENCIES = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"


def layout(values: Any) -> Layout:
  """The layout of a folder with this config.json.

  Raises:
    ValueError: names every value that makes it another network, or is missing.
  """
  knobs = read_config(values)
  section = values.get(OURS) or {}
  noise = section.get("diffusion") or {}
  names = values.get("architectures") or [values["model_type"]]
  return Layout(
    kind=str(names[0]),
    knobs=knobs,
    noise={name: noise[name] for name in OF_NOISE if name in noise},
    names=NAMES,
    tables=(EMBEDDING, HEAD),
    is_tied=bool(values.get("tie_word_embeddings", False)),
    ignored=FREQUENCIES,
  )


def read_config(values: Any) -> dict[str, Any]:
  """Turns a config.json into knobs of `model.`, by name without the section.

  Args:
    values: of the file. One that tfusion wrote has a section with all knobs that the
      weights depend on, those of patches too; of others these are not among what is
      returned.

  Raises:
    ValueError: names every value that makes it another network, or is missing.
  """
  if not isinstance(values, dict):
    raise ValueError(f"expected an object, found {type(values).__name__}")
  kind = values.get("model_type")
  if kind not in (*KINDS, OURS):
    raise ValueError(f"model_type={kind!r}: only {tuple(KINDS)} can be opened")
  if OURS in values:
    return _our_knobs(values[OURS])
  if kind == OURS:
    raise ValueError(f"has no section {OURS!r}")
  problems = [
    f"{key}={values[key]!r}: only {only!r} can be opened"
    for key, only in ONLY.items()
    if values.get(key, only) not in (only, None)
  ]
  layer_types = set(values.get("layer_types") or ["full_attention"])
  if layer_types != {"full_attention"}:
    problems.append(f"layer_types={sorted(layer_types)}: only full_attention can be")
  if kind != "qwen2" and values.get("attention_bias"):
    problems.append(f"attention_bias=True: of {kind} biases the outputs too; it cannot")
  sizes, missing = _sizes(values)
  problems += missing
  scaling, more = _rope(values)
  problems += more
  if problems:
    raise ValueError("; ".join(problems))
  bias, norm = KINDS[str(kind)]
  knobs = sizes | scaling | {"norms": "before", "attention_bias": bias, "qk_norm": norm}
  knobs["norm_eps"] = float(values.get("rms_norm_eps", 1e-6))
  # What it leaves out are transformers' defaults of the kind.
  head = values.get("head_dim") or (128 if kind == "qwen3" else 0)
  is_usual = head * knobs["heads"] == knobs["width"]
  return knobs | {"head_size": 0 if is_usual else int(head)}


def _our_knobs(section: Any) -> dict[str, Any]:
  knobs = section.get("model") if isinstance(section, dict) else None
  known = {field.name for field in dataclasses.fields(ModelConfig)} - set(OF_RUNS)
  if not isinstance(knobs, dict):
    raise ValueError(f"section {OURS!r} has no knobs of a model")
  if left := sorted(knobs.keys() - known):
    raise ValueError(f"section {OURS!r} has unknown knobs {left}: of a newer tfusion")
  return {k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items()}


def _sizes(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Knobs that are whole numbers, and what is wrong with them."""
  found: dict[str, Any] = {ours: values.get(own) for own, ours in SIZES.items()}
  kv_heads = values.get("num_key_value_heads")  # None in the first Llamas
  found["kv_heads"] = found["heads"] if kv_heads is None else kv_heads
  return found, [
    f"{theirs}={found[ours]!r}: a whole number above 0 is needed"
    for theirs, ours in (SIZES | {"num_key_value_heads": "kv_heads"}).items()
    if type(found[ours]) is not int or found[ours] < 1
  ]


def _rope(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Knobs of RoPE, from the form of transformers 5 or that before; what is wrong."""
  own = values.get("rope_parameters") or values.get("rope_scaling") or {}
  kind = own.get("rope_type", own.get("type", "default"))
  theta = own.get("rope_theta", values.get("rope_theta", 10_000.0))
  if not isinstance(theta, (int, float)):
    return {}, [f"rope_theta={theta!r}: a number is needed"]
  knobs: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": ()}
  if kind == "default":
    return knobs, []
  if kind != "llama3":
    return knobs, [f"rope_type={kind!r}: only 'default' and 'llama3' can be opened"]
  if lacking := [key for key in SCALING if not isinstance(own.get(key), (int, float))]:
    return knobs, [f"rope_type='llama3': needs numbers for {', '.join(lacking)}"]
  return knobs | {"rope_scaling": tuple(float(own[key]) for key in SCALING)}, []


def kind_of(model: ModelConfig) -> str:
  """The model_type of a model's text part; OURS if it is no Llama and no Qwen."""
  attention = model.attention_bias, model.qk_norm
  kinds = [kind for kind, own in KINDS.items() if own == attention]
  return kinds[0] if kinds and model.norms == "before" else OURS


def write_config(
  model: ModelConfig, special: SpecialTokens, *, positions: int
) -> dict[str, Any]:
  """The config.json of a model's text part, with our knobs in a section of their own.

  transformers reads it and leaves that section alone.

  Args:
    model: of the weights.
    special: ids of the tokenizer.
    positions: of the rows that it was trained on.
  """
  kind = kind_of(model)
  values = {theirs: getattr(model, ours) for theirs, ours in SIZES.items()}
  values |= {
    "architectures": [CLASSES.get(kind, "Transfusion")],
    "model_type": kind,
    "num_key_value_heads": model.kv_heads,
    "head_dim": model.head_dim,
    "hidden_act": "silu",
    "rms_norm_eps": model.norm_eps,
    "rope_theta": model.rope_theta,
    "rope_scaling": None,
    "max_position_embeddings": positions,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "pad_token_id": special.pad,
    "bos_token_id": special.bos,
    "eos_token_id": special.eos,
  }
  if kind == "qwen2":
    values["use_sliding_window"] = False
  if kind in ("llama", "qwen3"):
    values["attention_bias"] = False
  if model.rope_scaling:
    scaling = dict(zip(SCALING, model.rope_scaling, strict=True))
    scaling[SCALING[-1]] = int(scaling[SCALING[-1]])
    values["rope_scaling"] = {"rope_type": "llama3"} | scaling
    stretched = int(model.rope_scaling[0] * model.rope_scaling[3])
    values["max_position_embeddings"] = max(positions, stretched)
  knobs = {k: v for k, v in dataclasses.asdict(model).items() if k not in OF_RUNS}
  return values | {OURS: {"model": knobs}}
