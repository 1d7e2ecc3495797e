"""Promises of tfusion/evaluate/reconstructions.py."""

import numpy as np
from PIL import Image as Pillow

from tfusion.evaluate.reconstructions import Reconstructions
from tfusion.generate import png


def test_each_reconstruction_stands_below_its_image(tmp_path):
  rng = np.random.default_rng(0)
  x, made = rng.uniform(-1.2, 1.2, (2, 20, 4, 4, 3))
  Reconstructions(tmp_path / "samples")(7, x, made)
  with Pillow.open(tmp_path / "samples" / "step_00000007.png") as sheet:
    read = np.asarray(sheet)
  times = read.shape[0] // 21
  assert read.shape == (21 * times, 41 * times, 3)  # 4 rows of 8, a line around each
  for number in range(16):
    row, column = divmod(number, 8)
    for below, image in enumerate((x[number], made[number])):
      top, left = 1 + 5 * (2 * row + below), 1 + 5 * column
      own = read[top * times : (top + 4) * times : times, left * times :: times]
      np.testing.assert_array_equal(own[:, :4], png.to_pixels(image))
