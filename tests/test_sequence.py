"""tfusion.sequence against a slow, separate statement of its rules."""

import dataclasses

import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.sequence import Codes, Image, PositionSteps, SpecialTokens, Text

SPECIAL = SpecialTokens(pad=0, bos=2, eos=3, boi=4, eoi=5)
PATCHES = 4
SHAPE = (4, 4, 1)


def random_document(
  rng, *, weights=(1.0,), codes=True, breaks=False
) -> sequence.Document:
  spans = []
  for _ in range(rng.integers(0, 5)):
    weight = float(rng.choice(weights))
    kind = rng.random()
    if breaks and rng.random() < 0.2:
      spans.append(sequence.BREAK)
    if codes and kind < 0.2:
      spans.append(Codes(rng.integers(90, 99, 5).astype(np.int32), weight))
    elif kind < 0.5:
      latent = rng.normal(size=SHAPE).astype(np.float32)
      spans.append(Image(latent, weight, noise_cap=float(rng.uniform(0.1, 1))))
    else:
      ids = rng.integers(6, 90, rng.integers(0, 6)).astype(np.int32)
      spans.append(Text(ids, weight))
  return tuple(spans)


def spelled_out(document) -> list[tuple]:
  """Every input as (kind, token, weight as a target, image), and EOS at the end."""
  inputs = [("bos", SPECIAL.bos, None, None)]
  broken = []  # inputs that follow what was left out
  for n, span in enumerate(document):
    if span == sequence.BREAK:
      broken.append(len(inputs))
    elif isinstance(span, Text):
      inputs += [("text", i, span.weight, None) for i in span.ids]
    elif isinstance(span, Codes):
      inputs += [("code boi", SPECIAL.boi, span.weight, None)]
      inputs += [("code", i, span.weight, None) for i in span.ids]
      inputs += [("code eoi", SPECIAL.eoi, span.weight, None)]
    else:
      inputs += [("boi", SPECIAL.boi, span.weight, None)]
      inputs += [("patch", SPECIAL.pad, None, n)] * PATCHES
      inputs += [("eoi", SPECIAL.eoi, None, None)]
  end = document[-1].weight if document else 1.0
  inputs += [("eos", SPECIAL.eos, end, None)]
  for at in broken:
    inputs[at] = (*inputs[at][:2], 0.0, None)  # never a patch: BOI is before it
  return inputs


def lay_out(document):
  return sequence.lay_out(document, special=SPECIAL, patches_per_image=(PATCHES,))


def pack(documents, *, row_length=64, image_slots=9, steps=PositionSteps(), **how):
  return sequence.pack(
    [lay_out(d) for d in documents],
    row_length=row_length,
    kinds=(sequence.KindSizes(image_slots, SHAPE, PATCHES, steps),),
    special=SPECIAL,
    **how,
  )


def packed_documents(rng, *, row_length=64, codes=True):
  documents, left = [], row_length
  while True:
    document = random_document(rng, codes=codes)
    left -= sequence.element_count(document, patches_per_image=(PATCHES,))
    if left < 0:
      return documents
    documents.append(document)


def test_the_example_of_the_module_docstring_holds():
  latent = np.zeros(SHAPE, np.float32)
  laid = lay_out((Text(np.array([10, 11])), Image(latent)))
  pad = SPECIAL.pad
  np.testing.assert_array_equal(laid.tokens_l, [2, 10, 11, 4, pad, pad, pad, pad, 5])
  np.testing.assert_array_equal(laid.targets_l, [10, 11, 4, pad, pad, pad, pad, pad, 3])
  np.testing.assert_array_equal(laid.weights_l, [1, 1, 1, 0, 0, 0, 0, 0, 1])
  np.testing.assert_array_equal(laid.hi_l, [0, 1, 2, 3, 7, 7, 7, 7, 8])
  np.testing.assert_array_equal(laid.patch_l, [-1, -1, -1, -1, 0, 1, 2, 3, -1])


@pytest.mark.parametrize("seed", range(50))
def test_inputs_targets_and_weights_follow_the_rules_one_by_one(seed):
  rng = np.random.default_rng(seed)
  document = random_document(rng, weights=(0.0, 1.0), breaks=True)
  laid, inputs = lay_out(document), spelled_out(document)
  assert len(laid.tokens_l) == len(inputs) - 1
  for i, (kind, token, _, image) in enumerate(inputs[:-1]):
    next_kind, next_token, next_weight, _ = inputs[i + 1]
    learned = kind != "boi" and next_kind not in ("patch", "eoi") and next_weight > 0
    assert laid.tokens_l[i] == token
    assert laid.weights_l[i] == (next_weight if learned else 0)
    assert laid.targets_l[i] == (next_token if learned else SPECIAL.pad)
    same = [
      j for j, other in enumerate(inputs) if image is not None and other[3] is image
    ]
    assert laid.hi_l[i] == (max(same) if same else i)


