"""Numbers of training images, and drawings that have others."""

import numpy as np
import pytest
from tiny_sources import Given

from tfusion import sequence
from tfusion.data import numbers
from tfusion.data.numbers import Numbers
from tfusion.data.shards.records import Damaged

SHAPE = (2, 2, 1)


def ramp(index):
  if index == 3:
    raise Damaged("bits")
  return "words", np.full(SHAPE, index / 10, np.float32)


def album(index):
  latent = sequence.Image(np.full(SHAPE, -index, np.float32))
  return latent, sequence.Codes(np.arange(3)), latent


PROSE = Given("prose", 5, lambda index: ("words",), has_images=False)


def test_least_most_and_deviation_are_those_of_all_images_that_can_be_read():
  found = numbers.measure([Given("ramp", 11, ramp), PROSE, Given("album", 3, album)])
  values = [i / 10 for i in range(11) if i != 3] + [0, 0, -1, -1, -2, -2]
  assert (found.least, found.most, found.images) == (-2, 1, 16)
  assert found.deviation == pytest.approx(np.std(values))


def test_large_sources_are_read_here_and_there():
  asked = []

  def image(index):
    asked.append(index)
    return (np.full(SHAPE, index, np.float32),)

  found = numbers.measure([Given("large", 100_000, image)])
  assert found.images == len(asked) <= numbers.MEASURED
  assert min(asked) == 0 and max(asked) > 99_000


def test_sources_without_images_are_not_read():
  def unread(index):
    raise AssertionError(index)

  assert numbers.measure([Given("prose", 9, unread, has_images=False)]) is None


def test_a_workdir_keeps_what_was_measured_first(tmp_path):
  assert numbers.kept(tmp_path) is None
  numbers.keep([PROSE], tmp_path)
  assert numbers.kept(tmp_path) is None  # no images, no file
  numbers.keep([Given("ramp", 11, ramp)], tmp_path)
  first = numbers.kept(tmp_path)
  assert first.most == 1
  numbers.keep([Given("album", 3, album)], tmp_path)
  assert numbers.kept(tmp_path) == first
  for text in ("{", "[]", '{"least": 1}'):
    (tmp_path / numbers.FILE).write_text(text)
    with pytest.raises(ValueError, match="numbers.json: damaged .* delete it"):
      numbers.kept(tmp_path)
    with pytest.raises(ValueError, match="damaged .* delete it"):  # at the start
      numbers.keep([Given("ramp", 11, ramp)], tmp_path)


def test_sampled_images_that_leave_the_range_are_counted_and_the_farthest_is_named():
  known = Numbers(-1.0, 1.0, 0.5, 9)
  inside = np.full(SHAPE, 1.4, np.float32)  # a quarter of 2 beyond is 1.5
  assert numbers.warning([inside, -inside], known) == ""
  assert numbers.warning([inside + 0.2], known) and numbers.warning(
    [-inside - 0.2], known
  )
  far = inside.copy()
  far[0, 0] = -952
  text = numbers.warning([inside, far], known)
  assert text.startswith("1 of 2 sampled images have numbers that no training image")
  assert "12 % lie outside -1 .. 1, the farthest at -952" in text
  assert "sample.guidance" in text and "diffusion.clip" in text
  lost = inside.copy()
  lost[0, 0] = np.nan
  assert "1 of 1 sampled images" in numbers.warning([lost], known)
  assert numbers.warning([], known) == numbers.warning([far], None) == ""
