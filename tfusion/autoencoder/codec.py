"""An autoencoder as a thing that turns images into latents or codes, and back.

Owns: bytes of pixels to numbers and back, the file autoencoder.safetensors. Not: the
layers (network.py), other programs' files (interop/), the scale of latents in
training (data/shards/manifest.py).

The file holds float32 parameters under their dotted names and, as metadata, one JSON
text with the version of the layout, the config and the hash of the content. The same
parameters give the same bytes.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import NamedSharding

from tfusion import files
from tfusion.autoencoder import network
from tfusion.autoencoder_config import AutoencoderModelConfig
from tfusion.config import MeshConfig
from tfusion.sharding import make_mesh, spec

VERSION = 2  # 1 had no patches in the config
METADATA = "tfusion.autoencoder"  # one key: the order of several is not kept
WORST = 5  # names that an error lists


class Codec:
  """Frozen weights on the devices of this process, called with batches of images.

  A batch that divides over the devices is shared out, any other is computed on each.
  The same batch on the same machine gives the same bits; every batch size is compiled
  once. Hosts do not wait for each other.

  Attributes:
    config: of the model.
    params: on the devices, for use under a mesh.
    sha256: of config and parameters, hexadecimal.
    kind: "latents" (a VAE) or "codes".
    downsampling: pixels along the side of a cell.
  """

  def __init__(self, config: AutoencoderModelConfig, params: Mapping[str, Any]):
    """Checks the weights and puts them on the devices.

    Args:
      config: of the model.
      params: all of its parameters by dotted name.

    Raises:
      ValueError: no such model, or parameters that are missing, unknown or of another
        shape.
    """
    network.validate(config)
    _check(config, params)
    self.config = config
    self.kind = "codes" if config.codes else "latents"
    self.downsampling = config.downsampling
    params = {n: np.asarray(params[n], np.float32) for n in sorted(params)}
    self.sha256 = _hash(config, params)
    self._mesh = make_mesh(MeshConfig(), devices=jax.local_devices())
    self.params = jax.device_put(params, NamedSharding(self._mesh, jax.P()))

  def latent_shape(self, image_px: int) -> tuple[int, ...]:
    """(h, w, c) of the latent of a square image, or (codes,).

    Raises:
      ValueError: the side does not divide into cells.
    """
    self._check_sides(image_px, image_px)
    side = image_px // self.downsampling
    return (
      (side**2,) if self.config.codes else (side, side, self.config.latent_channels)
    )

  def encode(self, pixels_bhwc: np.ndarray) -> dict[str, np.ndarray]:
    """Encodes images.

    Args:
      pixels_bhwc: u8[b, h, w, 3]; codes are for squares.

    Returns:
      {"mean": f32[b, h, w, c], "logvar": the same}, or {"codes": i32[b, n]} in raster
      order.

    Raises:
      ValueError: other pixels, or sides that do not divide into cells.
    """
    pixels_bhwc = np.asarray(pixels_bhwc)
    channels = network.PIXEL_CHANNELS
    if pixels_bhwc.dtype != np.uint8 or pixels_bhwc.shape[3:] != (channels,):
      raise ValueError(
        f"images {pixels_bhwc.dtype}{list(pixels_bhwc.shape)}: expected uint8[b, h,"
        f" w, {channels}]"
      )
    height, width = pixels_bhwc.shape[1:3]
    self._check_sides(height, width)
    if self.config.codes and height != width:
      raise ValueError(f"images of {height}x{width} pixels: codes are of a square")
    return jax.tree.map(np.asarray, self._run(_encode, pixels_bhwc))

  def decode(self, latents: np.ndarray) -> np.ndarray:
    """Decodes latents or codes.

    Args:
      latents: f32[b, h, w, c] as `encode` gives them, not scaled; or codes i32[b, n].

    Returns:
      u8[b, h * downsampling, w * downsampling, 3].

    Raises:
      ValueError: other numbers than this codec's.
    """
    latents = np.asarray(latents)
    if self.config.codes:
      self._check_codes(latents)
      latents = latents.astype(np.int32)
    elif (
      latents.dtype != np.float32
      or latents.ndim != 4
      or latents.shape[-1] != self.config.latent_channels
    ):
      raise ValueError(
        f"latents {latents.dtype}{list(latents.shape)}: expected float32[b, h, w,"
        f" {self.config.latent_channels}]"
      )
    return np.asarray(self._run(_decode, latents))

  def save(self, path: str | Path) -> None:
    """Writes the file, whole or not at all."""
    params = jax.tree.map(np.asarray, self.params)
    about = {
      "version": VERSION,
      "config": dataclasses.asdict(self.config),
      "sha256": self.sha256,
    }
    data = safetensors.numpy.save(params, {METADATA: json.dumps(about)})
    files.write_whole(files.to_path(path), data)

  def _check_codes(self, codes: np.ndarray) -> None:
    whole = codes.ndim == 2 and np.issubdtype(codes.dtype, np.integer)
    if not whole or math.isqrt(codes.shape[1]) ** 2 != codes.shape[1]:
      raise ValueError(
        f"codes {codes.dtype}{list(codes.shape)}: expected integers [b, n] with n a"
        " square"
      )
    if codes.size and not 0 <= codes.min() <= codes.max() < self.config.codes:
      raise ValueError(
        f"codes {codes.min()} to {codes.max()}: the book has 0 to"
        f" {self.config.codes - 1}"
      )

  def _check_sides(self, *sides: int) -> None:
    if any(side < 1 or side % self.downsampling for side in sides):
      raise ValueError(
        f"images of {'x'.join(map(str, sides))} pixels: the sides must be multiples"
        f" of the autoencoder's downsampling={self.downsampling}"
      )

  def _run(self, function, array_b: np.ndarray):
    sharded = len(array_b) % self._mesh.size == 0
    with jax.set_mesh(self._mesh):
      rows = NamedSharding(self._mesh, spec("batch") if sharded else jax.P())
      return function(self.config, self.params, jax.device_put(array_b, rows))


def load(path: str | Path) -> Codec:
  """Opens what Codec.save wrote.

  Raises:
    ValueError: there is no such file, it is no autoencoder of tfusion or of another
      version, or it is damaged.
  """
  try:
    with (
      files.local(path) as copy,
      safetensors.safe_open(copy, framework="numpy") as file,
    ):
      about = (file.metadata() or {}).get(METADATA)
      params = {name: file.get_tensor(name) for name in file.keys()} if about else {}
  except FileNotFoundError as error:
    raise ValueError(f"{path}: there is no such file; give an autoencoder's") from error
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(
      f"{path}: not an autoencoder file, or cut short ({error}); give one that"
      " `tfusion autoencoder` wrote"
    ) from error
  if about is None:
    raise ValueError(
      f"{path}: not an autoencoder of tfusion; one of the Stable Diffusion family is"
      " opened as the folder that holds its config.json"
    )
  try:
    about = json.loads(about)
    about["version"], about["config"]["widths"], about["sha256"]
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"{path}: damaged: what it says of itself cannot be read"
      f" ({type(error).__name__}: {error}); copy it again"
    ) from error
  if about["version"] != VERSION:
    raise ValueError(
      f"{path}: has version {about['version']}, this tfusion reads version {VERSION};"
      " open it with the tfusion that wrote it"
    )
  values = about["config"] | {"widths": tuple(about["config"]["widths"])}
  try:
    codec = Codec(AutoencoderModelConfig(**values), params)
  except (TypeError, ValueError) as error:  # an unknown key of the config
    raise ValueError(f"{path}: {error}") from error
  if codec.sha256 != about["sha256"]:
    raise ValueError(
      f"{path}: damaged: its numbers have sha256 {codec.sha256[:16]}..., not"
      f" {about['sha256'][:16]}... as it says; copy it again"
    )
  return codec


# Not of one codec: another with the same config is not compiled again.
@functools.partial(jax.jit, static_argnums=0)
def _encode(config, params, pixels_bhwc):
  model = network.bind(config, params)
  x_bhwc = pixels_bhwc.astype(jnp.float32) / 127.5 - 1
  if config.codes:
    return {"codes": model.quantise(model.encode_vectors(x_bhwc)).codes_bn}
  mean_bhwc, logvar_bhwc = model.encode(x_bhwc)
  return {"mean": mean_bhwc, "logvar": logvar_bhwc}


@functools.partial(jax.jit, static_argnums=0)
def _decode(config, params, latents):
  model = network.bind(config, params)
  if config.codes:
    latents = model.embed(latents, (math.isqrt(latents.shape[1]),) * 2)
  x_bhwc = model.decode(latents.astype(jnp.float32))
  return jnp.round((jnp.clip(x_bhwc, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _check(config, params):
  """Raises ValueError for parameters that are not the model's."""
  wanted = {name: x.shape for name, x in network.abstract(config).items()}
  found = {name: np.shape(x) for name, x in params.items()}
  both = sorted(wanted.keys() & found.keys())
  wrong = {
    "missing": sorted(wanted.keys() - found.keys()),
    "unknown": sorted(found.keys() - wanted.keys()),
    "of another shape": [
      f"{name} {found[name]} for {wanted[name]}"
      for name in both
      if found[name] != wanted[name]
    ],
  }
  problems = [
    f"{len(names)} {what}: {', '.join(names[:WORST])}{' ...' * (len(names) > WORST)}"
    for what, names in wrong.items()
    if names
  ]
  if problems:
    raise ValueError(f"parameters that are not the model's: {'; '.join(problems)}")


def _hash(config, params) -> str:
  digest = hashlib.sha256(json.dumps(dataclasses.asdict(config)).encode())
  for name, array in params.items():
    digest.update(f"{name} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array, "<f4").data)
  return digest.hexdigest()
