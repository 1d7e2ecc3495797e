"""The six tasks of GenEval, asked for in scenes."""

import collections

import pytest

from tfusion.data.scenes.captions import claims_of
from tfusion.data.scenes.scene import COLOURS, SEEN, Thing, related
from tfusion.evaluate import compositions
from tfusion.evaluate.benchmarks import geneval
from tfusion.evaluate.compositions import TASKS, is_shown, prompts


def thing(claim, *, x=0.5, y=0.5, **more):
  colour = more.pop("colour", claim.colour) or "red"
  shape = more.pop("shape", claim.shape)
  return Thing(shape, colour, "large", x, y, 0.15, COLOURS[colour], **more)


def shown(asked, **more):
  """Things that do what is asked, in a row or a column."""
  things = asked.claims.things
  places = [(0.25, 0.5), (0.75, 0.5)]
  for _, relation, _ in asked.claims.relations:
    places = {
      "left of": [(0.25, 0.5), (0.75, 0.5)],
      "right of": [(0.75, 0.5), (0.25, 0.5)],
      "above": [(0.5, 0.25), (0.5, 0.75)],
      "below": [(0.5, 0.75), (0.5, 0.25)],
    }[relation]
  return [thing(c, x=x, y=y, **more) for c, (x, y) in zip(things, places)]


def test_the_tasks_are_those_of_geneval_in_its_order():
  assert list(TASKS) == list(geneval.TASKS)


def test_prompts_are_the_same_every_time_and_are_read_back_as_meant():
  asked = prompts(12)
  assert asked == prompts(12)
  assert collections.Counter(one.task for one in asked) == dict.fromkeys(TASKS, 12)
  for one in asked:
    assert claims_of(one.text) == one.claims, one.text
  assert prompts(3)[:3] == asked[:3]


def test_prompts_ask_for_pairs_that_training_has_and_for_two_things_at_most():
  for one in prompts(40):
    claims = one.claims.things
    assert 1 <= len(claims) <= compositions.THINGS
    assert all(c.colour is None or (c.colour, c.shape) in SEEN for c in claims)
    if one.task in ("two_object", "position", "color_attr"):
      assert claims[0].shape != claims[1].shape


@pytest.mark.parametrize("task", TASKS)
def test_an_image_that_shows_what_is_asked_is_right_and_one_thing_more_is_wrong(task):
  for one in prompts(20):
    if one.task == task:
      right = shown(one)
      assert is_shown(one, right), one.text
      assert not is_shown(one, [*right, thing(one.claims.things[0], x=0.9, y=0.9)])
      assert not is_shown(one, right[1:])


@pytest.mark.parametrize("task", ["colors", "color_attr"])
def test_a_wrong_colour_is_wrong_where_colours_are_asked_for(task):
  for one in prompts(20):
    if one.task == task:
      others = [c for c in COLOURS if c not in [t.colour for t in one.claims.things]]
      assert not is_shown(one, shown(one, colour=others[0]))


def test_a_position_asks_for_shapes_and_their_relation_and_not_for_colours():
  for one in prompts(20):
    if one.task == "position":
      assert is_shown(one, shown(one, colour="pink"))
      ((_, relation, _),) = one.claims.relations
      first, second = shown(one)
      swapped = [
        thing(one.claims.things[0], x=second.x, y=second.y),
        thing(one.claims.things[1], x=first.x, y=first.y),
      ]
      assert not related(swapped[0], relation, swapped[1])
      assert not is_shown(one, swapped)
