"""What an autoencoder makes of held-out images.

Owns: means over all of them. Not: the sums of one batch (step.py).
"""

import functools
from typing import Any

import jax
import numpy as np

from tfusion.autoencoder import step as step_lib
from tfusion.autoencoder.network import Params
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.sharding import fetch_rows, put_rows


def validate(
  config: AutoencoderConfig, params: Params, heldout_nhwc: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
  """Encodes and decodes held-out images, on all hosts.

  Args:
    config: of the run.
    params: the weights to keep.
    heldout_nhwc: f32, in [-1, 1].

  Returns:
    A line of validation.jsonl: means over the images, PSNR in dB, L1, bits per pixel
    and, with a codebook, the share of its codes that occur and their perplexity; and
    the reconstructions, f32[n, h, w, 3].
  """
  size, n = config.train.batch_images, len(heldout_nhwc)
  parts: list[step_lib.Sums] = []
  made: list[np.ndarray] = []
  sums_of_batch = jax.jit(step_lib.sums, static_argnums=0)
  for start in range(0, n, size):
    x_bhwc = np.zeros((size, *heldout_nhwc.shape[1:]), np.float32)
    weights_b = (np.arange(start, start + size) < n).astype(np.float32)
    x_bhwc[: n - start] = heldout_nhwc[start : start + size]
    part, made_bhwc = sums_of_batch(config, params, *put_rows((x_bhwc, weights_b)))
    made.append(fetch_rows(made_bhwc)[: n - start])
    parts.append(part)
  sums = functools.reduce(functools.partial(jax.tree.map, np.add), parts)
  count, codes = float(sums.count), config.model.codes
  line = {
    "images": count,
    "psnr": float(sums.psnr) / count,
    "loss_pixel": float(sums.pixel) / count,
    "bits_per_pixel": float(sums.bits) / count / np.prod(heldout_nhwc.shape[1:3]),
  }
  if codes:
    used, perplexity = map(float, step_lib.use_of_codes(sums.codes_v))
    line |= {"codes_used": used, "codes_perplexity": perplexity}
  return line, np.concatenate(made)
