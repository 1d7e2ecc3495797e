"""What an autoencoder makes of held-out images, below each of them, while it trains.

Owns: samples/step_NNNNNNNN.png of a workdir. Not: the images and their figures
(autoencoder/loop.py).
"""

from pathlib import Path

import numpy as np

from tfusion.generate import png

COLUMNS, SHOWN = 8, 16  # images in a row of the sheet; in all


class Reconstructions:
  """Writes a sheet of held-out images and their reconstructions at every evaluation."""

  def __init__(self, folder: Path):
    """Keeps the folder, which is made when the first sheet is written."""
    self.folder = folder

  def __call__(self, step: int, x_bhwc: np.ndarray, made_bhwc: np.ndarray) -> None:
    """Writes folder/step_NNNNNNNN.png with the first of the images.

    Args:
      step: updates done.
      x_bhwc: held-out images in [-1, 1].
      made_bhwc: what the autoencoder makes of each.
    """
    x_bhwc, made_bhwc = png.to_pixels(x_bhwc[:SHOWN]), png.to_pixels(made_bhwc[:SHOWN])
    pairs = []
    for start in range(0, len(x_bhwc), COLUMNS):
      pairs += [*x_bhwc[start : start + COLUMNS], *made_bhwc[start : start + COLUMNS]]
    sheet = png.sheet(pairs, columns=min(len(x_bhwc), COLUMNS))
    png.write(sheet, self.folder / f"step_{step:08d}.png")
