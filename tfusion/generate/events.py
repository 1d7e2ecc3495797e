"""What happens while a prompt is continued, to be shown as it happens.

Owns: the types of events. Not: when they happen (stream.py).
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image as Pillow

if TYPE_CHECKING:  # it knows these types
  from tfusion.generate.samples import Sample


class Wrote(NamedTuple):
  """The model has written some text."""

  text: str  # what is new; all of it in a row is what the model wrote there


class Denoised(NamedTuple):
  """An image that the model is making, as it looks by now."""

  image: Pillow.Image  # in RGB: what the model now takes for the clean image
  number: int  # of the images that it makes for this prompt, from 0 on
  step: int  # times that the model has looked at it
  steps: int  # of so many


class Drew(NamedTuple):
  """An image is finished."""

  image: Pillow.Image  # in RGB, as in Sample.images
  number: int
  array: np.ndarray | None = None  # of another kind: its numbers


class Ended(NamedTuple):
  """Nothing more comes."""

  sample: "Sample"  # what `sample` gives for the same prompt, seed and knobs


Event = Wrote | Denoised | Drew | Ended
