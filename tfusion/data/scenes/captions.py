"""The words of scenes: captions, what they claim, and instructions.

Owns: templates, the grammar that reads a caption back, whether its claims hold of a
scene. Not: scenes and changes (scene.py), what an image shows (evaluate/scenes.py).

A caption names everything in the image, but need not say all of it: "two circles and a
square" says nothing of colours, though it does say that there are three things.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

from tfusion.data.scenes.outlines import SHAPES
from tfusion.data.scenes.scene import (
  COLOURS,
  PLACES,
  RELATIONS,
  SIZES,
  Change,
  Draws,
  Scene,
  Thing,
  in_place,
  place_of,
  related,
  relation_of,
)

COUNTS = ("one", "two", "three", "four")
OPENERS = ("", "", "a picture of ", "a drawing of ", "here is ", "this shows ")
PLACE_WORDS = {
  place: f"at the {place}"
  if place in ("top", "bottom")
  else f"on the {place}"
  if place in ("left", "right")
  else f"in the {place}"
  for place in PLACES
}
PLACE_TARGETS = {
  place: f"to the {place} side" if place in ("left", "right") else f"to the {place}"
  for place in PLACES
}
RELATION_WORDS = {relation: relation for relation in RELATIONS} | {
  "to the left of": "left of",
  "to the right of": "right of",
}
# What each style says of a thing; "relations" and "total" have more to say.
STYLES = {
  "plain": ("colour", "shape"),
  "sizes": ("size", "colour", "shape"),
  "places": ("colour", "shape", "place"),
  "all": ("size", "colour", "shape", "place"),
  "shapes": ("shape",),
  "colours": ("colour",),
  "relations": ("colour", "shape"),
  "total": ("colour", "shape"),
}


@dataclasses.dataclass(frozen=True)
class Claim:
  """What a caption says of one thing; None where it says nothing."""

  shape: str | None = None
  colour: str | None = None
  size: str | None = None
  place: str | None = None


@dataclasses.dataclass(frozen=True)
class Claims:
  """All that a caption says: so many things, of these kinds, standing so.

  `relations` holds (a, relation, b), indices into `things`.
  """

  things: tuple[Claim, ...]
  relations: tuple[tuple[int, str, int], ...] = ()


def caption(scene: Scene, draws: Draws) -> str:
  """Describes a scene in a style, an order and an opening drawn at random."""
  things = _shuffled(scene.things, draws)
  names = [s for s in STYLES if s != "relations" or len(things) > 1]
  style = draws.choice(names)
  said = [_claim(thing, STYLES[style]) for thing in things]
  opener = draws.choice(OPENERS)
  if style == "total":
    noun = "shape" if len(things) == 1 else "shapes"
    return f"{opener}{COUNTS[len(things) - 1]} {noun}: {_listed(said)}"
  if style != "relations":
    return opener + _listed(said)
  parts = []
  for i in range(0, len(things), 2):
    part = _noun_phrase(said[i], 1)
    if i + 1 < len(things):
      relation = relation_of(things[i], things[i + 1])
      words = [word for word, means in RELATION_WORDS.items() if means == relation]
      part += f" {draws.choice(words)} {_noun_phrase(said[i + 1], 1)}"
    parts.append(part)
  return opener + ", and ".join(parts)


def say(claims: Claims) -> str:
  """Puts claims into words, such that `claims_of` reads them back.

  Args:
    claims: of which each relation joins a thing with the one behind it, and no thing
      stands in two.
  """
  joined = {a: relation for a, relation, _ in claims.relations}
  if not joined:
    return _listed(claims.things)
  parts, index = [], 0
  while index < len(claims.things):
    part = _noun_phrase(claims.things[index], 1)
    if relation := joined.get(index):
      words = next(word for word, means in RELATION_WORDS.items() if means == relation)
      index += 1
      part += f" {words} {_noun_phrase(claims.things[index], 1)}"
    parts.append(part)
    index += 1
  return ", and ".join(parts)


def claims_of(text: str) -> Claims | None:
  """Reads a caption back.

  Args:
    text: of a person or a model; case and a full stop do not matter.

  Returns:
    None for anything but a caption of this grammar.
  """
  text = text.strip().lower().removesuffix(".")
  opener = max((o for o in OPENERS if text.startswith(o)), key=len)
  text, total = text[len(opener) :], None
  if match := re.match(rf"({'|'.join(COUNTS)}) shapes?: ", text):
    total, text = COUNTS.index(match[1]) + 1, text[match.end() :]
  found = list(_NOUN_PHRASE.finditer(text))
  ends = [0] + [match.end() for match in found]
  glue = [text[end : m.start()] for end, m in zip(ends, found)]
  if not found or glue[0] or ends[-1] < len(text):
    return None
  things: list[Claim] = []
  relations, count_before = [], 0
  for between, match in zip([", ", *glue[1:]], found):
    count, claim = _read_noun_phrase(match)
    if between.strip() in RELATION_WORDS:
      if (count_before, count) != (1, 1):
        return None
      relations.append((len(things) - 1, RELATION_WORDS[between.strip()], len(things)))
    elif between not in (", ", " and ", ", and "):
      return None
    things += [claim] * count
    count_before = count
  if total not in (None, len(things)):
    return None
  return Claims(tuple(things), tuple(relations))


def claims_hold(claims: Claims, things: Sequence[Thing], *, slack: float = 0.0) -> bool:
  """Whether an image of `things` shows all that is claimed, and no thing more.

  Args:
    claims: of a caption.
    things: of a scene, or read from an image.
    slack: by how much a thing may miss a place or a relation, a share of the side.
  """
  if len(claims.things) != len(things):
    return False
  return any(
    all(_fits(c, t, slack) for c, t in zip(claims.things, order))
    and all(related(order[a], r, order[b], slack=slack) for a, r, b in claims.relations)
    for order in itertools.permutations(things)
  )


def instruction(scene: Scene, change: Change, draws: Draws) -> str:
  """Puts a change of a scene into words; its things are unlike, so each can be named.

  Whatever is new stands in the words: a place is its point in scenes.PLACES, a size
  its radius, a colour its level, without jitter.
  """
  new = change.thing
  if new is None:  # the kind is remove
    it = _reference(scene.things, change.index, draws)
    return draws.choice((f"remove {it}", f"take {it} away"))
  if change.kind == "add":
    claim = _claim(new, ("size", "colour", "shape", "place"))
    return f"{draws.choice(('add', 'draw'))} {_noun_phrase(claim, 1)}"
  it = _reference(scene.things, change.index, draws)
  if change.kind == "colour":
    return f"{draws.choice(('make', 'paint', 'colour'))} {it} {new.colour}"
  if change.kind == "size":
    return f"make {it} {new.size}"
  if change.kind == "place":
    return f"move {it} {PLACE_TARGETS[place_of(new)]}"
  assert change.kind == "shape", change.kind
  return f"{draws.choice(('turn', 'change'))} {it} into {_article(new.shape)}"


def _reference(things: Sequence[Thing], index: int, draws: Draws) -> str:
  """Names one thing by as much as tells it from the others, or by more."""
  thing = things[index]
  ways = [f"the {thing.colour} {thing.shape}"]
  if sum(t.shape == thing.shape for t in things) == 1:
    ways.append(f"the {thing.shape}")
  if sum(t.colour == thing.colour for t in things) == 1:
    ways.append(f"the {thing.colour} shape")
  return draws.choice(ways)


def _shuffled(things: Sequence[Thing], draws: Draws) -> list[Thing]:
  left = list(things)
  return [left.pop(draws.below(len(left))) for _ in things]


def _claim(thing: Thing, said: Iterable[str]) -> Claim:
  known = {
    "shape": thing.shape,
    "colour": thing.colour,
    "size": thing.size,
    "place": place_of(thing),
  }
  return Claim(**{name: known[name] for name in said})


def _listed(said: Sequence[Claim]) -> str:
  """Joins noun phrases; what is said twice is counted."""
  phrases = [_noun_phrase(claim, said.count(claim)) for claim in dict.fromkeys(said)]
  last = phrases[-1]
  return f"{', '.join(phrases[:-1])} and {last}" if phrases[1:] else last


def _noun_phrase(claim: Claim, count: int) -> str:
  noun = claim.shape or "shape"
  words = " ".join(filter(None, (claim.size, claim.colour, noun)))
  if count > 1:
    words = f"{COUNTS[count - 1]} {words.removesuffix(noun)}{_plural(noun)}"
  else:
    words = _article(words)
  return f"{words} {PLACE_WORDS[claim.place]}" if claim.place else words


def _article(words: str) -> str:
  return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(noun: str) -> str:
  return noun + ("es" if noun.endswith("s") else "s")


_NOUNS = {name: name for name in (*SHAPES, "shape")}
_NOUNS |= {_plural(name): name for name in _NOUNS}
_PLACES = {words: place for place, words in PLACE_WORDS.items()}


def _one_of(words: Iterable[str]) -> str:
  return "|".join(sorted(words, key=len, reverse=True))


_NOUN_PHRASE = re.compile(
  rf"\b(?P<count>an?|{_one_of(COUNTS)})(?: (?P<size>{_one_of(SIZES)}))?"
  rf"(?: (?P<colour>{_one_of(COLOURS)}))? (?P<noun>{_one_of(_NOUNS)})"
  rf"(?: (?P<place>{_one_of(_PLACES)}))?\b"
)


def _read_noun_phrase(match: re.Match) -> tuple[int, Claim]:
  count = COUNTS.index(match["count"]) + 1 if match["count"] in COUNTS else 1
  noun, place = _NOUNS[match["noun"]], match["place"]
  shape = None if noun == "shape" else noun
  claim = Claim(shape, match["colour"], match["size"], place and _PLACES[place])
  return count, claim


def _fits(claim: Claim, thing: Thing, slack: float) -> bool:
  for name in ("shape", "colour", "size"):
    if getattr(claim, name) not in (None, getattr(thing, name)):
      return False
  return claim.place is None or in_place(thing, claim.place, slack=slack)
