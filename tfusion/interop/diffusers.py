"""Autoencoders of the Stable Diffusion family: the weights of diffusers' AutoencoderKL.

Owns: its config.json, names and shapes of tensors, in terms of ours. Not: running them
(autoencoder/codec.py). The package `diffusers` is not needed.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file

from tfusion.autoencoder import network
from tfusion.autoencoder.codec import Codec
from tfusion.autoencoder_config import AutoencoderModelConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
WORST = 5  # names that an error lists

# What a config may leave out has the value that diffusers gives it.
LEFT_OUT = {
  "block_out_channels": [64],
  "layers_per_block": 1,
  "latent_channels": 4,
  "norm_num_groups": 32,
  "use_quant_conv": True,
  "use_post_quant_conv": True,
}
# Other values than these are other networks.
ONLY = {
  "_class_name": "AutoencoderKL",
  "in_channels": 3,
  "out_channels": 3,
  "act_fn": "silu",
  "mid_block_add_attention": True,
}
BLOCKS = {
  "down_block_types": "DownEncoderBlock2D",
  "up_block_types": "UpDecoderBlock2D",
}

# Our names to theirs, one after the other.
NAMES = (
  (r"^encoder\.levels\.(\d+)\.blocks", r"encoder.down_blocks.\1.resnets"),
  (r"^decoder\.levels\.(\d+)\.blocks", r"decoder.up_blocks.\1.resnets"),
  (r"^encoder\.levels\.(\d+)\.resize", r"encoder.down_blocks.\1.downsamplers.0.conv"),
  (r"^decoder\.levels\.(\d+)\.resize", r"decoder.up_blocks.\1.upsamplers.0.conv"),
  (r"\.middle\.first\.", ".mid_block.resnets.0."),
  (r"\.middle\.second\.", ".mid_block.resnets.1."),
  (r"\.middle\.attention\.norm\.", ".mid_block.attentions.0.group_norm."),
  (r"\.middle\.attention\.query\.", ".mid_block.attentions.0.to_q."),
  (r"\.middle\.attention\.key\.", ".mid_block.attentions.0.to_k."),
  (r"\.middle\.attention\.value\.", ".mid_block.attentions.0.to_v."),
  (r"\.middle\.attention\.out\.", ".mid_block.attentions.0.to_out.0."),
  (r"\.shortcut\.", ".conv_shortcut."),
  (r"\.norm_out\.", ".conv_norm_out."),
  (r"\.(kernel|scale)$", ".weight"),
)
# Of the attention in files from before diffusers 0.15.
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def open_folder(folder: str | Path) -> Codec:
  """Opens the folder of an AutoencoderKL.

  Scale and shift of its config are not used: they are measured on the latents of the
  data that is prepared with it.

  Args:
    folder: with config.json and diffusion_pytorch_model.safetensors, in float32, 16-bit
      floats are widened.

  Raises:
    ValueError: a file is missing or damaged, the network is of another kind, or tensors
      are missing, left over or of another shape (they are named).
  """
  folder = Path(folder)
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).is_file():
      raise ValueError(
        f"{folder}: holds no {name}; give the folder of an AutoencoderKL (`vae` in that"
        " of a Stable Diffusion model) or an autoencoder.safetensors"
      )
  try:
    config = read_config(json.loads((folder / CONFIG).read_text()))
  except (ValueError, TypeError, AttributeError) as error:  # not JSON is one too
    raise ValueError(
      f"{folder / CONFIG}: not the config of an AutoencoderKL that can be opened"
      f" ({error}); name another folder, or copy the file again"
    ) from error
  try:
    tensors = load_file(folder / WEIGHTS)
    return Codec(config, convert(config, tensors))
  except (safetensors.SafetensorError, ValueError) as error:
    raise ValueError(
      f"{folder / WEIGHTS}: {error}; name another folder, or copy the file again"
    ) from error


def read_config(values: dict[str, Any]) -> AutoencoderModelConfig:
  """Turns diffusers' config into ours.

  Raises:
    ValueError: names the value that makes it another network.
  """
  problems = [
    f"{key}={values[key]!r}: only {only!r} can be opened"
    for key, only in ONLY.items()
    if values.get(key, only) != only
  ]
  problems += [
    f"{key}={values[key]!r}: only {only} can be opened"
    for key, only in BLOCKS.items()
    if set(values.get(key, [only])) != {only}
  ]
  known = {key: values.get(key, default) for key, default in LEFT_OUT.items()}
  if known["use_quant_conv"] != known["use_post_quant_conv"]:
    problems.append("use_quant_conv and use_post_quant_conv: only both or none")
  if problems:
    raise ValueError("; ".join(problems))
  config = AutoencoderModelConfig(
    widths=tuple(known["block_out_channels"]),
    blocks=known["layers_per_block"],
    groups=known["norm_num_groups"],
    encoder_out=2 * known["latent_channels"],
    decoder_in=known["latent_channels"],
    latent_channels=known["latent_channels"],
    quant_conv=known["use_quant_conv"],
  )
  network.validate(config)
  return config


def convert(
  config: AutoencoderModelConfig, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Turns diffusers' tensors into our parameters; every one is used exactly once.

  Raises:
    ValueError: names tensors that are missing or left over.
  """
  params, missing, left = {}, [], dict(tensors)
  for ours in network.abstract(config):
    theirs = theirs_of(ours)
    found = [name for name in _spellings(theirs) if name in left]
    if not found:
      missing.append(theirs)
      continue
    params[ours] = _turn(left.pop(found[0]), ours)
  problems = [
    f"{len(names)} tensors {what}: {_some(names)}"
    for what, names in (("missing", missing), ("left over", left))
    if names
  ]
  if problems:
    raise ValueError(f"not the network of its config: {'; '.join(problems)}")
  return params


def theirs_of(ours: str) -> str:
  """diffusers' name of a parameter of ours."""
  for pattern, replacement in NAMES:
    ours = re.sub(pattern, replacement, ours)
  return ours


def _spellings(theirs: str) -> list[str]:
  older = theirs
  if ".attentions." in theirs:
    for new, old in OLDER.items():
      older = older.replace(f".{new}.", f".{old}.")
  return [theirs, older]


def _turn(tensor: np.ndarray, ours: str) -> np.ndarray:
  """Kernels from [out, in, h, w] (or [out, in]) to [h, w, in, out]."""
  tensor = tensor.astype(np.float32)
  if not ours.endswith(".kernel"):
    return tensor
  if tensor.ndim == 2:
    tensor = tensor[:, :, None, None]
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def _some(names: Iterable[str]) -> str:
  names = sorted(names)
  return ", ".join(names[:WORST]) + " ..." * (len(names) > WORST)
