"""The image autoencoders: a VAE with a KL term, and its twin with a codebook (VQ-VAE).

Owns: their parameters, encode, decode, the posterior, the nearest code, the codebook
loss. Not: training (step.py), images as bytes and files of weights (codec.py).

b batch  h w c height, width, channels  n cells of the latent grid  v codes  d numbers
of a code

The layout of arXiv 2012.09841: residual blocks of GroupNorm, swish and 3x3
convolutions, one attention layer in the middle of each half. Images are NHWC, kernels
HWIO. Parameters are a flat dict from dotted paths to float32 arrays, as in a file.
Everything here runs under a mesh (`jax.set_mesh`); a batch may be sharded, parameters
are not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tfusion.autoencoder_config import AutoencoderModelConfig
from tfusion.model.linear import param

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)  # as in the reference implementations
PIXEL_CHANNELS = 3
DTYPES = ("auto", "float32", "bfloat16")

Params = dict[str, jax.Array]  # "decoder.conv_out.kernel" -> f32


class Posterior(NamedTuple):
  """A normal distribution for each number of a latent."""

  mean_bhwc: jax.Array  # f32
  logvar_bhwc: jax.Array  # f32, within LOGVAR_RANGE

  def sample(self, key: jax.Array) -> jax.Array:
    """One draw, f32[b, h, w, c]."""
    sharding = jax.typeof(self.mean_bhwc).sharding.spec
    noise = jax.random.normal(key, self.mean_bhwc.shape, out_sharding=sharding)
    return self.mean_bhwc + jnp.exp(0.5 * self.logvar_bhwc) * noise

  def kl(self) -> jax.Array:
    """f32[b]: divergence from the standard normal in nats, summed over a latent."""
    mean, logvar = self
    nats = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
    return jnp.sum(nats, axis=(1, 2, 3))


class Quantised(NamedTuple):
  """Vectors replaced by the nearest code of the book."""

  codes_bn: jax.Array  # i32, cells in raster order
  latents_bhwc: (
    jax.Array
  )  # f32, what the decoder reads; gradients pass straight through
  book_loss_b: jax.Array  # f32, mean of ||sg[z_e] - e||^2: moves the codes
  commitment_b: jax.Array  # f32, mean of ||z_e - sg[e]||^2: moves the encoder

  def loss(self, beta: float) -> jax.Array:
    """f32[b]: the book's term plus beta times the encoder's (arXiv 1711.00937, eq. 3).

    The first public VQGAN had beta on the other term.
    """
    return self.book_loss_b + beta * self.commitment_b


class Conv(nnx.Module):
  """A convolution with bias in the dtype of its input."""

  def __init__(
    self, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, rngs: nnx.Rngs
  ):
    names, shape = (None,) * 4, (size, size, inputs, outputs)
    # The variance of the reference's initial weights, uniform in +-1/sqrt(fan_in).
    std = (3 * size**2 * inputs) ** -0.5
    self.kernel = param(rngs, names, shape, std=std)
    self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32), names=(None,))
    self.stride = stride
    # A strided one sees one pixel more to the right and below, as in the reference.
    self.padding = ((0, 1),) * 2 if stride > 1 else ((size // 2,) * 2,) * 2

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """[b, h, w, inputs] to [b, h / stride, w / stride, outputs]."""
    x = jax.lax.conv_general_dilated(
      x_bhwc,
      self.kernel[...].astype(x_bhwc.dtype),
      window_strides=(self.stride,) * 2,
      padding=self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return add_bias(x, self.bias[...])


class GroupNorm(nnx.Module):
  """Normalises groups of channels over the whole image, in float32."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    self.scale = param(rngs, (None,), (channels,), std=0.0)
    self.bias = nnx.Param(jnp.zeros(channels, jnp.float32), names=(None,))
    self.groups = min(groups, channels)

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """Keeps shape and dtype."""
    x = normalised(x_bhwc, groups=self.groups)
    x = x * self.scale[...][None, None, None] + self.bias[...][None, None, None]
    return x.astype(x_bhwc.dtype)


class ResBlock(nnx.Module):
  """x + conv(swish(norm(conv(swish(norm(x)))))); the sum's x widened if need be."""

  def __init__(self, inputs: int, outputs: int, *, groups: int, rngs: nnx.Rngs):
    self.norm1 = GroupNorm(inputs, groups=groups, rngs=rngs)
    self.conv1 = Conv(inputs, outputs, rngs=rngs)
    self.norm2 = GroupNorm(outputs, groups=groups, rngs=rngs)
    self.conv2 = Conv(outputs, outputs, rngs=rngs)
    if inputs != outputs:
      self.shortcut = Conv(inputs, outputs, size=1, rngs=rngs)
    self.widens = inputs != outputs

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """[b, h, w, inputs] to [b, h, w, outputs]."""
    x = self.conv1(jax.nn.silu(self.norm1(x_bhwc)))
    x = self.conv2(jax.nn.silu(self.norm2(x)))
    return x + (self.shortcut(x_bhwc) if self.widens else x_bhwc)


