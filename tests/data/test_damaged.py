"""Damaged records: skipped, named, counted, and too many stop the run."""

import itertools
import json

import numpy as np
import pytest
from tiny_sources import CONFIG, Given, changed, damaged, tokenizer

from tfusion.data import lanes, pipeline
from tfusion.data.lane_state import Key, LaneState
from tfusion.data.lanes import Lane
from tfusion.data.shards.records import Damaged

SOURCE = Given("damaged", 200, damaged, has_images=False)  # 4 of them are
ONE = changed(data=dict(sources=("damaged",), lanes=1, packing_rows=1, row_length=512))


def bad(number):
  raise Damaged(f"record {number}")


def test_damaged_records_are_skipped_and_all_else_is_shown():
  lane = Lane([SOURCE], tokenizer(), ONE, lane=0, repeat=False)
  texts = [
    tokenizer().decode(row.tokens_l[row.lo_l == lo])
    for row in lane
    for lo in np.unique(row.lo_l[row.hi_l >= row.lo_l])
  ]
  assert sorted(texts) == sorted(f"whole {n}" for n in range(200) if n % 50 != 7)


@pytest.mark.slow
def test_a_damaged_record_is_counted_and_quoted_in_the_state_and_warned_of_once(caplog):
  lane = Lane([SOURCE], tokenizer(), ONE, lane=0)
  for _ in range(40):
    next(lane)
  state = LaneState.from_json(json.loads(json.dumps(lane.state().to_json())))
  found = state.damaged["damaged"]
  assert sorted(found.records) == [7, 57, 107, 157]
  epochs = state.taken["damaged"] / 200
  assert epochs > 5 and abs(found.skipped / 4 - epochs) <= 1
  assert len(found.last) == 3 and found.last[-1].startswith("shard: record")
  for n in (7, 57, 107, 157):
    assert caplog.text.count(f"shard: record {n} is damaged") == 1
  # Not again after a restart either.
  caplog.clear()
  again = Lane([SOURCE], tokenizer(), ONE, lane=0, state=state)
  for _ in range(40):
    next(lane), next(again)
  assert not caplog.text and lane.state() == again.state()


def test_a_document_damaged_while_it_waited_is_skipped_when_the_run_goes_on():
  texts = {n: f"{n} " * (3 + 90 * (n % 4 == 0)) for n in range(40)}
  whole = Given("damaged", 40, lambda n: (texts[n],), has_images=False)
  config = changed(
    ONE, data=dict(row_length=64, too_long="split", packing_rows=3, lanes=1)
  )
  lane = Lane([whole], tokenizer(), config, lane=0)
  while not ((state := lane.state()).next_piece and len(state.waiting) > 4):
    next(lane)
  keys = [*state.waiting, state.next_piece]
  for lost in {Key(*key[:2]) for key in keys}:
    number = lane.document_index(lost)
    broken = Given(
      "damaged",
      40,
      lambda n, number=number: bad(n) if n == number else (texts[n],),
      has_images=False,
    )
    again = Lane([broken], tokenizer(), config, lane=0, state=state)
    after = again.state()
    assert after.damaged["damaged"].records == (number,)
    assert after.damaged["damaged"].skipped == 1
    assert after.waiting == tuple(k for k in state.waiting if k[:2] != lost[:2])
    gone = state.next_piece[:2] == lost[:2]
    assert after.next_piece == (None if gone else state.next_piece)
    next(again)
    with pytest.raises(ValueError, match="data.max_damaged=0: .*1 damaged"):
      none = changed(config, data=dict(max_damaged=0))
      Lane([broken], tokenizer(), none, lane=0, state=state)


def test_a_huge_source_of_which_nothing_fits_stops_before_its_end(monkeypatch):
  monkeypatch.setattr(lanes, "HOPELESS", 50)
  long = Given("long", 10_000_000, lambda n: ("1" * 600,), has_images=False)
  lane = Lane([long], tokenizer(), ONE, lane=0)
  with pytest.raises(
    ValueError, match="no document of long fits .* 50 of 50 that were"
  ):
    next(lane)


def test_taking_a_state_keeps_it_as_it_is_while_damage_goes_on():
  lane = Lane([SOURCE], tokenizer(), ONE, lane=0)
  next(lane)
  state = lane.state()
  before = json.dumps(state.to_json())
  for _ in range(30):
    next(lane)
  assert json.dumps(state.to_json()) == before


@pytest.mark.parametrize("limit", [0, 3])
def test_more_damage_than_allowed_stops_and_names_the_record(limit):
  config = changed(ONE, data=dict(max_damaged=limit))
  lane = Lane([SOURCE], tokenizer(), config, lane=0)
  says = rf"data.max_damaged={limit}: .*{limit + 1} damaged.*record \d+ is damaged"
  with pytest.raises(ValueError, match=says):
    list(itertools.islice(lane, 40))


@pytest.mark.slow
def test_as_much_damage_as_allowed_does_not_stop():
  config = changed(ONE, data=dict(max_damaged=4))
  lane = Lane([SOURCE], tokenizer(), config, lane=0)
  assert len(list(itertools.islice(lane, 60))) == 60


def test_a_source_of_which_all_is_damaged_stops_even_within_the_limit():
  config = changed(ONE, data=dict(max_damaged=100))
  lane = Lane([Given("bad", 100, bad)], tokenizer(), config, lane=0)
  with pytest.raises(ValueError, match="bad: all 100 documents .* are damaged"):
    next(lane)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_stop_is_said_the_same_from_a_worker_process(workers):
  config = changed(
    CONFIG,
    data=dict(sources=("damaged",), max_damaged=0, workers=workers, row_length=512),
  )
  corpus = pipeline.Corpus((SOURCE,), (), tokenizer())
  data = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  with pytest.raises(
    ValueError, match="data.max_damaged=0: one lane has met 1 damaged"
  ):
    for _ in range(20):
      next(data)
  data.close()


@pytest.mark.slow
def test_damage_is_counted_over_the_lanes_of_a_host():
  config = changed(CONFIG, data=dict(sources=("damaged",), workers=0, row_length=512))
  corpus = pipeline.Corpus((SOURCE,), (), tokenizer())
  data = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  for _ in range(4):
    next(data)
  counts = data.tally().counts()["damaged"]
  assert counts["damaged"] == 4  # different records; each lane has met some of them
  assert counts["skipped"] > 4
