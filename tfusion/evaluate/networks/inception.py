"""The Inception network whose features the FID is made of (arXiv 1706.08500).

Owns: its layers, names and shapes of its weights, images as it takes them. Not: the
distance (frechet.py), the file (weights.py).

It is Inception v3 (arXiv 1512.00567) as TensorFlow published it in 2015, with the names
that torchvision gives the weights. Three things tell it from torchvision's own: the
means over 3 x 3 numbers leave out the border, the last block takes the largest of them
instead, and the head has 1008 classes, which are not used here. The widths of the
layers are those of the file, so that a test can have a narrow one.

n images  h w c height, width, channels
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.evaluate.networks import weights as weights_lib
from tfusion.evaluate.networks.network import Network

SIDE = 299  # pixels
EPS = 0.001  # of batch norm
REMEDY = (
  "FID needs the weights pt_inception-2015-12-05-6726825d.pth, which the releases of"
  " github.com/mseitzer/pytorch-fid hold, as .safetensors; docs/evaluation.md has the"
  " two lines that convert them"
)
HEAD = ("fc.weight", "fc.bias")  # may be there


class Convolution(NamedTuple):
  """A convolution without bias, batch norm and ReLU."""

  name: str
  kernel: tuple[int, int]
  stride: int = 1
  padded: bool = False  # so that the sides stay


def _c(name: str, *kernel: int, stride: int = 1, padded: bool = False) -> Convolution:
  high, wide = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
  return Convolution(name, (high, wide), stride, padded)


_same = functools.partial(_c, padded=True)

# Each block is a list of branches, whose outputs are joined; a branch is a chain of
# convolutions; a pair at its end is joined too; a pool stands before its convolution.
Branch = tuple
STEM = (
  _c("Conv2d_1a_3x3", 3, stride=2),
  _c("Conv2d_2a_3x3", 3),
  _same("Conv2d_2b_3x3", 3),
  "max_half",
  _c("Conv2d_3b_1x1", 1),
  _c("Conv2d_4a_3x3", 3),
  "max_half",
)
A = (
  (_c("branch1x1", 1),),
  (_c("branch5x5_1", 1), _same("branch5x5_2", 5)),
  (_c("branch3x3dbl_1", 1), _same("branch3x3dbl_2", 3), _same("branch3x3dbl_3", 3)),
  ("mean", _c("branch_pool", 1)),
)
B = (
  (_c("branch3x3", 3, stride=2),),
  (
    _c("branch3x3dbl_1", 1),
    _same("branch3x3dbl_2", 3),
    _c("branch3x3dbl_3", 3, stride=2),
  ),
  ("max_half",),
)
C = (
  (_c("branch1x1", 1),),
  (_c("branch7x7_1", 1), _same("branch7x7_2", 1, 7), _same("branch7x7_3", 7, 1)),
  (
    _c("branch7x7dbl_1", 1),
    _same("branch7x7dbl_2", 7, 1),
    _same("branch7x7dbl_3", 1, 7),
    _same("branch7x7dbl_4", 7, 1),
    _same("branch7x7dbl_5", 1, 7),
  ),
  ("mean", _c("branch_pool", 1)),
)
D = (
  (_c("branch3x3_1", 1), _c("branch3x3_2", 3, stride=2)),
  (
    _c("branch7x7x3_1", 1),
    _same("branch7x7x3_2", 1, 7),
    _same("branch7x7x3_3", 7, 1),
    _c("branch7x7x3_4", 3, stride=2),
  ),
  ("max_half",),
)


def _e(pool: str) -> tuple[Branch, ...]:
  return (
    (_c("branch1x1", 1),),
    (
      _c("branch3x3_1", 1),
      [_same("branch3x3_2a", 1, 3), _same("branch3x3_2b", 3, 1)],
    ),
    (
      _c("branch3x3dbl_1", 1),
      _same("branch3x3dbl_2", 3),
      [_same("branch3x3dbl_3a", 1, 3), _same("branch3x3dbl_3b", 3, 1)],
    ),
    (pool, _c("branch_pool", 1)),
  )


BLOCKS: tuple[tuple[str, tuple[Branch, ...]], ...] = (
  *((f"Mixed_5{x}", A) for x in "bcd"),
  ("Mixed_6a", B),
  *((f"Mixed_6{x}", C) for x in "bcde"),
  ("Mixed_7a", D),
  ("Mixed_7b", _e("mean")),
  ("Mixed_7c", _e("max")),
)


def open_inception(path: Path) -> Network:
  """Opens the network.

  Args:
    path: of a .safetensors or .npz file with torchvision's names.

  Raises:
    ValueError: the file is missing or broken, or names that lack or are unknown.
  """
  found = weights_lib.read(path, remedy=REMEDY)
  found = {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")}
  layers = {f"{name}.{part}": own for name, own in convolutions() for part in _PARTS}
  known = [name for name in found if name not in HEAD]
  weights_lib.check_names(known, layers, path=path)
  for name, own in layers.items():
    shape = (None, None, *own.kernel) if name.endswith("conv.weight") else (None,)
    weights_lib.check_shape(name, found[name], shape, path=path)
  params = {name: jnp.asarray(found[name], jnp.float32) for name in layers}
  return Network(weights_lib.named("inception", path), features, params)


_PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def convolutions() -> list[tuple[str, Convolution]]:
  """All of them, with their full names."""
  stem = [(own.name, own) for own in STEM if isinstance(own, Convolution)]
  inner = [
    (f"{block}.{own.name}", own)
    for block, branches in BLOCKS
    for branch in branches
    for step in branch
    for own in (step if isinstance(step, list) else [step])
    if isinstance(own, Convolution)
  ]
  return stem + inner


def features(params: dict[str, jax.Array], pixels_nhwc: jax.Array) -> jax.Array:
  """What stands before the head, f32[n, d], d = 2048 in the published network.

  Args:
    params: by their full names.
    pixels_nhwc: u8[n, h, w, 3], of any size; enlarged to 299 without smoothing, as
      pytorch-fid does.
  """
  x = pixels_nhwc.astype(jnp.float32) / 255
  n, _, _, c = x.shape
  x = jax.image.resize(x, (n, SIDE, SIDE, c), "bilinear", antialias=False)
  x = _chain(params, "", STEM, 2 * x - 1)
  for block, branches in BLOCKS:
    made = [_chain(params, f"{block}.", branch, x) for branch in branches]
    x = jnp.concatenate(made, axis=-1)
  return jnp.mean(x, axis=(1, 2))


def _chain(params, prefix: str, steps: Sequence, x: jax.Array) -> jax.Array:
  for step in steps:
    if isinstance(step, str):
      x = POOLS[step](x)
    elif isinstance(step, list):
      x = jnp.concatenate([_convolve(params, prefix, own, x) for own in step], axis=-1)
    else:
      x = _convolve(params, prefix, step, x)
  return x


def _convolve(params, prefix: str, own: Convolution, x: jax.Array) -> jax.Array:
  def of(part):
    return params[f"{prefix}{own.name}.{part}"]

  pads = [((k - 1) // 2,) * 2 if own.padded else (0, 0) for k in own.kernel]
  x = jax.lax.conv_general_dilated(
    x,
    of("conv.weight"),
    (own.stride, own.stride),
    pads,
    dimension_numbers=("NHWC", "OIHW", "NHWC"),
    precision=jax.lax.Precision.HIGHEST,
  )
  scale = of("bn.weight") * jax.lax.rsqrt(of("bn.running_var") + EPS)
  return jax.nn.relu((x - of("bn.running_mean")) * scale + of("bn.bias"))


def _pool(x: jax.Array, start: float, join, *, stride: int, pad: int) -> jax.Array:
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  return jax.lax.reduce_window(
    x, start, join, (1, 3, 3, 1), (1, stride, stride, 1), pads
  )


def _mean(x: jax.Array) -> jax.Array:
  """Over 3 x 3 numbers, or as many of them as there are at the border."""
  total = _pool(x, 0.0, jax.lax.add, stride=1, pad=1)
  # Counted on the host: XLA would take minutes to fold sums over an array of ones.
  high, wide = (_neighbours(side) for side in x.shape[1:3])
  return total / np.outer(high, wide)[:, :, None].astype(np.float32)


def _neighbours(side: int) -> np.ndarray:
  """How many of three places in a row there are around each, i64[side]."""
  at = np.arange(side)
  return np.minimum(at + 1, side - 1) - np.maximum(at - 1, 0) + 1


POOLS = {
  "mean": _mean,
  "max": lambda x: _pool(x, -jnp.inf, jax.lax.max, stride=1, pad=1),
  "max_half": lambda x: _pool(x, -jnp.inf, jax.lax.max, stride=2, pad=0),
}