class ImageAttention(nnx.Module):
  """Every cell attends to every other, with one head as wide as the channels."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    self.norm = GroupNorm(channels, groups=groups, rngs=rngs)
    self.query = Conv(channels, channels, size=1, rngs=rngs)
    self.key = Conv(channels, channels, size=1, rngs=rngs)
    self.value = Conv(channels, channels, size=1, rngs=rngs)
    self.out = Conv(channels, channels, size=1, rngs=rngs)

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """Adds to x; keeps its shape."""
    b, h, w, c = x_bhwc.shape
    x = self.norm(x_bhwc)
    q, k, v = (f(x).reshape(b, h * w, c) for f in (self.query, self.key, self.value))
    logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * c**-0.5, axis=-1).astype(v.dtype)
    return x_bhwc + self.out(jnp.einsum("bqk,bkc->bqc", weights, v).reshape(b, h, w, c))


class Middle(nnx.Module):
  """Block, attention, block at the lowest resolution."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    self.first = ResBlock(channels, channels, groups=groups, rngs=rngs)
    self.attention = ImageAttention(channels, groups=groups, rngs=rngs)
    self.second = ResBlock(channels, channels, groups=groups, rngs=rngs)

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """Keeps the shape."""
    return self.second(self.attention(self.first(x_bhwc)))


