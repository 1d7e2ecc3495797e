"""Kinds: what continuous things a row may hold beside text, images first of all.

Owns: what a kind is, its written form in model.kinds, its sizes. Not: which knobs a run
has (config.py), layers (model/), noise (diffusion/).

A kind is a grid of vectors of 0 to 3 dimensions: a picture or its latent (2), a
waveform or spectrogram (1), a short video (3), one vector (0). It is cut into patches,
each an element of the row. The first kind of every run is `image`, of which
model.image_shape, model.patch and model.patches speak; model.kinds has the others:

  wide:192x320x3,like=image        an image of another size, with the layers of image
  audio:64x1,patch=4,weight=1      64 vectors of one number, four of them in a patch
"""

import dataclasses
import functools
import math
import re
from typing import Any

FIRST = "image"
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
# Names of other things, and of losses that are not of a kind.
TAKEN = ("text", "boi", "eoi", "bos", "eos", "pad", "codes", "image_bins")
MOST_DIMENSIONS = 3
HOW = "write NAME:SHAPE,OPTION=VALUE,..., such as audio:64x1,patch=4"
OPTIONS = (
  *("patch", "layers", "like", "slots", "weight"),
  *("schedule", "target", "shift", "clip"),
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind; None stands for what the run has for `image`."""

  name: str
  shape: tuple[int, ...]  # cells along each dimension, then the numbers of a cell
  patch: tuple[int, ...]  # cells of a patch along each dimension
  layers: str = "linear"  # linear or unet, as model.patches
  like: str = ""  # the kind whose patch layers it uses; empty: it has its own
  slots: int | None = None  # that a row has for it, as data.image_slots
  weight: float | None = None  # of its loss, as diffusion.image_weight
  schedule: str | None = None  # as those of diffusion.
  target: str | None = None
  shift: float | None = None
  clip: float | None = None

  @property
  def owner(self) -> str:
    """The kind whose patch layers it uses."""
    return self.like or self.name

  @property
  def grid(self) -> tuple[int, ...]:
    """Patches along each dimension."""
    return tuple(
      cells // own for cells, own in zip(self.shape[:-1], self.patch, strict=True)
    )

  @property
  def patches(self) -> int:
    """Elements between BOI and EOI."""
    return math.prod(self.grid)

  @property
  def patch_numbers(self) -> int:
    """Numbers of a patch."""
    return math.prod(self.patch) * self.shape[-1]

  @property
  def sides(self) -> tuple[int, int]:
    """The grid as rows and columns; of fewer dimensions than 2 it is one row.

    Raises:
      ValueError: it has more dimensions.
    """
    if len(self.grid) > 2:
      raise ValueError(f"{self.name}: a grid of {self.grid} has no rows and columns")
    rows, columns = (1, 1, *self.grid)[-2:]
    return rows, columns


@functools.lru_cache(1024)
def parse(specs: tuple[str, ...], first: Kind) -> tuple[Kind, ...]:
  """The kinds of a run: `first`, then those of model.kinds.

  Raises:
    ValueError: names the entry, what is wrong with it and the remedy.
  """
  kinds = [first]
  for spec in specs:
    kind = _parse(spec, kinds)
    if kind.name in [other.name for other in kinds]:
      raise _wrong(spec, f"a second kind of the name {kind.name!r}; choose another")
    if same := [other.name for other in kinds if other.shape == kind.shape]:
      raise _wrong(
        spec, f"{same[0]} has this shape too, and by shapes sources tell kinds apart"
      )
    kinds.append(kind)
  return tuple(kinds)


def _parse(spec: str, before: list[Kind]) -> Kind:
  name, _, rest = spec.partition(":")
  shape_text, *options = rest.split(",")
  if not NAME.fullmatch(name) or name in TAKEN:
    raise _wrong(
      spec, f"{name!r} is no name of a kind: small letters and digits; {HOW}"
    )
  shape = _sizes(spec, shape_text)
  if len(shape) > MOST_DIMENSIONS + 1:
    raise _wrong(spec, f"{len(shape) - 1} dimensions and channels; at most 3")
  given: dict[str, str] = {}
  for option in options:
    key, _, value = option.partition("=")
    if key not in OPTIONS or not value or key in given:
      raise _wrong(spec, f"{option!r}: known once each are {OPTIONS}; {HOW}")
    given[key] = value
  values: dict[str, Any] = dict(layers="linear", like=given.pop("like", ""))
  patch = (1,) * (len(shape) - 1)
  if values["like"]:
    owner = _owner(spec, values["like"], shape, before)
    values["layers"], patch = owner.layers, owner.patch
    if clash := [key for key in ("patch", "layers") if key in given]:
      raise _wrong(spec, f"{clash} are those of {owner.name}, whose layers it uses")
  if "patch" in given:
    if len(shape) == 1:
      raise _wrong(spec, "a vector is one patch; leave patch away")
    patch = _sizes(spec, given.pop("patch"))
    patch = patch * (len(shape) - 1) if len(patch) == 1 else patch
  if len(patch) != len(shape) - 1 or any(
    cells % own for cells, own in zip(shape, patch)
  ):
    raise _wrong(
      spec, f"patches of {_by(patch)} do not divide the {_by(shape[:-1])} cells"
    )
  for key, value in given.items():
    values[key] = _value(spec, key, value)
  kind = Kind(name, shape, patch, **values)
  _check_layers(spec, kind)
  return kind


def _owner(spec: str, name: str, shape: tuple[int, ...], before: list[Kind]) -> Kind:
  """The kind whose layers a new one may use."""
  found = [kind for kind in before if kind.name == name]
  if not found:
    known = [kind.name for kind in before]
    raise _wrong(
      spec, f"like={name}: no kind before it has this name; it knows {known}"
    )
  if found[0].like:
    raise _wrong(spec, f"like={name}: has none of its own; write like={found[0].like}")
  if (len(shape), shape[-1]) != (len(found[0].shape), found[0].shape[-1]):
    raise _wrong(
      spec,
      f"like={name}: that is {_by(found[0].shape)}; layers are shared by kinds of as"
      " many dimensions and channels",
    )
  return found[0]


def _check_layers(spec: str, kind: Kind) -> None:
  if kind.layers != "unet":
    return
  if (
    len(kind.shape) != 3 or len(set(kind.patch)) != 1 or kind.patch[0] not in (2, 4, 8)
  ):
    raise _wrong(
      spec, "layers=unet: is of images h, w, c in square patches of 2, 4 or 8"
    )


def _value(spec: str, key: str, text: str) -> Any:
  choices = {
    "layers": ("linear", "unet"),
    "schedule": ("cosine", "linear"),
    "target": ("eps", "x0", "v"),
  }
  if key in choices:
    if text not in choices[key]:
      raise _wrong(spec, f"{key}={text}: choose one of {choices[key]}")
    return text
  try:
    number = int(text) if key == "slots" else float(text)
    if math.isfinite(number) and (
      number > 0 or number == 0 and key in ("weight", "clip")
    ):
      return number
  except ValueError:
    pass
  raise _wrong(spec, f"{key}={text}: expected a number above 0")


def _sizes(spec: str, text: str) -> tuple[int, ...]:
  if not re.fullmatch(r"[0-9]+(x[0-9]+)*", text):
    raise _wrong(spec, f"{text!r}: expected sizes such as 192x320x3; {HOW}")
  sizes = tuple(map(int, text.split("x")))
  if not all(sizes):
    raise _wrong(spec, f"{text!r}: sizes are above 0")
  return sizes


def _by(sizes: tuple[int, ...]) -> str:
  return "x".join(map(str, sizes))


def _wrong(spec: str, why: str) -> ValueError:
  return ValueError(f"model.kinds: {spec!r}: {why}")
