"""What does an image of a scene show? A classifier that reads it back.

Owns: image -> things. Not: rendering (data/scenes/render.py), marks (marks.py), how
well reading goes (trials.py).

h w pixels  n hypotheses

It is a program that knows how scenes are rendered; nothing is trained. Backgrounds are
nearly gray, so what has colour is a thing. Each one is compared with every shape,
rendered where it lies, sharp and blurred, and takes the shape that differs least.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tfusion.data.scenes import outlines
from tfusion.data.scenes.outlines import SHAPES
from tfusion.data.scenes.scene import COLOURS, SIZES, Thing

# Axes of colour without brightness: of unit length, orthogonal to gray and each other.
_CHROMA = np.asarray([[1, 1], [-1, 1], [0, -2]]) / np.sqrt([2, 6])
_PALETTE = np.asarray(list(COLOURS.values()), np.float64)
_HUES = np.linalg.norm(_PALETTE @ _CHROMA, axis=1)
_HUE_AXES = _PALETTE @ _CHROMA / _HUES[:, None]
_BOUND = math.sqrt(SIZES["small"] * SIZES["large"])  # radius between the sizes
_LEAST_AREA = 0.3 * math.pi * SIZES["small"] ** 2  # of a spot of colour that counts
_SMOOTH = 0.02  # of the side: sigma of the blur in which spots are looked for
_QUIET = 42.0  # noise that a blur of one pixel turns into a quarter of the level below
# Chroma of 0..255: where spots begin, and where touching ones may part. A pale thing on
# a ground of its own hue has 85.
_LEVELS = (45.0, 60.0, 80.0, 100.0)
_PARTED = 0.6  # of the error of one thing: two that leave less are two
_BLURS = (0.015, 0.04)  # of the side: sigmas that shapes are first compared with
_MOST_BLUR = 0.08  # of the side
_SHARP = 3.0  # levels by which the pixels of a sharp image differ from a rendered one
_TONE = 15.0  # levels by which a thing's colour may differ from its name's
_KEPT = 8  # hypotheses fitted further, after the first step
_DAMPING = 1e-3  # of Levenberg and Marquardt
_STEPS = 6  # of Gauss-Newton


def read(image_hwc: np.ndarray) -> tuple[Thing, ...]:
  """Reads an image of a scene; says what it saw, whatever the image is.

  Args:
    image_hwc: f32[h, h, 3] in [-1, 1]; what lies outside is clipped, NaN is gray.

  Returns:
    Things from left to right; `x`, `y`, `radius` and `rgb` as measured, the words as
    nearest to these. None for an image without colour.

  Raises:
    ValueError: not a square RGB image of at least 16 pixels.
  """
  shape = np.shape(image_hwc)
  if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3 or shape[0] < 16:
    raise ValueError(
      f"image of shape {shape}: the classifier of scenes reads (h, h, 3) with h of at"
      " least 16"
    )
  rgb_hwc = np.nan_to_num(np.asarray(image_hwc, np.float64), nan=0.0)
  rgb_hwc = (np.clip(rgb_hwc, -1, 1) + 1) * 127.5
  chroma_hwc = rgb_hwc @ _CHROMA
  chroma_hwc -= np.median(chroma_hwc, axis=(0, 1))
  things: list[Thing] = []
  for whole_hw, parts in _spots(chroma_hwc):
    whole, error = _fit(rgb_hwc, chroma_hwc, whole_hw)
    fitted = [_fit(rgb_hwc, chroma_hwc, part_hw) for part_hw in parts]
    parted = fitted and sum(left for _, left in fitted) < _PARTED * error
    things += [part for part, _ in fitted] if parted else [whole]
  return tuple(sorted(things, key=lambda thing: (thing.x, thing.y)))


def _spots(chroma_hwc: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
  """Finds spots of colour.

  Returns:
    For each the pixels nearer to it than to others, bool[h, w]; and, if it is more
    intense in several places, the same for each of them: neighbours touch in a blurred
    image.
  """
  side = len(chroma_hwc)
  sigma = min(max(_SMOOTH * side, _noise(chroma_hwc) / _QUIET), 3 * _SMOOTH * side)
  smooth = ndimage.gaussian_filter(chroma_hwc, (sigma, sigma, 0))
  strength_hw = np.sqrt((smooth**2).sum(-1))
  least = _LEAST_AREA * side**2
  spots = _components(strength_hw > _LEVELS[0], least)
  found = []
  for own, whole in zip(spots, _nearest(spots, 0.1 * side)):
    inner = (_components(own & (strength_hw > level), least) for level in _LEVELS[1:])
    parts = next((masks for masks in inner if len(masks) > 1), [])
    found.append((whole, [whole & part for part in _nearest(parts, side)]))
  return found


def _components(mask_hw: np.ndarray, least: float) -> list[np.ndarray]:
  """The connected parts of a mask that have `least` pixels."""
  labels, count = ndimage.label(mask_hw, structure=np.ones((3, 3)))
  areas = np.bincount(labels.ravel(), minlength=count + 1)
  return [labels == i for i in range(1, count + 1) if areas[i] >= least]


def _nearest(masks: list[np.ndarray], most: float) -> list[np.ndarray]:
  """For each mask the pixels nearer to it than to others, and not farther than most."""
  if not masks:
    return []
  labels = np.sum([i * mask for i, mask in enumerate(masks, start=1)], axis=0)
  distance, (rows, columns) = ndimage.distance_transform_edt(
    labels == 0, return_indices=True
  )
  nearest = np.where(distance <= most, labels[rows, columns], 0)
  return [nearest == i for i in range(1, len(masks) + 1)]


def _noise(chroma_hwc: np.ndarray) -> float:
  """Standard deviation of the noise of a pixel; of a clean image nearly 0.

  From second differences, whose median things and patterns hardly move.
  """
  crosses = chroma_hwc[1:, 1:] - chroma_hwc[1:, :-1]
  crosses = crosses - (chroma_hwc[:-1, 1:] - chroma_hwc[:-1, :-1])
  return float(np.median(np.abs(crosses))) / 0.6745 / 2


class _Fits(NamedTuple):
  """Hypotheses about one spot, in pixels of its window."""

  shape_n: np.ndarray  # indices into SHAPES
  x_n: np.ndarray
  y_n: np.ndarray
  radius_n: np.ndarray
  blur_n: np.ndarray  # variance of a Gaussian

  def take(self, chosen: np.ndarray) -> "_Fits":
    return _Fits(*(field[chosen] for field in self))


def _fit(
  rgb_hwc: np.ndarray, chroma_hwc: np.ndarray, weight_hw: np.ndarray
) -> tuple[Thing, float]:
  """Measures the thing of one spot; returns it and the squared error it leaves, with
  what a sharp image of it would leave on top."""
  side = len(rgb_hwc)
  rows, columns = (np.flatnonzero(weight_hw.any(axis)) for axis in (1, 0))
  size = max(np.ptp(rows), np.ptp(columns)) + 1
  top, left = min(rows[0], side - size), min(columns[0], side - size)
  window = np.s_[top : top + size, left : left + size]
  weight_hw, chroma_hwc = weight_hw[window], chroma_hwc[window]
  # The spot's strength along its own colour: amplitude times coverage.
  strength_hw = np.sqrt((chroma_hwc**2).sum(-1)) * weight_hw
  colour = (chroma_hwc * strength_hw[..., None]).sum((0, 1))
  colour /= max(np.linalg.norm(colour), 1e-9)
  along_hw = chroma_hwc @ colour * weight_hw
  # Blur changes neither a thing's mass nor its hue; those tell its area.
  fits = _start(along_hw, float(_HUES[np.argmax(_HUE_AXES @ colour)]), side)
  for step in range(_STEPS):
    fits, error_n = _improve(fits, along_hw, weight_hw, side)
    if step == 0:
      fits = fits.take(np.argsort(error_n)[:_KEPT])
  cover_nhw = _covers(fits, int(size))
  error_n = _errors(cover_nhw, along_hw, weight_hw)
  rgb_nc = _colours(cover_nhw, rgb_hwc[window], weight_hw)
  off_nk = ((_PALETTE - rgb_nc[:, None]) ** 2).sum(-1)
  pixels = weight_hw.sum()
  cost_n = pixels * np.log(error_n / pixels + _SHARP**2) + off_nk.min(1) / _TONE**2
  best = np.argmin(cost_n)
  radius = float(fits.radius_n[best]) / side
  red, green, blue = (int(x) for x in np.clip(np.round(rgb_nc[best]), 0, 255))
  thing = Thing(
    shape=SHAPES[fits.shape_n[best]],
    colour=list(COLOURS)[np.argmin(off_nk[best])],
    size="small" if radius < _BOUND else "large",
    x=float(fits.x_n[best] + left) / side,
    y=float(fits.y_n[best] + top) / side,
    radius=radius,
    rgb=(red, green, blue),
  )
  # A second colour beside it is an error too, though not along the first.
  across_hw = (chroma_hwc @ (-colour[1], colour[0])) * weight_hw
  return thing, float(error_n[best] + (across_hw**2).sum() + pixels * _SHARP**2)


def _start(along_hw: np.ndarray, amplitude: float, side: int) -> _Fits:
  """Every shape and blur, where the spot's mass lies, of its area."""
  mass_hw = np.maximum(along_hw, 0)
  at = np.arange(len(mass_hw)) + 0.5
  mass = max(mass_hw.sum(), 1e-9)
  x, y = mass_hw.sum(0) @ at / mass, mass_hw.sum(1) @ at / mass
  area = max(along_hw.sum() / amplitude, 1.0)
  shape_n = np.repeat(np.arange(len(SHAPES)), len(_BLURS))
  blur_n = np.tile((np.asarray(_BLURS) * side) ** 2, len(SHAPES))
  ones = np.ones(len(shape_n))
  radius = math.sqrt(area / math.pi)
  return _Fits(shape_n, ones * x, ones * y, ones * radius, blur_n)