class Level(nnx.Module):
  """Blocks at one resolution, then a convolution to the next one if there is one."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    blocks: int,
    stride: int | None,
    groups: int,
    rngs: nnx.Rngs,
  ):
    self.blocks = nnx.List(
      [
        ResBlock(outputs if i else inputs, outputs, groups=groups, rngs=rngs)
        for i in range(blocks)
      ]
    )
    if stride:
      self.resize = Conv(outputs, outputs, stride=stride, rngs=rngs)
    self.resizes = stride is not None

  def __call__(self, x_bhwc: jax.Array, *, up: bool) -> jax.Array:
    """Halves the sides, or doubles them where `up`; the last level keeps them."""
    for block in self.blocks:
      x_bhwc = block(x_bhwc)
    if self.resizes:
      x_bhwc = self.resize(_double(x_bhwc) if up else x_bhwc)
    return x_bhwc


class Encoder(nnx.Module):
  """Images [b, h, w, 3] to [b, h / f, w / f, encoder_out]."""

  def __init__(self, config: AutoencoderModelConfig, *, rngs: nnx.Rngs):
    widths, groups = config.widths, config.groups
    self.patch = config.patch
    self.conv_in = Conv(PIXEL_CHANNELS * config.patch**2, widths[0], rngs=rngs)
    strides = [2] * (len(widths) - 1) + [None]
    self.levels = nnx.List(
      [
        Level(
          inputs, outputs, blocks=config.blocks, stride=stride, groups=groups, rngs=rngs
        )
        for inputs, outputs, stride in zip((widths[0], *widths), widths, strides)
      ]
    )
    self.middle = Middle(widths[-1], groups=groups, rngs=rngs)
    self.norm_out = GroupNorm(widths[-1], groups=groups, rngs=rngs)
    self.conv_out = Conv(widths[-1], config.encoder_out, rngs=rngs)

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """Keeps the dtype."""
    x = self.conv_in(to_patches(x_bhwc, patch=self.patch))
    for level in self.levels:
      x = level(x, up=False)
    return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
  """[b, h, w, decoder_in] to images [b, h * f, w * f, 3]; level 0 is the lowest."""

  def __init__(self, config: AutoencoderModelConfig, *, rngs: nnx.Rngs):
    widths, groups = config.widths[::-1], config.groups
    self.conv_in = Conv(config.decoder_in, widths[0], rngs=rngs)
    self.middle = Middle(widths[0], groups=groups, rngs=rngs)
    strides = [1] * (len(widths) - 1) + [None]
    self.levels = nnx.List(
      [
        Level(
          inputs,
          outputs,
          blocks=config.blocks + 1,
          stride=stride,
          groups=groups,
          rngs=rngs,
        )
        for inputs, outputs, stride in zip((widths[0], *widths), widths, strides)
      ]
    )
    self.norm_out = GroupNorm(widths[-1], groups=groups, rngs=rngs)
    self.patch = config.patch
    self.conv_out = Conv(widths[-1], PIXEL_CHANNELS * config.patch**2, rngs=rngs)

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """Keeps the dtype."""
    x = self.middle(self.conv_in(x_bhwc))
    for level in self.levels:
      x = level(x, up=True)
    x = self.conv_out(jax.nn.silu(self.norm_out(x)))
    return from_patches(x, patch=self.patch)


class Autoencoder(nnx.Module):
  """Both halves, and the codebook if config.codes."""

  def __init__(self, config: AutoencoderModelConfig, *, rngs: nnx.Rngs):
    latent = config.latent_channels
    self.encoder = Encoder(config, rngs=rngs)
    self.decoder = Decoder(config, rngs=rngs)
    if config.quant_conv:
      moments = latent if config.codes else 2 * latent
      self.quant_conv = Conv(config.encoder_out, moments, size=1, rngs=rngs)
      self.post_quant_conv = Conv(latent, config.decoder_in, size=1, rngs=rngs)
    if config.codes:
      # As wide as what an untrained encoder gives, so that many are near it; ours:
      # of the reference's, uniform in +-1 / codes, the few at the rim win everything.
      self.codebook = param(rngs, (None, None), (config.codes, latent), std=0.2)
    self.config = config

  def encode(self, x_bhwc: jax.Array) -> Posterior:
    """Images in [-1, 1] to the posterior of their latents; without a codebook."""
    assert not self.config.codes, "a codebook has no posterior: encode_vectors"
    mean, logvar = jnp.split(self._to_latents(x_bhwc), 2, axis=-1)
    return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE))

  def encode_vectors(self, x_bhwc: jax.Array) -> jax.Array:
    """Images in [-1, 1] to what `quantise` takes, f32; with a codebook."""
    assert self.config.codes, "without a codebook: encode"
    return self._to_latents(x_bhwc)

  def quantise(self, z_bhwc: jax.Array) -> Quantised:
    """Replaces every vector by the nearest code (the first of equals)."""
    b, h, w, d = z_bhwc.shape
    z_bnd = z_bhwc.reshape(b, h * w, d)
    codes_bn = nearest(z_bnd, self.codebook[...])
    e_bnd = self._look_up(codes_bn)
    still_z, still_e = map(jax.lax.stop_gradient, (z_bnd, e_bnd))
    latents = (z_bnd + still_e - still_z).reshape(z_bhwc.shape)
    book = jnp.mean(jnp.square(still_z - e_bnd), axis=(1, 2))
    commitment = jnp.mean(jnp.square(z_bnd - still_e), axis=(1, 2))
    return Quantised(codes_bn, latents, book, commitment)

  def embed(self, codes_bn: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Codes in raster order to the latents f32[b, h, w, c] for `decode`."""
    return self._look_up(codes_bn).reshape(codes_bn.shape[0], *shape, -1)

  def decode(self, z_bhwc: jax.Array) -> jax.Array:
    """Latents to images, f32, about [-1, 1] and not clipped."""
    z = z_bhwc.astype(dtype_of(self.config))
    if self.config.quant_conv:
      z = self.post_quant_conv(z)
    return self.decoder(z).astype(jnp.float32)

  def _to_latents(self, x_bhwc):
    x = self.encoder(x_bhwc.astype(dtype_of(self.config)))
    if self.config.quant_conv:
      x = self.quant_conv(x)
    return x.astype(jnp.float32)

  def _look_up(self, codes_bn):
    out = jax.P(*jax.typeof(codes_bn).sharding.spec, None)
    return self.codebook[...].at[codes_bn].get(out_sharding=out)


def validate(config: AutoencoderModelConfig, *, prefix: str = "") -> None:
  """Checks that an autoencoder can be built.

  Args:
    config: of the model.
    prefix: of its keys in messages, with the dot.

  Raises:
    ValueError: names the key, the value and the remedy.
  """
  c = config
  sizes = "patch blocks groups encoder_out decoder_in latent_channels".split()
  problems = [
    f"{prefix}{key}={getattr(c, key)}: must be above 0"
    for key in sizes
    if getattr(c, key) < 1
  ]
  if c.codes < 0:
    problems.append(f"{prefix}codes={c.codes}: must be at least 0")
  if not c.widths or min(c.widths) < 1 or any(w % min(c.groups, w) for w in c.widths):
    problems.append(
      f"{prefix}widths={c.widths}: at least one, each above 0, at most {prefix}groups"
      f"={c.groups} or a multiple of it"
    )
  if c.dtype not in DTYPES:
    problems.append(f"{prefix}dtype={c.dtype!r}: choose one of {DTYPES}")
  ends = (c.latent_channels * (1 if c.codes else 2), c.latent_channels)
  if not c.quant_conv and (c.encoder_out, c.decoder_in) != ends:
    problems.append(
      f"{prefix}quant_conv=False: then encoder_out, decoder_in must be {ends}"
    )
  if problems:
    raise ValueError("\n".join(problems))


