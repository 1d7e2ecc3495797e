"""Promises of tfusion/data/branches.py, and of lanes that use it."""

import itertools
import json

import numpy as np
import pytest
import tiny
from tiny_sources import ALL, Given, changed, latent, stories, tokenizer

from tfusion import sequence
from tfusion.data.branches import branch
from tfusion.data.lane_state import LaneState
from tfusion.data.lanes import Lane
from tfusion.sequence import BREAK, Image, Text

SPECIAL = tokenizer().special
PATCHES = 16
TEXT, READ = Text(np.arange(9, 12)), Text(np.arange(9, 11), weight=0.0)
BOTH = changed(ALL, diffusion=dict(context="both"))


def image(number: int, **how) -> Image:
  return Image(latent(number), **how)


SHOWN = image(7, noise_cap=0.0)
# Each with the places of the images that stand twice.
DOCUMENTS = {
  "caption first": ((TEXT, image(1)), []),
  "image first": ((image(1), TEXT), [0]),
  "dropped caption": ((BREAK, image(1), BREAK), []),
  "page": ((image(1), TEXT, image(2), image(3), TEXT, image(4)), [0, 2, 3]),
  "album": ((image(1), image(2), image(3)), [0, 1]),
  "edit": ((SHOWN, READ, image(2)), []),
  "answer": ((image(1), READ), []),
  "of no weight": ((image(1, weight=0.0), TEXT), []),
}


def lay_out(*spans) -> sequence.Elements:
  return sequence.lay_out(spans, special=SPECIAL, patches_per_image=(PATCHES,))


def only_read(span):
  """The same span, not learned; an image without noise."""
  if isinstance(span, Image):
    return Image(span.latent, weight=0.0, noise_cap=0.0)
  return Text(span.ids, weight=0.0)


def assert_same(got, want, *, images):
  for a, b in zip(got[:-1], want[:-1], strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert len(got.images) == len(images)
  for a, (pixels, is_learned) in zip(got.images, images, strict=True):
    np.testing.assert_array_equal(a.latent, pixels)
    assert (a.noise_cap > 0 and a.weight > 0) == is_learned


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_an_image_that_something_follows_stands_clean_there_and_noised_in_a_branch(
  kind,
):
  spans, twice = DOCUMENTS[kind]
  whole = lay_out(*spans)
  document, *others = branch(whole, special=SPECIAL, patches_per_image=(PATCHES,))
  learned = lambda n, s: s.noise_cap > 0 and s.weight > 0 and n not in twice  # noqa: E731
  pictures = [
    (s.latent, learned(n, s)) for n, s in enumerate(spans) if type(s) is Image
  ]
  assert_same(document, whole, images=pictures)  # but the images, it is what it was
  assert len(others) == len(twice)
  for place, other in zip(twice, others, strict=True):
    before = [only_read(s) for s in spans[:place]]
    # Up to its last patch; EOI would follow.
    alone = lay_out(*before, only_read(spans[place]))
    end = len(alone.tokens_l) - 1
    want = sequence.Elements(*(field[:end] for field in alone[:-1]), images=())
    pictures = [(s.latent, False) for s in before if type(s) is Image]
    assert_same(other, want, images=[*pictures, (spans[place].latent, True)])
    assert not other.weights_l.any() and np.all(other.targets_l == SPECIAL.pad)


def test_the_positions_of_both_copies_are_the_same():
  spans, twice = DOCUMENTS["page"]
  document, *others = branch(
    lay_out(*spans), special=SPECIAL, patches_per_image=(PATCHES,)
  )
  for positions in ("sequence", "shared", "axial"):
    row = sequence.pack(
      [document, *others],
      row_length=512,
      kinds=(
        sequence.KindSizes(
          12, (8, 8, 1), PATCHES, sequence.position_steps(positions, (4, 4))
        ),
      ),
      special=SPECIAL,
    )
    starts = np.flatnonzero((row.positions_l == 0) & (row.hi_l >= row.lo_l))
    for start, other in zip(starts[1:], others, strict=True):
      length = len(other.tokens_l)
      np.testing.assert_array_equal(
        row.positions_l[start : start + length], row.positions_l[:length]
      )
      assert row.hi_l[start + length - 1] == start + length - 1


def test_a_branch_costs_what_the_docs_say():
  s, m = 3, PATCHES
  for k in range(1, 5):
    spans = [f() for f in (lambda: TEXT, lambda: image(1)) * k]
    parts = branch(lay_out(*spans, TEXT), special=SPECIAL, patches_per_image=(PATCHES,))
    n, *more = (len(part.tokens_l) for part in parts)
    assert n == 1 + k * (s + m + 2) + s
    assert sum(more) == k * m + k * (1 + s + 1) + (k - 1) * k // 2 * (m + s + 2)
  for spans in ((image(1), TEXT), (image(1), READ, image(2))):
    _, more = branch(lay_out(*spans), special=SPECIAL, patches_per_image=(PATCHES,))
    assert len(more.tokens_l) == m + 2


def learned(row) -> list:
  own = row.weights_l > 0
  return list(zip(row.tokens_l[own], row.targets_l[own], strict=True))


def test_a_lane_learns_with_branches_what_it_learns_without_and_each_image_once():
  one = dict(sources=("stories",), weights=(), epochs=(), lanes=1)
  data = one | dict(caption_first=1, caption_dropout=0)
  found = {}
  for context in ("noised", "both"):
    config = changed(ALL, diffusion=dict(context=context), data=data)
    source = Given("stories", 60, stories)
    lane = Lane([source], tokenizer(), config, lane=0, repeat=False)
    rows = list(lane)
    image_weight = [row.slots[0].latents[row.slots[0].weights > 0] for row in rows]
    texts = sorted(itertools.chain(*map(learned, rows)))
    images = sorted(np.concatenate(image_weight)[:, 0, 0, 0])
    found[context] = texts, images, lane.state()
    clean = sum(int(np.sum(row.slots[0].noise_caps == 0)) for row in rows)
    assert (clean > 50) == (context == "both")
    state = lane.state()
    assert state.elements["stories"] == state.row_elements
    assert state.text_elements + state.patches == state.row_elements
  without, both = found["noised"], found["both"]
  assert without[:2] == both[:2]
  assert without[2].split == both[2].split and without[2].pieces == both[2].pieces
  assert both[2].row_elements > 1.5 * without[2].row_elements


@pytest.mark.parametrize("rows", range(1, 30, 4))
def test_a_lane_of_branches_goes_on_from_any_row_as_if_it_had_not_stopped(rows):
  sources = (Given("stories", 250, stories),)
  config = changed(BOTH, data=dict(sources=("stories",), weights=(), epochs=()))
  lane = Lane(sources, tokenizer(), config, lane=0)
  for _ in range(rows):
    next(lane)
  state = LaneState.from_json(json.loads(json.dumps(lane.state().to_json())))
  again = Lane(sources, tokenizer(), config, lane=0, state=state)
  for _ in range(6):
    got, want = next(again), next(lane)
    assert again.last_keys == lane.last_keys
    tiny.assert_same_batch(got, want)