def _covers(fits: _Fits, size: int) -> np.ndarray:
  zeros = np.zeros(len(fits.x_n), np.int64)
  cover_nhw = outlines.coverage(
    *(fits.shape_n, fits.x_n, fits.y_n, fits.radius_n),
    left_n=zeros,
    top_n=zeros,
    size=size,
  )
  blur_nhh = _blurs(fits.blur_n, size)
  return blur_nhh @ cover_nhw @ blur_nhh.transpose(0, 2, 1)


def _improve(
  fits: _Fits, along_hw: np.ndarray, weight_hw: np.ndarray, side: int
) -> tuple[_Fits, np.ndarray]:
  """One Gauss-Newton step of place, radius and amplitude of every hypothesis.

  Returns:
    The hypotheses after the step, and their squared errors linearised there.
  """
  size = len(along_hw)
  cover_nhw = _covers(fits, size)
  down_nhw, right_nhw = np.gradient(cover_nhw, axis=(1, 2))
  at = np.arange(size) + 0.5
  from_x = (at - fits.x_n[:, None])[:, None, :] / fits.radius_n[:, None, None]
  from_y = (at - fits.y_n[:, None])[:, :, None] / fits.radius_n[:, None, None]
  # A Gaussian's slope by its variance is half of what diffusion does.
  spread_nhw = sum(np.gradient(s, axis=i) for i, s in ((1, down_nhw), (2, right_nhw)))
  slopes = (
    *(-right_nhw, -down_nhw, -(from_x * right_nhw + from_y * down_nhw)),
    spread_nhw / 2,
  )
  design = np.stack([cover_nhw, *slopes], 1) * weight_hw  # [n, 5, h, w]
  design = design.reshape(*design.shape[:2], -1)
  target = along_hw.ravel()
  gram = design @ design.transpose(0, 2, 1)
  gram *= 1 + _DAMPING * np.eye(5)
  gram += 1e-9 * np.eye(5)
  solved = np.linalg.solve(gram, (design @ target)[..., None])[..., 0]
  error_n = ((target - (solved[:, None] @ design)[:, 0]) ** 2).sum(-1)
  moved = solved[:, 1:] / np.maximum(solved[:, :1], 1e-9)
  most = 0.2 * fits.radius_n  # pixels a step
  x_n, y_n, radius_n = (
    value + np.clip(moved[:, i], -most, most) for i, value in enumerate(fits[1:4])
  )
  blur_n = np.clip(fits.blur_n + moved[:, 3], 0, (_MOST_BLUR * side) ** 2)
  return _Fits(fits.shape_n, x_n, y_n, radius_n, blur_n), error_n


