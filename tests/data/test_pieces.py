"""Long documents in pieces: nothing lost, nothing learned twice, no image cut."""

import itertools
import json

import numpy as np
import pytest
import tiny
from tiny_sources import (
  ALL,
  FIRST_CODE,
  Given,
  changed,
  latent,
  stories,
  tokenizer,
)

from tfusion import sequence
from tfusion.data import pieces
from tfusion.data.lane_state import LaneState
from tfusion.data.lanes import Lane
from tfusion.sequence import Codes, Image, Text

PATCHES = 4
SPECIAL = tokenizer().special


def lay_out(document):
  return sequence.lay_out(document, special=SPECIAL, patches_per_image=(PATCHES,))


def cut(whole, *, row_length=24, image_slots=2, overlap=0, endings=None):
  return pieces.cut(
    whole,
    endings=np.zeros(300, np.uint8) if endings is None else endings,
    special=SPECIAL,
    row_length=row_length,
    image_slots=(image_slots,),
    patches_per_image=(PATCHES,),
    overlap=overlap,
  )


def random_document(rng) -> sequence.Document:
  spans = []
  for n in range(rng.integers(1, 12)):
    weight, kind = float(rng.integers(0, 3)), rng.random()
    if kind < 0.3:
      cap = float(rng.uniform(0.1, 1))
      spans.append(Image(latent(n, (4, 4, 1)), weight, cap))
    elif kind < 0.4:
      spans.append(Codes(np.arange(300, 300 + rng.integers(1, 9)), weight))
    else:
      spans.append(Text(rng.integers(6, 290, rng.integers(0, 30)), weight))
  return tuple(spans)


@pytest.mark.parametrize("seed", range(60))
def test_without_overlap_the_pieces_join_to_the_whole(seed):
  whole = lay_out(random_document(np.random.default_rng(seed)))
  made = cut(whole)
  for name in ("tokens_l", "targets_l", "weights_l"):
    joined = np.concatenate([getattr(piece, name) for piece in made])
    np.testing.assert_array_equal(joined, getattr(whole, name))
  assert [image for piece in made for image in piece.images] == list(whole.images)
  start = images = 0
  for piece in made:
    stop = start + len(piece.tokens_l)
    np.testing.assert_array_equal(piece.hi_l + start, whole.hi_l[start:stop])
    is_patch = piece.patch_l >= 0
    np.testing.assert_array_equal(is_patch, whole.patch_l[start:stop] >= 0)
    np.testing.assert_array_equal(
      piece.patch_l[is_patch] + images * PATCHES,
      whole.patch_l[start:stop][is_patch],
    )
    start, images = stop, images + len(piece.images)


