"""The digits: a split that never changes, captions that name their scans."""

import numpy as np
import pytest

from tfusion.data import digits
from tfusion.data.digits import CAPTIONS, DIGIT_WORDS, caption_label


def open_split(split):
  return digits.open_digits(split=split, image_shape=(8, 8, 1))


def test_every_scan_is_in_exactly_one_split():
  from sklearn import datasets

  train, train_labels = digits.load_digits("train")
  test, test_labels = digits.load_digits("test")
  assert train.shape == (1500, 8, 8, 1) and test.shape == (297, 8, 8, 1)
  assert train.dtype == np.float32
  assert train.min() == -1 and train.max() == 1
  both = np.concatenate([train, test]).reshape(-1, 64)
  labels = np.concatenate([train_labels, test_labels])
  raw, raw_labels = datasets.load_digits(return_X_y=True)
  made = sorted(map(tuple, np.column_stack([(both + 1) * 8, labels])))
  assert made == sorted(map(tuple, np.column_stack([raw, raw_labels])))


def test_the_digits_split_never_changes():
  # Pinned: with another split, figures of different releases would not compare.
  _, labels = digits.load_digits("test")
  assert labels[:12].tolist() == [5, 4, 1, 8, 6, 6, 5, 0, 4, 6, 2, 8]
  assert np.bincount(labels).min() >= 20  # every digit is held out


def test_a_digit_document_is_a_caption_that_names_its_scan():
  source = open_split("test")
  scans, labels = digits.load_digits("test")
  assert len(source) == 297 * len(CAPTIONS) and source.has_images
  for index in range(0, len(source), 7):
    caption, image = source[index]
    scan, template = divmod(index, len(CAPTIONS))
    np.testing.assert_array_equal(image, scans[scan])
    assert caption == CAPTIONS[template].format(DIGIT_WORDS[labels[scan]])
    assert caption_label(caption) == labels[scan]
  assert sorted(source.texts()) == sorted(source[i][0] for i in range(len(source)))


def test_caption_label_wants_exactly_one_digit():
  assert caption_label("A handwritten SEVEN.") == 7
  assert caption_label("seven, yes seven") == 7
  assert caption_label("seven or nine") is None
  assert caption_label("someone wrote often") is None
  assert caption_label("") is None


def test_digits_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"model.image_shape=\(16, 16, 1\)"):
    digits.open_digits(split="train", image_shape=(16, 16, 1))
