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
from tfusion.generate.interleaved import Generated, generate
from tfusion.generate.prompt import Prompt
from tfusion.generate.trained import Trained
from tfusion.progress import Progress
from tfusion.sequence import Image, Text


def answer(trained: Trained, prompts: Sequence[Prompt], what: str) -> list[Generated]:
  """Continues prompts, eval.batch at a time, the last batch filled up to that size.

  Args:
    trained: its config.seed is that of the noise.
    prompts: of any number.
    what: is asked for, as the progress line calls it.
  """
  config, made = trained.config, []
  progress = Progress(what, len(prompts))
  for start in range(0, len(prompts), config.eval.batch):
    part = list(prompts[start : start + config.eval.batch])
    filled = part + part[:1] * (min(config.eval.batch, len(prompts)) - len(part))
    key = jax.random.fold_in(jax.random.key(config.seed), start)
    made += generate(
      config, trained.params, filled, special=trained.tokenizer.special, key=key
    )[: len(part)]
    progress.show(len(made))
  new = [image for one in made for image in one.made_images]
  if said := numbers.warning(new, trained.numbers):
    logging.warning("%s: %s", what, said)
  return made


def caption(trained: Trained, images_nhwc: np.ndarray) -> list[str]:
  """Greedy captions of real images, given clean, whatever sample.temperature says."""
  greedy = dataclasses.replace(trained.config.sample, temperature=0.0)
  config = dataclasses.replace(trained.config, sample=greedy)
  prompts = [(Image(image),) for image in images_nhwc]
  made = answer(trained._replace(config=config), prompts, "captions")
  return [
    "".join(trained.tokenizer.decode(s.ids) for s in one.spans if isinstance(s, Text))
    for one in made
  ]
