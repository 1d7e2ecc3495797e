"""What a model answers to many prompts: all that the classifiers then read.

Owns: prompts in batches of one size, captions of given images. Not: what is asked and
what is right (digits.py, shapes.py), the sampling itself (generate/).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from tfusion.data import numbers
from tfusion.generate.interleaved import generate
from tfusion.generate.prompt import Prompt
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.progress import Progress
from tfusion.sequence import CodeBook, Codes, Image, Text


def answer(
  trained: Trained,
  prompts: Sequence[Prompt],
  what: str,
  *,
  book: CodeBook | None = None,
) -> list[Generated]:
  """Continues prompts, eval.batch at a time, the last batch filled up to that size.

  Args:
    trained: its config.seed is that of the noise.
    prompts: of any number.
    what: is asked for, as the progress line calls it.
    book: of images as codes; None: images are patches.
  """
  more = {"book": book} if book else {}
  config, made = trained.config, []
  progress = Progress(what, len(prompts))
  for start in range(0, len(prompts), config.eval.batch):
    part = list(prompts[start : start + config.eval.batch])
    filled = part + part[:1] * (min(config.eval.batch, len(prompts)) - len(part))
    key = jax.random.fold_in(jax.random.key(config.seed), start)
    made += generate(
      config,
      trained.params,
      filled,
      special=trained.tokenizer.special,
      key=key,
      **more,
    )[: len(part)]
    progress.show(len(made))
  new = [image for one in made for image in one.made_images]
  if said := numbers.warning(new, trained.numbers):
    logging.warning("%s: %s", what, said)
  return made


def caption(
  trained: Trained,
  images: np.ndarray | Sequence[np.ndarray],
  *,
  book: CodeBook | None = None,
) -> list[str]:
  """Greedy captions of real images, given clean, whatever sample.temperature says.

  Args:
    trained: the model.
    images: f32[h, w, c] each, or with a book codes i32[n], counted from 0.
    book: of images as codes.
  """
  greedy = dataclasses.replace(trained.config.sample, temperature=0.0)
  config = dataclasses.replace(trained.config, sample=greedy)
  prompts: list[Prompt] = [
    (Codes(image + np.int32(book.first)) if book else Image(image),) for image in images
  ]
  made = answer(trained._replace(config=config), prompts, "captions", book=book)
  return [
    "".join(trained.tokenizer.decode(s.ids) for s in one.spans if isinstance(s, Text))
    for one in made
  ]
