"""Promises of tfusion/generate/png.py."""

import base64
import io

import numpy as np
import pytest
from PIL import Image as Pillow

from tfusion.generate import png


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_pixels_span_all_of_black_to_white_and_clip_beyond():
  pixels = png.to_pixels(np.asarray([-9.0, -1.0, 0.0, 1.0, 9.0]))
  np.testing.assert_array_equal(pixels, [0, 0, 128, 255, 255])
  assert pixels.dtype == np.uint8
  colour = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3))
  np.testing.assert_allclose(png.to_pixels(colour) / 127.5 - 1, colour, atol=1 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_written_in_rgb_with_every_pixel_as_a_square(
  tmp_path, channels
):
  pixels = noise(4, 6, channels)
  assert png.write(pixels, tmp_path / "new" / "a.png") == 32
  with Pillow.open(tmp_path / "new" / "a.png") as image:
    assert (image.mode, image.size) == ("RGB", (192, 128))
    read = np.asarray(image)
  for y, x in np.ndindex(128, 192):
    assert (read[y, x] == pixels[y // 32, x // 32]).all()
  assert png.write(pixels, tmp_path / "b.png", enlarge=False) == 1
  with Pillow.open(tmp_path / "b.png") as image:
    np.testing.assert_array_equal(np.asarray(image), np.asarray(png.to_rgb(pixels)))


def test_a_sheet_lays_images_out_by_rows_on_white():
  images = list(noise(5, 2, 3, 1) // 2)
  sheet = png.sheet(images, columns=2)
  assert sheet.shape == (1 + 3 * 3, 1 + 2 * 4, 1) and sheet.dtype == np.uint8
  boxes = png.boxes(images, columns=2)
  for number, (image, box) in enumerate(zip(images, boxes, strict=True)):
    top, left = 1 + number // 2 * 3, 1 + number % 2 * 4
    assert box == (left, top, left + 3, top + 2)
    np.testing.assert_array_equal(sheet[top : top + 2, left : left + 3], image)
    sheet[top : top + 2, left : left + 3] = 255
  assert (sheet == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_data_url_holds_the_image_itself(channels):
  pixels = noise(4, 6, channels)
  kind, _, coded = png.data_url(pixels).partition(",")
  assert kind == "data:image/png;base64"
  with Pillow.open(io.BytesIO(base64.b64decode(coded))) as image:
    read = np.asarray(image)
  np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)


def test_a_sheet_of_images_of_several_shapes_enlarges_the_small_ones():
  small = np.full((2, 3, 1), 7, np.uint8)
  wide, tall = np.full((4, 20, 3), 9, np.uint8), np.full((11, 5, 3), 5, np.uint8)
  images = [small, wide, tall]
  sheet = png.sheet(images, columns=2)
  assert sheet.shape == (2 * 12 + 1, 2 * 21 + 1, 3)
  boxes = png.boxes(images, columns=2)
  assert boxes[0] == (1, 1, 1 + 5 * 3, 1 + 5 * 2)  # five times as large
  for (left, top, right, bottom), image in zip(boxes, images, strict=True):
    assert np.all(sheet[top:bottom, left:right] == image[0, 0])
  assert np.sum(np.all(sheet != 255, -1)) == 25 * 6 + 4 * 20 * 1 + 11 * 5
