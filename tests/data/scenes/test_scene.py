"""Drawn scenes: the same on every machine, told apart, and described truly."""

import dataclasses
import hashlib
import itertools
import json
import math

import numpy as np
import pytest

from tfusion.data.scenes import captions, outlines
from tfusion.data.scenes import scene as scenes
from tfusion.data.scenes.outlines import SHAPES
from tfusion.data.scenes.render import cover, render, render_background
from tfusion.data.scenes.scene import (
  COLOURS,
  HELD_OUT,
  PATTERNS,
  PLACES,
  RELATIONS,
  SEEN,
  SIZES,
  Background,
  Draws,
  Scene,
  Thing,
  draw_scene,
  scene_from_json,
)

GREY = Background("plain", ((90, 90, 90), (90, 90, 90)), (0.5,) * scenes.KNOTS)


def many(count, *key, **options):
  return [draw_scene(Draws(*key, i), **options) for i in range(count)]


def thing(shape="circle", colour="red", size="large", x=0.5, y=0.5):
  return Thing(shape, colour, size, x, y, SIZES[size], COLOURS[colour])


def test_random_numbers_are_those_of_their_key_for_ever():
  # From the definition: 64 bits of SHAKE-128 at a time, little-endian, times the bound.
  stream = hashlib.shake_128(b"a/1").digest(8 * 300)
  words = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 2400, 8)]
  draws = Draws("a", 1)
  assert [draws.below(1000) for _ in words] == [w * 1000 >> 64 for w in words]
  assert [Draws("a", 2).below(1000) for _ in range(3)] != [draws.below(1000)] * 3
  draws = Draws("b")
  units = [draws.unit() for _ in range(1000)]
  assert 0 <= min(units) and max(units) < 1
  assert abs(np.mean(units) - 0.5) < 5 * math.sqrt(1 / 12 / 1000)  # 5 deviations


def test_an_image_is_the_mean_colour_of_what_each_pixel_covers():
  """Against 64 x 64 samples of a pixel, and the definition of every outline."""
  fine, px = 64, 12
  for k, shape in enumerate(SHAPES):
    one = dataclasses.replace(thing(shape), x=0.47, y=0.52, radius=0.23)
    table = outlines.outlines()
    at = (np.arange(px * fine) + 0.5) / (px * fine)
    x = (at - one.x) / one.radius * table.scale_k[k] + table.centre_kx[k, 0]
    y = (at - one.y) / one.radius * table.scale_k[k] + table.centre_kx[k, 1]
    inside = outlines._INSIDE[shape](x[None], y[:, None])
    share = inside.reshape(px, fine, px, fine).mean((1, 3))
    made = render(Scene((one,), GREY), px).astype(float)
    expected = 90 + share[..., None] * (np.asarray(one.rgb) - 90.0)
    # Edges may be off by half a cell of the table, 1/80 of these pixels, on each of
    # two sides; a level spans up to 150.
    np.testing.assert_allclose(made, expected, atol=0.5 + 150 * 2 / 80)
    assert abs(made - expected).mean() < 0.4


@pytest.mark.parametrize("px", [32, 64])
def test_things_of_a_size_cover_equal_areas_about_their_position(px):
  for shape, size in itertools.product(SHAPES, SIZES):
    one = thing(shape, size=size, x=0.43, y=0.55)
    (cover_hw,), (left,), (top,) = cover((one,), px)
    area = math.pi * (one.radius * px) ** 2
    assert abs(cover_hw.sum() / area - 1) < 0.02  # cells of the table
    at = np.arange(len(cover_hw)) + 0.5
    x, y = cover_hw.sum(0) @ at / area + left, cover_hw.sum(1) @ at / area + top
    assert abs(x - one.x * px) < 0.4 and abs(y - one.y * px) < 0.4
    assert cover_hw[0].max() == cover_hw[-1].max() == 0  # the window holds all of it


def test_images_never_change_a_byte():
  """Another hash means that no figure or shard from before compares: see scene.py."""
  made = hashlib.sha256()
  seen = set()
  for scene in many(60, "golden"):
    seen |= {scene.background.pattern, *(t.shape for t in scene.things)}
    made.update(json.dumps(scene.to_json(), sort_keys=True).encode())
    made.update(render(scene, 32).tobytes() + render(scene, 64).tobytes())
  assert seen == {*PATTERNS, *SHAPES}
  assert made.hexdigest()[:32] == "9365ff5e6afb9dc537c297be40707627"


def test_a_scene_comes_back_from_json():
  for scene in many(20, "json"):
    assert scene_from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_things_lie_apart_and_inside():
  for scene in many(150, "apart"):
    assert scenes.apart(scene.things)
    covers, lefts, tops = cover(scene.things, 32)
    total = np.zeros((32 + 40, 32 + 40))
    for cover_hw, left, top in zip(covers, lefts, tops):
      own = np.s_[20 + top :, 20 + left :]
      window = total[own][: len(cover_hw), : len(cover_hw)]
      # A free pixel between any two, even diagonally: none touches two things.
      spread = np.pad(cover_hw > 0, 1)
      near = total[19 + top :, 19 + left :][: len(spread), : len(spread)]
      touched = sum(np.roll(spread, (i, j), (0, 1)) for i in (-1, 0) for j in (-1, 0))
      assert not np.any((touched > 0) & (near > 0))
      window += cover_hw
    assert total[20:52, 20:52].sum() == pytest.approx(total.sum())
  close = (thing(x=0.3), thing(x=0.6))
  assert not scenes.apart(close)
  assert not scenes.apart((thing(x=0.15),))