@pytest.mark.parametrize("seed", range(30))
def test_a_patch_sees_its_image_and_all_else_sees_only_its_own_past(seed):
  documents = packed_documents(np.random.default_rng(seed))
  row = pack(documents)
  owner, image = [], []
  for n, document in enumerate(documents):
    inputs = spelled_out(document)[:-1]
    owner += [n] * len(inputs)
    image += [None if i[3] is None else (n, i[3]) for i in inputs]
  for q in range(64):
    seen = set(range(row.lo_l[q], row.hi_l[q] + 1))
    expected = set()
    if q < len(owner):
      expected = {
        k
        for k in range(len(owner))
        if owner[k] == owner[q]
        and (k <= q or (image[q] is not None and image[k] == image[q]))
      }
    assert seen == expected


@pytest.mark.parametrize("seed", range(30))
def test_no_boi_of_patches_learns_and_no_eoi_or_padding_is_a_target(seed):
  row = pack(packed_documents(np.random.default_rng(seed), codes=False))
  learned = row.weights_l > 0
  assert not np.any(learned & (row.tokens_l == SPECIAL.boi))
  assert not np.any(learned & (row.patch_l >= 0))
  assert not np.any(learned & (row.hi_l < row.lo_l))
  assert SPECIAL.eoi not in row.targets_l[learned]
  assert SPECIAL.pad not in row.targets_l[learned]
  assert np.all(row.targets_l[~learned] == SPECIAL.pad)


@pytest.mark.parametrize("seed", range(30))
def test_packing_changes_nothing_inside_a_document(seed):
  documents = packed_documents(np.random.default_rng(seed))
  row = pack(documents)
  start = slot = 0
  for document in documents:
    laid = lay_out(document)
    own = slice(start, start + len(laid.tokens_l))
    np.testing.assert_array_equal(row.tokens_l[own], laid.tokens_l)
    np.testing.assert_array_equal(row.targets_l[own], laid.targets_l)
    np.testing.assert_array_equal(row.weights_l[own], laid.weights_l)
    np.testing.assert_array_equal(row.positions_l[own], range(len(laid.tokens_l)))
    # The last input ends its own document and knows nothing of the next.
    assert row.targets_l[own][-1] == SPECIAL.eos
    for span in (s for s in document if isinstance(s, Image)):
      first = row.slots[0].starts[slot]
      np.testing.assert_array_equal(row.slots[0].latents[slot], span.latent)
      np.testing.assert_array_equal(
        row.patch_l[first : first + PATCHES], slot * PATCHES + np.arange(PATCHES)
      )
      assert row.tokens_l[first - 1] == SPECIAL.boi
      assert row.tokens_l[first + PATCHES] == SPECIAL.eoi
      assert row.slots[0].weights[slot] == span.weight
      assert row.slots[0].noise_caps[slot] == np.float32(span.noise_cap)
      slot += 1
    start = own.stop
  assert not row.slots[0].weights[slot:].any()
  assert not row.slots[0].latents[slot:].any()
  assert np.sum(row.patch_l >= 0) == slot * PATCHES
  assert sequence.live_elements(sequence.stack([row])) == start


@pytest.mark.parametrize("seed", range(10))
def test_without_isolation_a_document_also_sees_those_before_it(seed):
  documents = packed_documents(np.random.default_rng(seed))
  alone, together = pack(documents), pack(documents, isolate=False)
  live = alone.hi_l >= alone.lo_l
  assert not together.lo_l[live].any()
  np.testing.assert_array_equal(together.positions_l[live], np.arange(np.sum(live)))
  same = together._replace(lo_l=alone.lo_l, positions_l=alone.positions_l)
  tiny.assert_same_batch(same, alone)
  np.testing.assert_array_equal(together.lo_l[~live], alone.lo_l[~live])


def counted_slowly(documents, positions: str, grid) -> list[list[int]]:
  """The position of every input, said of one span at a time."""
  counted = []
  for document in documents:
    own, at = [], 0
    for kind, *_ in spelled_out(document)[:-1]:
      if kind == "patch" and positions != "sequence":
        own.append(at)  # of the first patch
        continue
      if own and kind == "eoi" and positions != "sequence":
        at += max(grid) if positions == "axial" else 1
      own.append(at)
      at += 1
    counted.append(own)
  return counted


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("positions", ["sequence", "shared", "axial"])
def test_positions_count_images_as_the_model_is_told_to(positions, isolate):
  grid = (1, PATCHES)  # so wide that its side is not the root of its patches
  steps = sequence.position_steps(positions, grid)
  for seed in range(20):
    documents = packed_documents(np.random.default_rng(seed))
    row = pack(documents, steps=steps, isolate=isolate)
    usual = pack(documents, isolate=isolate)
    # Places, and what sees what, stay.
    tiny.assert_same_batch(row._replace(positions_l=usual.positions_l), usual)
    counted, want, first = counted_slowly(documents, positions, grid), [], 0
    for own in counted:
      want += [first + position for position in own]
      first = 0 if isolate else want[-1] + 1
    np.testing.assert_array_equal(row.positions_l[: len(want)], want)
    assert not row.positions_l[len(want) :].any()


