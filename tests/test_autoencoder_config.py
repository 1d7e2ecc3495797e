"""Promises of tfusion/autoencoder_config.py."""

import pytest
import tiny_autoencoder

from tfusion import autoencoder_config
from tfusion import config as config_lib
from tfusion.autoencoder_config import AutoencoderConfig


def refusal(**values) -> str:
  with pytest.raises(ValueError) as error:
    tiny_autoencoder.config(**values)
  return str(error.value)


def test_the_defaults_are_valid_and_the_papers_where_it_states_them():
  config = autoencoder_config.from_dict(autoencoder_config.defaults())
  assert config == AutoencoderConfig()
  flat = config_lib.flatten(config)
  stated = {  # arXiv 2408.11039, section 4.1
    "loss.perceptual_weight": 1.0,
    "loss.adversary_weight": 0.5,
    "loss.adversary_start": 50_000,
    "loss.kl_weight": 1e-6,
    "loss.beta": 0.25,
    "data.image_shape": (256, 256, 3),
    "model.latent_channels": 8,
    "train.steps": 1_000_000,
  }
  for key, value in stated.items():
    assert flat[key] == value, key


def test_every_number_has_a_range_or_a_check_of_its_own():
  flat = config_lib.flatten(AutoencoderConfig())
  ranged = {
    key for _, keys in autoencoder_config.RANGES.values() for key in keys.split()
  }
  numbers = {key for key, value in flat.items() if type(value) in (int, float)}
  assert ranged <= flat.keys()
  assert {key for key in numbers - ranged if not key.startswith("model.")} == set()


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("train__steps", 0, "train.steps=0: must be above 0"),
    ("loss__kl_weight", -1.0, "loss.kl_weight=-1.0: must be at least 0"),
    ("optim__ema_decay", 1.0, r"optim.ema_decay=1.0: must be in [0, 1)"),
    ("optim__end_lr", 1.0, "optim.end_lr=1.0: above optim.peak_lr=0.01"),
    ("optim__decay", "line", "optim.decay='line': choose one of"),
    ("data__sources", (), "data.sources=(): name at least one source"),
    ("data__image_shape", (8, 8), "data.image_shape=(8, 8): give h, w, c"),
    ("data__image_shape", (8, 8, 4), "with c one of (1, 3)"),
    ("data__threads", "2", "data.threads='2': expected int"),
  ],
)
def test_a_value_that_cannot_be_is_named(key, value, words):
  assert words in refusal(**{key: value})


def test_images_must_divide_into_cells_and_be_square_for_codes():
  deep = dict(model__widths=(4, 4, 4))
  words = refusal(**deep, data__image_shape=(8, 6, 1))
  assert "sides must divide by the 4 pixels of a cell" in words
  words = refusal(model__codes=4, data__image_shape=(8, 12, 1))
  assert "codes are of square images" in words


def test_all_problems_come_in_one_message():
  words = refusal(train__steps=0, data__sources=())
  assert "train.steps" in words and "data.sources" in words
