"""Promises of tfusion/evaluate/digits.py; oracles stand where the model would."""

import dataclasses

import numpy as np
import pytest
import tiny
from PIL import Image as Pillow

from tfusion.data.digits import (
  CAPTIONS,
  DIGIT_WORDS,
  Digits,
  caption_label,
  load_digits,
)
from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers, digits
from tfusion.evaluate.digits import fit_classifier, nearness
from tfusion.evaluate.suite import FinalEvaluation
from tfusion.generate import png
from tfusion.generate.prompt import Blank
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text

EACH = 9  # drawings of a digit: one more than there are captions
BATCH = 80  # divides neither 297 nor 90


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run without a model: nothing but an oracle can answer for it."""
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  texts = [c.format(word) for c in CAPTIONS for word in DIGIT_WORDS]
  tokenizer = Tokenizer.train(texts, vocab_size=400, path=path)
  config = tiny.config(
    eval__batch=BATCH, eval__samples_per_class=EACH, sample__temperature=1.0
  )
  return Trained(config, 1, None, tokenizer, None)


def test_captions_that_leave_no_room_for_an_image_are_refused_before_training(trained):
  corpus = Corpus((), (Digits("digits", *load_digits("test")),), trained.tokenizer)
  long = max(len(trained.tokenizer.encode(c.format("three"))) for c in CAPTIONS)
  patches = trained.config.model.patches_per_image
  room = 1 + long + 1 + patches + 1 + 1  # BOS, caption, BOI, image, EOI, EOS
  for limit in (room, room - 4):
    sample = dataclasses.replace(trained.config.sample, max_elements=limit)
    config = dataclasses.replace(trained.config, sample=sample)
    evaluation = FinalEvaluation(config, None)
    if limit == room:
      evaluation.check(corpus)
      continue
    with pytest.raises(ValueError, match=f"sample.max_elements={limit}"):
      evaluation.check(corpus)


class Oracle:
  """Stands for `generate`: names the digit of a test scan, and draws test scans of the
  asked digit, which the classifier reads right. `name` and `show` may make it err."""

  def __init__(self, trained, *, name=DIGIT_WORDS, show=range(10), times=1.0):
    self.tokenizer, self.name, self.show, self.times = (
      trained.tokenizer,
      name,
      show,
      times,
    )
    scans, labels = load_digits("test")
    read = fit_classifier().predict(scans.reshape(len(scans), -1))
    self.labels = {x.tobytes(): y for x, y in zip(scans, labels)}
    self.of_digit = [scans[(labels == y) & (read == y)] for y in range(10)]
    self.asked, self.drawn = [], []  # captions, images

  def __call__(self, config, params, prompts, *, special, key):
    assert params is None and special == self.tokenizer.special
    return [self.answer(prompt) for prompt in prompts]

  def answer(self, prompt):
    if isinstance(prompt[0], Image):
      (given,) = prompt
      text = f"the digit {self.name[self.labels[given.latent.tobytes()]]}"
      made = Text(self.tokenizer.encode(text))
    else:
      given, place = prompt
      assert place == Blank()
      self.asked.append(self.tokenizer.decode(given.ids))
      scans = self.of_digit[self.show[caption_label(self.asked[-1])]]
      self.drawn.append(self.times * scans[len(self.drawn) % len(scans)])
      made = Image(self.drawn[-1])
    return Generated((given, made), (False, True), finished=True)


def test_a_model_that_knows_all_gets_full_marks(trained, monkeypatch, tmp_path):
  oracle = Oracle(trained)
  monkeypatch.setattr(answers, "generate", oracle)
  found = digits.evaluate_digits(trained, Corpus((), (), trained.tokenizer), tmp_path)
  assert found["caption_accuracy"] == found["image_accuracy"] == 1.0
  assert (found["captions_right"], found["captions"]) == (297, 297)
  assert (found["images_right"], found["images"]) == (10 * EACH, 10 * EACH)
  # A row for each digit.
  images = [png.to_pixels(x) for x in oracle.drawn[: 10 * EACH]]
  sheet = png.to_rgb(png.sheet(images, columns=EACH))
  with Pillow.open(tmp_path / "digits.png") as image:
    np.testing.assert_array_equal(np.asarray(image), np.asarray(sheet))


def test_what_is_named_or_drawn_wrong_does_not_count(trained, monkeypatch, tmp_path):
  name, show = list(DIGIT_WORDS), list(range(10))
  name[3], name[4], name[5] = "eight", "four or five", "?"
  show[7], show[8] = 1, 3
  monkeypatch.setattr(answers, "generate", Oracle(trained, name=name, show=show))
  found = digits.evaluate_digits(trained, Corpus((), (), trained.tokenizer), tmp_path)
  right = sum(label not in (3, 4, 5) for label in load_digits("test")[1])
  assert (found["captions_right"], found["captions"]) == (right, 297)
  assert found["caption_accuracy"] == right / 297
  assert (found["images_right"], found["images"]) == (8 * EACH, 10 * EACH)
  assert found["image_accuracy"] == 0.8


def test_every_digit_is_asked_for_equally_often_and_in_all_words(trained, monkeypatch):
  oracle = Oracle(trained)
  monkeypatch.setattr(answers, "generate", oracle)
  _, labels = digits.sample_digits(trained)
  assert [caption_label(x) for x in oracle.asked[: 10 * EACH]] == labels.tolist()
  np.testing.assert_array_equal(np.bincount(labels), [EACH] * 10)
  assert set(oracle.asked) == {c.format(w) for c in CAPTIONS for w in DIGIT_WORDS}


def test_drawn_images_are_clipped_to_the_range_of_scans(trained, monkeypatch):
  oracle = Oracle(trained, times=1.5)
  monkeypatch.setattr(answers, "generate", oracle)
  images, _ = digits.sample_digits(trained)
  np.testing.assert_array_equal(images, np.clip(oracle.drawn[: 10 * EACH], -1, 1))


def test_the_classifier_reads_unseen_scans_and_none_of_them_is_a_training_scan():
  (train, _), (unseen, labels) = load_digits("train"), load_digits("test")
  seen = {scan.tobytes() for scan in train}
  assert not any(scan.tobytes() in seen for scan in unseen)
  right = fit_classifier().predict(unseen.reshape(len(unseen), -1)) == labels
  assert (np.sum(right), len(right)) == (295, 297)


def test_the_classifier_is_fitted_to_the_training_scans_alone():
  classifier, (train, _) = fit_classifier(), load_digits("train")
  assert classifier.shape_fit_ == (1500, 64)
  seen = {scan.astype(np.float64).tobytes() for scan in train}
  assert all(vector.tobytes() in seen for vector in classifier.support_vectors_)


def test_copied_training_scans_are_counted_as_copies():
  train = load_digits("train")[0][:20]
  found = nearness(train)
  assert found["copies"] == 20 and found["nearest_distance_drawn"] < 1e-3


def test_unseen_scans_are_no_copies_and_as_near_as_unseen_scans_are():
  found = nearness(load_digits("test")[0])
  assert found["copies"] == 0
  assert found["nearest_distance_drawn"] == found["nearest_distance_unseen"] > 0.1


def test_nearest_distance_is_the_root_mean_square_over_pixels():
  train = load_digits("train")[0].reshape(1500, -1)
  image = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 1)).astype(np.float32)
  slow = min(np.sqrt(np.mean((image.ravel() - scan) ** 2)) for scan in train)
  np.testing.assert_allclose(
    nearness(image)["nearest_distance_drawn"], slow, rtol=1e-4
  )  # float32, expanded square