def _errors(
  cover_nhw: np.ndarray, along_hw: np.ndarray, weight_hw: np.ndarray
) -> np.ndarray:
  """The squared error that each hypothesis leaves, with the best amplitude it has."""
  own = cover_nhw * weight_hw
  amplitude_n = (own * along_hw).sum((1, 2)) / np.maximum((own**2).sum((1, 2)), 1e-9)
  return ((along_hw - amplitude_n[:, None, None] * own) ** 2).sum((1, 2))


def _colours(
  cover_nhw: np.ndarray, rgb_hwc: np.ndarray, weight_hw: np.ndarray
) -> np.ndarray:
  """f64[n, 3]: colours under full coverage, where the rest is ground of one colour."""
  own = weight_hw > 0
  cover_np = cover_nhw[:, own]
  design = np.stack([1 - cover_np, cover_np], 1)
  gram = design @ design.transpose(0, 2, 1) + 1e-6 * np.eye(2)
  return np.linalg.solve(gram, design @ rgb_hwc[own])[:, 1]


def _blurs(variance_n: np.ndarray, size: int) -> np.ndarray:
  """f64[n, size, size]: blurs along one axis; nothing comes in from outside."""
  least = np.maximum(variance_n, 1e-2)[:, None]
  weight_nd = np.exp(-(np.arange(size) ** 2) / (2 * least))
  weight_nd /= 2 * weight_nd.sum(1, keepdims=True) - 1  # both ways, 0 once
  at = np.arange(size)
  return weight_nd[:, np.abs(at[:, None] - at)]
