"""Is the right digit read and made? Metrics of runs on the source `digits`.

Owns: the classifier of digits, the share of right captions and images, the distance to
training scans. Not: sampling (answers.py), the scans (data/sources.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from tfusion.config import Config
from tfusion.data.digits import CAPTIONS, DIGIT_WORDS, caption_label, load_digits
from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers
from tfusion.generate import png
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Blank, Prompt
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text

if TYPE_CHECKING:
  from sklearn.svm import SVC


def fit_classifier() -> "SVC":
  """A classifier fitted to the 1500 real training scans alone; it sees no model."""
  from sklearn.svm import SVC  # takes seconds, which runs on other data can do without

  scans, labels = load_digits("train")
  return SVC(C=10.0, gamma="scale").fit(scans.reshape(len(scans), -1), labels)


def check_digits(config: Config, corpus: Corpus) -> None:
  """Raises ValueError if what is asked for here does not fit sample.max_elements."""
  check_prompts(config, _prompts(config, corpus.tokenizer)[0])


def evaluate_digits(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """Has the model caption all unseen scans and make images of every digit.

  Captions are right if they name the scan's digit, images if the classifier reads the
  digit that was asked for. Writes out/digits.png, a row for each digit.
  """
  classifier = fit_classifier()
  unseen, unseen_labels = load_digits("test")
  captions = answers.caption(trained, unseen)
  images, labels = sample_digits(trained)
  named = np.asarray(
    [caption_label(text) == y for text, y in zip(captions, unseen_labels)]
  )
  scans_right = classifier.predict(unseen.reshape(len(unseen), -1)) == unseen_labels
  images_right = classifier.predict(images.reshape(len(images), -1)) == labels
  if jax.process_index() == 0:
    each = trained.config.eval.samples_per_class
    sheet = png.sheet(list(png.to_pixels(images)), columns=each)
    png.write(sheet, out / "digits.png", enlarge=False)
  return {
    "caption_accuracy": float(np.mean(named)),
    "captions_right": int(np.sum(named)),
    "captions": len(named),
    "image_accuracy": float(np.mean(images_right)),
    "images_right": int(np.sum(images_right)),
    "images": len(images_right),
    "classifier_accuracy": float(np.mean(scans_right)),
    "classifier_right": int(np.sum(scans_right)),
    "classifier_scans": len(scans_right),
  } | nearness(images)


def sample_digits(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
  """Images of every digit, eval.samples_per_class of each, from training's captions.

  Returns:
    f32[n, h, w, c] in [-1, 1], and the digits asked for, i64[n].
  """
  prompts, labels = _prompts(trained.config, trained.tokenizer)
  made = answers.answer(trained, prompts, "images")
  images = [next(s.latent for s in one.spans if isinstance(s, Image)) for one in made]
  return np.clip(np.stack(images), -1, 1), labels


def nearness(images_nhwc: np.ndarray) -> dict[str, float]:
  """How near images lie to training scans, against how near real unseen scans do.

  Distances are root mean squares over pixels in [-1, 1]. A model that memorises makes
  images far nearer than unseen scans are: `copies` counts those nearer than any of
  them.
  """
  train = load_digits("train")[0].reshape(-1, images_nhwc[0].size)

  def nearest(x_nhwc):
    x = x_nhwc.reshape(len(x_nhwc), -1)
    square = np.sum(x**2, 1)[:, None] - 2 * x @ train.T + np.sum(train**2, 1)[None]
    return np.sqrt(np.maximum(square.min(axis=1), 0) / x.shape[1])

  made, unseen = nearest(images_nhwc), nearest(load_digits("test")[0])
  return {
    "nearest_distance_drawn": float(np.median(made)),
    "nearest_distance_unseen": float(np.median(unseen)),
    "copies": int(np.sum(made < unseen.min())),
  }


def _prompts(config: Config, tokenizer: Tokenizer) -> tuple[list[Prompt], np.ndarray]:
  labels = np.repeat(np.arange(len(DIGIT_WORDS)), config.eval.samples_per_class)
  captions = (
    CAPTIONS[i % len(CAPTIONS)].format(DIGIT_WORDS[y]) for i, y in enumerate(labels)
  )
  return [(Text(tokenizer.encode(c)), Blank()) for c in captions], labels
