"""What a scene is: one to four things on a background, drawn at random from a key.

Owns: things, colours, sizes, places, relations, pairs that training never sees, single
changes of a scene, the random numbers behind all that. Not: images (render.py),
words (captions.py), documents (source.py).

Lengths are shares of the image's side, x to the right, y down, from the top left.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

from tfusion.data.scenes.outlines import SHAPES, reach

Rgb = tuple[int, int, int]  # 0..255
T = TypeVar("T")

COLOURS: dict[str, Rgb] = {
  "red": (216, 32, 44),
  "orange": (246, 132, 20),
  "yellow": (242, 218, 30),
  "green": (34, 168, 54),
  "cyan": (24, 204, 214),
  "blue": (36, 78, 226),
  "purple": (132, 42, 192),
  "pink": (255, 112, 184),
}
SIZES = {"small": 0.095, "large": 0.15}  # radius of the disc of the same area
# No training document shows or names one of these; each colour and shape has one.
HELD_OUT = (
  *(("purple", "circle"), ("yellow", "square"), ("pink", "triangle")),
  *(("red", "diamond"), ("cyan", "cross"), ("green", "star")),
  *(("orange", "ring"), ("blue", "heart")),
)
EVERY_PAIR = tuple(itertools.product(COLOURS, SHAPES))
SEEN = tuple(pair for pair in EVERY_PAIR if pair not in HELD_OUT)
PLACES = {
  f"{row} {column}".strip() or "middle": (x, y)
  for row, y in (("top", 0.25), ("", 0.5), ("bottom", 0.75))
  for column, x in (("left", 0.25), ("", 0.5), ("right", 0.75))
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
PATTERNS = ("plain", "gradient", "stripes", "checks", "clouds", "glow")
KNOTS = 16  # numbers that shape a background

MOST_THINGS = 4
GAP = 2 / 32  # between things, along x or y: two pixels of the smaller image
EDGE = 1 / 32  # between things and the image's edge
GRID = 256  # things stand on points of this grid
RADIUS_JITTER, COLOUR_JITTER = 0.05, 10  # a share; levels of 255
CLEAR = 1 / 16  # a relation holds if centres differ by so much
PLACE_TRIES, SCENE_TRIES = 12, 8


class Draws:
  """Random numbers that depend on a key alone: the same on every machine, and with
  every version of every library."""

  def __init__(self, *key: str | int):
    """Starts the numbers of a key; different keys give unrelated numbers."""
    self._stream = hashlib.shake_128("/".join(map(str, key)).encode())
    self._bytes, self._used = self._stream.digest(1024), 0

  def below(self, bound: int) -> int:
    """Returns one of 0..bound-1, each as likely to 1 in 2^50."""
    if self._used == len(self._bytes):
      self._bytes = self._stream.digest(2 * len(self._bytes))  # the same, and more
    drawn = int.from_bytes(self._bytes[self._used : self._used + 8], "little")
    self._used += 8
    return drawn * bound >> 64

  def unit(self) -> float:
    """Returns a number in [0, 1) on a grid of 2^16, exact in any float."""
    return self.below(1 << 16) / (1 << 16)

  def choice(self, options: Sequence[T]) -> T:
    """Returns one of the options."""
    return options[self.below(len(options))]


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object of a scene; `colour` and `size` name what `rgb` and `radius` are near."""

  shape: str
  colour: str
  size: str
  x: float  # of the centre of mass
  y: float
  radius: float  # of the disc of the same area
  rgb: Rgb


@dataclasses.dataclass(frozen=True)
class Background:
  """A muted pattern between two colours; `knots` in [0, 1) shape it."""

  pattern: str
  rgb: tuple[Rgb, Rgb]
  knots: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
  """The exact truth of an image."""

  things: tuple[Thing, ...]
  background: Background

  def to_json(self) -> dict[str, Any]:
    """Nested dicts and lists; `scene_from_json` is the inverse."""
    return dataclasses.asdict(self)


