"""Promises of tfusion/evaluate/suite.py."""

import tiny

from tfusion.evaluate.suite import sampler


def test_how_images_are_made_is_said_of_patches_of_codes_and_not_of_text_alone():
  config = tiny.config(sample__steps=7)
  assert sampler(config, codes=False) == "ddpm 7 steps, guidance 3"
  text = tiny.config(model__patches="none")
  said = "codes, guidance 3 and 1.2, temperature 0.7, top-p 0.9"
  assert sampler(text, codes=True) == sampler(config, codes=True) == said
  assert sampler(text, codes=False) == ""