def test_one_to_four_things_of_every_kind_appear():
  made = many(600, "variety")
  for count in (1, 2, 3, 4):
    share = np.mean([len(scene.things) == count for scene in made])
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 600)
  things = [t for scene in made for t in scene.things]
  assert {scenes.pair_of(t) for t in things} == set(SEEN)
  assert {scenes.place_of(t) for t in things} == set(PLACES)
  large = np.mean([t.size == "large" for t in things])
  assert 0.42 < large < 0.5  # large ones find room less often
  assert max(len(s.things) for s in many(50, "few", most=2)) == 2


def test_every_shape_and_every_colour_has_one_held_out_pair():
  assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)
  assert sorted(colour for colour, _ in HELD_OUT) == sorted(COLOURS)
  assert len(SEEN) == 56 and not set(SEEN) & set(HELD_OUT)
  for scene in many(100, "held out", held_out=True):
    assert {scenes.pair_of(t) for t in scene.things} & set(HELD_OUT)


def test_backgrounds_stay_far_from_every_colour():
  for scene in many(200, "background"):
    ground = render_background(scene.background, 32)
    assert ground.min() >= 0 and ground.max() <= 255
    assert np.ptp(ground, axis=-1).max() <= 24.5  # nearly gray
    for rgb in COLOURS.values():
      assert np.ptp(np.asarray(rgb)) > 120


def test_places_and_relations_are_where_the_words_say():
  assert scenes.place_of(thing(x=0.2, y=0.2)) == "top left"
  assert scenes.place_of(thing(x=0.5, y=0.8)) == "bottom"
  assert scenes.place_of(thing(x=0.8, y=0.5)) == "right"
  assert scenes.place_of(thing()) == "middle"
  for place, (x, y) in PLACES.items():
    assert scenes.place_of(thing(x=x, y=y)) == place
  edge = thing(x=0.36, y=0.2)
  assert not scenes.in_place(edge, "top") and scenes.in_place(edge, "top", slack=0.02)
  low, high = thing(x=0.2, y=0.8), thing(x=0.5, y=0.2)
  assert scenes.relation_of(low, high) == "below"
  assert scenes.relation_of(high, low) == "above"
  holds = [word for word in RELATIONS if scenes.related(low, word, high)]
  assert holds == ["left of", "below"]
  near = thing(x=0.25, y=0.3)
  assert not scenes.related(low, "left of", near)
  assert scenes.related(low, "left of", near, slack=0.02)


# Words.


def test_every_caption_is_true_and_comes_back_as_claims():
  styles = set()
  for i, scene in enumerate(many(400, "caption")):
    text = captions.caption(scene, Draws("words", i))
    claims = captions.claims_of(text)
    assert claims is not None, text
    assert captions.claims_hold(claims, scene.things), text
    assert len(claims.things) == len(scene.things), text
    said = dataclasses.asdict(claims.things[0])
    styles.add((*(n for n, v in said.items() if v), bool(claims.relations)))
  assert len(styles) == len(captions.STYLES) - 1  # plain and total claim the same


def test_a_caption_is_false_of_almost_any_other_scene():
  """A claim that were never checked would let these pass."""
  made = many(60, "other")
  spoken = [captions.caption(s, Draws("other", i)) for i, s in enumerate(made)]
  claims = [captions.claims_of(text) for text in spoken]
  held = sum(
    captions.claims_hold(claims[i], made[j].things)
    for i, j in itertools.permutations(range(60), 2)
  )
  assert held < 0.02 * 60 * 59  # "a circle", or "a red shape", may hold of another


def claimed(text, *things):
  claims = captions.claims_of(text)
  assert claims is not None, text
  return captions.claims_hold(claims, things)


def test_each_word_of_a_caption_counts():
  a = thing("circle", "red", "large", 0.25, 0.3)
  b = thing("star", "blue", "small", 0.7, 0.5)
  assert claimed("a red circle and a blue star", a, b)
  assert claimed("A blue star and a red circle.", a, b)
  assert not claimed("a blue circle and a red star", a, b)
  assert not claimed("a red circle", a, b)
  assert not claimed("a red circle, a blue star and a ring", a, b)
  assert claimed("two shapes: a red circle and a blue star", a, b)
  assert claimed("a small blue star and a large red circle", a, b)
  assert not claimed("a large blue star and a small red circle", a, b)
  assert claimed("here is a circle in the top left and a star on the right", a, b)
  assert not claimed("a circle in the top left and a star on the left", a, b)
  assert claimed("a red circle to the left of a blue star", a, b)
  assert claimed("a red circle above a blue star", a, b)
  assert not claimed("a red circle to the right of a blue star", a, b)
  assert not claimed("a blue star left of a red circle", a, b)
  assert claimed("two red shapes and a blue shape", a, thing(y=0.8), b)
  assert not claimed("two red shapes and a blue shape", a, b, b)
  assert claimed("two crosses", thing("cross", x=0.2), thing("cross", x=0.8))
  assert claimed("an orange ring", thing("ring", "orange"))


@pytest.mark.parametrize(
  "text",
  [
    "",
    "nothing",
    "a red",
    "a red circle and",
    "a red circle blue star",
    "a mauve circle",
    "three shapes: a red circle",
    "two circles left of a star",
    "a star left of two circles",
    "left of a star",
    "a red circle, a picture of a star",
    "an red circle of fire",
  ],
)
def test_what_is_no_caption_claims_nothing(text):
  assert captions.claims_of(text) is None


def test_plain_words_tell_every_thing_from_every_other():
  """Told everything, no two of the kinds and places read the same."""
  texts = set()
  for colour, shape, size in itertools.product(COLOURS, SHAPES, SIZES):
    claim = captions.Claim(shape, colour, size, "top left")
    text = captions._noun_phrase(claim, 1)
    assert captions.claims_of(text).things == (claim,)
    texts.add(text)
  assert len(texts) == 128