def scene_from_json(value: dict[str, Any]) -> Scene:
  """The Scene of what `to_json` returned, JSON or not."""
  things = (Thing(**t | {"rgb": tuple(t["rgb"])}) for t in value["things"])
  b = value["background"]
  first, second = (tuple(colour) for colour in b["rgb"])
  background = Background(b["pattern"], (first, second), tuple(b["knots"]))
  return Scene(tuple(things), background)


def pair_of(thing: Thing) -> tuple[str, str]:
  """Colour and shape."""
  return thing.colour, thing.shape


def place_of(thing: Thing) -> str:
  """The one of PLACES that a thing is nearest to, each axis for itself."""
  return _place_at(thing.x, thing.y)


def in_place(thing: Thing, place: str, *, slack: float = 0.0) -> bool:
  """Whether a thing stands at one of PLACES, or would if moved by `slack`."""
  moves = itertools.product((-slack, 0.0, slack), repeat=2)
  return any(_place_at(thing.x + dx, thing.y + dy) == place for dx, dy in moves)


def relation_of(a: Thing, b: Thing) -> str:
  """The plainest one of RELATIONS that a has to b: along the axis that parts them."""
  dx, dy = a.x - b.x, a.y - b.y
  if abs(dx) >= abs(dy):
    return "left of" if dx < 0 else "right of"
  return "above" if dy < 0 else "below"


def related(a: Thing, relation: str, b: Thing, *, slack: float = 0.0) -> bool:
  """Whether a is, say, left of b: by CLEAR less `slack` at least, however far above."""
  along_x, along_y = RELATIONS[relation]
  return (a.x - b.x) * along_x + (a.y - b.y) * along_y >= CLEAR - slack


def apart(things: Sequence[Thing]) -> bool:
  """Whether all things lie in the image, and GAP from each other along x or y."""
  boxes = [_box(thing) for thing in things]
  return all(
    min(x0, y0) >= EDGE and max(x1, y1) <= 1 - EDGE for x0, y0, x1, y1 in boxes
  ) and all(_boxes_apart(a, b) for a, b in itertools.combinations(boxes, 2))


def draw_scene(
  draws: Draws, *, most: int = MOST_THINGS, held_out: bool = False, unlike: bool = False
) -> Scene:
  """Draws a scene by lot.

  Args:
    draws: where the numbers come from.
    most: things at most, 1 to 4; every number of them is as likely.
    held_out: one thing is a pair from HELD_OUT and the others are any pairs. Else no
      thing is one of those.
    unlike: no two things share colour and shape, so that each can be named.
  """
  count = 1 + draws.below(most)
  while True:
    pairs = [draws.choice(EVERY_PAIR if held_out else SEEN) for _ in range(count)]
    if held_out:
      pairs[draws.below(count)] = draws.choice(HELD_OUT)
    if unlike and len(set(pairs)) < count:
      continue
    things = _place([_draw_thing(draws, *pair) for pair in pairs], draws)
    if things is not None:  # four large things seldom find room
      return Scene(things, _draw_background(draws))


@dataclasses.dataclass(frozen=True)
class Change:
  """One step from a scene to the next: thing `index` becomes `thing`.

  `kind` is colour, shape, size, place, add (index is the number of things) or remove
  (thing is None). What is new has no jitter: its words say all of it.
  """

  kind: str
  index: int
  thing: Thing | None

  def apply(self, scene: Scene) -> Scene:
    """Returns the scene after the change."""
    new = () if self.thing is None else (self.thing,)
    kept = scene.things[: self.index], scene.things[self.index + 1 :]
    return dataclasses.replace(scene, things=kept[0] + new + kept[1])


CHANGES = ("colour", "shape", "size", "place", "add", "remove")


def draw_change(
  draws: Draws, scene: Scene, *, most: int = MOST_THINGS, held_out: bool = False
) -> Change:
  """Draws a change by lot that leaves one to `most` things, apart and unlike.

  Args:
    draws: where the numbers come from.
    scene: what is changed.
    most: things at most.
    held_out: pairs of HELD_OUT may arise.
  """
  pairs = EVERY_PAIR if held_out else SEEN
  while True:
    kind = draws.choice(CHANGES)
    index = draws.below(len(scene.things))
    if kind == "add":
      index = len(scene.things)
      new = _nominal(*draws.choice(pairs), draws.choice(tuple(SIZES)))
      change = Change(kind, index, _put(new, draws.choice(tuple(PLACES))))
    elif kind == "remove":
      change = Change(kind, index, None)
    else:
      change = Change(kind, index, _altered(draws, kind, scene.things[index]))
    things = change.apply(scene).things
    now = [pair_of(thing) for thing in things]
    if not 1 <= len(things) <= most or len(set(now)) < len(now):
      continue
    if set(now) <= set(pairs) and apart(things):
      return change


