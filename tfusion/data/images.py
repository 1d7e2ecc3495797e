"""Image files -> arrays of one shape.

Owns: decoding any format, and the cache of all decoded images of a folder. Not: which
files belong to a folder and what they mean (folder.py).
"""

import concurrent.futures
import hashlib
import io
import json
import math
import os
import shutil
import uuid
import warnings
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from tfusion.progress import Progress

DECODE_THREADS = 2 * (os.cpu_count() or 1)
CHUNK = 256  # images decoded between two writes to the cache


class TooLarge(ValueError):
  """An image with more pixels than are sound to decode: a mistake, or an attack."""


def decode(
  image: Path | bytes | np.ndarray, image_shape: tuple[int, int, int]
) -> np.ndarray:
  """Reads one image: upright, on white, centre-cropped and resized.

  Args:
    image: a file of any format that Pillow opens, of an animation the first frame; its
      bytes; or pixels, u8[h, w, 1 or 3], which come back as they are if they fit.
    image_shape: h, w, c.

  Returns:
    u8[h, w, c].

  Raises:
    TooLarge: the image has too many pixels.
    Exception: whatever Pillow's decoder raises on broken data.
  """
  height, width, channels = image_shape
  try:
    with _open(image) as opened:
      if opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
        raise TooLarge(f"{opened.width}x{opened.height} pixels are too many")
      # JPEG only: decodes at a fraction of the size, never below twice the target.
      opened.draft(None, (2 * max(width, height),) * 2)
      upright = _to_rgb(ImageOps.exif_transpose(opened))
  except Image.DecompressionBombError as error:
    raise TooLarge(str(error)) from error
  fitted = ImageOps.fit(
    upright.convert("L") if channels == 1 else upright,
    (width, height),
    method=Image.Resampling.LANCZOS,
  )
  return np.asarray(fitted, np.uint8).reshape(image_shape)


def header(path: Path) -> tuple[int, bool] | None:
  """Shorter side in pixels and whether it is gray; None for a broken file."""
  try:
    with Image.open(path) as image:
      return min(image.size), image.mode[0] in "1LIF" and image.mode != "LAB"
  except Exception:  # as in decode_all, which names the reason
    return None


def decode_all(
  root: Path, files: list[str], *, image_shape: tuple[int, int, int], cache: Path
) -> tuple[Path, dict[str, str]]:
  """Decodes every file once per state of the folder.

  Returns:
    A directory with images.npy (a row per file; zeros where it is bad), and the bad
    files with the reason.
  """
  stats = [(f, s.st_size, s.st_mtime_ns) for f in files for s in [(root / f).stat()]]
  key = hashlib.sha256(json.dumps([stats, list(image_shape)]).encode()).hexdigest()
  ready = cache / key[:16]
  if ready.is_dir():
    try:
      return ready, _check_cache(ready, len(files), image_shape)
    except (OSError, ValueError) as error:
      logging.warning("%s: damaged (%s); the images are decoded anew", ready, error)
      shutil.rmtree(ready)
  stage = cache / f"{key[:16]}.{uuid.uuid4().hex}.part"
  try:
    stage.mkdir(parents=True)
    bad = _write_images(stage / "images.npy", root, files, image_shape)
    (stage / "bad.json").write_text(json.dumps(bad))
    try:
      os.replace(stage, ready)
    except OSError:
      if not ready.is_dir():  # else another process was faster, with the same
        raise
  except OSError as error:
    raise ValueError(
      f"{cache}: {len(files)} decoded images cannot be written ({error}); they need"
      f" {len(files) * math.prod(image_shape) / 2**20:.0f} MiB; free them or choose"
      " another workdir"
    ) from error
  finally:
    shutil.rmtree(stage, ignore_errors=True)
  return ready, bad


def _check_cache(
  ready: Path, count: int, image_shape: tuple[int, int, int]
) -> dict[str, str]:
  """Returns the bad files of a cache; ValueError or OSError where it is not whole."""
  with open(ready / "images.npy", "rb") as file:
    np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0(file)
    if header != ((count, *image_shape), False, np.dtype(np.uint8)):
      raise ValueError(f"images.npy holds {header}")
    want = file.tell() + count * math.prod(image_shape)
  if (size := (ready / "images.npy").stat().st_size) != want:
    raise ValueError(f"images.npy has {size:,} bytes, not {want:,}")
  bad = json.loads((ready / "bad.json").read_text())
  if not isinstance(bad, dict):
    raise ValueError("bad.json is no list of bad files")
  return bad


def _write_images(
  path: Path, root: Path, files: list[str], image_shape: tuple[int, int, int]
) -> dict[str, str]:
  def decoded(file: str) -> np.ndarray | str:
    try:
      return decode(root / file, image_shape)
    except Exception as error:  # Pillow's decoders raise almost any kind
      return f"cannot be decoded: {error or type(error).__name__}"

  bad: dict[str, str] = {}
  header = {
    "descr": "|u1",
    "fortran_order": False,
    "shape": (len(files), *image_shape),
  }
  progress = Progress(f"{root}: images decoded", len(files))
  with (
    # Broken files make Pillow warn; each is counted with its reason instead.
    warnings.catch_warnings(action="ignore"),
    open(path, "wb") as out,
    concurrent.futures.ThreadPoolExecutor(DECODE_THREADS) as pool,
  ):
    np.lib.format.write_array_header_1_0(out, header)
    for start in range(0, len(files), CHUNK):
      chunk = files[start : start + CHUNK]
      for file, image in zip(chunk, pool.map(decoded, chunk), strict=True):
        if isinstance(image, str):
          bad[file] = image
          image = np.zeros(image_shape, np.uint8)
        out.write(image.tobytes())
      progress.show(start + len(chunk))
  return bad


def _open(image: Path | bytes | np.ndarray) -> Image.Image:
  if isinstance(image, np.ndarray):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I") or image.mode == "F":
    # Pillow would clip 16 bits to 8; floats count from 0 to 1.
    pixels = np.nan_to_num(np.asarray(image, np.float32))
    full = 65535.0 if image.mode != "F" else 1.0
    image = Image.fromarray(np.uint8(np.clip(pixels / full, 0, 1) * 255 + 0.5))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")
