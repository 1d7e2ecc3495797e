"""Is the right digit read and drawn? Metrics of runs on the `digits` source.

Owns: the judge, caption accuracy, image accuracy, distance to training scans. Not:
generation, the scans (data/sources.py).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from sklearn.svm import SVC

from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.pipeline import Corpus
from tfusion.data.sources import CAPTIONS, DIGIT_WORDS, caption_label, load_digits
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate.pictures import grid, write_png
from tfusion.generate.interleaved import Generated, check_prompts, generate
from tfusion.generate.prompt import Draw, Prompt
from tfusion.progress import Progress
from tfusion.sequence import Image, Text
from tfusion.training.trained import Trained


def fit_judge() -> SVC:
  """A classifier fitted to the 1500 real training scans alone; it sees no model."""
  scans, labels = load_digits("train")
  return SVC(C=10.0, gamma="scale").fit(scans.reshape(len(scans), -1), labels)


def check_digits(config: Config, corpus: Corpus) -> None:
  """Raises ValueError if what is asked for here does not fit sample.max_elements."""
  check_prompts(config, _drawing_prompts(config, corpus.tokenizer)[0])


def evaluate_digits(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """Captions of all unseen scans and drawings of every digit, judged.

  Writes out/digits.png, a row for each digit.
  """
  judge = fit_judge()
  unseen, unseen_labels = load_digits("test")
  captions = caption_scans(trained, unseen)
  images, labels = draw_digits(trained)
  named = np.asarray(
    [caption_label(text) == y for text, y in zip(captions, unseen_labels)]
  )
  seen_right = judge.predict(unseen.reshape(len(unseen), -1)) == unseen_labels
  drawn_right = judge.predict(images.reshape(len(images), -1)) == labels
  if jax.process_index() == 0:
    write_png(
      grid(list(images), columns=trained.config.eval.samples_per_class),
      out / "digits.png",
      enlarge=False,
    )
  return {
    "caption_accuracy": float(np.mean(named)),
    "captions_right": int(np.sum(named)),
    "captions": len(named),
    "image_accuracy": float(np.mean(drawn_right)),
    "images_right": int(np.sum(drawn_right)),
    "images": len(drawn_right),
    "judge_accuracy": float(np.mean(seen_right)),
    "judge_right": int(np.sum(seen_right)),
    "judge_scans": len(seen_right),
  } | nearness(images)


def caption_scans(trained: Trained, scans_nhwc: np.ndarray) -> list[str]:
  """Greedy captions of real images, given clean, whatever sample.temperature says."""
  greedy = dataclasses.replace(trained.config.sample, temperature=0.0)
  config = dataclasses.replace(trained.config, sample=greedy)
  prompts = [(Image(scan),) for scan in scans_nhwc]
  made = generate_all(trained._replace(config=config), prompts, "captions")
  return [
    "".join(trained.tokenizer.decode(s.ids) for s in g.spans if isinstance(s, Text))
    for g in made
  ]


def draw_digits(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
  """Draws eval.samples_per_class images of every digit from the training templates.

  Returns:
    f32[n, h, w, c] in [-1, 1], and the digits asked for, i64[n].
  """
  prompts, labels = _drawing_prompts(trained.config, trained.tokenizer)
  made = generate_all(trained, prompts, "images")
  images = [next(s.latent for s in g.spans if isinstance(s, Image)) for g in made]
  return np.clip(np.stack(images), -1, 1), labels


def nearness(images_nhwc: np.ndarray) -> dict[str, float]:
  """How near images lie to training scans, against how near real unseen scans do.

  Distances are root mean squares over pixels in [-1, 1]. A model that memorises draws
  images far nearer than unseen scans are: `copies` counts those nearer than any of
  them.
  """
  train = load_digits("train")[0].reshape(-1, images_nhwc[0].size)

  def nearest(x_nhwc):
    x = x_nhwc.reshape(len(x_nhwc), -1)
    square = np.sum(x**2, 1)[:, None] - 2 * x @ train.T + np.sum(train**2, 1)[None]
    return np.sqrt(np.maximum(square.min(axis=1), 0) / x.shape[1])

  drawn, unseen = nearest(images_nhwc), nearest(load_digits("test")[0])
  return {
    "nearest_distance_drawn": float(np.median(drawn)),
    "nearest_distance_unseen": float(np.median(unseen)),
    "copies": int(np.sum(drawn < unseen.min())),
  }


def _drawing_prompts(
  config: Config, tokenizer: Tokenizer
) -> tuple[list[Prompt], np.ndarray]:
  labels = np.repeat(np.arange(len(DIGIT_WORDS)), config.eval.samples_per_class)
  captions = (
    CAPTIONS[i % len(CAPTIONS)].format(DIGIT_WORDS[y]) for i, y in enumerate(labels)
  )
  return [(Text(tokenizer.encode(c)), Draw()) for c in captions], labels


def generate_all(
  trained: Trained, prompts: Sequence[Prompt], what: str
) -> list[Generated]:
  """Generates eval.batch rows at a time, the last batch filled up to the same shape.

  Args:
    trained: its config.seed is that of the noise.
    prompts: of any number.
    what: is made, as the progress line calls it.
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
  if said := numbers.warning([x for g in made for x in g.drawings], trained.numbers):
    logging.warning("%s: %s", what, said)
  return made
