"""Weights of other programs, and the one way to open an autoencoder of any kind.

Owns: which reader a path needs. Not: the readers.
"""

from pathlib import Path

from tfusion.autoencoder import codec
from tfusion.autoencoder.codec import Codec
from tfusion.interop import diffusers


def open_codec(path: str | Path) -> Codec:
  """Opens an autoencoder.

  Args:
    path: a file that `tfusion autoencoder` wrote, or the folder of a Stable Diffusion
      VAE (config.json and diffusion_pytorch_model.safetensors) or this file in it.

  Raises:
    ValueError: it is neither, or not one that can be used.
  """
  path = Path(path)
  if path.name == diffusers.WEIGHTS:
    path = path.parent
  return diffusers.open_folder(path) if path.is_dir() else codec.load(path)
