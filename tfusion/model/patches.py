"""Latents to patch vectors and back, and the embeddings of timestep and place.

Owns: the linear encoder and decoder, waves of places. Not: noise (diffusion/), where
patches stand in a row (sequence.py).

b batch  n image slots  h w c latent height, width, channels  m patches of an image
p numbers of a patch  d width
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from tfusion.config import ModelConfig
from tfusion.kinds import Kind
from tfusion.model.linear import linear, param
from tfusion.sharding import by_row

SINUSOIDS = 256  # as in DiT; with biases it gives the added share of Table 7


# Of a kind's dimensions: the grid of patches, and the cells of a patch.
_GRID, _CELLS = "rst", "ijk"


def _patterns(dimensions: int) -> tuple[str, str]:
  """Whole and patches as einops names them: n (r i) (s j) c and n (r s) (i j c)."""
  grid, cells = _GRID[:dimensions], _CELLS[:dimensions]
  sides = " ".join(f"({g} {c})" for g, c in zip(grid, cells))
  return f"n {sides} c", f"n ({' '.join(grid)}) ({' '.join(cells)} c)"


def patchify(x_bnhwc: jax.Array, *, patch: tuple[int, ...]) -> jax.Array:
  """Cuts latents, of as many dimensions as `patch`, into patch vectors in raster order:
  [b, n, m, p]."""
  whole, patches = _patterns(len(patch))
  cells = dict(zip(_CELLS, patch))
  return by_row(lambda x: rearrange(x, f"{whole} -> {patches}", **cells))(x_bnhwc)


def unpatchify(
  x_bnmp: jax.Array, *, patch: tuple[int, ...], grid: tuple[int, ...]
) -> jax.Array:
  """Inverse of patchify; `grid` has the patches along every dimension."""
  whole, patches = _patterns(len(patch))
  sides = dict(zip(_GRID, grid)) | dict(zip(_CELLS, patch))
  return by_row(lambda x: rearrange(x, f"{patches} -> {whole}", **sides))(x_bnmp)


def sinusoids(t_bn: jax.Array, *, scale: float = 1.0) -> jax.Array:
  """f32[b, n, 256]: cosines and sines of t (0 clean .. 1000 noise), times `scale`, at
  frequencies from 1 to 1/10000 (arXiv 2006.11239, appendix B)."""
  half = SINUSOIDS // 2
  frequency_f = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
  if scale != 1.0:
    frequency_f = scale * frequency_f
  angle_bnf = t_bn.astype(jnp.float32)[..., None] * frequency_f[None, None]
  return jnp.concatenate([jnp.cos(angle_bnf), jnp.sin(angle_bnf)], axis=-1)


def waves(grid: tuple[int, int], width: int) -> np.ndarray:
  """Sines and cosines of the places in a grid, f32[m, width], as MAE's code has them.

  The first half is of the column, the second of the row; in each are the sines, then
  the cosines, at width / 4 frequencies from 1 to nearly 1/10000 (arXiv 2111.06377; DiT
  and BAGEL use the same).

  Args:
    grid: rows and columns.
    width: of the model, a multiple of 4.
  """
  quarter = width // 4
  frequency_f = 10_000.0 ** (-np.arange(quarter) / quarter)
  row_m, column_m = np.indices(grid).reshape(2, -1)
  angle_mf = [place_m[:, None] * frequency_f for place_m in (column_m, row_m)]
  parts = [f(x_mf) for x_mf in angle_mf for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


class LinearPatches(nnx.Module):
  """One linear layer in and one out, with the timestep added in model width.

  arXiv 2408.11039 footnote 6 adds the time embedding to every patch vector; an MLP of
  sinusoids 256 -> d -> d added after the projection fits the parameter counts that
  Table 7 prints, so that is what we do.
  """

  def __init__(self, config: ModelConfig, kind: Kind, *, rngs: nnx.Rngs):
    d, p = config.width, kind.patch_numbers
    self.w_in = param(rngs, (None, "embed"), (p, d), std=p**-0.5)
    self.b_in = _zeros(d)
    self.w_time1 = param(rngs, (None, "embed"), (SINUSOIDS, d), std=SINUSOIDS**-0.5)
    self.b_time1 = _zeros(d)
    self.w_time2 = param(rngs, (None, "embed"), (d, d), std=d**-0.5)
    self.b_time2 = _zeros(d)
    self.w_out = param(rngs, ("embed", None), (d, p), std=d**-0.5)
    self.b_out = _zeros(p)
    self.patch = kind.patch
    self.gradient, self.time_scale = config.gradient_dtype, config.time_scale

  def encode(
    self, x_bnhwc: jax.Array, t_bn: jax.Array, *, dtype
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Noisy latents and their timesteps to [b, n, m, d]; nothing is kept for `decode`.

    Biases and the time vector are added in float32: their gradients are sums over all
    patches, of which bfloat16 would lose what is below a 256th of the sum so far.
    """
    wide = dict(out_dtype="float32")
    time = sinusoids(t_bn, scale=self.time_scale).astype(dtype)
    time = linear(time, self.w_time1, self.gradient, **wide) + _bias(self.b_time1, 3)
    time = jax.nn.silu(time).astype(dtype)
    time = linear(time, self.w_time2, self.gradient, **wide) + _bias(self.b_time2, 3)
    x_bnmp = patchify(x_bnhwc, patch=self.patch).astype(dtype)
    x = linear(x_bnmp, self.w_in, self.gradient, **wide) + _bias(self.b_in, 4)
    return (x + time[:, :, None]).astype(dtype), ()

  def decode(
    self,
    x_bnmd: jax.Array,
    skips: tuple[jax.Array, ...] = (),
    *,
    grid: tuple[int, ...],
  ) -> jax.Array:
    """Transformer outputs at the patches of a grid to the prediction, f32[b, n, h, w,
    c]."""
    x = linear(x_bnmd, self.w_out, self.gradient, out_dtype="float32")
    x = x + _bias(self.b_out, 4)
    return unpatchify(x, patch=self.patch, grid=grid)


def _bias(bias: nnx.Param, ndim: int) -> jax.Array:
  """The bias with as many axes as what it is added to."""
  return bias[...].reshape((1,) * (ndim - 1) + (-1,))


def _zeros(size: int) -> nnx.Param:
  return nnx.Param(jnp.zeros(size, jnp.float32), names=(None,))