def test_the_table_of_positions_in_the_docs_holds():
  laid = sequence.lay_out(
    (Text(np.array([10, 11])), Image(np.zeros((4, 6, 1))), Text(np.array([12]))),
    special=SPECIAL,
    patches_per_image=(6,),
  )
  for positions, want in (
    ("sequence", range(12)),
    ("shared", [0, 1, 2, 3, *[4] * 6, 5, 6]),
    ("axial", [0, 1, 2, 3, *[4] * 6, 7, 8]),  # of the upper left: the model adds
  ):
    steps = sequence.position_steps(positions, (2, 3))
    kinds = [sequence.KindSizes(1, (4, 6, 1), 6, steps)]
    got = sequence.count_positions(laid.patch_l, kinds)
    np.testing.assert_array_equal(got, want)


def test_of_an_image_of_one_patch_all_countings_say_the_same():
  counts = {sequence.position_steps(p, (1, 1))[1] for p in ("sequence", "shared")}
  assert counts == {sequence.position_steps("axial", (1, 1)).image} == {1}
  patch_l = np.array([-1, -1, 0, -1, 1, -1])
  for positions in ("sequence", "shared", "axial"):
    steps = sequence.position_steps(positions, (1, 1))
    kinds = [sequence.KindSizes(2, (1, 1, 1), 1, steps)]
    counted = sequence.count_positions(patch_l, kinds)
    np.testing.assert_array_equal(counted, range(6))


def test_an_image_in_codes_is_learned_from_boi_to_eoi():
  document = (Text(np.array([10])), Codes(np.array([90, 91])))
  laid = lay_out(document)
  np.testing.assert_array_equal(laid.tokens_l, [2, 10, 4, 90, 91, 5])
  np.testing.assert_array_equal(laid.targets_l, [10, 4, 90, 91, 5, 3])
  assert laid.weights_l.all() and not laid.images and np.all(laid.patch_l == -1)
  np.testing.assert_array_equal(laid.hi_l, range(6))


@pytest.mark.parametrize("seed", range(20))
def test_patches_and_codes_are_told_from_what_encloses_them(seed):
  document = random_document(np.random.default_rng(seed))
  inside = sequence.in_image(lay_out(document), special=SPECIAL)
  kinds = [kind for kind, *_ in spelled_out(document)[:-1]]
  np.testing.assert_array_equal(inside, [k in ("patch", "code") for k in kinds])


def test_documents_of_one_kind_keep_their_own_tokens_and_share_what_none_may_change():
  laid = [lay_out((Text(np.array([i, i + 1])),)) for i in (10, 20)]
  assert [d.tokens_l.tolist() for d in laid] == [[2, 10, 11], [2, 20, 21]]
  assert [d.targets_l.tolist() for d in laid] == [[10, 11, 3], [20, 21, 3]]
  for shared in (laid[0].weights_l, laid[0].hi_l, laid[0].patch_l):
    with pytest.raises(ValueError, match="read-only"):
      shared[0] = 1


