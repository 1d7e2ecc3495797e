"""What a client is told: what is asked and what happens, as JSON.

Owns: its keys, images as PNG in base64, what is said of the model. Not: the events
themselves (generate/events.py), HTTP (application.py).
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from tfusion.config import Config
from tfusion.generate import png
from tfusion.generate.events import Denoised, Drew, Ended, Event, Wrote
from tfusion.generate.samples import Sample

Told = dict[str, Any]


class Waiting(NamedTuple):
  """Others are answered first."""

  before: int  # so many


class Begun(NamedTuple):
  """It is one's turn."""

  seed: int


def about(config: Config, *, name: str, step: int) -> Told:
  """What model this is: what the page says of it, and the run's knobs."""
  model = config.model
  return {
    "name": name,
    "step": step,
    # Without options and folders, which are nobody's business.
    "sources": [source.partition(":")[0] for source in config.data.sources],
    "image_shape": list(model.image_shape),
    "kinds": [kind.name for kind in model.every_kind],
    "prompts": list(config.eval.prompts),
    "knobs": dataclasses.asdict(config.sample),
  }


class Teller:
  """Tells the events of one prompt; what the prompt gives stands between them."""

  def __init__(self, given: Sequence[Sequence[str | np.ndarray]]):
    """Takes what is given before, between and behind the images to be made."""
    self._given = list(given)

  def tell(self, event: Waiting | Begun | Event) -> list[Told]:
    """The objects of an event, in their order."""
    match event:
      case Waiting(before):
        return [{"event": "waiting", "before": before}]
      case Begun(seed):
        return [{"event": "begun", "seed": seed}, *self._next()]
      case Wrote(text):
        return [{"event": "text", "text": text, "made": True}]
      case Denoised(image, _, step, steps):
        told = {"event": "preview", "png": _coded(image)}
        return [told | {"step": step, "steps": steps}]
      case Drew(image):
        return [{"event": "image", "png": _coded(image), "made": True}, *self._next()]
      case Ended(sample):
        return [{"event": "end", "finished": sample.finished}]

  def _next(self) -> list[Told]:
    """What the prompt gives up to the next image that is to be made."""
    given = self._given.pop(0) if self._given else ()
    return [
      {"event": "text", "text": part, "made": False}
      if isinstance(part, str)
      else {"event": "image", "png": _coded(part), "made": False}
      for part in given
    ]


def whole(sample: Sample) -> Told:
  """All that came of a prompt."""
  return {
    "text": sample.text,
    "images": [_coded(image) for image in sample.images],
    "parts": [
      {"text": part, "made": made}
      if isinstance(part, str)
      else {"png": _coded(part), "made": made}
      for part, made in zip(sample.parts, sample.made, strict=True)
    ],
    "finished": sample.finished,
  }


def _coded(image: Pillow.Image | np.ndarray) -> str:
  if isinstance(image, np.ndarray):
    return base64.b64encode(png.encode(image)).decode()
  data = io.BytesIO()
  image.save(data, "PNG")
  return base64.b64encode(data.getvalue()).decode()
