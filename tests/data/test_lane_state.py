"""What checkpoints hold of a lane: the same names and bytes as ever, and old ones."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import tiny_sources
from tiny_sources import Given, changed

from tfusion import sequence
from tfusion.data.lane_state import Damage, Key, LaneState
from tfusion.data.lanes import Lane

SOURCES = (
  Given("stories", 250, tiny_sources.stories),
  Given("damaged", 200, tiny_sources.damaged, has_images=False),
)
CONFIG = changed(
  data=dict(
    sources=("stories", "damaged"),
    weights=(1.0, 0.5),
    too_long="split",
    overlap=7,
    row_length=64,
    image_slots=3,
    lanes=1,
    packing_rows=2,
  )
)
# Written by the version before there was a LaneState, after 7 rows of SOURCES.
SAVED = (
  '{"sizes": {"stories": 250, "damaged": 200}, "digests": {}, "drawn": {"stories": 4,'
  ' "damaged": 17}, "rejected": {"stories": 0, "damaged": 0}, "lost": {"stories": 0,'
  ' "damaged": 0}, "split": {"stories": 3, "damaged": 0}, "pieces": {"stories": 8,'
  ' "damaged": 0}, "damaged": {"damaged": {"skipped": 1, "records": [57], "last":'
  ' ["shard: record 57 is damaged"]}}, "elements": {"stories": 438, "damaged": 148},'
  ' "text": 490, "patches": 96, "rows": 7, "live": 421, "waiting": [["damaged", 12],'
  ' ["damaged", 15], ["stories", 3, 0]], "cut": ["stories", 3, 1]}'
)
# What that version gave next: 20 rows.
NEXT_SHA256 = "969e169c69c95a0b4bdb9507b1a37ef29338334949081c628309d5f66ecfbbdf"


def test_a_state_is_saved_as_it_always_was_byte_for_byte():
  lane = Lane(SOURCES, tiny_sources.tokenizer(), CONFIG, lane=0)
  for _ in range(7):
    next(lane)
  assert json.dumps(lane.state().to_json()) == SAVED


def test_what_an_earlier_version_saved_goes_on_bit_by_bit():
  state = LaneState.from_json(json.loads(SAVED))
  lane = Lane(SOURCES, tiny_sources.tokenizer(), CONFIG, lane=0, state=state)
  rows = hashlib.sha256()
  for row in itertools.islice(lane, 20):
    for field in sequence.flatten(row):
      rows.update(np.ascontiguousarray(field).tobytes())
  assert rows.hexdigest() == NEXT_SHA256


def test_a_state_has_names_for_all_that_was_saved():
  state = LaneState.from_json(json.loads(SAVED))
  assert state.taken == {"stories": 4, "damaged": 17}
  assert state.damaged == {
    "damaged": Damage(1, (57,), ("shard: record 57 is damaged",))
  }
  assert (state.text_elements, state.patches) == (490, 96)
  assert (state.rows, state.row_elements) == (7, 421)
  assert state.waiting[0] == Key("damaged", 12) == ("damaged", 12, None)
  assert state.waiting[2].piece == 0 and state.next_piece == Key("stories", 3, 1)
  assert json.dumps(state.to_json()) == SAVED


def test_a_fresh_state_comes_back_from_json_too():
  fresh = LaneState.fresh(SOURCES)
  assert LaneState.from_json(json.loads(json.dumps(fresh.to_json()))) == fresh
  assert fresh.next_piece is None and set(fresh.elements.values()) == {0}


def test_a_state_from_before_rejected_elements_were_counted_has_none():
  values = json.loads(SAVED)
  values["rejected"]["stories"] = 3
  del values["lost"]
  state = LaneState.from_json(values)
  assert state.rejected_elements == {"stories": 0, "damaged": 0}
  assert list(state.to_json()) == list(json.loads(SAVED))


def test_a_copy_and_its_json_change_nothing_in_the_state():
  state = LaneState.from_json(json.loads(SAVED))
  copy, values = state.copy(), state.to_json()
  copy.taken["stories"] += 1
  copy.damaged.clear()
  values["elements"]["stories"] += 1
  values["damaged"]["damaged"]["records"].append(3)
  values["waiting"].clear()
  assert json.dumps(state.to_json()) == SAVED


@pytest.mark.parametrize(
  "change",
  [
    lambda v: v.pop("drawn"),
    lambda v: v.pop("sizes"),
    lambda v: v.update(waiting=[["a", 1, 2, 3]]),
    lambda v: v.update(damaged=[]),
    lambda v: v["damaged"]["damaged"].pop("last"),
  ],
)
def test_what_is_no_state_is_refused_with_what_to_do(change):
  values = json.loads(SAVED)
  change(values)
  with pytest.raises(ValueError, match="no state of a data lane .* the checkpoint"):
    LaneState.from_json(values)
