"""The perceptual term: how far apart two images are for a frozen network.

Owns: the networks by name, their files, the distance. Not: its weight in the loss
(step.py).

b batch  h w c height, width, channels

LPIPS (arXiv 1801.03924, section 3): features of several layers, each position's scaled
to unit length, squared differences summed over channels, with learned weights if the
file has them, averaged over positions and summed over layers. A new network is one
more entry of NETWORKS.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from tfusion.autoencoder.network import PIXEL_CHANNELS

EPS = 1e-10  # under the root: a position where nothing is seen has no direction
VGG16_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG16_WIDTHS = (64, 128, 256, 512, 512)
# What torchvision subtracts and divides by, for pixels in [-1, 1] instead of [0, 1].
VGG16_SHIFT, VGG16_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
RANDOM_WIDTHS = (32, 64, 64)
RANDOM_SEED = 0
WORST = 5  # names that an error lists


class Features(NamedTuple):
  """A frozen network: stages of 3x3 convolutions and rectifiers, each of which ends in
  a layer that counts, halved between stages."""

  stages: tuple[tuple[str, ...], ...]  # names of the convolutions; () for no network
  shift: tuple[float, ...] = (0.0,) * PIXEL_CHANNELS
  scale: tuple[float, ...] = (1.0,) * PIXEL_CHANNELS


Weights = dict[str, np.ndarray]  # f32; NAME.kernel [3, 3, i, o], NAME.bias, STAGE.lin


def open_features(name: str, *, image_shape: Sequence[int]) -> tuple[Features, Weights]:
  """Opens a network by name.

  Args:
    name: `none`; `random`, convolutions with random weights, always the same, ours:
      for small runs where there is no trained network; or `vgg16:PATH`, a safetensors
      file with torchvision's keys (`features.0.weight`, ...) and, if wanted, the linear
      weights of LPIPS (`lin0.model.1.weight`, ...).
    image_shape: h, w, ... of the images.

  Returns:
    The network and its weights.

  Raises:
    ValueError: an unknown name, a file that cannot be read, lacks a key or has one of
      another shape, or images too small to be halved so often.
  """
  kind, _, path = name.partition(":")
  if kind not in NETWORKS or bool(path) != (kind == "vgg16"):
    raise ValueError(
      f"loss.features={name!r}: choose none, random, or vgg16:PATH with a safetensors"
      " file"
    )
  features, weights = NETWORKS[kind](path)
  least = 2 ** max(len(features.stages) - 1, 0)
  if min(image_shape[:2]) < least:
    raise ValueError(
      f"data.image_shape={tuple(image_shape)}: loss.features={name!r} needs sides of at"
      f" least {least} pixels; choose other features or larger images"
    )
  return features, weights


def distance(
  features: Features,
  weights: Mapping[str, jax.Array],
  x_bhwc: jax.Array,
  y_bhwc: jax.Array,
  *,
  dtype: jnp.dtype,
) -> jax.Array:
  """f32[b]: how different images in [-1, 1] look; 0 for equal ones.

  Convolutions are done in `dtype`, the rest in float32. Without stages f32[], 0.
  """
  total_b = jnp.float32(0)
  maps = (_maps(features, weights, image, dtype) for image in (x_bhwc, y_bhwc))
  for stage, (x, y) in enumerate(zip(*maps)):
    error_bhwc = jnp.square(_unit(x) - _unit(y))
    if (lin := weights.get(f"{stage}.lin")) is not None:
      error_bhwc = error_bhwc * lin[None, None, None]
    total_b += jnp.mean(jnp.sum(error_bhwc, axis=-1), axis=(1, 2))
  return total_b


def _maps(features, weights, x_bhwc, dtype) -> list[jax.Array]:
  """The last layer of every stage."""
  shift, scale = (jnp.asarray(v)[None, None, None] for v in features[1:])
  x = ((x_bhwc - shift) / scale).astype(dtype)
  maps: list[jax.Array] = []
  for stage in features.stages:
    x = _halve(x) if maps else x
    for name in stage:
      kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
      x = jax.lax.conv_general_dilated(
        x,
        kernel.astype(dtype),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
      x = jax.nn.relu(x + bias.astype(dtype)[None, None, None])
    maps.append(x)
  return maps


def _unit(x_bhwc):
  x = x_bhwc.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + EPS)


def _halve(x_bhwc):
  """The largest of every 2x2; an odd last row or column is left out."""
  b, h, w, c = x_bhwc.shape
  x = x_bhwc[:, : h // 2 * 2, : w // 2 * 2]
  # Not reduce_window, nor slices: their gradients take three times as long on a CPU.
  spec = jax.P(jax.typeof(x).sharding.spec[0])
  x = jnp.reshape(x, (b, h // 2, 2, w // 2, 2, c), out_sharding=spec)
  return jnp.max(x, axis=(2, 4))


def _none(path: str) -> tuple[Features, Weights]:
  return Features(()), {}


def _random(path: str) -> tuple[Features, Weights]:
  """Keeps the variance from layer to layer (arXiv 1502.01852, section 2.2)."""
  weights, inputs = {}, PIXEL_CHANNELS
  for i, outputs in enumerate(RANDOM_WIDTHS):
    key = jax.random.fold_in(jax.random.key(RANDOM_SEED), i)
    normal = np.asarray(jax.random.normal(key, (3, 3, inputs, outputs)))
    weights[f"{i}.kernel"] = normal * np.float32((2 / (9 * inputs)) ** 0.5)
    weights[f"{i}.bias"] = np.zeros(outputs, np.float32)
    inputs = outputs
  return Features(tuple((str(i),) for i in range(len(RANDOM_WIDTHS)))), weights


def _vgg16(path: str) -> tuple[Features, Weights]:
  shapes: dict[str, tuple[int, ...]] = {}
  inputs = PIXEL_CHANNELS
  for stage, outputs in zip(VGG16_STAGES, VGG16_WIDTHS):
    for i in stage:
      shapes[f"features.{i}.weight"] = (outputs, inputs, 3, 3)
      shapes[f"features.{i}.bias"] = (outputs,)
      inputs = outputs
  lins = [f"lin{i}.model.1.weight" for i in range(len(VGG16_STAGES))]
  found = _read(path, [*shapes, *lins])
  if found.keys() & set(lins):  # all of them, then
    shapes |= {lin: (1, width, 1, 1) for lin, width in zip(lins, VGG16_WIDTHS)}
  _check(path, found, shapes)
  weights = {}
  for i in (i for stage in VGG16_STAGES for i in stage):
    weights[f"{i}.kernel"] = found[f"features.{i}.weight"].transpose(2, 3, 1, 0)
    weights[f"{i}.bias"] = found[f"features.{i}.bias"]
  for number, lin in enumerate(lins):
    if lin in found:
      weights[f"{number}.lin"] = found[lin].reshape(-1)
  stages = tuple(tuple(map(str, stage)) for stage in VGG16_STAGES)
  return Features(stages, VGG16_SHIFT, VGG16_SCALE), weights


NETWORKS = {"none": _none, "random": _random, "vgg16": _vgg16}


def _read(path: str, names: Sequence[str]) -> Weights:
  """Those of the arrays that the file has, as float32."""
  try:
    with safetensors.safe_open(Path(path).expanduser(), framework="numpy") as file:
      there = set(file.keys())
      return {n: file.get_tensor(n).astype(np.float32) for n in names if n in there}
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(
      f"loss.features='vgg16:{path}': not a safetensors file that can be read ({error})"
    ) from error


def _check(path: str, found: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
  problems = [
    f"{name} is {'missing' if name not in found else found[name].shape}, not {shape}"
    for name, shape in shapes.items()
    if name not in found or found[name].shape != shape
  ]
  problems += [
    f"{name} has numbers below 0, so it measures no distance"
    for name in found
    if name.startswith("lin") and found[name].min() < 0
  ]
  if problems:
    more = f" and {len(problems) - WORST} more" * (len(problems) > WORST)
    raise ValueError(
      f"loss.features='vgg16:{path}': not torchvision's VGG16, with or without the"
      f" linear weights of LPIPS: {'; '.join(problems[:WORST])}{more}"
    )
