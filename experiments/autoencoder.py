"""Autoencoders: images to small latents, or to codes, and back."""

import ml_collections

from tfusion import autoencoder_config
from tfusion import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Rendered scenes of 64 x 64 pixels to latents of 16 x 16 x 4 numbers.

  In 344 s on 2 cores of an Intel Xeon (commit 1944df3), it reconstructs 64 held-out
  images at 29.29 dB from 1.081 bits per pixel.
    tfusion autoencoder --config experiments/autoencoder.py --workdir runs/vae
  Its twin, with 256 codes from a book of 512; 326 s, 27.38 dB at 0.562 bits per pixel:
    tfusion autoencoder --config experiments/autoencoder.py:vq --workdir runs/vq
  A minute, adversary and all, to see that everything runs:
    tfusion autoencoder --config experiments/autoencoder.py:smoke --workdir runs/smoke
  The sizes of arXiv 2408.11039, section 4.1, on a folder of images; not run yet:
    tfusion autoencoder --config experiments/autoencoder.py:full \
      --config.data.sources='("folder:photos",)' --workdir runs/full
  """
  arg = config_lib.parse_arg(arg, smoke=False, vq=False, full=False)
  c = autoencoder_config.defaults()
  c.model.codes = 16_384 if arg.vq else 0
  if not arg.full:
    _small(c)
  if arg.smoke:
    _smoke(c)
  return c


def _small(c: ml_collections.ConfigDict) -> None:
  c.model.patch = 4  # a CPU computes few cells of many channels faster
  c.model.widths = (64,)
  c.model.blocks = 1
  c.model.groups = 8
  c.model.encoder_out = 64
  c.model.decoder_in = 64
  c.model.latent_channels = 4
  c.model.codes = 512 if c.model.codes else 0
  c.data.sources = ("shapes",)
  c.data.image_shape = (64, 64, 3)
  # Random features gain 0.1 dB in as many updates, and take a quarter of the time.
  c.loss.features = "none"
  c.optim.peak_lr = 2e-3  # small model, short run
  c.optim.end_lr = 1e-5
  c.optim.warmup_steps = 50
  c.optim.b1 = 0.9
  c.optim.b2 = 0.99
  c.optim.ema_decay = 0.99
  c.train.steps = 2400
  c.train.batch_images = 8
  c.train.eval_every_steps = 400
  c.train.save_every_steps = 400
  c.loss.adversary_width = 16
  c.loss.adversary_levels = 2
  # None, however long the run is made: rendered scenes have no texture to make up.
  c.loss.adversary_start = 1_000_000


def _smoke(c: ml_collections.ConfigDict) -> None:
  c.model.patch = 1
  c.model.widths = (8, 16, 16)
  c.model.encoder_out = 16
  c.model.decoder_in = 16
  c.model.codes = min(c.model.codes, 32)
  c.data.image_shape = (32, 32, 3)
  c.loss.adversary_width = 8
  c.loss.adversary_start = 20
  c.optim.warmup_steps = 5
  c.train.steps = 40
  c.train.eval_every_steps = 20
  c.train.eval_images = 16
  c.train.save_every_steps = 20
  c.train.log_every_steps = 5
