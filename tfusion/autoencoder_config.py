"""Every knob of an autoencoder and of its training, once, with its unit; validation.

Owns: the frozen dataclasses of a run of `tfusion autoencoder`, the checks before it
starts. Not: turning a ConfigDict into dataclasses (config.py), an experiment's values
(experiments/).

This is not in config.py because the two commands share few knobs, and neither reads the
other's.
"""

import dataclasses
from typing import Any

import ml_collections

from tfusion import config as config_lib
from tfusion.config import OptimConfig

CHANNELS = (1, 3)  # of an image; a grey one is given to the network three times


@dataclasses.dataclass(frozen=True)
class AutoencoderModelConfig:
  """An image autoencoder, f = patch * 2^(levels - 1) pixels to a cell.

  The defaults are the layout of arXiv 2012.09841 that fits the 86M of arXiv 2408.11039,
  section 4.1. Stable Diffusion's kl-f8 has encoder_out = 2 * latent_channels and
  decoder_in = latent_channels.
  """

  widths: tuple[int, ...] = (128, 256, 512, 512)  # channels by level, finest first
  # Pixels along the side of a patch that enters the finest level as one cell. Ours; the
  # papers have 1. A CPU computes few cells of many channels faster.
  patch: int = 1
  blocks: int = 2  # residual blocks of a level; the decoder has one more
  groups: int = 32  # of channels in a GroupNorm; no more than there are channels
  encoder_out: int = 256  # channels that the encoder's last convolution gives
  decoder_in: int = 256  # channels that the decoder's first convolution takes
  latent_channels: int = 8  # numbers of a cell of a latent, or of a code
  quant_conv: bool = True  # 1x1 convolutions between these and the latent
  codes: int = 0  # size of the codebook; 0: a VAE. The paper's VQ-VAE has 16,384
  # Of convolutions: float32, bfloat16, or auto, which is bfloat16 except on a CPU.
  dtype: str = "auto"

  @property
  def downsampling(self) -> int:
    """Pixels along the side of a cell."""
    return self.patch * 2 ** (len(self.widths) - 1)


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What makes a good reconstruction (arXiv 2408.11039, section 4.1).

  L1 + perceptual + 0.5 adversary + 1e-6 KL, or the codebook's loss instead of the KL.
  The paper has a fifth term, 0.2 x a distance between features of MoCo v2, which is
  left out: that network is not among `features`. How the terms are reduced is ours: L1
  is a mean over numbers, the perceptual term a mean over positions, the KL a sum over a
  latent; then all are averaged over the images.
  """

  features: str = "random"  # none, random, or vgg16:PATH, see autoencoder/perceptual.py
  perceptual_weight: float = 1.0
  kl_weight: float = 1e-6  # per nat of an image
  beta: float = 0.25  # weight of the term that moves the encoder towards the codes
  adversary_weight: float = 0.5
  adversary_start: int = 50_000  # the first update with an adversary
  adversary_width: int = 64  # channels of the discriminator's first layer
  adversary_levels: int = 3  # how often the discriminator halves the image


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
  """Which images it learns from."""

  sources: tuple[str, ...] = ("shapes",)  # as data.sources of `tfusion train`
  # Height, width and channels that the sources give.
  image_shape: tuple[int, ...] = (256, 256, 3)
  threads: int = 2  # that read images ahead


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop. Steps are updates of the parameters."""

  steps: int = 1_000_000
  batch_images: int = 32  # images per update, over all hosts; ours
  log_every_steps: int = 20
  # Where the numbers of a run go too, beside its own files: tensorboard and wandb
  # (Weights & Biases), each with the extra of that name.
  loggers: tuple[str, ...] = ()
  eval_every_steps: int = 500
  eval_images: int = 64  # held-out images per evaluation
  save_every_steps: int = 500
  keep_last: int = 2  # newest checkpoints to keep
  keep_every_steps: int = 0  # also keep checkpoints of multiples of this; 0: none
  # Updates whose numbers are not finite are skipped; so many in a row stop the run.
  max_skipped_updates: int = 5
  # So long without an update, a run writes where it stands and ends; 0: it never does.
  # Saves, evaluations and the start have six times as long, or more with progress.
  stall_seconds: int = 600


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """A whole run. The paper names no batch, rate or optimizer; these are ours."""

  seed: int = 0
  model: AutoencoderModelConfig = AutoencoderModelConfig()
  loss: LossConfig = LossConfig()
  data: ImagesConfig = ImagesConfig()
  # Both networks have their own, the discriminator from its first update on.
  optim: OptimConfig = OptimConfig(
    peak_lr=1e-4, end_lr=1e-5, warmup_steps=1000, b1=0.5, b2=0.9, weight_decay=0.0
  )
  train: TrainConfig = TrainConfig()


CHOICES = {"optim.decay": config_lib.CHOICES["optim.decay"]}
RANGES = {
  "above 0": (
    lambda x: x > 0,
    "loss.adversary_width loss.adversary_levels data.threads train.steps"
    " train.batch_images train.log_every_steps train.eval_every_steps"
    " train.eval_images train.save_every_steps train.keep_last"
    " train.max_skipped_updates optim.peak_lr optim.eps optim.clip_norm",
  ),
  "at least 0": (
    lambda x: x >= 0,
    "loss.perceptual_weight loss.kl_weight loss.beta loss.adversary_weight"
    " loss.adversary_start train.keep_every_steps train.stall_seconds optim.end_lr"
    " optim.warmup_steps optim.weight_decay",
  ),
  config_lib.SEEDS: (lambda x: 0 <= x < 2**32, "seed"),
  "in [0, 1)": (lambda x: 0 <= x < 1, "optim.b1 optim.b2 optim.ema_decay"),
}


def defaults() -> ml_collections.ConfigDict:
  """Returns the default config for an experiment file to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(AutoencoderConfig()))


def from_dict(values: Any) -> AutoencoderConfig:
  """Turns a ConfigDict (or nested dict) into a checked AutoencoderConfig.

  Raises:
    ValueError: an unknown or missing key, a wrong type, or a value that cannot be.
  """
  config = config_lib.build(AutoencoderConfig, values)
  validate(config)
  return config


def validate(config: AutoencoderConfig) -> None:
  """Checks what can be known without devices, files or data; the model's layers check
  themselves (autoencoder/network.py).

  Raises:
    ValueError: names the key, the value and the remedy; all problems in one message.
  """
  flat = config_lib.flatten(config)
  problems = config_lib.choice_problems(flat, CHOICES)
  problems += config_lib.range_problems(flat, RANGES)
  problems += config_lib.logger_problems(config.train.loggers)
  shape = config.data.image_shape
  # Sizes below 1 are refused by the layers themselves.
  cell = max(config.model.downsampling, 1) if config.model.widths else 1
  if len(shape) != 3 or shape[2] not in CHANNELS:
    problems.append(f"data.image_shape={shape}: give h, w, c with c one of {CHANNELS}")
  elif any(side < 1 or side % cell for side in shape[:2]):
    problems.append(
      f"data.image_shape={shape}: sides must divide by the {cell} pixels of a cell"
      f" that model.patch={config.model.patch} and len(model.widths)="
      f"{len(config.model.widths)} levels give"
    )
  if config.model.codes and len(set(shape[:2])) != 1:
    problems.append(f"data.image_shape={shape}: codes are of square images")
  if not config.data.sources:
    problems.append("data.sources=(): name at least one source")
  problems += config_lib.rate_problems(config.optim)
  if problems:
    raise ValueError("\n".join(problems))
