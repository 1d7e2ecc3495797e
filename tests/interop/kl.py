"""An AutoencoderKL of the package `diffusers` with random weights, and what it gives.

Not a test: makes the folder tests/interop/kl_tiny, which test_diffusers.py reads where
torch is not installed:

  pip install torch==2.13.0 diffusers==0.42.1
  python tests/interop/kl.py tests/interop/kl_tiny
"""

import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

WIDTHS = (4, 8, 12)
TINY = dict(layers_per_block=1, norm_num_groups=4)


def make(widths=WIDTHS, *, latent_channels=4, quant_conv=True, seed=0, **sizes):
  """The model with numbers that leave no bias at 0 and no scale at 1."""
  import diffusers
  import torch

  torch.manual_seed(seed)
  model = diffusers.AutoencoderKL(
    block_out_channels=widths,
    down_block_types=("DownEncoderBlock2D",) * len(widths),
    up_block_types=("UpDecoderBlock2D",) * len(widths),
    latent_channels=latent_channels,
    use_quant_conv=quant_conv,
    use_post_quant_conv=quant_conv,
    **(TINY | sizes),
  )
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * parameter.std().nan_to_num(1) * torch.randn_like(parameter)
      if parameter.ndim == 1:
        parameter += 0.1 * torch.randn_like(parameter)
  return model.eval()


def outputs(model, pixels_bhwc: np.ndarray) -> dict[str, np.ndarray]:
  """Moments of images u8 and, from the mean, images again; all NHWC."""
  import torch

  x = torch.from_numpy(pixels_bhwc.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
  with torch.no_grad():
    posterior = model.encode(x).latent_dist
    decoded = model.decode(posterior.mean).sample
  made = dict(mean=posterior.mean, logvar=posterior.logvar, decoded=decoded)
  return {
    name: np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
    for name, x in made.items()
  }


def images(count: int, side: int) -> np.ndarray:
  """u8[b, side, side, 3]: noise, so that no pixel is like its neighbour."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


if __name__ == "__main__":
  folder = pathlib.Path(sys.argv[1])
  tiny = make()
  tiny.save_pretrained(folder)
  pixels = images(2, 16)
  save_file({"pixels": pixels} | outputs(tiny, pixels), folder / "outputs.safetensors")
