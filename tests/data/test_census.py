"""What sources hold is counted, for training and held-out documents apart."""

import numpy as np
import pytest
from tiny_sources import Given, latent, stories

from tfusion import sequence
from tfusion.data import census
from tfusion.data.shards.records import Damaged


def test_documents_images_and_texts_are_counted_for_each_split():
  def page(number):
    return "a", latent(number, (4, 4, 1)), "b"

  train, test = Given("pages", 200, page), Given("pages", 7, page)
  assert census.of([train], [test]) == {
    "pages": {
      "train": dict(documents=200, images=200, texts=400, exact=True),
      "test": dict(documents=7, images=7, texts=14, exact=True),
    }
  }


def test_what_is_tokenised_and_encoded_already_counts_as_well():
  ids = np.arange(3)
  document = (
    sequence.Text(ids),
    sequence.Codes(ids),
    sequence.Image(latent(0, (4, 4, 1))),
  )
  source = Given("made", 3, lambda _: document)
  assert census.of([source], [source])["made"]["test"] == dict(
    documents=3, images=6, texts=3, exact=True
  )


def test_where_documents_differ_the_counts_are_said_to_be_estimates():
  source = Given("stories", 1000, stories)
  held = census.of([source], [source])["stories"]["train"]
  assert held["documents"] == 1000 and not held["exact"]
  true = sum(sum(isinstance(s, str) for s in source[i]) for i in range(1000))
  assert held["texts"] == pytest.approx(true, rel=0.25)  # of 64 looked at


def test_damaged_and_missing_documents_do_not_stop_the_count():
  def damaged(number):
    if number % 2:
      raise Damaged(f"record {number}")
    return ("a",)

  some, none = Given("some", 50, damaged), Given("none", 0, damaged)
  assert census.of([some], [none])["some"] == {
    "train": dict(documents=50, images=0, texts=50, exact=True),
    "test": dict(documents=0, images=0, texts=0, exact=True),
  }