@pytest.mark.parametrize("overlap", [1, 5, 12])
@pytest.mark.parametrize("seed", range(40))
def test_with_overlap_all_is_learned_once_and_the_context_is_only_read(seed, overlap):
  whole = lay_out(random_document(np.random.default_rng(seed)))
  # Another token everywhere, so that each element says which it is.
  numbered = whole._replace(
    tokens_l=np.where(
      np.isin(whole.tokens_l, SPECIAL.ids),
      whole.tokens_l,
      1000 + np.arange(len(whole[0])),
    ).astype(np.int32)
  )
  made = cut(numbered, overlap=overlap)
  assert [len(m.tokens_l) for m in made] == [
    len(m[0]) for m in cut(whole, overlap=overlap)
  ]
  end = 0
  for n, piece in enumerate(made):
    own = len(piece.tokens_l)
    starts = [
      s
      for s in range(max(end - overlap, min(n, 1)), end + 1)
      if np.array_equal(numbered.tokens_l[s : s + own], piece.tokens_l)
      and np.array_equal(numbered.patch_l[s : s + own] >= 0, piece.patch_l >= 0)
    ]
    start = starts[0]
    context = end - start
    assert not piece.weights_l[:context].any()
    assert np.all(piece.targets_l[:context] == SPECIAL.pad)
    same = slice(end, start + own)
    np.testing.assert_array_equal(piece.weights_l[context:], whole.weights_l[same])
    np.testing.assert_array_equal(piece.targets_l[context:], whole.targets_l[same])
    np.testing.assert_array_equal(piece.hi_l + start, whole.hi_l[start : same.stop])
    is_patch = piece.patch_l >= 0
    assert np.sum(is_patch) == PATCHES * len(piece.images)
    np.testing.assert_array_equal(
      piece.patch_l[is_patch], np.arange(PATCHES * len(piece.images))
    )
    first = np.min(whole.patch_l[start:][whole.patch_l[start:] >= 0], initial=10**6)
    read = np.sum(is_patch[:context]) // PATCHES
    for i, image in enumerate(piece.images):
      origin = whole.images[first // PATCHES + i]
      assert image.latent is origin.latent
      learned = (image.weight, image.noise_cap) == (origin.weight, origin.noise_cap)
      assert learned if i >= read else (image.weight, image.noise_cap) == (0.0, 0.0)
    end = same.stop
  assert end == len(whole.tokens_l)


@pytest.mark.parametrize("overlap", [0, 12])
@pytest.mark.parametrize("seed", range(40))
def test_a_piece_fits_a_row_and_holds_whole_images(seed, overlap):
  whole = lay_out(random_document(np.random.default_rng(seed)))
  made = cut(whole, overlap=overlap)
  for n, piece in enumerate(made):
    assert 0 < len(piece.tokens_l) <= 24 and len(piece.images) <= 2
    assert (SPECIAL.bos in piece.tokens_l) == (n == 0)
    begins = np.flatnonzero(piece.tokens_l == SPECIAL.boi)
    ends = np.flatnonzero(piece.tokens_l == SPECIAL.eoi)
    assert len(begins) == len(ends) and np.all(begins < ends)
    inside = np.zeros(len(piece.tokens_l), bool)
    for begin, end in zip(begins, ends, strict=True):
      inside[begin + 1 : end] = True
      assert piece.tokens_l[begin + 1] >= FIRST_CODE or end - begin - 1 == PATCHES
    codes = (piece.tokens_l >= FIRST_CODE) | (piece.patch_l >= 0)
    np.testing.assert_array_equal(inside, codes)


def test_the_example_of_the_module_docstring_holds():
  b = Text(np.array([10, 11, 12]))
  image = Image(latent(1, (2, 4, 1)))
  whole = sequence.lay_out(
    (b, image, Text(np.array([13]))), special=SPECIAL, patches_per_image=(2,)
  )
  made = pieces.cut(
    whole,
    endings=np.zeros(20, np.uint8),
    special=SPECIAL,
    row_length=6,
    image_slots=(1,),
    patches_per_image=(2,),
    overlap=2,
  )
  pad, bos, eos, boi, eoi, _ = SPECIAL
  assert [list(m.tokens_l) for m in made] == [
    [bos, 10, 11, 12],
    [11, 12, boi, pad, pad, eoi],
    [13],
  ]
  assert [list(m.targets_l) for m in made] == [
    [10, 11, 12, boi],
    [pad, pad, pad, pad, pad, 13],
    [eos],
  ]


def test_a_cut_lies_behind_a_paragraph_else_a_sentence_else_as_late_as_can_be():
  endings = np.zeros(300, np.uint8)
  endings[50], endings[60] = 1, 2  # a full stop, a line end
  ids = np.full(40, 20)
  assert [len(m[0]) for m in cut(lay_out((Text(ids),)), endings=endings)] == [24, 17]
  for place, token in ((16, 50), (14, 60), (20, 50)):  # the best wins, then the last
    ids[place] = token
  assert len(cut(lay_out((Text(ids),)), endings=endings)[0][0]) == 16
  ids[14] = 20
  assert len(cut(lay_out((Text(ids),)), endings=endings)[0][0]) == 22
  ids[[16, 20]], ids[5] = 20, 60  # in the first half: rows would stay half empty
  assert len(cut(lay_out((Text(ids),)), endings=endings)[0][0]) == 24


def test_bos_is_not_repeated_where_the_first_piece_is_short():
  endings = np.zeros(300, np.uint8)
  endings[50] = 1
  ids = np.arange(100, 140)
  ids[12] = 50
  first, second, *_ = cut(lay_out((Text(ids),)), endings=endings, overlap=20)
  assert list(first.tokens_l) == [SPECIAL.bos, *ids[:13]]
  assert list(second.tokens_l) == list(ids[:24])
  assert not second.weights_l[:13].any() and second.weights_l[13:].all()


def test_line_ends_and_full_stops_end_something_in_the_tokenizer():
  for text, expected in ((".", 1), ("\n", 2), ("7", 0), ("a", 0)):
    assert tokenizer().endings[tokenizer().encode(text)[-1]] == expected


def test_an_image_that_fits_no_row_gives_no_pieces():
  whole = lay_out((Text(np.arange(10, 40)), Codes(np.arange(300, 330))))
  assert cut(whole) == []
  assert cut(lay_out((Image(latent(1, (4, 4, 1))),)), row_length=5) == []


# In a lane.

LONG = changed(ALL, data=dict(sources=("stories",), weights=(), epochs=(), lanes=1))


def learned(row):
  """Position, token and target of everything that is learned in a row."""
  own = row.weights_l > 0
  return list(zip(row.tokens_l[own], row.targets_l[own], strict=True))


@pytest.mark.parametrize("overlap", [0, 7])
def test_a_lane_that_splits_learns_exactly_what_the_whole_documents_hold(overlap):
  config = changed(LONG, data=dict(overlap=overlap, caption_first=1, caption_dropout=0))
  source = Given("stories", 200, stories)
  lane = Lane([source], tokenizer(), config, lane=0, repeat=False)
  rows = list(lane)
  patches = config.model.patches_per_image
  expected, images = [], []
  for n in range(200):
    document = tuple(
      Text(tokenizer().encode(s)) if isinstance(s, str) else Image(s)
      for s in stories(n)
    )
    if len(document) == 2 and sum(isinstance(s, Image) for s in document) == 1:
      document = tuple(sorted(document, key=sequence.is_image))
    whole = sequence.lay_out(document, special=SPECIAL, patches_per_image=(patches,))
    own = whole.weights_l > 0
    expected += zip(whole.tokens_l[own], whole.targets_l[own], strict=True)
    images += [image.latent[0, 0, 0] for image in whole.images]
  assert sorted(itertools.chain(*map(learned, rows))) == sorted(expected)
  shown = [row.slots[0].latents[row.slots[0].weights > 0, 0, 0, 0] for row in rows]
  assert sorted(np.concatenate(shown)) == sorted(images)
  state = lane.state()
  assert state.split["stories"] > 10 and state.rejected["stories"] == 0
  assert state.pieces["stories"] > 2 * state.split["stories"]
  assert state.elements["stories"] == state.row_elements


def test_several_images_and_texts_keep_their_order():
  config = changed(LONG, data=dict(packing_rows=1, row_length=128, image_slots=8))
  source = Given("stories", 200, stories)
  lane = Lane([source], tokenizer(), config, lane=0)
  orders = set()
  for row in itertools.islice(lane, 200):
    start = slot = 0
    for key in lane.last_keys:
      spans = stories(lane.document_index(key))
      if key.piece is None and len(spans) > 2:
        text, order = "", []
        for span in spans:
          if isinstance(span, str):
            text += span
          else:
            order.append(span[0, 0, 0])
        own = row.lo_l == start
        assert tokenizer().decode(row.tokens_l[own]) == text
        found = row.slots[0].latents[slot : slot + len(order), 0, 0, 0]
        np.testing.assert_array_equal(found, order)
        assert np.all(row.slots[0].noise_caps[slot : slot + len(order)] == 1.0)
        assert np.all(row.slots[0].weights[slot : slot + len(order)] == 1.0)
        kinds = "".join("t" if isinstance(s, str) else "i" for s in spans)
        orders.add(kinds)
      own = np.flatnonzero(row.lo_l == start)
      slot += int(np.sum(row.patch_l[own] >= 0)) // 16
      start = own[-1] + 1
  assert len(orders) > 5 and any(order.count("i") > 2 for order in orders)


def test_long_documents_are_rejected_unless_they_are_to_be_split():
  config = changed(LONG, data=dict(too_long="reject", overlap=0))
  lane = Lane([Given("stories", 200, stories)], tokenizer(), config, lane=0)
  for _ in range(20):
    next(lane)
  state = lane.state()
  assert state.rejected["stories"] > 10 and state.split["stories"] == 0


@pytest.mark.parametrize("stop", range(8))
def test_a_lane_goes_on_in_the_middle_of_a_document(stop):
  source = Given("books", 200, book)
  config = changed(LONG, data=dict(sources=("books",), packing_rows=1))
  lane = Lane([source], tokenizer(), config, lane=0)
  for _ in range(stop):
    next(lane)
  state = LaneState.from_json(json.loads(json.dumps(lane.state().to_json())))
  assert stop < 3 or state.next_piece  # of some 30 pieces
  again = Lane([source], tokenizer(), config, lane=0, state=state)
  for _ in range(40):
    tiny.assert_same_batch(next(lane), next(again))
    assert lane.last_keys == again.last_keys
  assert lane.state() == again.state()


def book(number):
  return tuple(f"{number}.{n} " * 25 for n in range(10))
