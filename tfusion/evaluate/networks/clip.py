"""CLIP (arXiv 2103.00020): features of images and of texts that can be compared.

Owns: both its transformers, images and texts as they take them, its folder. Not: the
score (clip_score.py), weights of files in general (weights.py).

The folder is one of a CLIP model of the Hugging Face hub: config.json,
model.safetensors, tokenizer.json and, if there is one, preprocessor_config.json.

n images or texts  l sequence  d width  h heads  k head dim
"""

import functools
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tfusion.evaluate.networks import weights as weights_lib
from tfusion.evaluate.networks.network import Network

REMEDY = (
  "the CLIP score needs the folder of a CLIP model of the Hugging Face hub, such as"
  " openai/clip-vit-large-patch14, with config.json, model.safetensors and"
  " tokenizer.json"
)
# Of pixels, in preprocessor_config.json too.
MEAN, DEVIATION = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
)
# What a config.json may leave out has the value that transformers gives it.
LEFT_OUT: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
HEADS = {"text": 8, "vision": 12}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
}
IGNORED = "position_ids"  # a buffer of older files
HIGHEST = jax.lax.Precision.HIGHEST


class Tower(NamedTuple):
  """One of its two transformers; a static argument."""

  prefix: str  # of its weights: text_model or vision_model
  layers: int
  heads: int
  act: str
  eps: float


