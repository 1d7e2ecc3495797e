"""What is no image, drawn as one: waveforms, short videos, vectors.

Owns: the drawing of grids of 0, 1 and 3 dimensions. Not: images (canvas.py), files
(png.py).

l cells of a line  f frames  h w c height, width and channels of a frame
"""

import numpy as np

HEIGHT = 64  # pixels, of a line
CELL = 4  # pixels along the line, of a cell
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))
GREY = 200


def draw(values: np.ndarray) -> np.ndarray:
  """Draws what has not two dimensions and channels, as pixels u8[H, W, 3].

  Args:
    values: f32[c], drawn as a line of its numbers; f32[l, c], a line for each channel;
      or f32[f, h, w, c], the frames side by side, each number from -1 to 1 a shade.
  """
  if values.ndim == 4:
    return _strip(values)
  return _lines(values[:, None] if values.ndim == 1 else values)


def _lines(values_lc: np.ndarray) -> np.ndarray:
  """One line a channel, from the least number at the bottom to the largest on top."""
  length, channels = values_lc.shape
  pixels = np.full((HEIGHT, length * CELL, 3), 255, np.uint8)
  finite = np.nan_to_num(values_lc.astype(np.float64), posinf=0.0, neginf=0.0)
  low, high = min(finite.min(), -1.0), max(finite.max(), 1.0)
  rows_lc = np.round((high - finite) / (high - low) * (HEIGHT - 1)).astype(int)
  pixels[round(high / (high - low) * (HEIGHT - 1))] = GREY  # where 0 is
  at = np.arange(length * CELL) / CELL
  for channel in range(channels):
    # From each cell to the next, so that the line is whole.
    along = np.interp(at, np.arange(length), rows_lc[:, channel])
    for x, (a, b) in enumerate(zip(along, np.append(along[1:], along[-1]))):
      low_row, high_row = sorted((round(a), round(b)))
      pixels[low_row : high_row + 1, x] = COLOURS[channel % len(COLOURS)]
  return pixels


def _strip(values_fhwc: np.ndarray) -> np.ndarray:
  """Frames from left to right with a white column between them, in channels 0 to 2."""
  frames, height, width, channels = values_fhwc.shape
  shades = np.clip((values_fhwc + 1) * 127.5, 0, 255).round().astype(np.uint8)
  shades = shades[..., np.arange(3) % channels]
  strip = np.full((height, frames * (width + 1) - 1, 3), 255, np.uint8)
  for number, frame in enumerate(shades):
    strip[:, number * (width + 1) : number * (width + 1) + width] = frame
  return strip