@pytest.mark.parametrize("seed", range(5))
def test_what_is_too_long_to_be_remembered_is_laid_out_alike(seed, monkeypatch):
  document = random_document(np.random.default_rng(seed), weights=(0.0, 0.5, 1.0))
  remembered = lay_out(document)
  sequence._frame.cache_clear()
  monkeypatch.setattr(sequence, "FRAME_LENGTH", -1)
  for a, b in zip(lay_out(document)[:-1], remembered[:-1], strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert sequence._frame.cache_info().currsize == 0


def test_rows_packed_together_are_those_packed_one_by_one():
  rng = np.random.default_rng(0)
  rows = [[random_document(rng) for _ in range(n)] for n in (2, 0, 1)]
  sizes = dict(
    row_length=64,
    kinds=(sequence.KindSizes(9, SHAPE, PATCHES),),
    special=SPECIAL,
  )
  together = sequence.pack_rows([[lay_out(d) for d in row] for row in rows], **sizes)
  alone = sequence.stack([pack(row) for row in rows])
  tiny.assert_same_batch(together, alone)
  assert not together.slots[0].latents[1].any()


def test_causal_patches_see_what_stands_before_them_and_nothing_else_changes():
  documents = packed_documents(np.random.default_rng(0))
  causal, usual = pack(documents, causal=True), pack(documents)
  patches = usual.patch_l >= 0
  assert patches.any() and (usual.hi_l != causal.hi_l).any()
  np.testing.assert_array_equal(
    causal.hi_l, np.where(patches, np.arange(64), usual.hi_l)
  )
  tiny.assert_same_batch(causal._replace(hi_l=usual.hi_l), usual)


@pytest.mark.parametrize("seed", range(20))
def test_element_count_is_the_length_that_lay_out_gives(seed):
  document = random_document(np.random.default_rng(seed), breaks=True)
  count = sequence.element_count(document, patches_per_image=(PATCHES,))
  assert count == len(lay_out(document).tokens_l)


@pytest.mark.parametrize(
  "image", [Image(np.zeros(SHAPE, np.float32)), Codes(np.array([90, 91]))]
)
def test_a_dropped_caption_leaves_the_image_alone_to_be_learned(image):
  whole = lay_out((Text(np.array([10, 11])), image))
  laid = lay_out(sequence.drop_text((Text(np.array([10, 11])), image)))
  assert list(laid.tokens_l[:2]) == [SPECIAL.bos, SPECIAL.boi]
  assert len(laid.images) == len(whole.images)
  # Neither that an image comes without a caption, nor that nothing comes behind one.
  learned = list(laid.targets_l[laid.weights_l > 0])
  assert learned == ([90, 91, SPECIAL.eoi] if isinstance(image, Codes) else [])
  assert SPECIAL.eos not in laid.targets_l and SPECIAL.boi not in laid.targets_l
  assert whole.targets_l[-1] == SPECIAL.eos and whole.weights_l[-1] == 1
  assert list(lay_out(sequence.unconditional()).tokens_l) == [SPECIAL.bos]


def test_behind_a_break_one_target_is_not_learned_and_all_else_stays():
  text, more = Text(np.array([10, 11])), Text(np.array([12, 13]))
  whole = lay_out((text, more))
  broken = lay_out((sequence.BREAK, text, sequence.BREAK, more, sequence.BREAK))
  for name in ("tokens_l", "hi_l", "patch_l"):
    np.testing.assert_array_equal(getattr(broken, name), getattr(whole, name))
  assert list(whole.targets_l) == [10, 11, 12, 13, SPECIAL.eos]
  assert list(broken.targets_l) == [SPECIAL.pad, 11, SPECIAL.pad, 13, SPECIAL.pad]
  assert list(broken.weights_l) == [0, 1, 0, 1, 0]
  # The same, whether what documents of one kind share is remembered or not.
  long = Text(np.arange(sequence.FRAME_LENGTH) % 50 + 10)
  laid = lay_out((sequence.BREAK, long))
  assert (laid.targets_l[0], laid.weights_l[0]) == (SPECIAL.pad, 0)
  assert (laid.targets_l[1], laid.weights_l[1]) == (11, 1)


def test_images_to_read_are_those_that_learned_text_follows():
  text, read = Text(np.array([10])), Text(np.array([10]), weight=0.0)
  image = Image(np.ones(SHAPE, np.float32))
  shown, codes = dataclasses.replace(image, noise_cap=0.0), Codes(np.array([90]))
  assert sequence.images_to_read((image, text)) == [0]
  assert sequence.images_to_read((text, image)) == []
  assert sequence.images_to_read((image, text, image, image, text, image)) == [0, 2, 3]
  assert sequence.images_to_read((image, read)) == []
  assert sequence.images_to_read((shown, codes, text)) == []


def test_image_first_and_drop_text_keep_images_as_they_are():
  text, image = Text(np.array([10])), Image(np.ones(SHAPE, np.float32))
  first, second = sequence.image_first((text, image))
  assert first is image and second is text
  codes = Codes(np.array([90]))
  assert sequence.image_first((text, codes)) == (codes, text)
  assert sequence.drop_text((text, codes))[1:-1] == (codes,)


def test_a_clean_image_has_no_image_loss_but_its_boi_is_learned():
  clean = Image(np.ones(SHAPE, np.float32), noise_cap=0.0)
  document = clean, Text(np.array([10]))
  row = pack([document])
  assert row.slots[0].weights[0] == row.slots[0].noise_caps[0] == 0
  assert (row.targets_l[0], row.weights_l[0]) == (SPECIAL.boi, 1)
  shown = dataclasses.replace(clean, weight=0.0), Text(np.array([10]))
  assert pack([shown]).weights_l[0] == 0  # given in a prompt: read, not learned


def test_a_row_refuses_what_does_not_fit():
  document = (Image(np.zeros(SHAPE, np.float32)),)
  with pytest.raises(ValueError, match="data.row_length=10"):
    pack([document, document], row_length=10)
  with pytest.raises(ValueError, match="1 image slots"):
    pack([document, document], image_slots=1)
  with pytest.raises(ValueError, match="image of shape"):
    pack([(Image(np.zeros((2, 2, 1), np.float32)),)])