def _place_at(x: float, y: float) -> str:
  row = "top" if y < 0.375 else "bottom" if y > 0.625 else ""
  column = "left" if x < 0.375 else "right" if x > 0.625 else ""
  return f"{row} {column}".strip() or "middle"


def _altered(draws: Draws, kind: str, thing: Thing) -> Thing:
  """The thing with another colour, shape, size or place."""
  if kind == "place":
    return _put(thing, draws.choice([p for p in PLACES if p != place_of(thing)]))
  known = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}[kind]
  value = draws.choice([v for v in known if v != getattr(thing, kind)])
  if kind == "colour":
    return dataclasses.replace(thing, colour=value, rgb=COLOURS[value])
  if kind == "size":
    return dataclasses.replace(thing, size=value, radius=SIZES[value])
  return dataclasses.replace(thing, shape=value)


def _nominal(colour: str, shape: str, size: str) -> Thing:
  return Thing(shape, colour, size, 0.5, 0.5, SIZES[size], COLOURS[colour])


def _put(thing: Thing, place: str) -> Thing:
  x, y = PLACES[place]
  return dataclasses.replace(thing, x=x, y=y)


def _draw_thing(draws: Draws, colour: str, shape: str) -> Thing:
  size = draws.choice(tuple(SIZES))
  radius = SIZES[size] * (1 + RADIUS_JITTER * (2 * draws.unit() - 1))
  red, green, blue = (
    min(max(level + draws.below(2 * COLOUR_JITTER + 1) - COLOUR_JITTER, 0), 255)
    for level in COLOURS[colour]
  )
  return Thing(shape, colour, size, 0.5, 0.5, radius, (red, green, blue))


def _place(things: Sequence[Thing], draws: Draws) -> tuple[Thing, ...] | None:
  """The things at places by lot, apart from each other; None if that is too hard."""
  for _ in range(SCENE_TRIES):
    placed: list[Thing] = []
    boxes: list[tuple[float, ...]] = []
    for thing in things:
      left, top, right, bottom = reach(SHAPES.index(thing.shape), thing.radius)
      for _ in range(PLACE_TRIES):
        x = _draw_between(draws, EDGE + left, 1 - EDGE - right)
        y = _draw_between(draws, EDGE + top, 1 - EDGE - bottom)
        box = x - left, y - top, x + right, y + bottom
        if all(_boxes_apart(box, other) for other in boxes):
          placed.append(dataclasses.replace(thing, x=x, y=y))
          boxes.append(box)
          break
      else:
        break
    if len(placed) == len(things):
      return tuple(placed)
  return None


def _draw_between(draws: Draws, low: float, high: float) -> float:
  first, last = -int(-low * GRID // 1), int(high * GRID)  # grid points between
  return (first + draws.below(last - first + 1)) / GRID


def _box(thing: Thing) -> tuple[float, float, float, float]:
  left, top, right, bottom = reach(SHAPES.index(thing.shape), thing.radius)
  return thing.x - left, thing.y - top, thing.x + right, thing.y + bottom


def _boxes_apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
  return max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) >= GAP


def _draw_background(draws: Draws) -> Background:
  """Two near grays with a hue: far from every colour that things have."""
  level = 24 + draws.below(209)
  second = min(max(level + draws.below(81) - 40, 16), 240)
  red, green, blue = (draws.below(25) - 12 for _ in range(3))
  first, other = ((grey + red, grey + green, grey + blue) for grey in (level, second))
  knots = tuple(draws.unit() for _ in range(KNOTS))
  return Background(draws.choice(PATTERNS), (first, other), knots)
