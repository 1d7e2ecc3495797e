"""What a model answers to eval.prompts while it trains: a sheet of images, texts.

Owns: samples/step_NNNNNNNN.png and .json of a workdir. Not: sampling and what latents
look like (generate/).
"""

import contextlib
from pathlib import Path

import jax
import numpy as np
from absl import logging

from tfusion import workdir as workdir_lib
from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.pipeline import Corpus
from tfusion.generate import png, samples
from tfusion.generate.canvas import open_canvas
from tfusion.generate.prompt import split
from tfusion.model.transfusion import Params

COLUMNS = 10  # of a sheet, at most
SEED = 0  # the same noise at every evaluation, so that images compare


class SampleGrids:
  """Samples eval.prompts at every evaluation, and puts all images on one sheet."""

  def __init__(self, config: Config, workdir: Path):
    """Raises ValueError for a prompt with a mark that cannot be read."""
    self.config, self.workdir = config, workdir
    with _naming_prompts():  # now: opening the data may take hours
      for prompt in config.eval.prompts:
        split(prompt, config.model.every_kind)

  def check(self, corpus: Corpus) -> None:
    """Raises ValueError for a prompt that the model cannot continue."""
    prompts = self.config.eval.prompts
    if prompts:
      with _naming_prompts(remedy="; or leave eval.prompts empty"):
        canvas = open_canvas(self.config, self.workdir)
      with _naming_prompts():
        samples.read_prompts(self.config, corpus.tokenizer, prompts, canvas=canvas)

  def __call__(self, step: int, params: Params, corpus: Corpus) -> None:
    """Writes workdir/samples/step_NNNNNNNN.json, and .png if there are images.

    The .json says of each prompt which text came and, in pixels of the .png, where its
    images are: left, top, right, bottom.
    """
    prompts = self.config.eval.prompts
    if not prompts:
      return
    # Anew each time: between evaluations the device has no room for an autoencoder.
    canvas = open_canvas(self.config, self.workdir)
    made = samples.continue_prompts(
      self.config,
      params,
      corpus.tokenizer,
      prompts,
      canvas=canvas,
      key=jax.random.key(SEED),
    )
    if jax.process_index() != 0:
      return
    new = [image for one in made for image in one.made_images]
    if said := numbers.warning(new, numbers.kept(self.workdir)):
      logging.warning("step %d: %s", step, said)
    shown = samples.show(made, corpus.tokenizer, canvas)
    path = self.workdir / "samples" / f"step_{step:08d}.png"
    boxes = iter(_write_sheet([x for parts in shown for x in parts], path))
    asked = []
    for prompt, one, parts in zip(prompts, made, shown, strict=True):
      own = [next(boxes) for part in parts if not isinstance(part, str)]
      marks = samples.marks_of(one, self.config.model.every_kind)
      text = samples.made_text(parts, one.made, marks)
      asked.append({"prompt": prompt, "text": text, "boxes": own})
    path.parent.mkdir(exist_ok=True)
    workdir_lib.write_json(path.parent, f"{path.stem}.json", {"prompts": asked})


def _write_sheet(parts: list[str | np.ndarray], path: Path) -> list[list[int]]:
  """Writes the images among texts and images; returns where they stand, in pixels."""
  images = [part for part in parts if not isinstance(part, str)]
  if not images:
    return []
  columns = min(len(images), COLUMNS)
  times = png.write(png.sheet(images, columns=columns), path)
  boxes = png.boxes(images, columns=columns)
  return [[times * side for side in box] for box in boxes]


@contextlib.contextmanager
def _naming_prompts(remedy: str = ""):
  """Says in a ValueError whose prompts they are, and what else can be done."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"eval.prompts: {error}{remedy}") from error