class Clip(NamedTuple):
  """A CLIP model; both networks have the same name."""

  images: Network  # f32[n, side, side, 3] of `prepare` -> f32[n, d]
  texts: Network  # i32[n, l] of `encode` -> f32[n, d]
  side: int
  mean: tuple[float, ...]
  deviation: tuple[float, ...]
  length: int  # of a text
  tokenizer: Any

  @property
  def name(self) -> str:
    """What it is called beside its numbers."""
    return self.images.name

  def prepare(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """u8[h, w, 1 or 3] each as f32[n, side, side, 3]: the short side is brought to
    `side` by bicubic interpolation, and the middle is taken."""
    return np.stack([self._prepare(one) for one in pixels])

  def _prepare(self, pixels_hwc: np.ndarray) -> np.ndarray:
    rgb = pixels_hwc.repeat(3, axis=-1) if pixels_hwc.shape[-1] == 1 else pixels_hwc
    image = Image.fromarray(rgb)
    scale = self.side / min(image.size)
    # As transformers rounds the long side: down.
    wide, high = (max(self.side, int(s * scale + 1e-9)) for s in image.size)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - self.side) // 2, (high - self.side) // 2
    image = image.crop((left, top, left + self.side, top + self.side))
    unit = np.asarray(image, np.float32) / 255
    mean_c, deviation_c = (
      np.asarray(x, np.float32) for x in (self.mean, self.deviation)
    )
    return (unit - mean_c) / deviation_c

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Texts as i32[n, l]: begun, ended, cut to the length, and filled up with ends."""
    rows = np.empty((len(texts), self.length), np.int32)
    for row, found in zip(rows, self.tokenizer.encode_batch(list(texts))):
      ids = found.ids
      row[:] = ids[-1]
      cut = ids[: self.length - 1] if len(ids) > self.length else ids
      row[: len(cut)] = cut
    return rows


def open_clip(folder: Path) -> Clip:
  """Opens the folder of a CLIP model.

  Raises:
    ValueError: a file is missing or broken, it is of another kind of model, weights
      are missing or unknown, or the extra `tokenizers` is not installed.
  """
  config = _json(folder / "config.json")
  if config.get("model_type") != "clip":
    raise ValueError(
      f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not"
      f" 'clip'; {REMEDY}"
    )
  path = folder / "model.safetensors"
  found = weights_lib.read(path, remedy=REMEDY)
  found = {k: v for k, v in found.items() if not k.endswith(IGNORED)}
  text, vision = (_tower(config, kind, folder) for kind in ("text", "vision"))
  wanted = {*_names(text), *_names(vision), *OWN, "logit_scale"}
  weights_lib.check_names(found, wanted, path=path)
  params = {name: jnp.asarray(found[name], jnp.float32) for name in wanted}
  tokenizer = _tokenizer(folder / "tokenizer.json")
  name = weights_lib.named("clip", path)
  own = config["vision_config"]
  side, patch = own.get("image_size", 224), own.get("patch_size", 32)
  weights_lib.check_shape(PATCHES, found[PATCHES], (None, 3, patch, patch), path=path)
  seen = folder / "preprocessor_config.json"
  shown = _json(seen) if seen.is_file() else {}
  return Clip(
    Network(name, functools.partial(_of_images, vision, patch), params),
    Network(name, functools.partial(_of_texts, text), params),
    side=side,
    mean=tuple(shown.get("image_mean", MEAN)),
    deviation=tuple(shown.get("image_std", DEVIATION)),
    length=len(found[f"{text.prefix}.embeddings.position_embedding.weight"]),
    tokenizer=tokenizer,
  )


PATCHES = "vision_model.embeddings.patch_embedding.weight"
OWN = (
  "text_model.embeddings.token_embedding.weight",
  "text_model.embeddings.position_embedding.weight",
  "text_model.final_layer_norm.weight",
  "text_model.final_layer_norm.bias",
  "vision_model.embeddings.class_embedding",
  PATCHES,
  "vision_model.embeddings.position_embedding.weight",
  "vision_model.pre_layrnorm.weight",  # so it is spelled there
  "vision_model.pre_layrnorm.bias",
  "vision_model.post_layernorm.weight",
  "vision_model.post_layernorm.bias",
  "visual_projection.weight",
  "text_projection.weight",
)
OF_LAYER = (
  *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
  *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
)


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    raise ValueError(f"{path}: there is no such file; {REMEDY}")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path}: is no JSON ({error}); {REMEDY}") from error


def _tower(config: dict[str, Any], kind: str, folder: Path) -> Tower:
  own = LEFT_OUT | config.get(f"{kind}_config", {})
  act = own["hidden_act"]
  if act not in ACTIVATIONS:
    raise ValueError(
      f"{folder / 'config.json'}: hidden_act={act!r} is not built; known:"
      f" {sorted(ACTIVATIONS)}"
    )
  heads = own.get("num_attention_heads", HEADS[kind])
  layers = own.get("num_hidden_layers", 12)
  return Tower(f"{kind}_model", layers, heads, act, own["layer_norm_eps"])


def _names(tower: Tower) -> list[str]:
  return [
    f"{tower.prefix}.encoder.layers.{i}.{name}.{part}"
    for i in range(tower.layers)
    for name in OF_LAYER
    for part in ("weight", "bias")
  ]


def _tokenizer(path: Path) -> Any:
  if importlib.util.find_spec("tokenizers") is None:
    raise ValueError(
      "the CLIP score needs the extra `tokenizers`: pip install 'tfusion[tokenizers]'"
    )
  from tokenizers import Tokenizer

  if not path.is_file():
    raise ValueError(f"{path}: there is no such file; {REMEDY}")
  tokenizer = Tokenizer.from_file(str(path))
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def _of_images(tower: Tower, patch: int, params, x_nhwc: jax.Array) -> jax.Array:
  patches = jax.lax.conv_general_dilated(
    x_nhwc,
    params[PATCHES],
    (patch, patch),
    "VALID",
    dimension_numbers=("NHWC", "OIHW", "NHWC"),
    precision=HIGHEST,
  )
  n, d = patches.shape[0], patches.shape[-1]
  first = jnp.broadcast_to(params["vision_model.embeddings.class_embedding"], (n, 1, d))
  x_nld = jnp.concatenate([first, patches.reshape(n, -1, d)], axis=1)
  x_nld = x_nld + params["vision_model.embeddings.position_embedding.weight"]
  x_nld = _norm(params, "vision_model.pre_layrnorm", x_nld, tower.eps)
  x_nld = _encode(tower, params, x_nld, causal=False)
  x_nd = _norm(params, "vision_model.post_layernorm", x_nld[:, 0], tower.eps)
  return _times(x_nd, params["visual_projection.weight"])


def _of_texts(tower: Tower, params, ids_nl: jax.Array) -> jax.Array:
  x_nld = params["text_model.embeddings.token_embedding.weight"][ids_nl]
  length = ids_nl.shape[1]
  x_nld = x_nld + params["text_model.embeddings.position_embedding.weight"][:length]
  x_nld = _encode(tower, params, x_nld, causal=True)
  x_nld = _norm(params, "text_model.final_layer_norm", x_nld, tower.eps)
  # The end is the first of what fills a row up.
  end_n = jnp.argmax(ids_nl == ids_nl[:, -1:], axis=1)
  x_nd = x_nld[jnp.arange(len(ids_nl)), end_n]
  return _times(x_nd, params["text_projection.weight"])


def _encode(tower: Tower, params, x_nld: jax.Array, *, causal: bool) -> jax.Array:
  for number in range(tower.layers):
    prefix = f"{tower.prefix}.encoder.layers.{number}"
    y_nld = _norm(params, f"{prefix}.layer_norm1", x_nld, tower.eps)
    x_nld = x_nld + _attend(tower, params, f"{prefix}.self_attn", y_nld, causal=causal)
    y_nld = _norm(params, f"{prefix}.layer_norm2", x_nld, tower.eps)
    y_nld = ACTIVATIONS[tower.act](_linear(params, f"{prefix}.mlp.fc1", y_nld))
    x_nld = x_nld + _linear(params, f"{prefix}.mlp.fc2", y_nld)
  return x_nld


def _attend(
  tower: Tower, params, prefix: str, x_nld: jax.Array, *, causal: bool
) -> jax.Array:
  n, l, d = x_nld.shape
  q, k, v = (
    _linear(params, f"{prefix}.{one}_proj", x_nld).reshape(n, l, tower.heads, -1)
    for one in "qkv"
  )
  logits = jnp.einsum("nqhk,nlhk->nhql", q, k, precision=HIGHEST)
  logits = logits / np.sqrt(d // tower.heads)
  if causal:
    logits = jnp.where(np.tril(np.ones((l, l), bool)), logits, -jnp.inf)
  shares = jax.nn.softmax(logits, axis=-1)
  mixed = jnp.einsum("nhql,nlhk->nqhk", shares, v, precision=HIGHEST)
  return _linear(params, f"{prefix}.out_proj", mixed.reshape(n, l, d))


def _norm(params, prefix: str, x: jax.Array, eps: float) -> jax.Array:
  mean = jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.var(x, axis=-1, keepdims=True)
  x = (x - mean) * jax.lax.rsqrt(variance + eps)
  return x * params[f"{prefix}.weight"] + params[f"{prefix}.bias"]


def _linear(params, prefix: str, x: jax.Array) -> jax.Array:
  return _times(x, params[f"{prefix}.weight"]) + params[f"{prefix}.bias"]


def _times(x: jax.Array, weight: jax.Array) -> jax.Array:
  return jnp.matmul(x, weight.T, precision=HIGHEST)
