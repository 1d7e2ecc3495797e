"""How right is a picture of drawn things? Marks against a scene or a caption.

Owns: marks, how the judge fares on noisy and blurred pictures, the plot of that. Not:
reading pictures (scenes.py), what captions claim (data/scenes/captions.py).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tfusion.data.scenes.captions import Claim, claims_of
from tfusion.data.scenes.render import draw
from tfusion.data.scenes.scene import (
  Draws,
  Thing,
  draw_scene,
  in_place,
  related,
  relation_of,
)
from tfusion.evaluate.scenes import read

SLACK = 1 / 32  # of the side, by which a place or a relation may be missed
MOST_SEEN = 8  # things of a picture that are matched: the largest
NOISES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)  # of pixels in [-1, 1], deviations
BLURS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)  # of the side, deviations


@dataclasses.dataclass(frozen=True)
class Marks:
  """What is right in one picture; None where nothing was asked.

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
  """Marks a picture that should show a scene.

  Args:
    wanted: the scene's things; places are to be met within SLACK on each axis.
    seen: what `scenes.read` saw.
  """
  relations = [
    (a, relation_of(wanted[a], wanted[b]), b)
    for a, b in itertools.combinations(range(len(wanted)), 2)
  ]
  checks = [
    {
      "shape": lambda t, w=w: t.shape == w.shape,
      "colour": lambda t, w=w: t.colour == w.colour,
      "size": lambda t, w=w: t.size == w.size,
      "place": lambda t, w=w: max(abs(t.x - w.x), abs(t.y - w.y)) <= SLACK,
    }
    for w in wanted
  ]
  return _mark(checks, relations, seen)


def mark_caption(text: str, seen: Sequence[Thing]) -> Marks:
  """Marks a picture that should show what a caption says.

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
  checks = [_claim_checks(claim) for claim in claims.things]
  return _mark(checks, claims.relations, seen)


def _claim_checks(claim: Claim) -> dict:
  checks = {
    name: lambda t, name=name, value=value: getattr(t, name) == value
    for name, value in dataclasses.asdict(claim).items()
    if value is not None
  }
  if claim.place is not None:
    checks["place"] = lambda t: in_place(t, claim.place, slack=SLACK)
  return checks


def _mark(checks: Sequence[dict], relations: Sequence, seen: Sequence[Thing]) -> Marks:
  """Marks the matching of asked and seen things that leaves the most right."""
  shown: list[Thing | None] = sorted(seen, key=lambda t: -t.radius)[:MOST_SEEN]
  shown += [None] * (len(checks) - len(shown))
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
  """The mean of each mark over the pictures that were asked for it."""
  rows = [dataclasses.asdict(m) for m in marks]
  asked = {n: [r[n] for r in rows if r[n] is not None] for n in rows[0]}
  return {name: float(np.mean(values)) for name, values in asked.items() if values}


class Trial(NamedTuple):
  """How the judge fared at one level of noise or blur."""

  px: int
  noise: float
  blur: float
  marks: dict[str, float]  # mean_marks against the scenes that were drawn


def try_judge(
  px: int,
  *,
  pictures: int,
  noise: float = 0.0,
  blur: float = 0.0,
  seed: int = 0,
) -> Trial:
  """Has the judge read drawn scenes, half of them with held-out pairs.

  Args:
    px: pixels along a side.
    pictures: how many.
    noise: standard deviation of the Gaussian noise on pixels in [-1, 1].
    blur: standard deviation of a Gaussian blur before the noise, a share of the side.
    seed: of the scenes and the noise; they are no documents of the source `shapes`.
  """
  rng, marks = np.random.default_rng(seed), []
  for index in range(pictures):
    scene = draw_scene(Draws("judge", seed, px, index), held_out=index % 2 == 1)
    picture = draw(scene, px).astype(np.float32) / 127.5 - 1
    if blur:
      picture = ndimage.gaussian_filter(picture, (blur * px, blur * px, 0))
    picture = picture + noise * rng.normal(size=picture.shape)
    marks.append(mark_scene(scene.things, read(picture)))
  return Trial(px, noise, blur, mean_marks(marks))


def plot_judge(path: str | Path, *, pictures: int = 200) -> list[Trial]:
  """Plots how the judge fares against noise and blur, at 32 and 64 pixels.

  Args:
    path: the .png to write.
    pictures: scenes at each of 28 points; 200 take two minutes on one core.

  Returns:
    What is plotted.
  """
  # Here: importing it takes longer than reading a picture, and draws nothing else.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout="constrained")
  trials = []
  for axes, (name, levels) in zip(
    figure.subplots(1, 2, sharey=True), (("noise", NOISES), ("blur", BLURS))
  ):
    for colour, px in (("tab:orange", 32), ("tab:blue", 64)):
      made = [try_judge(px, pictures=pictures, **{name: level}) for level in levels]
      trials += made
      for mark, style in (("right", "-"), ("count", "--"), ("shape", ":")):
        values = [100 * trial.marks[mark] for trial in made]
        axes.plot(levels, values, style, color=colour, label=f"{px} px, {mark}")
    unit = "pixels in [-1, 1]" if name == "noise" else "side"
    axes.set(xlabel=f"{name}: standard deviation, {unit}", ylim=(0, 102))
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel("% of pictures read right; of things, their shape")
  figure.axes[0].legend(loc="lower left")
  figure.savefig(path)
  return trials
