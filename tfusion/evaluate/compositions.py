"""The six tasks of GenEval, asked for in scenes: what is asked, whether it is shown.

Owns: the tasks, their prompts, when an image does one (arXiv 2310.11513, section 3.2,
has them for photographs). Not: reading an image (scenes.py), sampling
(scene_scores.py).

Where GenEval asks a detector, the classifier of scenes reads everything exactly; so an
image with a thing too many is wrong in every task, and not in counting alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tfusion.data.scenes.captions import Claim, Claims, say
from tfusion.data.scenes.scene import RELATIONS, SEEN, Draws, Thing
from tfusion.evaluate.marks import mark_claims

THINGS = 2  # at most, in any task: a run on scenes of one to two things knows them all


class Composition(NamedTuple):
  """One prompt of a task."""

  task: str
  claims: Claims

  @property
  def text(self) -> str:
    """What the model is told, in the words of its captions."""
    return say(self.claims)


def prompts(per_task: int) -> list[Composition]:
  """So many prompts of each task, always the same, tasks one after the other."""
  return [
    Composition(task, claims(Draws("compositions", task, index)))
    for task, claims in TASKS.items()
    for index in range(per_task)
  ]


def is_shown(asked: Composition, seen: Sequence[Thing]) -> bool:
  """Whether an image does the task.

  Args:
    asked: the prompt.
    seen: what the classifier read from the image.
  """
  marks = mark_claims(asked.claims, seen)
  if asked.task == "position":  # its colours are those of captions; color_attr asks
    return marks.count and marks.shape == 1.0 and marks.relation == 1.0
  return marks.right


def _one(draws: Draws) -> Claims:
  return Claims((Claim(shape=_pair(draws)[1]),))


def _two(draws: Draws) -> Claims:
  return Claims(tuple(Claim(shape=shape) for _, shape in _unlike(draws)))


def _count(draws: Draws) -> Claims:
  shape = _pair(draws)[1]
  return Claims((Claim(shape=shape),) * THINGS)


def _colour(draws: Draws) -> Claims:
  colour, shape = _pair(draws)
  return Claims((Claim(shape=shape, colour=colour),))


def _position(draws: Draws) -> Claims:
  things = _attributes(draws).things
  return Claims(things, ((0, draws.choice(list(RELATIONS)), 1),))


def _attributes(draws: Draws) -> Claims:
  pairs = _unlike(draws)
  return Claims(tuple(Claim(shape=shape, colour=colour) for colour, shape in pairs))


def _pair(draws: Draws) -> tuple[str, str]:
  return draws.choice(SEEN)


def _unlike(draws: Draws) -> list[tuple[str, str]]:
  """Two pairs of colour and shape that share neither."""
  first = _pair(draws)
  others = [pair for pair in SEEN if pair[0] != first[0] and pair[1] != first[1]]
  return [first, draws.choice(others)]


TASKS: dict[str, Callable[[Draws], Claims]] = {
  "single_object": _one,
  "two_object": _two,
  "counting": _count,
  "colors": _colour,
  "position": _position,
  "color_attr": _attributes,
}
