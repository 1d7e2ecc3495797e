"""Promises of tfusion/evaluate/answers.py; a recorder stands where the model would."""

import jax
import numpy as np
import pytest
import tiny

from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text

BATCH = 4


@pytest.fixture
def trained(tmp_path):
  """A run without a model."""
  tokenizer = Tokenizer.train(
    ["a word"], vocab_size=300, path=tmp_path / "tokenizer.model"
  )
  config = tiny.config(
    model__vocab_size=300, eval__batch=BATCH, sample__temperature=1.0
  )
  return Trained(config, 1, None, tokenizer, None)


@pytest.fixture
def calls(monkeypatch):
  """The config, the bytes of the key and the prompts of each call of `generate`."""
  found = []

  def generate(config, params, prompts, *, special, key):
    found.append((config, jax.random.key_data(key).tobytes(), prompts))
    end = Text(np.asarray([len(found)]))
    return [Generated((*p, end), (False,) * len(p) + (True,), True) for p in prompts]

  monkeypatch.setattr(answers, "generate", generate)
  return found


def test_batches_have_one_size_and_each_its_own_noise(trained, calls):
  prompts = [(Text(np.asarray([i])),) for i in range(10)]
  made = answers.answer(trained, prompts, "texts")
  assert [len(asked) for *_, asked in calls] == [BATCH] * 3
  assert len({key for _, key, _ in calls}) == 3
  assert [one.spans[0] for one in made] == [prompt[0] for prompt in prompts]


def test_captions_are_greedy_at_any_temperature_of_sampling(trained, calls):
  images = np.random.default_rng(0).normal(size=(2, *trained.config.model.image_shape))
  word = trained.tokenizer.encode("a word")
  texts = answers.caption(trained, images)
  ((config, _, prompts),) = calls
  assert (config.sample.temperature, trained.config.sample.temperature) == (0.0, 1.0)
  for (given,), image in zip(prompts, images, strict=True):
    assert isinstance(given, Image)
    np.testing.assert_array_equal(given.latent, image)
  assert texts == [trained.tokenizer.decode([1])] * 2 and len(word)
