"""The source `shapes`: rendered scenes with words, any number of them, by index.

Owns: its options, what a document of each kind is, the splits and their parts. Not:
scenes (scene.py), images (render.py), words (captions.py).

A document is a pure function of (kind, seed, split, index): nothing is stored, and the
documents may be asked for in any order. Kinds:

  pairs    caption, image
  stories  caption, image, "now make the square red", image, ...
  edits    image (read, not learned), "make the square red", image

The test split has two parts. `seen` is what training is like. In `held_out`, every
HELD_OUT_EVERY-th document from 0, the last image shows a pair of colour and shape of
scenes.HELD_OUT, which no training document of any kind shows or names.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tfusion import sequence
from tfusion.data.contents import Contents, hash_of
from tfusion.data.scenes import captions
from tfusion.data.scenes.render import render
from tfusion.data.scenes.scene import (
  HELD_OUT,
  MOST_THINGS,
  Change,
  Draws,
  Scene,
  draw_change,
  draw_scene,
  pair_of,
)
from tfusion.data.source import Source
from tfusion.version import __version__

KINDS = ("pairs", "stories", "edits")
SIDES_PX = (32, 64)
STORY_IMAGES = (2, 3, 4)
THEN = ("now", "then", "next,", "after that,")
HELD_OUT_EVERY = 4  # test documents
TEST_LENGTH = 8192  # documents at most
MOST_DOCUMENTS = 2**31 - 1
HASHED = 16  # documents by which another version of this program is known
SAMPLED_TEXTS = 4096  # documents whose texts a tokenizer is trained on


@dataclasses.dataclass(frozen=True)
class Truth:
  """The truth of a document: its texts and scenes, each in order.

  `changes[i]` leads from scenes[i] to scenes[i + 1].
  """

  texts: tuple[str, ...]
  scenes: tuple[Scene, ...]
  changes: tuple[Change, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shapes(Source):
  """Documents of one kind and split; `truth(i)` is what document i shows and says."""

  kind: str  # of KINDS
  split: str  # "train" or "test"
  px: int  # pixels along a side
  length: int
  seed: int = 0
  things: int = MOST_THINGS  # in a scene, at most

  def __len__(self) -> int:
    return self.length

  def contents(self) -> Contents:
    """A hash of the options and of the first documents: one program makes all of them,
    and a change of it shows in some."""
    options = (self.kind, self.split, self.px, self.length, self.seed, self.things)
    parts: list[str | bytes] = [repr(options)]
    for index in range(min(self.length, HASHED)):
      for span in self[index]:
        latent = span.latent if isinstance(span, sequence.Image) else span
        parts.append(latent if isinstance(latent, str) else latent.tobytes())
    made_with = f"tfusion {__version__}"
    return Contents(hash_of(parts), self.length, made_with)

  def __getitem__(self, index: int) -> tuple[str | np.ndarray | sequence.Image, ...]:
    truth = self.truth(index)
    images = [
      render(scene, self.px).astype(np.float32) / 127.5 - 1 for scene in truth.scenes
    ]
    if self.kind == "edits":
      before, after = images
      given = sequence.Image(before, weight=0.0, noise_cap=0.0)
      return given, truth.texts[0], after
    return tuple(span for both in zip(truth.texts, images) for span in both)

  def truth(self, index: int) -> Truth:
    """Returns the texts and scenes of document `index`.

    Raises:
      IndexError: there is no such document.
    """
    if not 0 <= index < self.length:
      raise IndexError(f"{self.name}: document {index} of {self.length}")
    draws = Draws("shapes", self.kind, self.split, self.seed, index)
    held_out = self.part(index) == "held_out"
    scenes, changes = _tell(draws, self.kind, self.things, held_out)
    says = [
      captions.instruction(before, change, draws)
      for before, change in zip(scenes, changes)
    ]
    if self.kind == "stories":
      says = [f"{draws.choice(THEN)} {text}" for text in says]
    if self.kind != "edits":
      says.insert(0, captions.caption(scenes[0], draws))
    return Truth(tuple(says), scenes, changes)

  def part(self, index: int) -> str:
    """The part of a document: "seen", or "held_out" for some of the test split."""
    apart = self.split == "test" and index % HELD_OUT_EVERY == 0
    return "held_out" if apart else "seen"

  def texts(self) -> Iterable[str]:
    """The texts of the first SAMPLED_TEXTS documents, the same at every call.

    Documents are independent of each other, so the first are as good a sample as any,
    and they hold every word there is.
    """
    for index in range(min(self.length, SAMPLED_TEXTS)):
      yield from self.truth(index).texts


def open_shapes(
  argument: str, *, split: str, image_shape: tuple[int, int, int]
) -> Shapes:
  """Opens a kind of documents with options.

  Args:
    argument: a kind of KINDS (pairs without one) and options, as in
      "stories,length=100000,seed=1,things=2": documents in the training split (a
      million; the test split has as many, up to TEST_LENGTH), a seed (0), things in a
      scene at most (4).
    split: "train" or "test"; they share no random number.
    image_shape: h, w, c of the images: (32, 32, 3) or (64, 64, 3).

  Raises:
    ValueError: another shape, kind, option or value.
  """
  name = f"shapes:{argument}" if argument else "shapes"
  shapes = [(px, px, 3) for px in SIDES_PX]
  if tuple(image_shape) not in shapes:
    raise ValueError(
      f"model.image_shape={tuple(image_shape)}: data.sources={name!r} has images of"
      f" {shapes[0]} or {shapes[1]}; choose one of these"
    )
  kind, *rest = argument.split(",") if argument else ("pairs",)
  if "=" in kind:
    kind, rest = "pairs", [kind, *rest]
  if kind not in KINDS:
    raise ValueError(f"data.sources={name!r}: kind {kind!r} is unknown; known: {KINDS}")
  options = {"length": 1_000_000, "seed": 0, "things": MOST_THINGS}
  bounds = {
    "length": (1, MOST_DOCUMENTS),
    "seed": (0, MOST_DOCUMENTS),
    "things": (1, MOST_THINGS),
  }
  given: set[str] = set()
  for option in rest:
    key, _, value = option.partition("=")
    if key not in options or key in given:
      raise ValueError(
        f"data.sources={name!r}: option {option!r} is unknown or repeated; known:"
        f" {sorted(options)}, each once, as in length=1000"
      )
    least, most = bounds[key]
    if not value.isdecimal() or not least <= int(value) <= most:
      raise ValueError(
        f"data.sources={name!r}: {option!r} is not a number from {least} to {most}"
      )
    given.add(key)
    options[key] = int(value)
  if split == "test":
    options["length"] = min(options["length"], TEST_LENGTH)
  return Shapes(
    name,
    kind,
    split,
    image_shape[0],
    length=options["length"],
    seed=options["seed"],
    things=options["things"],
  )


def _tell(
  draws: Draws, kind: str, most: int, held_out: bool
) -> tuple[tuple[Scene, ...], tuple[Change, ...]]:
  """Draws the scenes of a document and what leads from one to the next."""
  if kind == "pairs":
    return (draw_scene(draws, most=most, held_out=held_out),), ()
  images = draws.choice(STORY_IMAGES) if kind == "stories" else 2
  while True:
    scenes = [draw_scene(draws, most=most, held_out=held_out, unlike=True)]
    changes = []
    for _ in range(images - 1):
      change = draw_change(draws, scenes[-1], most=most, held_out=held_out)
      changes.append(change)
      scenes.append(change.apply(scenes[-1]))
    ends = {pair_of(thing) for thing in scenes[-1].things}
    if not held_out or ends & set(HELD_OUT):
      return tuple(scenes), tuple(changes)
