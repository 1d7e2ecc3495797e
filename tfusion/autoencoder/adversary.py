"""The discriminator of patches that sharpens an autoencoder, and the hinge losses.

Owns: its parameters and scores, the two losses. Not: when it begins and what it weighs
(step.py).

b batch  h w c height, width, channels

PatchGAN (arXiv 1611.07004, section 3.2) as in arXiv 2012.09841: 4x4 convolutions, of
which `levels` halve the image, leaky rectifiers, a score for each overlapping patch.
arXiv 2408.11039 leaves the discriminator open. Group norm in the place of batch norm is
ours: a score then depends on its own image alone, on any number of devices.
"""

import math

import jax
import jax.numpy as jnp

from tfusion.autoencoder.network import PIXEL_CHANNELS, add_bias, normalised
from tfusion.autoencoder_config import LossConfig

LEAK = 0.2  # slope below zero
WIDEST = 8  # times the first layer's channels
GROUPS = 32  # of channels in a norm, or fewer that divide them
STD = 0.02  # of initial kernels, as in the reference

Params = dict[str, jax.Array]  # "2.kernel" -> f32


def init(config: LossConfig, key: jax.Array) -> Params:
  """Random parameters; trace it under jit."""
  params, shapes = {}, _layers(config)
  for i, (inputs, outputs, _) in enumerate(shapes):
    kernel = jax.random.normal(jax.random.fold_in(key, i), (4, 4, inputs, outputs))
    params[f"{i}.kernel"] = STD * kernel
    params[f"{i}.bias"] = jnp.zeros(outputs)
    if 0 < i < len(shapes) - 1:
      params[f"{i}.scale"] = jnp.ones(outputs)
  return params


def score(
  config: LossConfig, params: Params, x_bhwc: jax.Array, *, dtype: jnp.dtype
) -> jax.Array:
  """How real the patches of images look.

  Args:
    config: gives width and levels.
    params: of `init`.
    x_bhwc: in [-1, 1].
    dtype: of the convolutions.

  Returns:
    f32[b, h, w], unbounded; above 0 is real.
  """
  x, layers = x_bhwc.astype(dtype), _layers(config)
  for i, (_, _, stride) in enumerate(layers):
    x = jax.lax.conv_general_dilated(
      x,
      params[f"{i}.kernel"].astype(dtype),
      window_strides=(stride, stride),
      padding=((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if f"{i}.scale" in params:
      x = normalised(x, groups=math.gcd(GROUPS, x.shape[-1]))
      x = (x * params[f"{i}.scale"][None, None, None]).astype(dtype)
    x = add_bias(x, params[f"{i}.bias"])
    if i < len(layers) - 1:
      x = jax.nn.leaky_relu(x, LEAK)
  return x[..., 0].astype(jnp.float32)


def discriminator_loss(real_bhw: jax.Array, made_bhw: jax.Array) -> jax.Array:
  """f32[]: the hinge loss, 0 where real scores are above 1 and made ones below -1."""
  real = jnp.mean(jax.nn.relu(1 - real_bhw))
  return 0.5 * (real + jnp.mean(jax.nn.relu(1 + made_bhw)))


def generator_loss(made_bhw: jax.Array) -> jax.Array:
  """f32[]: minus the mean score."""
  return -jnp.mean(made_bhw)


def least_side(config: LossConfig) -> int:
  """Pixels that a image's side needs for one score to be left."""
  return 3 * 2**config.adversary_levels


def _layers(config: LossConfig) -> list[tuple[int, int, int]]:
  """Channels in, channels out and stride of each layer."""
  width, levels = config.adversary_width, config.adversary_levels
  widths = [min(2**i, WIDEST) * width for i in range(levels + 1)]
  strides = [2] * levels + [1, 1]
  ends = [*widths, 1]
  return list(zip([PIXEL_CHANNELS, *widths], ends, strides, strict=True))
