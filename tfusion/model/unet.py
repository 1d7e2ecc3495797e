"""U-Net patch layers: convolutions down to one vector per patch, and back up.

Owns: both halves, around the transformer. Not: the linear patch layers (patches.py),
noise (diffusion/).

arXiv 2408.11039, section 3 and footnote 7: the blocks of the U-Nets of diffusion models
(arXiv 2102.09672), with layer norm in place of an adaptive norm, so that the timestep
is added in every block. Skips go around the transformer. Widths are ours, as the paper
gives only their sum: 0.27B parameters.

b batch  n image slots  h w sides of a level  c channels  m patches of an image
d width of the transformer  e width of the time vector  k channels of an attention head
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tfusion.config import ModelConfig
from tfusion.kinds import Kind
from tfusion.model.linear import linear, param
from tfusion.model.patches import SINUSOIDS, sinusoids
from tfusion.sharding import by_row

BLOCKS = 2  # residual blocks of a level on the way down; one more on the way up
HEAD_DIM = 64  # of the attention in the middle (arXiv 2105.05233, section 3)
EPS = 1e-5

Skips = tuple[jax.Array, ...]


class LayerNorm(nnx.Module):
  """Over the channels of a cell, in float32."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones(width, jnp.float32), names=(None,))
    self.bias = nnx.Param(jnp.zeros(width, jnp.float32), names=(None,))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., c]; keeps the dtype of its input."""
    return _normalise(x, self.scale[...], self.bias[...])


# Elementwise work is done again in the backward pass: it is cheaper than the memory.
@jax.checkpoint
def _normalise(x, scale_c, bias_c):
  wide = x.astype(jnp.float32)
  centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
  square = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  lead = (1,) * (x.ndim - 1)
  scale, bias = scale_c.reshape(*lead, -1), bias_c.reshape(*lead, -1)
  return (centred * jax.lax.rsqrt(square + EPS) * scale + bias).astype(x.dtype)


class Dense(nnx.Module):
  """A matrix and a bias, which is added in float32."""

  def __init__(self, inputs: int, outputs: int, *, std: float | None = None, rngs, how):
    """Args:
    inputs: numbers of a vector.
    outputs: of what becomes of it.
    std: of the weights; None: such that numbers of about 1 stay so; 0: zeros.
    rngs: of the weights.
    how: dtype of their gradients.
    """
    std = inputs**-0.5 if std is None else std
    names = (None, "embed")
    if std:
      self.w = param(rngs, names, (inputs, outputs), std=std)
    else:
      self.w = nnx.Param(jnp.zeros((inputs, outputs), jnp.float32), names=names)
    self.b = nnx.Param(jnp.zeros(outputs, jnp.float32), names=(None,))
    self.gradient = how

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., inputs] to [..., outputs], in the dtype of x."""
    out = linear(x, self.w, self.gradient, out_dtype="float32")
    return (out + self.b[...].reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Convolution(nnx.Module):
  """A 3 x 3 convolution with a border of zeros, as a matmul of the nine shifted images.

  So its weight is sharded, gathered and trained as all matrices of the model are.
  """

  def __init__(self, inputs: int, outputs: int, *, stride: int = 1, **how):
    self.dense = Dense(9 * inputs, outputs, **how)
    self.stride = stride

  def __call__(self, x_bnhwc: jax.Array) -> jax.Array:
    """[b, n, h, w, inputs] to [b, n, h / stride, w / stride, outputs]."""

    # The nine images are made again in the backward pass.
    @jax.checkpoint
    def convolve(x_bnhwc):
      nine = functools.partial(_nine, stride=self.stride)
      return self.dense(by_row(nine)(x_bnhwc))

    return convolve(x_bnhwc)


def _nine(x_nhwc, *, stride: int):
  """The image seen from each cell's 3 x 3 neighbours, side by side in the channels."""
  padded = jnp.pad(x_nhwc, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x_nhwc.shape[1:3]
  shifted = [
    padded[:, i : i + h : stride, j : j + w : stride]
    for i in range(3)
    for j in range(3)
  ]
  return jnp.concatenate(shifted, axis=-1)


class Residual(nnx.Module):
  """x + convolution(silu(norm(convolution(silu(norm(x))) + time)))."""

  def __init__(self, inputs: int, outputs: int, *, time: int, **how):
    self.norm1, self.norm2 = LayerNorm(inputs), LayerNorm(outputs)
    self.in1 = Convolution(inputs, outputs, **how)
    self.in2 = Convolution(outputs, outputs, std=0.0, **how)  # begins as the identity
    self.time = Dense(time, outputs, **how)
    self.skip = None if inputs == outputs else Dense(inputs, outputs, **how)

  def __call__(self, x_bnhwc: jax.Array, time_bne: jax.Array) -> jax.Array:
    """[b, n, h, w, inputs] and the time vector to [b, n, h, w, outputs]."""
    out = self.in1(jax.nn.silu(self.norm1(x_bnhwc)))
    out = out + self.time(time_bne)[:, :, None, None]
    out = self.in2(jax.nn.silu(self.norm2(out)))
    return out + (x_bnhwc if self.skip is None else self.skip(x_bnhwc))


class CellAttention(nnx.Module):
  """x + attention among the cells of one image, in heads of 64 channels."""

  def __init__(self, width: int, **how):
    self.norm = LayerNorm(width)
    self.qkv = Dense(width, 3 * width, **how)
    self.out = Dense(width, width, std=0.0, **how)
    self.heads = 1 if width % HEAD_DIM else width // HEAD_DIM

  def __call__(self, x_bnhwc: jax.Array) -> jax.Array:
    """Keeps the shape."""
    mixed = by_row(functools.partial(_attend, self.heads))
    return x_bnhwc + self.out(mixed(self.qkv(self.norm(x_bnhwc))))


@functools.partial(jax.checkpoint, static_argnums=0)
def _attend(heads: int, qkv_nhwc):
  n, h, w, c = qkv_nhwc.shape
  cells = qkv_nhwc.reshape(n, h * w, 3, heads, c // 3 // heads)
  out_nmhk = jax.nn.dot_product_attention(*(cells[:, :, i] for i in range(3)))
  return out_nmhk.reshape(n, h, w, c // 3)


class UNetPatches(nnx.Module):
  """The way down from noisy latents to patches, and the way up to the prediction."""

  def __init__(self, config: ModelConfig, kind: Kind, *, rngs: nnx.Rngs):
    widths, channels = config.levels_of(kind.patch[0]), kind.shape[-1]
    time = 4 * widths[-1]
    how: dict[str, Any] = dict(rngs=rngs, how=config.gradient_dtype)
    residual: Any = functools.partial(Residual, time=time, **how)
    self.time1, self.time2 = Dense(SINUSOIDS, time, **how), Dense(time, time, **how)
    self.time_scale = config.time_scale
    self.first = Convolution(channels, widths[0], **how)
    skips, width = [widths[0]], widths[0]
    self.down: Any = nnx.Dict()
    self.shrink: Any = nnx.Dict()
    for level, to in enumerate(widths):
      for block in range(BLOCKS):
        self.down[f"{level}_{block}"] = residual(width, to)
        width = to
        skips.append(width)
      if level + 1 < len(widths):
        self.shrink[str(level)] = Convolution(width, width, stride=2, **how)
        skips.append(width)
    self.middle1, self.attention = residual(width, width), CellAttention(width, **how)
    self.to_patches = Dense(width, config.width, **how)
    self.from_patches = Dense(config.width, width, **how)
    self.middle2 = residual(width, width)
    self.up: Any = nnx.Dict()
    self.grow: Any = nnx.Dict()
    for level in reversed(range(len(widths))):
      for block in range(BLOCKS + 1):
        self.up[f"{level}_{block}"] = residual(width + skips.pop(), widths[level])
        width = widths[level]
      if level:
        self.grow[str(level)] = Convolution(width, width, **how)
    self.norm = LayerNorm(width)
    self.last = _Last(width, channels, config.gradient_dtype)
    self.levels = len(widths)

  def encode(
    self, x_bnhwc: jax.Array, t_bn: jax.Array, *, dtype
  ) -> tuple[jax.Array, Skips]:
    """Noisy latents at t to [b, n, m, d] and what `decode` needs of the way down."""
    time_bne = self._time(t_bn, dtype)
    x = self.first(x_bnhwc.astype(dtype))
    skips = [x]
    for level in range(self.levels):
      for block in range(BLOCKS):
        x = self.down[f"{level}_{block}"](x, time_bne)
        skips.append(x)
      if str(level) in self.shrink:
        x = self.shrink[str(level)](x)
        skips.append(x)
    x = self.attention(self.middle1(x, time_bne))
    x = self.to_patches(x)
    flat = by_row(lambda x_nhwd: x_nhwd.reshape(x_nhwd.shape[0], -1, x_nhwd.shape[3]))
    return flat(x), (time_bne, *skips)

  def decode(
    self, x_bnmd: jax.Array, skips: Skips, *, grid: tuple[int, ...]
  ) -> jax.Array:
    """Outputs at the patches and the way down to the prediction, f32[b, n, h, w, c]."""
    time_bne, *skips_left = skips
    h, w = grid
    square = by_row(lambda x_nmd: x_nmd.reshape(x_nmd.shape[0], h, w, x_nmd.shape[2]))
    x = self.middle2(self.from_patches(square(x_bnmd)), time_bne)
    for level in reversed(range(self.levels)):
      for block in range(BLOCKS + 1):
        beside = jnp.concatenate([x, skips_left.pop()], axis=-1)
        x = self.up[f"{level}_{block}"](beside, time_bne)
      if level:
        x = self.grow[str(level)](by_row(_doubled)(x))
    return self.last(jax.nn.silu(self.norm(x)))

  def _time(self, t_bn, dtype):
    time = self.time1(sinusoids(t_bn, scale=self.time_scale).astype(dtype))
    return jax.nn.silu(self.time2(jax.nn.silu(time)))


class _Last(nnx.Module):
  """The convolution to the channels of the image: few, so no device cuts them."""

  def __init__(self, width: int, channels: int, gradient: str):
    # Begins at a prediction of 0, as a diffusion U-Net does.
    self.w = nnx.Param(
      jnp.zeros((9 * width, channels), jnp.float32), names=(None, None)
    )
    self.b = nnx.Param(jnp.zeros(channels, jnp.float32), names=(None,))
    self.gradient = gradient

  def __call__(self, x_bnhwc):
    nine = by_row(functools.partial(_nine, stride=1))(x_bnhwc)
    out = linear(nine, self.w, self.gradient, out_dtype="float32")
    return out + self.b[...].reshape(1, 1, 1, 1, -1)


def _doubled(x_nhwc):
  """Each cell four times: twice the sides."""
  return jnp.repeat(jnp.repeat(x_nhwc, 2, axis=1), 2, axis=2)
