"""Discs and waves: every drawing is read back as what its caption says."""

import numpy as np
import pytest

from tfusion import kinds
from tfusion.data import mixed

OTHERS = kinds.parse(
  ("wide:8x24x3,like=image", "wave:64x1,patch=4"),
  kinds.Kind("image", (16, 16, 3), (4, 4)),
)[1:]


def opened(split, others=OTHERS):
  return mixed.open_mixed(split=split, image_shape=(16, 16, 3), others=others)


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_drawn_is_what_its_caption_says_and_no_other(split):
  source = opened(split)
  assert len(source) == 17 * mixed.COPIES[split]
  every = [caption for caption, _ in mixed.captions()]
  for i in range(len(source)):
    caption, drawn = source[i]
    assert drawn.dtype == np.float32 and np.abs(drawn).max() <= 1
    of_shape = {c for c, shape in mixed.captions() if shape == drawn.shape}
    right = {other for other in of_shape if mixed.is_right(other, drawn)}
    assert right == {caption} and caption in every


def test_drawings_differ_between_copies_and_splits_and_come_again_alike():
  train, test = opened("train"), opened("test")
  drawn = [source[i][1].tobytes() for source in (train, test) for i in (0, 17)]
  assert len(set(drawn)) == 4
  np.testing.assert_array_equal(train[5][1], opened("train")[5][1])


def test_a_run_without_a_kind_of_each_shape_is_refused():
  with pytest.raises(ValueError, match=r"has images of \[\(64, 1\)\], which no kind"):
    opened("train", OTHERS[:1])
