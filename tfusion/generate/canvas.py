"""What a model's images are to the eye: files in, pictures out.

Owns: pixels to the model's numbers and back, for runs on pixels and on latents. Not:
the autoencoder (autoencoder/codec.py), which numbers normalise latents
(data/shards/manifest.py),
PNG files (evaluate/pictures.py).

h w c height, width, channels of an image of the model; H W of a picture
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfusion.autoencoder import codec as codec_lib
from tfusion.autoencoder.codec import Codec
from tfusion.config import Config
from tfusion.data import prepared
from tfusion.data.images import decode
from tfusion.data.shards import manifest as manifest_lib

BATCH = 8  # images decoded at a time; the last are filled up, so that one is compiled


@dataclasses.dataclass(frozen=True)
class Latents:
  """The autoencoder of a run, and what its latents were normalised by."""

  codec: Codec
  scale_c: np.ndarray  # f32; the model has (z - shift) / scale
  shift_c: np.ndarray


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Pictures of a run; without `latents` the model's images are pixels."""

  shape: tuple[int, ...]  # h, w, c
  latents: Latents | None = None

  def read(self, path: str | Path) -> np.ndarray:
    """Reads a picture as the model is given it: f32[h, w, c].

    Raises:
      Exception: whatever Pillow's decoder raises on broken data.
    """
    if self.latents is None:
      return decode(Path(path), self.shape).astype(np.float32) / 127.5 - 1
    codec, (h, w, _) = self.latents.codec, self.shape
    picture = decode(Path(path), (h * codec.downsampling, w * codec.downsampling, 3))
    mean_hwc = codec.encode(picture[None])["mean"][0]
    scale, shift = self.latents.scale_c[None, None], self.latents.shift_c[None, None]
    return (mean_hwc - shift) / scale

  def show(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images f32[h, w, c] of the model as pictures f32[H, W, 1 or 3] in [-1, 1].

    Pixels stay as they are, also beyond [-1, 1].
    """
    if self.latents is None:
      return list(images)
    scale, shift = (
      x[None, None, None] for x in (self.latents.scale_c, self.latents.shift_c)
    )
    shown = []
    for start in range(0, len(images), BATCH):
      some = np.zeros((BATCH, *self.shape), np.float32)
      some[: len(images[start:])] = images[start : start + BATCH]
      pixels = self.latents.codec.decode(some * scale + shift)
      shown += list(pixels.astype(np.float32) / 127.5 - 1)
    return shown[: len(images)]


def open_canvas(config: Config, workdir: str | Path) -> Canvas:
  """Opens what a run's workdir keeps of its images.

  Args:
    config: of the run.
    workdir: holds latents.json and autoencoder.safetensors if the data are latents.

  Raises:
    ValueError: the images are codes, there is no autoencoder to see latents with, or
      it is another than the data were made with.
  """
  shape, workdir = config.model.image_shape, Path(workdir)
  kept = prepared.kept(workdir)
  if kept is None:
    return Canvas(shape)
  images, sha256 = kept
  path = workdir / manifest_lib.AUTOENCODER
  if not images.latents:
    raise ValueError(
      f"{workdir}: the images of this run are {images.kind}, which cannot be drawn or"
      " shown yet; train on latents or pixels to see pictures"
    )
  if sha256 is None or not path.is_file():
    raise ValueError(
      f"{path}: is missing, and the images of this run are latents: without their"
      " autoencoder none can be drawn or shown; copy it there from the shards, or"
      " prepare those anew with one"
    )
  if (found := manifest_lib.sha256(path)) != sha256:
    raise ValueError(
      f"{path}: is another file (sha256 {found[:16]}...) than the data were made with"
      f" ({sha256[:16]}...); copy that one there from the shards"
    )
  codec = codec_lib.load(path)
  channels = codec.config.latent_channels
  if codec.kind != "latents" or images.shape != shape or shape[2] != channels:
    raise ValueError(
      f"{path}: gives {codec.kind} of {channels} numbers, latents.json beside it says"
      f" {images.shape}, model.image_shape={shape}; choose a new workdir"
    )
  scale_c, shift_c = (np.asarray(x, np.float32) for x in (images.scale, images.shift))
  return Canvas(shape, Latents(codec, scale_c, shift_c))
