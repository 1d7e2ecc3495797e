"""Is the right emoji drawn and named? Metrics of runs on the source `emoji`.

Owns: what is asked, the classifier and its own accuracy. Not: the emoji
(data/emoji.py), sampling (answers.py).

The classifier is exact: a drawing is the emoji whose pixels are nearest to it, of all
that the source has, held-out ones too. What it takes is printed: how many originals it
knows again when they are blurred.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import ndimage

from tfusion.config import Config
from tfusion.data.emoji import CAPTIONS, Emoji, EmojiSource, to_float
from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers
from tfusion.generate import png
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Blank, Prompt
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text

BLURS = (0.5, 1.0)  # pixels: sigmas of a Gaussian
COLUMNS = 20  # of the sheet
SHOWN = 100  # of each part on it


class Known(NamedTuple):
  """All emoji of a source, of both splits."""

  emoji: tuple[Emoji, ...]
  images: np.ndarray  # f32[n, px, px, 3]

  def nearest(self, images: np.ndarray) -> np.ndarray:
    """Of each image f32[m, px, px, 3] the number of the emoji nearest to it, i64[m]."""
    ours = self.images.reshape(len(self.images), -1)
    theirs = images.reshape(len(images), -1)
    squares = np.sum(ours**2, 1)[None] - 2 * theirs @ ours.T
    return np.argmin(squares, axis=1)


def check_emoji(config: Config, corpus: Corpus) -> None:
  """Raises ValueError if what is asked for here does not fit sample.max_elements."""
  names = [one.name for one in known(corpus).emoji]
  check_prompts(config, [_prompt(name, corpus.tokenizer) for name in names])


def evaluate_emoji(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """Has the model draw each emoji from its name, and name each from its image.

  eval.samples_per_class emoji of each part at most, spread over all of it. A drawing is
  right if the nearest of all emoji is the one that was asked for, a name if it is that
  of the emoji, to the letter. Writes out/emoji.png: originals, and drawings below.
  """
  every = known(corpus)
  results: dict[str, float] = {"emoji": len(every.emoji)}
  for blur in BLURS:
    results[f"emoji_classifier_right_blurred_{blur:g}"] = blurred_right(every, blur)
  rows: list[np.ndarray] = []
  for part in ("seen", "held_out"):
    own = _some(every, part == "held_out", trained.config.eval.samples_per_class)
    if not len(own):
      continue
    names = [every.emoji[i].name for i in own]
    prompts = [_prompt(name, trained.tokenizer) for name in names]
    made = answers.answer(trained, prompts, f"emoji {part}")
    images = [next(s.latent for s in one.spans if isinstance(s, Image)) for one in made]
    drawn = np.clip(np.stack(images), -1, 1)
    said = answers.caption(trained, every.images[own])
    results |= {
      f"emoji_{part}": len(own),
      f"emoji_{part}_right": float(np.mean(every.nearest(drawn) == own)),
      f"emoji_{part}_named": float(
        np.mean([_is_name(text, name) for text, name in zip(said, names)])
      ),
    }
    for start in range(0, min(len(own), SHOWN), COLUMNS):
      for images in (every.images[own], drawn):
        line = images[start : min(start + COLUMNS, SHOWN)]
        rows += [*line, *([np.ones_like(line[0])] * (COLUMNS - len(line)))]
  if jax.process_index() == 0:
    sheet = png.sheet([png.to_pixels(x) for x in rows], columns=COLUMNS)
    png.write(sheet, out / "emoji.png", enlarge=False)
  return results


def known(corpus: Corpus) -> Known:
  """The emoji of a run's source, of both splits, in the order of the font."""
  sources = [
    source
    for split in (corpus.train, corpus.test)
    for source in split
    if isinstance(source, EmojiSource)
  ]
  emoji = [one for source in sources for one in source.emoji]
  images = np.concatenate([to_float(source.images) for source in sources])
  return Known(tuple(emoji), images)


def blurred_right(every: Known, sigma: float) -> float:
  """The share of the originals that the classifier knows again when they are blurred.

  Args:
    every: all emoji.
    sigma: of the blur, in pixels.
  """
  soft = ndimage.gaussian_filter(every.images, (0, sigma, sigma, 0), mode="nearest")
  return float(np.mean(every.nearest(soft) == np.arange(len(every.emoji))))


def _some(every: Known, held_out: bool, count: int) -> np.ndarray:
  """Numbers of so many emoji of a part at most, spread over it."""
  own = np.flatnonzero([one.held_out == held_out for one in every.emoji])
  if len(own) <= count:
    return own
  return own[np.linspace(0, len(own) - 1, count).round().astype(int)]


def _is_name(text: str, name: str) -> bool:
  return text.strip() in [caption.format(name) for caption in CAPTIONS]


def _prompt(name: str, tokenizer: Tokenizer) -> Prompt:
  return (Text(tokenizer.encode(CAPTIONS[0].format(name))), Blank())
