"""Image files -> arrays of one shape.

Owns: decoding any format, and the cache of all decoded images of a folder. Not: which
files belong to a folder and what they mean (folder.py).

  cache/3f0c.../images.npy   u8[images, h, w, c]
  cache/3f0c.../index.json   files that could not be decoded, the SHA-256 of each image
                             and the CRC-32 of images.npy, then its own SHA-256

The name of a cache is a hash of what the system knows of every file: its size, its
inode, and when its bytes and its inode last changed. A file that is replaced by another
of the same name has another inode or a later time of change, which no program can set
back; so it is decoded again. Pixels that were altered in the cache do not match the
CRC-32, which is checked at every start and takes about a second per GB.
"""

import concurrent.futures
import errno
import functools
import hashlib
import io
import json
import math
import os
import shutil
import uuid
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import ExifTags, Image, ImageOps

from tfusion.progress import Progress

DECODE_THREADS = 2 * (os.cpu_count() or 1)
CHUNK = 256  # images decoded between two writes to the cache
LYING = (5, 6, 7, 8)  # orientations of Exif that turn by a quarter
READ_BYTES = 1 << 22  # of the cache at once, to check it


class TooLarge(ValueError):
  """An image with so many pixels that it is a mistake, or an attack."""


class Page(NamedTuple):
  """One of the images in the bytes of a file that holds several, such as a TIFF."""

  data: bytes
  number: int  # from 0


def decode(
  image: Path | bytes | Page | np.ndarray, image_shape: tuple[int, int, int]
) -> np.ndarray:
  """Reads one image: upright, on white, centre-cropped and resized.

  Args:
    image: a file of any format that Pillow opens, of an animation the first frame; its
      bytes; a page of these; or pixels, u8[h, w, 1 or 3], which come back as they are
      if they fit.
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
      if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
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


def header(
  image: Path | bytes | Page | np.ndarray,
) -> tuple[tuple[int, int], bool] | None:
  """Width and height in pixels, held upright, and whether it is gray; None for a broken
  file."""
  try:
    with _open(image) as opened:
      lies = opened.getexif().get(ExifTags.Base.Orientation, 1) in LYING
      size = (opened.height, opened.width) if lies else opened.size
      return size, opened.mode[0] in "1LIF" and opened.mode != "LAB"
  except Exception:  # as in decode_all, which names the reason
    return None


def size_of(image: Path | bytes | Page | np.ndarray) -> tuple[int, int] | None:
  """Width and height in pixels, held upright; None for a broken file."""
  found = header(image)
  return found and found[0]


def decode_all(
  root: Path, files: list[str], *, image_shape: tuple[int, int, int], cache: Path
) -> tuple[Path, dict[str, str]]:
  """Decodes every file once per state of the folder.

  Returns:
    A directory with images.npy (a row per file; zeros where it is bad), and the bad
    files with the reason.
  """
  stats = [
    (f, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
    for f in files
    for s in [(root / f).stat()]
  ]
  key = hashlib.sha256(json.dumps([stats, list(image_shape)]).encode()).hexdigest()
  ready = cache / key[:16]
  if ready.is_dir():
    fault = _find_fault(ready)
    if not fault:
      return ready, _index(ready)["bad"]
    logging.warning("%s: %s; the images are decoded again", ready, fault)
  stage = cache / f"{key[:16]}.{uuid.uuid4().hex}.part"
  try:
    stage.mkdir(parents=True)
    bad, hashes = _write_images(stage / "images.npy", root, files, image_shape)
    crc = _crc.__wrapped__(stage / "images.npy")
    text = json.dumps({"bad": bad, "sha256": hashes, "crc32": crc})
    text += "\n" + hashlib.sha256(text.encode()).hexdigest()
    (stage / "index.json").write_text(text)
    _install(stage, ready)
  except OSError as error:
    why = error.strerror or error
    remedy = "choose another workdir"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      need = len(files) * math.prod(image_shape) / 2**20
      remedy = f"they need {math.ceil(need)} MiB; make room, or {remedy}"
    raise ValueError(
      f"{cache}: {len(files)} decoded images cannot be written ({why}); {remedy}"
    ) from error
  finally:
    shutil.rmtree(stage, ignore_errors=True)
  return ready, bad


def hashes(cache: Path) -> list[str]:
  """The SHA-256 of each image in a directory that `decode_all` gave, hexadecimal."""
  return _index(cache)["sha256"]


def _index(ready: Path) -> dict:
  """What index.json says. ValueError: it is damaged; OSError: it is missing."""
  text, _, own = (ready / "index.json").read_text().rpartition("\n")
  if hashlib.sha256(text.encode()).hexdigest() != own:
    raise ValueError("index.json fails its checksum")
  return json.loads(text)


def _find_fault(ready: Path) -> str:
  """What is wrong with a cache; empty if its pixels are as they were decoded."""
  try:
    stat = (ready / "images.npy").stat()
    # Both splits open the same cache: it is read once.
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    found = _crc(ready / "images.npy", state)
    return "" if found == _index(ready)["crc32"] else "its pixels were altered on disk"
  except (OSError, ValueError) as error:
    return f"cannot be read ({error})"


@functools.lru_cache(16)
def _crc(path: Path, state: tuple[int, ...] = ()) -> int:
  """The CRC-32 of a file in this state; SHA-256 takes three times as long."""
  del state
  crc = 0
  with open(path, "rb") as file:
    while chunk := file.read(READ_BYTES):
      crc = zlib.crc32(chunk, crc)
  return crc


def _hash(image: np.ndarray) -> str:
  pixels = hashlib.sha256(repr(image.shape).encode())
  pixels.update(np.ascontiguousarray(image).data)
  return pixels.hexdigest()


def _install(stage: Path, ready: Path) -> None:
  """Puts a new cache where there may be another, whole or not."""
  try:
    os.replace(stage, ready)
  except OSError:
    if not ready.is_dir():
      raise
    if not _find_fault(ready):
      return  # another process was faster, and made the same
    aside = stage.with_name(f"{ready.name}.{uuid.uuid4().hex}.part")
    os.rename(ready, aside)
    os.replace(stage, ready)
    shutil.rmtree(aside, ignore_errors=True)


def _write_images(
  path: Path, root: Path, files: list[str], image_shape: tuple[int, int, int]
) -> tuple[dict[str, str], list[str]]:
  def decoded(file: str) -> np.ndarray | str:
    try:
      return decode(root / file, image_shape)
    except Exception as error:  # Pillow's decoders raise almost any kind
      return f"cannot be decoded: {error or type(error).__name__}"

  bad: dict[str, str] = {}
  hashes = []
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
        hashes.append(_hash(image))
      progress.show(start + len(chunk))
  return bad, hashes


def _open(image: Path | bytes | Page | np.ndarray) -> Image.Image:
  if isinstance(image, np.ndarray):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  if isinstance(image, Page):
    opened = Image.open(io.BytesIO(image.data))
    opened.seek(image.number)
    return opened
  return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I") or image.mode == "F":
    # Pillow would clip 16 bits to 8; floats count from 0 to 1.
    pixels = np.nan_to_num(np.asarray(image, np.float32))
    full = 65535.0 if image.mode != "F" else 1.0
    grey = np.clip(pixels / full, 0, 1) * 255 + 0.5
    image = Image.fromarray(grey.astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")
