"""Marks count what was asked for and shown, and nothing else."""

import dataclasses
import itertools

import pytest

from tfusion.data.scenes import captions
from tfusion.data.scenes.scene import COLOURS, SIZES, Draws, Thing, draw_scene
from tfusion.evaluate import marks
from tfusion.evaluate.marks import Marks, mark_caption, mark_scene, mean_marks


def thing(shape="circle", colour="red", size="large", x=0.5, y=0.5):
  return Thing(shape, colour, size, x, y, SIZES[size], COLOURS[colour])


A = thing("circle", "red", "large", 0.25, 0.3)
B = thing("star", "blue", "small", 0.7, 0.5)
C = thing("ring", "green", "small", 0.3, 0.8)


def but(a, **changes):
  return dataclasses.replace(a, **changes)


def test_a_scene_seen_as_it_is_gets_full_marks_in_any_order():
  for order in itertools.permutations((A, B, C)):
    assert mark_scene((A, B, C), order) == Marks(True, True, 1, 1, 1, 1, 1)


def test_each_attribute_has_its_own_mark():
  assert mark_scene((A, B), (A, but(B, shape="ring"))).shape == 0.5
  assert mark_scene((A, B), (A, but(B, colour="red"))).colour == 0.5
  assert mark_scene((A, B), (A, but(B, size="large"))).size == 0.5
  moved = mark_scene((A, B), (A, but(B, y=0.6)))
  assert (moved.place, moved.relation, moved.right) == (0.5, 1, False)
  assert mark_scene((A, B), (A, but(B, x=0.7 + 1 / 33))).right  # within SLACK
  assert not mark_scene((A, B), (A, but(B, x=0.7 + 1 / 31))).right
  swapped = mark_scene((A, B), (but(A, x=0.7, y=0.5), but(B, x=0.25, y=0.3)))
  assert (swapped.shape, swapped.colour, swapped.place) == (1, 1, 0)
  assert (swapped.relation, swapped.right) == (0, False)


def test_what_lacks_or_is_too_much_costs_the_count():
  lacking = mark_scene((A, B), (A,))
  assert lacking == Marks(False, False, 0.5, 0.5, 0.5, 0.5, 0)
  more = mark_scene((A, B), (C, A, B))
  assert more == Marks(False, False, 1, 1, 1, 1, 1)
  nothing = mark_scene((A, B), ())
  assert nothing == Marks(False, False, 0, 0, 0, 0, 0)
  crowd = mark_scene((A,), [but(C, x=i / 20) for i in range(20)] + [A])
  assert crowd == Marks(False, False, 1, 1, 1, 1, None)


def test_of_a_crowd_the_largest_are_matched():
  """All orders of a hundred specks would take for ever."""
  eight = [but(A, x=i / 10) for i in range(8)]
  assert mark_scene((B,), [*eight[:7], B]).shape == 1
  assert mark_scene((B,), [*eight, B]).shape == 0


def test_a_caption_marks_what_it_says_alone():
  assert mark_caption("a circle and a star", (B, A)) == Marks(
    True, True, 1, None, None, None, None
  )
  assert mark_caption("two red shapes", (A, B)) == Marks(
    False, True, None, 0.5, None, None, None
  )
  beside = "a red circle left of a blue star"
  assert mark_caption(beside, (A, B)) == Marks(True, True, 1, 1, None, None, 1)
  assert mark_caption(beside, (but(A, x=0.9), B)) == Marks(
    False, True, 1, 1, None, None, 0
  )
  placed = mark_caption("a small blue star on the left", (B,))
  assert placed == Marks(False, True, 1, 1, 1, 0, None)
  # Of two like things, those are matched that stand as they should.
  assert mark_caption("a circle above a circle", (but(A, y=0.8), A)).right
  with pytest.raises(ValueError, match="'a mauve circle': not one"):
    mark_caption("a mauve circle", (A,))


def test_right_means_that_the_claims_hold():
  """True captions and those of other scenes, as data/scenes/captions.py reads them."""
  scenes = [draw_scene(Draws("claims", i)) for i in range(40)]
  texts = [captions.caption(s, Draws("words", i)) for i, s in enumerate(scenes)]
  held = []
  for text, scene in itertools.product(texts, scenes):
    claims = captions.claims_of(text)
    held.append(captions.claims_hold(claims, scene.things, slack=marks.SLACK))
    assert mark_caption(text, scene.things).right == held[-1]
  assert 40 <= sum(held) < 100


def test_means_are_over_what_was_asked():
  made = [
    mark_caption("a circle", (A,)),
    mark_caption("a blue circle", (A,)),
    mark_caption("a blue circle", ()),
  ]
  assert mean_marks(made) == {
    "right": 1 / 3,
    "count": 2 / 3,
    "shape": 2 / 3,
    "colour": 0.0,
  }
