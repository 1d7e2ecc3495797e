"""How right is an image of a scene? Marks against the scene itself or a caption.

Owns: marks. Not: reading images (scenes.py), how well that goes (trials.py), what
captions claim (data/scenes/captions.py).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tfusion.data.scenes.captions import Claim, Claims, claims_of
from tfusion.data.scenes.scene import Thing, in_place, related, relation_of

SLACK = 1 / 32  # of the side, by which a place or a relation may be missed
Check = Callable[[Thing], bool]  # whether a seen thing is as one was asked for

MOST_SEEN = 8  # things of an image that are matched: the largest


@dataclasses.dataclass(frozen=True)
class Marks:
  """What is right in one image; None where nothing was asked.

  `right` is all or nothing. The others are the share of the things, or of the
  relations, that were asked for and are shown, if things are matched to do best.
  """

  right: bool
  count: bool
  shape: float | None
  colour: float | None
  size: float | None
  place: float | None
  relation: float | None


def mark_scene(wanted: Sequence[Thing], seen: Sequence[Thing]) -> Marks:
  """Marks an image that should show a scene.

  Args:
    wanted: the scene's things; places are to be met within SLACK on each axis.
    seen: what `scenes.read` saw.
  """
  relations = [
    (a, relation_of(wanted[a], wanted[b]), b)
    for a, b in itertools.combinations(range(len(wanted)), 2)
  ]
  return _mark([_scene_checks(thing) for thing in wanted], relations, seen)


def mark_caption(text: str, seen: Sequence[Thing]) -> Marks:
  """Marks an image that should show what a caption says.

  Args:
    text: a caption of data/scenes/captions.py.
    seen: what `scenes.read` saw.

  Raises:
    ValueError: the text is no such caption.
  """
  claims = claims_of(text)
  if claims is None:
    raise ValueError(
      f"caption {text!r}: not one that data/scenes/captions.py can read; ask for what"
      " the source `shapes` says"
    )
  return mark_claims(claims, seen)


def mark_claims(claims: Claims, seen: Sequence[Thing]) -> Marks:
  """Marks an image that should show what is claimed.

  Args:
    claims: of a caption.
    seen: what `scenes.read` saw.
  """
  checks = [_claim_checks(claim) for claim in claims.things]
  return _mark(checks, claims.relations, seen)


def _scene_checks(wanted: Thing) -> dict[str, Check]:
  return {
    "shape": lambda t: t.shape == wanted.shape,
    "colour": lambda t: t.colour == wanted.colour,
    "size": lambda t: t.size == wanted.size,
    "place": lambda t: max(abs(t.x - wanted.x), abs(t.y - wanted.y)) <= SLACK,
  }


def _claim_checks(claim: Claim) -> dict[str, Check]:
  checks: dict[str, Check] = {}
  if claim.shape is not None:
    checks["shape"] = lambda t: t.shape == claim.shape
  if claim.colour is not None:
    checks["colour"] = lambda t: t.colour == claim.colour
  if claim.size is not None:
    checks["size"] = lambda t: t.size == claim.size
  if (place := claim.place) is not None:
    checks["place"] = lambda t: in_place(t, place, slack=SLACK)
  return checks


def _mark(
  checks: Sequence[dict[str, Check]],
  relations: Sequence[tuple[int, str, int]],
  seen: Sequence[Thing],
) -> Marks:
  """Marks the matching of asked and seen things that leaves the most right."""
  largest = sorted(seen, key=lambda t: -t.radius)[:MOST_SEEN]
  shown: list[Thing | None] = [*largest, *[None] * (len(checks) - len(largest))]
  hits = [
    [{n for n, check in asked.items() if thing and check(thing)} for thing in shown]
    for asked in checks
  ]

  def stand(order: Sequence[int]) -> int:
    pairs = ((shown[order[a]], r, shown[order[b]]) for a, r, b in relations)
    return sum(bool(a and b and related(a, r, b, slack=SLACK)) for a, r, b in pairs)

  def rank(order: Sequence[int]) -> tuple[int, int]:
    return sum(len(hit[i]) for hit, i in zip(hits, order)), stand(order)

  best = max(itertools.permutations(range(len(shown)), len(checks)), key=rank)
  shares = {
    name: _share([name in hit[i] for c, hit, i in zip(checks, hits, best) if name in c])
    for name in ("shape", "colour", "size", "place")
  }
  shares["relation"] = stand(best) / len(relations) if relations else None
  count = len(seen) == len(checks)
  right = count and all(share in (None, 1.0) for share in shares.values())
  return Marks(right, count, **shares)


def _share(right: list[bool]) -> float | None:
  return sum(right) / len(right) if right else None


def mean_marks(marks: Sequence[Marks]) -> dict[str, float]:
  """The mean of each mark over the images that were asked for it."""
  rows = [dataclasses.asdict(m) for m in marks]
  asked = {n: [r[n] for r in rows if r[n] is not None] for n in rows[0]}
  return {name: float(np.mean(values)) for name, values in asked.items() if values}
