"""A config of `tfusion autoencoder` so small that compiling is all a test waits for.

Not a test: shared by tests of tfusion/autoencoder/.
"""

import dataclasses

from tfusion import autoencoder_config
from tfusion.autoencoder_config import AutoencoderConfig

VALUES = {
  "model__widths": (4,),  # a cell is a pixel
  "model__blocks": 1,
  "model__groups": 2,
  "model__encoder_out": 4,
  "model__decoder_in": 4,
  "model__latent_channels": 2,
  "loss__features": "none",
  "loss__adversary_width": 3,
  "loss__adversary_levels": 1,
  "loss__adversary_start": 2,
  "data__sources": ("digits",),
  "data__image_shape": (8, 8, 1),
  "optim__peak_lr": 1e-2,
  "optim__warmup_steps": 2,
  "train__steps": 4,
  "train__batch_images": 2,
  "train__log_every_steps": 1,
  "train__eval_every_steps": 2,
  "train__eval_images": 3,
  "train__save_every_steps": 2,
}


def config(**changes) -> AutoencoderConfig:
  """The tiny config with `section__key=value` changed; checked."""
  nested = dataclasses.asdict(AutoencoderConfig())
  for name, value in (VALUES | changes).items():
    *section, key = name.split("__")
    (nested[section[0]] if section else nested)[key] = value
  return autoencoder_config.from_dict(nested)
