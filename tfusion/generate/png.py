"""Images for people: PNG files, sheets of several images, addresses for a web page.

Owns: float images in [-1, 1] to bytes, bytes to files and `data:` URLs. Not: what the
numbers of a model mean (canvas.py).

h w c height, width and channels (1 or 3) of an image
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

LEAST_SIDE = 128  # pixels of an image file; smaller images are enlarged
WHITE = 255


def to_pixels(images: np.ndarray) -> np.ndarray:
  """Numbers in [-1, 1] to u8 of the same shape; what lies outside is clipped."""
  return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def write(pixels_hwc: np.ndarray, path: Path, *, enlarge: bool = True) -> int:
  """Writes a file in RGB, and makes its folder.

  Args:
    pixels_hwc: u8[h, w, 1 or 3].
    path: of the file.
    enlarge: whether an image with a side below LEAST_SIDE gets squares for pixels.

  Returns:
    The side of such a square: 1 if the image was large enough.
  """
  times = -(-LEAST_SIDE // min(pixels_hwc.shape[:2])) if enlarge else 1
  enlarged = pixels_hwc.repeat(times, axis=0).repeat(times, axis=1)
  path.parent.mkdir(parents=True, exist_ok=True)
  data = io.BytesIO()
  to_rgb(enlarged).save(data, "PNG")
  path.write_bytes(data.getvalue())
  return times


def to_rgb(pixels_hwc: np.ndarray) -> Image.Image:
  """u8[h, w, 1 or 3] as an image of Pillow in RGB."""
  colours = (
    np.repeat(pixels_hwc, 3, axis=-1) if pixels_hwc.shape[-1] == 1 else pixels_hwc
  )
  return Image.fromarray(colours)


def encode(pixels_hwc: np.ndarray) -> bytes:
  """u8[h, w, 1 or 3] as a PNG file, in grey or RGB."""
  data = io.BytesIO()
  grey = pixels_hwc.shape[-1] == 1
  Image.fromarray(pixels_hwc[..., 0] if grey else pixels_hwc).save(data, "PNG")
  return data.getvalue()


def sheet(images: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
  """Lays images out in rows, with one white pixel around each.

  Args:
    images: u8[h, w, c] each; smaller ones get the room of the largest, and squares for
      pixels as far as they fit it.
    columns: images in a row.

  Returns:
    u8[rows * (h + 1) + 1, columns * (w + 1) + 1, c].
  """
  h, w, c = (max(sizes) for sizes in zip(*(image.shape for image in images)))
  rows = -(-len(images) // columns)
  height, width = rows * (h + 1) + 1, columns * (w + 1) + 1
  laid_out = np.full((height, width, c), WHITE, np.uint8)
  for (left, top, right, bottom), image in zip(boxes(images, columns=columns), images):
    times = (bottom - top) // image.shape[0]
    enlarged = image.repeat(times, axis=0).repeat(times, axis=1)
    laid_out[top:bottom, left:right] = enlarged
  return laid_out


def boxes(
  images: Sequence[np.ndarray], *, columns: int
) -> list[tuple[int, int, int, int]]:
  """Where `sheet` puts each image: left, top, right, bottom in pixels."""
  places = []
  cell_h, cell_w = (max(image.shape[side] for image in images) for side in (0, 1))
  for number, image in enumerate(images):
    (h, w, _), (row, column) = image.shape, divmod(number, columns)
    left, top = 1 + column * (cell_w + 1), 1 + row * (cell_h + 1)
    times = min(cell_h // h, cell_w // w)
    places.append((left, top, left + times * w, top + times * h))
  return places


def data_url(pixels_hwc: np.ndarray) -> str:
  """The `src` of an <img> that holds u8[h, w, 1 or 3] itself."""
  coded = base64.b64encode(encode(pixels_hwc)).decode()
  return f"data:image/png;base64,{coded}"
