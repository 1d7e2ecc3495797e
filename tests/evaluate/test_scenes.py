"""The classifier reads drawn scenes right, and says what it sees of anything else."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from tfusion.data.scenes.outlines import SHAPES
from tfusion.data.scenes.render import render
from tfusion.data.scenes.scene import (
  COLOURS,
  SIZES,
  Background,
  Draws,
  Scene,
  Thing,
  draw_scene,
)
from tfusion.data.scenes.source import open_shapes
from tfusion.evaluate.marks import mark_scene
from tfusion.evaluate.scenes import read

GREY = Background("plain", ((128, 128, 128),) * 2, (0.5,) * 16)


def image_of(scene, px):
  return render(scene, px).astype(np.float32) / 127.5 - 1


def reads(thing, seen):
  return (seen.shape, seen.colour, seen.size) == (thing.shape, thing.colour, thing.size)


@pytest.mark.slow
@pytest.mark.parametrize("px", [32, 64])
def test_every_unseen_scene_is_read_exactly(px):
  """All of these, as of 5000 others: `trials.try_classifier(px, images=5000)`."""
  for index in range(4800 // px):
    scene = draw_scene(Draws("test", px, index), held_out=index % 2 == 1)
    marks = mark_scene(scene.things, read(image_of(scene, px)))
    assert marks.right, (index, scene)


def test_the_test_split_is_read_exactly():
  source = open_shapes("stories", split="test", image_shape=(32, 32, 3))
  for index in range(12):
    images = source[index][1::2]
    for scene, image in zip(source.truth(index).scenes, images, strict=True):
      assert mark_scene(scene.things, read(image)).right, index


@pytest.mark.parametrize("px", [32, 64])
def test_every_kind_of_thing_is_known_and_measured(px):
  for i, (shape, colour) in enumerate(itertools.product(SHAPES, COLOURS)):
    size = list(SIZES)[i % 2]
    thing = Thing(shape, colour, size, 0.4, 0.55, SIZES[size], COLOURS[colour])
    (seen,) = read(image_of(Scene((thing,), GREY), px))
    assert reads(thing, seen)
    # Half a pixel of the smaller image, and a tenth: far less than tells anything
    # from anything else.
    assert max(abs(seen.x - 0.4), abs(seen.y - 0.55)) < 0.5 / 32
    assert abs(seen.radius / thing.radius - 1) < 0.1
    assert np.abs(np.subtract(seen.rgb, thing.rgb)).max() < 20


def test_what_is_read_is_in_order_and_moves_with_the_image():
  scene = draw_scene(Draws("mirror", 3))
  seen = read(image_of(scene, 64))
  assert len(seen) == len(scene.things) > 1
  assert [t.x for t in seen] == sorted(t.x for t in seen)
  mirrored = read(image_of(scene, 64)[:, ::-1])
  for a, b in zip(seen, reversed(mirrored)):
    assert abs(a.x - (1 - b.x)) < 1 / 64 and abs(a.y - b.y) < 1 / 64


@pytest.mark.slow
@pytest.mark.parametrize(
  "px, noise, blur, least",
  [
    # Measured over 300 scenes: 0.97, 0.77, 0.97, 1.0, 1.0, 1.0. Of 30, each may be
    # three standard deviations worse.
    (32, 0.2, 0.0, 0.87),
    (32, 0.4, 0.0, 0.54),
    (32, 0.0, 0.04, 0.87),
    (64, 0.2, 0.0, 0.95),
    (64, 0.4, 0.0, 0.95),
    (64, 0.0, 0.04, 0.95),
  ],
)
def test_noise_and_blur_cost_little(px, noise, blur, least):
  rng, right = np.random.default_rng(0), []
  for index in range(30):
    scene = draw_scene(Draws("rough", index))
    image = ndimage.gaussian_filter(image_of(scene, px), (blur * px, blur * px, 0))
    image += noise * rng.normal(size=image.shape)
    right.append(mark_scene(scene.things, read(image)).right)
  assert np.mean(right) >= least


def test_things_that_blur_into_each_other_are_told_apart():
  x_of = {"left": 0.33, "right": 0.64}  # 1.4 pixels between them
  scene = Scene(
    tuple(
      Thing("square", "red", "large", x, 0.5, SIZES["large"], COLOURS["red"])
      for x in x_of.values()
    ),
    GREY,
  )
  blurred = ndimage.gaussian_filter(image_of(scene, 32), (1.2, 1.2, 0))
  for image in (image_of(scene, 32), blurred):
    assert mark_scene(scene.things, read(image)).right


def test_a_blurred_ring_is_no_paler_larger_disc():
  """No thing has so pale a colour; a classifier that forgets this takes three wrong."""
  rng, right = np.random.default_rng(0), 0
  for colour, rgb in COLOURS.items():
    ring = Thing("ring", colour, "small", 0.4, 0.55, SIZES["small"], rgb)
    image = ndimage.gaussian_filter(image_of(Scene((ring,), GREY), 64), (3.2, 3.2, 0))
    seen = read(image + 0.1 * rng.normal(size=image.shape))
    right += [(t.shape, t.size) for t in seen] == [("ring", "small")]
  assert right >= 7


def test_a_hole_in_an_image_hides_nothing_else():
  scene = draw_scene(Draws("hole", 0))
  image = image_of(scene, 64)
  image[0, 0] = np.nan
  image[63, 63] = np.inf
  assert mark_scene(scene.things, read(image)).right


def test_any_image_gets_an_answer():
  rng = np.random.default_rng(0)
  ramp = np.linspace(-1, 1, 32)
  odd = [
    np.zeros((32, 32, 3)),
    np.full((32, 32, 3), np.nan),
    np.full((32, 32, 3), np.inf),
    np.broadcast_to([1.0, -1.0, -1.0], (32, 32, 3)),
    np.where(ramp[:, None, None] > 0, [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0])
    + np.zeros((32, 32, 3)),
    np.stack(np.broadcast_arrays(ramp[:, None], ramp, -ramp), -1),
    np.eye(32)[..., None] * [1.0, -1.0, -1.0],
    *(scale * rng.normal(size=(px, px, 3)) for scale in (0.1, 1, 9) for px in (16, 32)),
  ]
  for image in odd:
    for thing in read(image):
      assert thing.shape in SHAPES and thing.colour in COLOURS and thing.size in SIZES
      assert np.isfinite([thing.x, thing.y, thing.radius]).all()
  assert read(odd[0]) == read(odd[1]) == read(odd[3]) == ()


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1), (32, 16, 3), (8, 8, 3)])
def test_what_is_no_image_is_refused(shape):
  with pytest.raises(ValueError, match=r"reads \(h, h, 3\)"):
    read(np.zeros(shape))
