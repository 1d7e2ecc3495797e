"""A model as programs of evaluation ask it: text and images in, text or images out.

Owns: prompts of parts in any order, how an answer is drawn and where it ends. Not: the
programs (harness.py, multimodal.py, vlmeval.py), sampling (generate/).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tfusion import sequence
from tfusion.evaluate import answers
from tfusion.generate.canvas import Canvas
from tfusion.generate.choices import TextChoice
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Blank, Given, Prompt
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.sequence import Codes, Image, Text, is_image

ROUND = 64  # elements of a cache; few sizes, so that few programs are compiled

Part = str | Path  # a text, or the file of an image


# What a task calls the ways of drawing tokens -> what TextChoice calls them.
DRAWS = {
  "top_k": "top_k",
  "top_p": "top_p",
  "min_p": "min_p",
  "repetition_penalty": "repetition",
}
LIMITS = ("max_gen_toks", "max_tokens", "max_new_tokens")
MOST = 256  # tokens of an answer, if a task says nothing, as in lm-evaluation-harness


class Wishes(NamedTuple):
  """How a task wants an answer."""

  until: tuple[str, ...]  # texts at which it ends
  most: int  # tokens
  choice: TextChoice


def wishes(asked: Mapping[str, Any]) -> Wishes:
  """Reads what a task says of an answer, in the words of transformers' generate.

  Args:
    asked: by name; without do_sample, a temperature above 0 means it.

  Raises:
    ValueError: it wants a search over beams, which is not built.
  """
  if (beams := asked.get("num_beams", 1)) != 1:
    raise ValueError(f"a task asks for num_beams={beams}: this is not built")
  until = asked.get("until") or ()
  stops = (until,) if isinstance(until, str) else tuple(until)
  limits = [int(asked[name]) for name in LIMITS if asked.get(name)]
  temperature = float(asked.get("temperature") or 0.0)
  draws = asked.get("do_sample", temperature > 0)
  choice = TextChoice(temperature=(temperature or 1.0) if draws else 0.0)
  for name, own in DRAWS.items():
    if asked.get(name) is not None:
      kind = type(getattr(choice, own))
      choice = choice._replace(**{own: kind(asked[name])})
  return Wishes(stops, (limits or [MOST])[0], choice)


class Generator:
  """Answers many prompts, eval.batch at a time. Its methods must be called on all
  hosts."""

  def __init__(self, trained: Trained, canvas: Canvas):
    """Takes a model and the canvas of its run."""
    self.trained, self.canvas = trained, canvas
    self.book = canvas.book(trained.tokenizer.vocab_size)

  def say(
    self,
    asked: Sequence[Sequence[Part]],
    *,
    most: int,
    until: Sequence[str] = (),
    choice: TextChoice = TextChoice(),
  ) -> list[str]:
    """The text that follows each prompt, up to an image, EOS or a stop.

    Args:
      asked: parts of each prompt, in order.
      most: tokens of an answer, at most.
      until: texts at which an answer ends; they are no part of it.
      choice: how tokens are drawn.

    Raises:
      ValueError: a prompt does not fit the model.
    """
    prompts = [self.prompt(parts) for parts in asked]
    trained = self._sized(self._longest(prompts) + most, choice)
    with jax.set_mesh(trained.mesh):
      made = answers.answer(trained, prompts, "answers", book=self.book)
    return [self._text(one, most, until) for one in made]

  def draw(self, asked: Sequence[Sequence[Part]]) -> list[np.ndarray]:
    """The image that each prompt asks for, u8[h, w, 1 or 3].

    Raises:
      ValueError: a prompt does not fit sample.max_elements.
    """
    prompts: list[Prompt] = [(*self.prompt(parts), Blank()) for parts in asked]
    with jax.set_mesh(self.trained.mesh):
      check_prompts(self.trained.config, prompts, book=self.book)
      made = answers.answer(self.trained, prompts, "images", book=self.book)
    return self.canvas.show([self._image(one) for one in made])

  def prompt(self, parts: Sequence[Part]) -> Prompt:
    """Parts as the model is given them; a text is never read as a mark."""
    spans: list[Given] = []
    for part in parts:
      if isinstance(part, str):
        if part:
          spans.append(Text(self.trained.tokenizer.encode(part)))
        continue
      shown = self.canvas.read(part)
      spans.append(
        Codes(shown + np.int32(self.book.first)) if self.book else Image(shown)
      )
    return tuple(spans)

  def elements(self, prompt: Prompt) -> int:
    """How many elements of a sequence a prompt takes."""
    patches = self.trained.config.model.patches_by_kind
    given = tuple(span for span in prompt if not isinstance(span, Blank))
    return sequence.element_count(given, patches_per_image=patches)

  def _longest(self, prompts: Sequence[Prompt]) -> int:
    return max((self.elements(prompt) for prompt in prompts), default=0)

  def _sized(self, elements: int, choice: TextChoice) -> Trained:
    config, length = self.trained.config, -(-elements // ROUND) * ROUND
    sample = dataclasses.replace(config.sample, max_elements=length, **choice._asdict())
    return self.trained._replace(config=dataclasses.replace(config, sample=sample))

  def _text(self, one: Generated, most: int, until: Sequence[str]) -> str:
    ids: list[int] = []
    for span, made in zip(one.spans, one.made):
      if made and is_image(span):
        break
      if made and isinstance(span, Text):
        ids += np.asarray(span.ids).tolist()
    return cut(self.trained.tokenizer.decode(np.asarray(ids[:most], np.int32)), until)

  def _image(self, one: Generated) -> np.ndarray:
    own = (span for span, made in zip(one.spans, one.made) if made and is_image(span))
    span = next(own)
    if isinstance(span, Image):
      return span.latent
    assert self.book is not None and isinstance(span, Codes)
    return span.ids - np.int32(self.book.first)


def cut(text: str, until: Sequence[str]) -> str:
  """A text up to the first of these that stands in it."""
  stops = [re.escape(stop) for stop in until if stop]
  return re.split("|".join(stops), text, maxsplit=1)[0] if stops else text
