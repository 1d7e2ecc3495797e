"""From files to the numbers that a model takes as an image, and from those to pixels.

Owns: that way and back, for images that are pixels, latents or codes, as training gives
them to a model and as shards store them. Not: the autoencoder (autoencoder/codec.py),
which numbers normalise latents (data/shards/manifest.py), files of pixels (png.py).

h w c height, width, channels of an image of the model; H W of what people see
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfusion import files
from tfusion.autoencoder import codec as codec_lib
from tfusion.autoencoder.codec import Codec
from tfusion.config import Config
from tfusion.data import aspects, prepared
from tfusion.data.collection import check_array, load_array
from tfusion.data.images import decode, size_of
from tfusion.data.pairs import ARRAY
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards.manifest import ImageFormat
from tfusion.generate import figures, png
from tfusion.kinds import FIRST, Kind
from tfusion.sequence import CodeBook

BATCH = 8  # images decoded at a time; the last are filled up, so that one is compiled
FALSE_COLOUR_PX = 8  # side of a latent's cell in false colours
FALSE_COLOUR_DEVIATIONS = 2.0  # from black to white, on either side of the mean


@dataclasses.dataclass(frozen=True)
class Canvas:
  """What images are made from and seen as."""

  shape: tuple[int, ...]  # h, w, c
  images: ImageFormat | None = None  # of latents or codes; None: pixels in [-1, 1]
  codec: Codec | None = None  # of latents or codes; None: it is missing
  others: tuple[Kind, ...] = ()  # kinds behind the first

  def read(self, shown: str | Path | np.ndarray, kind: int = 0) -> np.ndarray:
    """Reads what is shown as the model is given it: f32[h, w, c], or codes i32[n].

    Args:
      shown: the file of an image, or its pixels u8[h, w, 1 or 3]; a .npy of what the
        model takes; of a kind that has not the layers of `image`, that or its array.
      kind: of the first, an image becomes one of the kind whose aspect is nearest.

    Raises:
      ValueError: an array of another shape than its kind.
      Exception: whatever Pillow's decoder raises on broken data.
    """
    shown = Path(shown) if isinstance(shown, str) else shown
    own = self.others[kind - 1] if kind else None
    given = isinstance(shown, Path) and shown.suffix.lower() == ARRAY
    if given or (own and own.like != FIRST):
      array = check_array(shown) if isinstance(shown, np.ndarray) else load_array(shown)
      shapes = {self.shape: FIRST} | {other.shape: other.name for other in self.others}
      if own:
        shapes = {own.shape: own.name}
      if array.shape not in shapes:
        known = ", ".join(f"{name} is {shape}" for shape, name in shapes.items())
        raise ValueError(f"it is {array.shape}, and {known}")
      return array
    h, w, c = own.shape if own else self._shape_of(shown)
    if self.images is None:
      return decode(shown, (h, w, c)).astype(np.float32) / 127.5 - 1
    codec = self.codec
    assert codec is not None, "open_canvas gives one to a model that is shown images"
    if not self.images.latents:
      h = w = math.isqrt(self.images.shape[0])
    pixels = decode(shown, (h * codec.downsampling, w * codec.downsampling, 3))
    if not self.images.latents:
      return codec.encode(pixels[None])["codes"][0]
    return _normal(codec.encode(pixels[None])["mean"], self.images)[0]

  def book(self, vocabulary: int) -> CodeBook | None:
    """Where codes stand among token ids, behind those of the text; None: images are no
    codes.

    Args:
      vocabulary: pieces of the tokenizer.
    """
    if self.images is None or self.images.kind != "codes":
      return None
    return CodeBook(vocabulary, self.images.codebook, self.images.shape[0])

  def show(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images as the model has them, in pixels u8[H, W, 1 or 3].

    Args:
      images: f32[h, w, c] each, normalised if they are latents, or codes i32[n].

    Latents without an autoencoder come in false colours, codes as patterns of grey.
    """
    if self.others:
      return self._show_kinds(images)
    if self.images is None:
      return [png.to_pixels(image) for image in images]
    if not self.images.latents:
      return (
        _decode(self.codec, images) if self.codec else [_pattern(x) for x in images]
      )
    if self.codec is None:
      return [false_colours(image) for image in images]
    scale_c, shift_c = _normaliser(self.images)
    return _decode(self.codec, [image * scale_c + shift_c for image in images])

  def _shape_of(self, shown: Path | np.ndarray) -> tuple[int, ...]:
    """The shape that an image gets: the nearest to its own, of `image` and its kin."""
    shapes = [self.shape, *(o.shape for o in self.others if o.like == FIRST)]
    size = size_of(shown) if len(shapes) > 1 else None
    if size is None:
      return self.shape
    at = aspects.nearest(size, shapes, near=math.inf)
    assert at is not None, "something is nearest"
    return shapes[at]

  def _show_kinds(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As `show`, of images of several shapes and of what is none."""
    alone = dataclasses.replace(self, others=())
    drawn = {kind.shape for kind in self.others if kind.like != FIRST}
    shown: dict[int, np.ndarray] = {}
    for shape in {image.shape for image in images}:
      own = [n for n, image in enumerate(images) if image.shape == shape]
      some = [images[n] for n in own]
      if shape in drawn and len(shape) != 3:
        made = [figures.draw(one) for one in some]
      elif shape in drawn and shape[-1] not in (1, 3):
        made = [false_colours(one) for one in some]
      elif shape in drawn:
        made = [png.to_pixels(one) for one in some]
      else:
        made = alone.show(some)
      shown |= zip(own, made, strict=True)
    return [shown[n] for n in range(len(images))]

  def show_stored(self, images: np.ndarray) -> list[np.ndarray]:
    """Images as shards store them, in pixels u8[H, W, 3].

    Args:
      images: latents [n, h, w, c] that are not normalised, or codes i32[n, codes].
    """
    assert self.images is not None, "latents and codes have a format"
    if self.images.latents:
      images = images.astype(np.float32)
    if self.codec is None:
      images = _normal(images, self.images) if self.images.latents else images
      return self.show(list(images))
    return _decode(self.codec, list(images))


def open_canvas(
  config: Config, workdir: str | Path, *, look_only: bool = False
) -> Canvas:
  """Opens what a run's workdir keeps of its images.

  Args:
    config: of the run.
    workdir: holds latents.json and autoencoder.safetensors if the data are latents.
    look_only: False: the model is to make images, or to be shown some. True: images
      are looked at, in false colours or patterns where there is no autoencoder.

  Raises:
    ValueError: the autoencoder is another than the data were made with; or it is
      missing, and this is not `look_only`.
  """
  shape, workdir = config.model.image_shape, files.to_path(workdir)
  others = config.model.every_kind[1:]
  kept = prepared.kept(workdir)
  if kept is None:
    return Canvas(shape, others=others)
  images, sha256 = kept
  path = workdir / manifest_lib.AUTOENCODER
  wanted = sha256 if path.is_file() else None  # None: there is no autoencoder
  if look_only and wanted is None:
    return Canvas(shape, images, others=others)
  if wanted is None:
    raise ValueError(
      f"{path}: is missing, and the images of this run are {_kind(images)}: without"
      " their autoencoder none can be sampled or shown; copy it there from the shards,"
      " or prepare those anew with one"
    )
  if (found := manifest_lib.sha256(path)) != wanted:
    raise ValueError(
      f"{path}: is another file (sha256 {found[:16]}...) than the data were made with"
      f" ({wanted[:16]}...); copy that one there from the shards"
    )
  codec = codec_lib.load(path)
  _check(codec, images, shape, path)
  return Canvas(shape, images, codec, others)


def false_colours(normal_hwc: np.ndarray) -> np.ndarray:
  """Latents f32[h, w, c], normalised, as pixels u8[px, px, 3]: channels 0, 1 and 2."""
  first = normal_hwc[..., np.arange(3) % normal_hwc.shape[-1]]  # fewer channels: again
  shades = 127.5 + 127.5 / FALSE_COLOUR_DEVIATIONS * first
  enlarged = shades.repeat(FALSE_COLOUR_PX, axis=0).repeat(FALSE_COLOUR_PX, axis=1)
  return np.clip(np.round(enlarged), 0, 255).astype(np.uint8)


def _normal(latents: np.ndarray, images: ImageFormat) -> np.ndarray:
  scale_c, shift_c = _normaliser(images)
  return (latents - shift_c) / scale_c


def _normaliser(images: ImageFormat) -> tuple[np.ndarray, np.ndarray]:
  """Scale and shift, f32[c] each."""
  return np.asarray(images.scale, np.float32), np.asarray(images.shift, np.float32)


def _decode(codec: Codec, raw: Sequence[np.ndarray]) -> list[np.ndarray]:
  shown: list[np.ndarray] = []
  for start in range(0, len(raw), BATCH):
    some = np.stack(raw[start : start + BATCH])
    filled = np.zeros((BATCH, *some.shape[1:]), some.dtype)
    filled[: len(some)] = some
    shown += list(codec.decode(filled)[: len(some)])
  return shown


def _pattern(codes_n: np.ndarray) -> np.ndarray:
  """Codes without an autoencoder: a square of grey, equal where codes are."""
  side = int(np.ceil(len(codes_n) ** 0.5))
  shades = np.zeros(side * side, np.uint8)
  shades[: len(codes_n)] = codes_n * 37 % 256
  return shades.reshape(side, side, 1)


def _kind(images: ImageFormat) -> str:
  return "latents" if images.latents else "codes"


def _check(
  codec: Codec, images: ImageFormat, shape: tuple[int, ...], path: Path
) -> None:
  """Raises ValueError for an autoencoder of other images than the run's."""
  kind = _kind(images)
  channels = codec.config.latent_channels
  fits = not images.latents or (images.shape == shape and shape[2] == channels)
  if codec.kind != kind or not fits:
    raise ValueError(
      f"{path}: gives {codec.kind} of {channels} numbers, latents.json beside it says"
      f" {images.shape}, model.image_shape={shape}; choose a new workdir"
    )
