"""What is no image, drawn as one."""

import numpy as np
import pytest

from tfusion.generate import figures


def rows_of(pixels, colour):
  """The middle of what is drawn in a colour, column by column."""
  drawn = np.all(pixels == colour, axis=-1)
  assert drawn.any(0).all()
  return [np.flatnonzero(column).mean() for column in drawn.T]


def test_a_line_goes_from_the_least_number_at_the_bottom_to_the_largest_on_top():
  wave = np.asarray([-1.0, 0.0, 1.0, 1.0])[:, None]
  pixels = figures.draw(wave)
  assert pixels.shape == (64, 16, 3) and pixels.dtype == np.uint8
  rows = rows_of(pixels, figures.COLOURS[0])
  assert rows[0] > 55 and rows[-1] < 4
  assert all(a >= b - 1e-9 for a, b in zip(rows, rows[1:]))
  assert np.all(pixels[32, :3] == figures.GREY)  # 0, where the line is not


def test_every_channel_has_a_line_of_its_own_and_a_vector_is_one_line():
  two = figures.draw(np.stack([np.zeros(8), np.linspace(-3, 3, 8)], axis=1))
  assert all(np.any(np.all(two == colour, axis=-1)) for colour in figures.COLOURS[:2])
  vector = np.linspace(-1, 1, 5)
  np.testing.assert_array_equal(figures.draw(vector), figures.draw(vector[:, None]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_frames_stand_side_by_side(channels):
  frames = np.full((3, 4, 5, channels), -1.0)
  frames[1] = 1.0
  pixels = figures.draw(frames)
  assert pixels.shape == (4, 17, 3)
  assert np.all(pixels[:, :5] == 0) and np.all(pixels[:, 5:12] == 255)
  assert np.all(pixels[:, 12:] == 0)


def test_numbers_that_are_none_are_drawn_as_zero():
  wave = np.asarray([[np.nan], [np.inf], [0.5]])
  assert figures.draw(wave).shape == (64, 12, 3)
