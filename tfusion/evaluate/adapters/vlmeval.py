"""A model for VLMEvalKit, which is installed from its repository.

Owns: its interface of models. Not: its data sets and judges, sampling (generator.py).

In its vlmeval/config.py, or before its `infer_data_job` is called:

  from vlmeval.vlm.base import BaseModel
  from tfusion.evaluate.adapters.vlmeval import model_for

  supported_VLM["tfusion"] = partial(model_for(BaseModel), workdir="runs/x")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfusion.evaluate.adapters.generator import MOST, Generator, Part
from tfusion.generate.canvas import open_canvas
from tfusion.generate.trained import open_trained
from tfusion.workdir import load_config


def model_for(base: type) -> type:
  """A class of models for VLMEvalKit.

  Args:
    base: its `vlmeval.vlm.base.BaseModel`; it is not imported here, as no package index
      has it.
  """

  class Tfusion(base):
    """Answers interleaved texts and images with text, greedily."""

    INTERLEAVE = True

    def __init__(self, workdir: str, most: int = MOST, **more: Any):
      """Opens a run at its newest checkpoint; `more` is of other models."""
      config = load_config(workdir)
      canvas = open_canvas(config, workdir, look_only=True)
      self.generator = Generator(open_trained(config, workdir), canvas)
      self.most = most

    def generate_inner(
      self, message: Sequence[dict[str, str]], dataset: str | None = None
    ) -> str:
      """The text that follows a message of parts {type: text or image, value}."""
      (text,) = self.generator.say([parts_of(message)], most=self.most)
      return text.strip()

  return Tfusion


def parts_of(message: Sequence[dict[str, str]]) -> list[Part]:
  """The parts of a message, in order.

  Raises:
    ValueError: one is neither text nor an image.
  """
  parts: list[Part] = []
  for part in message:
    if part["type"] not in ("text", "image"):
      raise ValueError(f"a message holds {part['type']}; tfusion takes text and images")
    value = part["value"]
    parts.append(Path(value) if part["type"] == "image" else value)
  return parts
