"""Rows at every patch size and of image codes, against a slow statement of rules."""

import itertools

import numpy as np
import pytest
import tiny
from tiny_sources import ALL, FIRST_CODE, Given, changed, latent, tokenizer

from tfusion import sequence
from tfusion.data.lanes import Lane

SHAPE = (16, 8, 2)
SPECIAL = tokenizer().special


def album(number: int, *, codes: bool = False) -> tuple:
  """Three to five spans: texts and images by turns, some only to be read."""
  rng = np.random.default_rng(number)
  spans = []
  for n in range(rng.integers(3, 6)):
    weight = float(rng.integers(0, 2)) if n else 1.0
    if (n + number) % 2:
      ids = tokenizer().encode(f"{number}.{n}" * int(rng.integers(1, 3)))
      spans.append(sequence.Text(ids, weight))
    elif codes:
      ids = FIRST_CODE + rng.integers(0, 60, 9)
      spans.append(sequence.Codes(ids.astype(np.int32), weight))
    else:
      spans.append(sequence.Image(latent(10 * number + n, SHAPE), weight, 0.75))
  return tuple(spans)


def spelled_out(document, patches):
  """Every input of a document: token, weight as a target, image it is a patch of."""
  yield SPECIAL.bos, 0.0, None
  for n, span in enumerate(document):
    if isinstance(span, sequence.Text):
      yield from ((int(i), span.weight, None) for i in span.ids)
      continue
    yield SPECIAL.boi, span.weight, None
    if isinstance(span, sequence.Codes):
      yield from ((int(i), span.weight, None) for i in span.ids)
      yield SPECIAL.eoi, span.weight, None
    else:
      yield from ((SPECIAL.pad, 0.0, n) for _ in range(patches))
      yield SPECIAL.eoi, 0.0, None
  yield SPECIAL.eos, document[-1].weight, None


def expected_row(documents, config) -> sequence.Row:
  """The row of these documents, position by position."""
  length, slots = config.data.row_length, config.data.image_slots
  patches = config.model.patches_per_image
  row = {name: [] for name in sequence.Row._fields}
  images = []
  for document in documents:
    first = len(row["tokens_l"])
    inputs = list(spelled_out(document, patches))
    before, last_of, seen = len(images), {}, {}
    for i, (_, _, image) in enumerate(inputs):
      last_of[image] = first + i
    for i, (token, _, image) in enumerate(inputs[:-1]):
      target, weight, _ = inputs[i + 1]
      row["tokens_l"].append(token)
      row["targets_l"].append(target if weight else SPECIAL.pad)
      row["weights_l"].append(weight)
      row["positions_l"].append(i)
      row["lo_l"].append(first)
      row["hi_l"].append(first + i if image is None else last_of[image])
      if image is None:
        row["patch_l"].append(-1)
        continue
      if image not in seen:
        seen[image] = 0
        images.append((document[image], first + i))
      slot = before + list(seen).index(image)
      row["patch_l"].append(slot * patches + seen[image])
      seen[image] += 1
  padding = {
    "tokens_l": SPECIAL.pad,
    "targets_l": SPECIAL.pad,
    "weights_l": 0.0,
    "positions_l": 0,
    "lo_l": length,
    "hi_l": length - 1,
    "patch_l": -1,
  }
  for name, value in padding.items():
    row[name] += [value] * (length - len(row[name]))
  empty = slots - len(images)
  held = sequence.Slots(
    [i.latent for i, _ in images] + [np.zeros(SHAPE)] * empty,
    [start for _, start in images] + [0] * empty,
    [i.weight for i, _ in images] + [0] * empty,
    # What is only read is shown clean.
    [0.75 if i.weight else 0.0 for i, _ in images] + [1.0] * empty,
  )
  fields = (np.asarray(row[name]) for name in sequence.Row._fields[:-1])
  return sequence.Row(*fields, (sequence.Slots(*map(np.asarray, held)),))


@pytest.mark.parametrize("positions", ["shared", "axial"])
def test_rows_count_positions_as_the_model_is_told_to(positions):
  config = changed(
    ALL,
    model=dict(image_shape=SHAPE, patch=4, positions=positions),
    data=dict(sources=("album",), weights=(), epochs=(), row_length=96, image_slots=6),
  )
  lane = Lane([Given("album", 200, album)], tokenizer(), config, lane=1)
  for row in itertools.islice(lane, 5):
    stop = 0
    for length in lane.last_lengths:
      start, stop = stop, stop + length
      steps = sequence.position_steps(positions, (4, 2))  # rows, columns
      kinds = [sequence.KindSizes(6, SHAPE, 8, steps)]
      want = sequence.count_positions(row.patch_l[start:stop], kinds)
      np.testing.assert_array_equal(row.positions_l[start:stop], want)
      assert want[-1] < length - 1


def albums_in_codes(number: int) -> tuple:
  return album(number, codes=True)


# 2, 4 and 8 are also what the U-Net's blocks make of a latent: the same slots.
@pytest.mark.parametrize("patch", [1, 2, 4, 8, None])
def test_rows_are_those_of_the_rules_at_every_patch_size(patch):
  make = album if patch else albums_in_codes
  config = changed(
    ALL,
    model=dict(image_shape=SHAPE, patch=patch or 8, vocab_size=384),
    data=dict(
      sources=("album",),
      weights=(),
      epochs=(),
      row_length={1: 800, 2: 240}.get(patch, 96),
      image_slots=6,
    ),
  )
  lane = Lane([Given("album", 200, make)], tokenizer(), config, lane=1)
  several = 0
  for row in itertools.islice(lane, 25):
    documents = [make(lane.document_index(key)) for key in lane.last_keys]
    several += len(documents) > 1
    tiny.assert_same_tree(row, expected_row(documents, config))
  assert several > 20
  assert lane.state().rejected["album"] == lane.state().split["album"] == 0
