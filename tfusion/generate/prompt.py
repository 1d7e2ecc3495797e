"""What can be asked for: given text, given images, places to draw.

Owns: Prompt and its written form. Not: files (the caller loads them), what the model
makes of it (interleaved.py).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfusion.sequence import Image, Text

MARK = re.compile(r"\s*<([/|]?[A-Za-z_][^\s<>:]*)(?::([^<>]*))?>\s*")


class Draw(NamedTuple):
  """A place in a prompt where the model draws an image."""


Prompt = tuple[Text | Image | Draw, ...]


def parse_prompt(
  prompt: str,
  *,
  encode: Callable[[str], np.ndarray],
  load_image: Callable[[str], np.ndarray],
) -> Prompt:
  """Parses text with `<image>` (draw here) and `<image:FILE>` (given) in it.

  White space around a mark is not text: captions in training end at the image too.

  Args:
    prompt: may be empty.
    encode: text to token ids.
    load_image: the FILE of a mark to f32[h, w, c].

  Raises:
    ValueError: any other `<name>`.
  """
  spans, end = [], 0
  for match in MARK.finditer(prompt):
    name, file = match.groups()
    if name != "image":
      raise ValueError(
        f"prompt {prompt!r}: unknown special token {match.group().strip()!r}; known:"
        " <image> to draw one, <image:FILE> to show one"
      )
    spans += _text(prompt[end : match.start()], encode)
    spans.append(Draw() if file is None else Image(load_image(file)))
    end = match.end()
  return (*spans, *_text(prompt[end:], encode))


def split_at_draws(prompt: Prompt) -> list[list[Text | Image]]:
  """What is given before, between and behind the places to draw: one list more."""
  parts = [[]]
  for span in prompt:
    if isinstance(span, Draw):
      parts.append([])
    else:
      parts[-1].append(span)
  return parts


def _text(text: str, encode: Callable[[str], np.ndarray]) -> list[Text]:
  return [Text(encode(text))] if text else []
