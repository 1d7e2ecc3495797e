"""Continues one prompt and says what happens while it does.

Owns: from the steps of a walk to events that can be shown. Not: the walk
(interleaved.py), the types (events.py), what comes of it (samples.py).
"""

from collections.abc import Iterator

import jax

from tfusion.data.tokenizer import Tokenizer
from tfusion.generate import png, samples
from tfusion.generate.canvas import Canvas
from tfusion.generate.events import Denoised, Drew, Ended, Event, Wrote
from tfusion.generate.interleaved import Look, Made, Piece, Progress, Sketch, Walk
from tfusion.generate.samples import Asked
from tfusion.generate.trained import Trained
from tfusion.kinds import FIRST
from tfusion.sequence import Image

TOKENS = 4  # of text, between two events
CUT = "\ufffd"  # a character of which not all bytes are there yet


def stream(
  trained: Trained, prompt: Asked, *, canvas: Canvas, seed: int, every: int
) -> Iterator[Event]:
  """Continues a prompt as `sample` does. All hosts must take every event.

  Args:
    trained: the model.
    prompt: text with marks, or parts.
    canvas: of the run.
    seed: as of `sample`.
    every: evaluations of the model between two looks at an image; 0: none.

  Raises:
    ValueError: `every` or `seed` is out of range, or what `read_prompts` raises; before
      the first event is asked for.
  """
  if every < 0:
    raise ValueError(
      f"every={every}: must be at least 0, which shows no image half made"
    )
  keys = samples.keys_of(seed, rows=1)
  config, tokenizer = trained.config, trained.tokenizer
  read = samples.read_prompts(config, tokenizer, [prompt], canvas=canvas)
  look = Look(tokens=TOKENS, steps=every)

  def events() -> Iterator[Event]:
    with jax.set_mesh(trained.mesh):
      walk = Walk(
        config,
        trained.params,
        read,
        special=tokenizer.special,
        key=keys,
        book=canvas.book(tokenizer.vocab_size),
        look=look,
      )
    teller, steps = _Teller(tokenizer, canvas, trained), walk.steps()
    while True:
      with jax.set_mesh(trained.mesh):  # not while another works, who may have his own
        step = next(steps, None)
        told = list(teller.tell(step))
      yield from told
      if step is None:
        break
    (sample,) = samples.as_samples(
      trained, [prompt], walk.generated, canvas=canvas, count=1, seed=seed
    )
    yield Ended(sample)

  return events()


class _Teller:
  """Says of the steps of a walk what can be shown."""

  def __init__(self, tokenizer: Tokenizer, canvas: Canvas, trained: Trained):
    self.tokenizer, self.canvas = tokenizer, canvas
    self.kinds = trained.config.model.every_kind
    self.ids: list[int] = []  # of the text that is being written
    self.told = ""  # of it
    self.images = 0

  def tell(self, step: Progress | None) -> Iterator[Event]:
    """What is to be said of a step; None: it was the last."""
    if isinstance(step, Piece):
      self.ids += step.ids.tolist()
      yield from self._text(whole=False)
      return
    if self.ids:
      yield from self._text(whole=True)
      self.ids, self.told = [], ""
    if isinstance(step, Sketch):
      image = self._look_at(step.image.latent)
      yield Denoised(image, self.images, step.step, step.steps)
    if isinstance(step, Made):
      yield self._drew(step)
      self.images += 1

  def _text(self, *, whole: bool) -> Iterator[Wrote]:
    text = self.tokenizer.decode(self.ids)
    text = text if whole else text.rstrip(CUT)
    if len(text) > len(self.told):
      yield Wrote(text[len(self.told) :])
      self.told = text

  def _drew(self, step: Made) -> Drew:
    if not isinstance(step.image, Image):
      image = self._look_at(step.image.ids - self.tokenizer.vocab_size)
      return Drew(image, self.images)
    latent = step.image.latent
    first = self.kinds[step.image.kind].owner == FIRST
    return Drew(self._look_at(latent), self.images, None if first else latent)

  def _look_at(self, numbers):
    return png.to_rgb(self.canvas.show([numbers])[0])