def add_bias(x_bhwc: jax.Array, bias_c: jax.Array) -> jax.Array:
  """Keeps the dtype of x, but adds in float32: the gradient of the bias is a sum over
  all pixels, of which bfloat16 would lose what is below a 256th of the sum so far."""
  wide = x_bhwc.astype(jnp.float32) + bias_c[None, None, None]
  return wide.astype(x_bhwc.dtype)


def normalised(x_bhwc: jax.Array, *, groups: int) -> jax.Array:
  """f32 of the same shape: each group of channels with mean 0 and variance 1.

  Means over the image come first and over a group's channels second: a CPU then
  passes over images in their own layout, and takes a fifth of the time.
  """

  def by_group(x_bhwc):
    mean_bc = jnp.mean(x_bhwc, axis=(1, 2))
    b, c = mean_bc.shape
    mean_bgc = mean_bc.reshape(b, groups, c // groups)
    mean_bgc = jnp.broadcast_to(jnp.mean(mean_bgc, -1, keepdims=True), mean_bgc.shape)
    return mean_bgc.reshape(b, c)[:, None, None]

  x = x_bhwc.astype(jnp.float32)
  x = x - by_group(x)
  return x * jax.lax.rsqrt(by_group(jnp.square(x)) + NORM_EPS)


def to_patches(x_bhwc: jax.Array, *, patch: int) -> jax.Array:
  """Patches of pixels as cells of many channels: [b, h / p, w / p, p * p * c]."""
  b, h, w, c = x_bhwc.shape
  h, w = h // patch, w // patch
  x = _reshape(x_bhwc, (b, h, patch, w, patch, c)).swapaxes(2, 3)
  return _reshape(x, (b, h, w, patch * patch * c))


def from_patches(x_bhwc: jax.Array, *, patch: int) -> jax.Array:
  """The inverse of to_patches."""
  b, h, w, c = x_bhwc.shape
  x = _reshape(x_bhwc, (b, h, w, patch, patch, c // patch**2)).swapaxes(2, 3)
  return _reshape(x, (b, h * patch, w * patch, c // patch**2))


def nearest(z_bnd: jax.Array, book_vd: jax.Array) -> jax.Array:
  """i32[b, n]: the code with the least squared distance, the first of equals.

  By |e|^2 - 2 z.e, for |z|^2 is the same for all; float32 products even where the
  default is less (TPUs), as else near codes are mixed up.
  """
  products = jnp.einsum("bnd,vd->bnv", z_bnd, book_vd, precision="highest")
  distance = jnp.sum(jnp.square(book_vd), axis=-1)[None, None] - 2 * products
  return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def dtype_of(config: AutoencoderModelConfig) -> jnp.dtype:
  """The dtype of convolutions; auto is float32 on a CPU, else bfloat16."""
  if config.dtype == "auto":
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
  return jnp.dtype(config.dtype)


def init(config: AutoencoderModelConfig, key: jax.Array) -> Params:
  """Random parameters; trace it under jit."""
  return _flat(Autoencoder(config, rngs=nnx.Rngs(params=key)))


def bind(config: AutoencoderModelConfig, params: Params) -> Autoencoder:
  """The model with these parameters, inside or outside a transformation."""
  graphdef, state = nnx.split(_build(config))
  filled = [
    (path, variable.replace(params[_name(path)]))
    for path, variable in nnx.to_flat_state(state)
  ]
  return nnx.merge(graphdef, nnx.from_flat_state(filled))


def abstract(config: AutoencoderModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of all parameters, without numbers."""
  return _flat(_build(config))


def parameter_count(config: AutoencoderModelConfig) -> int:
  """Numbers in all parameters, from shapes alone."""
  return sum(x.size for x in abstract(config).values())


def _build(config):
  return nnx.eval_shape(
    lambda: Autoencoder(config, rngs=nnx.Rngs(params=jax.random.key(0)))
  )


def _flat(model) -> dict:
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {_name(path): variable.get_value() for path, variable in flat}


def _name(path: tuple) -> str:
  return ".".join(map(str, path))


def _reshape(x, shape: tuple[int, ...]):
  """With the batch in front, and sharded as it was."""
  return jnp.reshape(x, shape, out_sharding=jax.P(jax.typeof(x).sharding.spec[0]))


def _double(x_bhwc):
  """Every pixel becomes four."""
  return jnp.repeat(jnp.repeat(x_bhwc, 2, axis=1), 2, axis=2)
