"""Autoencoders so small that compiling is all that a test waits for.

Not a test: shared by the tests of whatever encodes or shows images.
"""

import dataclasses

import numpy as np

from tfusion.autoencoder import network
from tfusion.autoencoder.codec import Codec
from tfusion.autoencoder_config import AutoencoderModelConfig

VAE = AutoencoderModelConfig(  # 2 x 2 pixels to 3 numbers
  widths=(4, 8), blocks=1, encoder_out=6, decoder_in=6, latent_channels=3
)
VQ = dataclasses.replace(VAE, codes=11)


def make(config: AutoencoderModelConfig = VAE, *, seed: int = 0) -> Codec:
  """A codec with plain random numbers."""
  rng = np.random.default_rng(seed)
  params = {
    name: rng.normal(size=x.shape, scale=0.3).astype(np.float32)
    for name, x in sorted(network.abstract(config).items())
  }
  return Codec(config, params)
