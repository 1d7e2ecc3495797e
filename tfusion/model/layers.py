"""The layers of a Llama-shaped block: RMSNorm, RoPE, attention, SwiGLU.

Owns: their parameters and forward passes. Not: the stack (transformer.py), the kernel
(attention/).

n layers  b batch  l queries  s keys in the cache  d width  h heads  g kv heads
k head dim  f mlp

Parameters are float32 with a leading `layers` axis, made at once for the whole stack;
the scan hands each layer its slice. The paper's layers have no biases, no norm of
queries and keys and no dropout (arXiv 2408.11039, section 4.1); what Chameleon (arXiv
2405.09818, section 2.3) and Qwen have in their place is switched on in the config.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from tfusion.attention import Work, attend
from tfusion.config import ModelConfig
from tfusion.model import untied
from tfusion.model.linear import Product, outputs_of, param, zeros
from tfusion.model.untied import Of, Split, choose, linear, multiply, spread, values
from tfusion.sharding import spec


class Keys(NamedTuple):
  """Keys and values of every position so far, in every layer.

  The positions of a head lie side by side, as the kernels of accelerators read them.
  """

  k_nbgsk: jax.Array
  v_nbgsk: jax.Array

  @property
  def length(self) -> int:
    """Positions there is room for."""
    return self.k_nbgsk.shape[3]


# The keys of all layers at once, or of each layer by itself, as the parameters are: of
# one array of all layers XLA's CPU backend copies a layer before it reads it.
Cache = tuple[Keys, ...]


class View(NamedTuple):
  """Where the queries stand and what they see, the same for every layer."""

  cos_blk: jax.Array  # f32, head_dim / 2 numbers
  sin_blk: jax.Array
  lo_bl: jax.Array  # i32, first key seen
  hi_bl: jax.Array  # i32, last key seen
  write_at_b: jax.Array | None = None  # i32, cache position of the first query
  work: Work | None = None  # the live tiles that follow from lo and hi
  drop_b: jax.Array | None = None  # keys of the rows' dropout; None: nothing is dropped
  # Whose weights the queries take. If both's, inputs and outputs of a layer are sorted.
  of: Of = None


def rope_angles(
  positions_bl: jax.Array,
  columns_bl: jax.Array | None = None,
  *,
  head_dim: int,
  theta: float,
  scaling: tuple[float, ...] = (),
):
  """Cosines and sines of arXiv 2104.09864, f32[b, l, head_dim / 2].

  With `columns_bl` every other pair turns by it, from the second on, so that both have
  high frequencies and low ones, as interleaved M-RoPE does (arXiv 2511.21631).
  """
  frequency_k = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling:
    frequency_k = _stretched(frequency_k, *scaling)
  # Not an einsum: a TPU would round positions to bfloat16 in it.
  angle_blk = positions_bl.astype(jnp.float32)[..., None] * frequency_k[None, None]
  if columns_bl is not None:
    by_column_blk = columns_bl.astype(jnp.float32)[..., None] * frequency_k[None, None]
    is_row_k = jnp.arange(head_dim // 2) % 2 == 0
    angle_blk = jnp.where(is_row_k[None, None], angle_blk, by_column_blk)
  return jnp.cos(angle_blk), jnp.sin(angle_blk)


def _stretched(
  frequency_k, factor: float, low: float, high: float, positions: float
) -> jax.Array:
  """Frequencies of which those that turn less than `low` times in so many positions
  are divided by `factor`, those that turn more than `high` times stay, and others lie
  between (Llama 3.1, as transformers has it by the name of llama3)."""
  turns_k = frequency_k * positions / (2 * math.pi)
  kept_k = jnp.clip((turns_k - low) / (high - low), 0, 1)
  return frequency_k * (kept_k + (1 - kept_k) / factor)


def rope(x_blhk: jax.Array, cos_blk: jax.Array, sin_blk: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + k/2) of every head, in float32."""
  a_blhk, b_blhk = jnp.split(x_blhk.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos_blk[:, :, None, :], sin_blk[:, :, None, :]
  rotated = jnp.concatenate(
    [a_blhk * cos - b_blhk * sin, b_blhk * cos + a_blhk * sin], axis=-1
  )
  return rotated.astype(x_blhk.dtype)


# Elementwise work is done again in the backward pass: it is cheaper than the memory.
@functools.partial(jax.checkpoint, static_argnums=2)
def _normalise(x_bld, scale, eps: float):
  x = x_bld.astype(jnp.float32)
  square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  return (x * jax.lax.rsqrt(square + eps) * spread(scale, 3)).astype(x_bld.dtype)


@functools.partial(jax.checkpoint, static_argnums=3)
def _normalise_heads(x_blhk, scale, bias, eps: float):
  x = x_blhk.astype(jnp.float32)
  if bias is not None:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  x = x * jax.lax.rsqrt(square + eps) * spread(scale, 4)
  if bias is not None:
    x = x + spread(bias, 4)
  return x.astype(x_blhk.dtype)


@functools.partial(jax.checkpoint, static_argnums=3)
def _gated_down(gate_blf, up_blf, w_down, how: Product):
  return multiply(jax.nn.silu(gate_blf) * up_blf, w_down, how)


class RMSNorm(nnx.Module):
  """Divides by the root mean square over the width, in float32 (arXiv 1910.07467)."""

  def __init__(self, width: int, *, stack: tuple[int, ...], eps: float, rngs):
    names = ("layers",) * len(stack) + (None,)
    self.scale = param(rngs, names, (*stack, width), std=0.0)
    self.eps = eps

  def __call__(self, x_bld: jax.Array, *, twin: "RMSNorm | None" = None, of: Of = None):
    """Keeps the dtype of its input; `twin` is the norm of patches, for `View.of`."""
    return _normalise(x_bld, values(choose("scale", self, twin, of)), self.eps)


class HeadNorm(nnx.Module):
  """Norm of every head of queries or keys, in float32; the heads share its numbers.

  A layer norm with scale and bias (arXiv 2405.09818, section 2.3), which Chameleon's
  code has for every head of a shard, or an RMSNorm with a scale alone (Qwen3).
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    shape = (config.layers, config.head_dim)
    self.scale = param(rngs, ("layers", None), shape, std=0.0)
    is_layer = config.qk_norm == "layer"
    self.bias = zeros(("layers", None), shape) if is_layer else None
    self.eps = config.norm_eps

  def __call__(
    self, x_blhk: jax.Array, *, twin: "HeadNorm | None" = None, of: Of = None
  ):
    """Keeps the dtype of its input; `twin` is the norm of patches, for `View.of`."""
    scale, bias = (values(choose(n, self, twin, of)) for n in ("scale", "bias"))
    return _normalise_heads(x_blhk, scale, bias, self.eps)


class Attention(nnx.Module):
  """Multi-head attention with RoPE; queries may share keys (arXiv 2305.13245)."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    n, d, k = config.layers, config.width, config.head_dim
    h, g = config.heads, config.kv_heads
    std = d**-0.5
    out_std = std / (2 * n) ** 0.5  # keeps the residual stream at unit growth; ours
    self.wq = param(rngs, ("layers", "embed", "heads", None), (n, d, h, k), std=std)
    self.wk = param(rngs, ("layers", "embed", "kv_heads", None), (n, d, g, k), std=std)
    self.wv = param(rngs, ("layers", "embed", "kv_heads", None), (n, d, g, k), std=std)
    self.wo = param(rngs, ("layers", "heads", None, "embed"), (n, h, k, d), std=out_std)
    biased, normed = config.attention_bias, config.qk_norm != "none"
    self.b_q = zeros(("layers", "heads", None), (n, h, k)) if biased else None
    self.b_k = zeros(("layers", "kv_heads", None), (n, g, k)) if biased else None
    self.b_v = zeros(("layers", "kv_heads", None), (n, g, k)) if biased else None
    self.q_norm = HeadNorm(config, rngs=rngs) if normed else None
    self.k_norm = HeadNorm(config, rngs=rngs) if normed else None
    self.gradient = config.gradient_dtype

  def __call__(
    self,
    x_bld,
    view: View,
    keys: Keys | None,
    layer: jax.Array | int,
    *,
    twin: "Attention | None" = None,
  ):
    """Returns the output and, if `keys` were given, these with the new ones in.

    Args:
      x_bld: inputs.
      view: where they stand and what they see.
      keys: the cache of all layers.
      layer: i32, the layer of the cache that is this one's.
      twin: the attention of patches, if they have weights of their own.
    """
    of = view.of if twin is not None else None
    q = self._project(x_bld, "q", twin, of)
    k = self._project(x_bld, "k", twin, of)
    v = self._project(x_bld, "v", twin, of)
    if self.q_norm is not None and self.k_norm is not None:
      of_q, of_k = (None, None) if twin is None else (twin.q_norm, twin.k_norm)
      q, k = self.q_norm(q, twin=of_q, of=of), self.k_norm(k, twin=of_k, of=of)
    if isinstance(view.of, Split):
      q, k, v = (untied.unsort(y, view.of) for y in (q, k, v))
    q = rope(q, view.cos_blk, view.sin_blk)
    k = rope(k, view.cos_blk, view.sin_blk)
    if keys is not None:
      at = (layer, view.write_at_b)
      keys = Keys(_write(keys.k_nbgsk, k, *at), _write(keys.v_nbgsk, v, *at))
      k, v = (_read(x_nbgsk, layer) for x_nbgsk in keys)
    o_blhk = attend(q, k, v, view.lo_bl, view.hi_bl, work=view.work)
    if isinstance(view.of, Split):
      o_blhk = untied.sort(o_blhk, view.of)
    how = dict(inputs=2, out_sharding=outputs_of(x_bld))
    return linear(o_blhk, choose("wo", self, twin, of), self.gradient, **how), keys

  def _project(self, x_bld, name: str, twin: "Attention | None", of: Of) -> jax.Array:
    """[b, l, heads, k]; a bias is added in float32, for the sake of its gradient."""
    weight, bias = (choose(n + name, self, twin, of) for n in ("w", "b_"))
    if bias is None:
      return linear(x_bld, weight, self.gradient)
    wide = linear(x_bld, weight, self.gradient, out_dtype="float32")
    return (wide + spread(values(bias), 4)).astype(x_bld.dtype)


class SwiGLU(nnx.Module):
  """silu(x w_gate) * (x w_up) w_down (arXiv 2002.05202)."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    n, d, f = config.layers, config.width, config.mlp
    out_std = f**-0.5 / (2 * n) ** 0.5
    self.w_gate = param(rngs, ("layers", "embed", "mlp"), (n, d, f), std=d**-0.5)
    self.w_up = param(rngs, ("layers", "embed", "mlp"), (n, d, f), std=d**-0.5)
    self.w_down = param(rngs, ("layers", "mlp", "embed"), (n, f, d), std=out_std)
    self.gradient = config.gradient_dtype

  def __call__(self, x_bld: jax.Array, *, twin: "SwiGLU | None" = None, of: Of = None):
    """[b, l, d] to [b, l, d]; `twin` is the MLP of patches, for `View.of`."""
    w_gate, w_up, w_down = (
      choose(name, self, twin, of) for name in ("w_gate", "w_up", "w_down")
    )
    gate = linear(x_bld, w_gate, self.gradient)
    up = linear(x_bld, w_up, self.gradient)
    how = Product(("mlp", "embed"), self.gradient, out_sharding=outputs_of(gate))
    return _gated_down(gate, up, values(w_down), how)


class Twin(nnx.Module):
  """What the patches of a block have of their own, made equal to that of text: ours."""

  def __init__(self, block: "Block", *, everything: bool):
    self.mlp = nnx.clone(block.mlp)
    self.attention = nnx.clone(block.attention) if everything else None
    self.mlp_norm = nnx.clone(block.mlp_norm) if everything else None
    self.attention_norm = nnx.clone(block.attention_norm) if everything else None


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); or, with `norms` after,
  x + norm(attention(x)), then x + norm(mlp(x)) (arXiv 2405.09818, section 2.3)."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    norm = functools.partial(
      RMSNorm, config.width, stack=(config.layers,), eps=config.norm_eps, rngs=rngs
    )
    self.attention_norm = norm()
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = norm()
    self.mlp = SwiGLU(config, rngs=rngs)
    everything = config.untied == "all"
    self.image = None if config.untied == "none" else Twin(self, everything=everything)
    self.norms, self.dropout = config.norms, config.dropout

  def __call__(self, x_bld, view: View, keys: Keys | None, layer: jax.Array | int):
    """Returns x and the keys of all layers with the new ones of this layer in."""

    def twin(name: str) -> Any:
      return None if self.image is None else getattr(self.image, name)

    norm = {
      name: functools.partial(getattr(self, name), twin=twin(name), of=view.of)
      for name in ("attention_norm", "mlp_norm")
    }
    first = self.norms == "before"
    inputs = norm["attention_norm"](x_bld) if first else x_bld
    out, keys = self.attention(inputs, view, keys, layer, twin=twin("attention"))
    out = self._drop(out, view, layer, 0)
    x_bld = x_bld + (out if first else norm["attention_norm"](out))
    inputs = norm["mlp_norm"](x_bld) if first else x_bld
    out = self.mlp(inputs, twin=twin("mlp"), of=view.of)
    out = self._drop(out, view, layer, 1)
    return x_bld + (out if first else norm["mlp_norm"](out)), keys

  def _drop(self, x_bld, view: View, layer: jax.Array | int, nth: int) -> jax.Array:
    if view.drop_b is None or self.dropout == 0:
      return x_bld
    sorted_ = view.of if isinstance(view.of, Split) else None
    if sorted_ is not None:  # what is dropped goes by position
      x_bld = untied.unsort(x_bld, sorted_)
    x_bld = drop(x_bld, view.drop_b, 2 * layer + nth, rate=self.dropout)
    return x_bld if sorted_ is None else untied.sort(x_bld, sorted_)


def drop(x_bld, keys_b: jax.Array, place: jax.Array | int, *, rate: float):
  """Sets numbers to 0 and divides those that stay by 1 - rate (arXiv 1207.0580).

  Args:
    x_bld: inputs.
    keys_b: of the rows. With the position they decide, so no mesh changes anything.
    place: where in the model; another drops other numbers.
    rate: the share that is set to 0, in (0, 1).
  """
  width, cut = x_bld.shape[2], outputs_of(x_bld)

  def local(x_bld, keys_b, position_l, place):
    def of_position(key, position):
      return jax.random.bernoulli(jax.random.fold_in(key, position), 1 - rate, (width,))

    def of_row(key):
      key = jax.random.fold_in(key, place)
      return jax.vmap(of_position, (None, 0))(key, position_l)

    return jnp.where(jax.vmap(of_row)(keys_b), x_bld / (1 - rate), 0)

  position_l = jax.sharding.reshard(jnp.arange(x_bld.shape[1]), jax.P(cut[1]))
  specs = (cut, spec("batch"), jax.P(cut[1]), spec())
  dropped = jax.shard_map(local, in_specs=specs, out_specs=cut)
  return dropped(x_bld, keys_b, position_l, jnp.int32(place))


def _write(cache_nbgsk, new_blgk, layer, at_b):
  """Writes each row's new entries at its own position, where the cache lies."""

  def local(cache_nbgsk, new_blgk, layer, at_b):
    def row(i, cache_nbgsk):
      new_lgk = jax.lax.dynamic_index_in_dim(new_blgk, i, keepdims=False)
      new_11glk = new_lgk.swapaxes(0, 1)[None, None]
      at = (layer, i, 0, at_b[i], 0)
      cache_nbgsk = jax.lax.dynamic_update_slice(cache_nbgsk, new_11glk, at)
      # As attention reads it: a TPU's compiler would take the order of the new ones and
      # turn the whole cache around for every token.
      return with_layout_constraint(cache_nbgsk, Layout((0, 1, 2, 3, 4)))

    return jax.lax.fori_loop(0, new_blgk.shape[0], row, cache_nbgsk)

  cache = spec("layers", "batch", "kv_heads", None, None)
  new = spec("batch", None, "kv_heads", None)
  specs = (cache, new, spec(), spec("batch"))
  write = jax.shard_map(local, in_specs=specs, out_specs=cache)
  return write(cache_nbgsk, new_blgk.astype(cache_nbgsk.dtype), layer, at_b)


def _read(cache_nbgsk, layer):
  """Returns x_bsgk of a layer."""
  x_bgsk = jax.lax.dynamic_index_in_dim(cache_nbgsk, layer, keepdims=False)
  return x_bgsk.swapaxes(1, 2)
