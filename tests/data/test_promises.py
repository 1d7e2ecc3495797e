"""What lanes promise, with everything on at once: see tiny_sources.ALL."""

import itertools
import json

import numpy as np
import pytest
from tiny import assert_same_batch
from tiny_sources import ALL, SOURCES, changed, tokenizer

from tfusion import config as config_lib
from tfusion import sequence
from tfusion.data import pipeline

CORPUS = pipeline.Corpus(SOURCES, (), tokenizer())
STEPS = 44


def host_batches(config=ALL, *, hosts=1):
  return [
    pipeline.HostBatches(CORPUS, config, host=h, hosts=hosts) for h in range(hosts)
  ]


def next_global(data) -> sequence.Batch:
  """The next host batches in order of the hosts: the global batch."""
  parts = [next(d) for d in data]
  return sequence.concatenate(parts)


def all_states(data) -> dict:
  return json.loads(
    json.dumps({lane: s for d in data for lane, s in d.lane_states().items()})
  )


@pytest.fixture(scope="module")
def expected():
  """The batches of one host without workers, and the states after each."""
  data = host_batches()
  batches, states = [], [all_states(data)]
  for _ in range(STEPS):
    batches.append(next_global(data))
    states.append(all_states(data))
  return batches, states


@pytest.mark.slow
def test_the_rows_below_hold_all_that_is_promised(expected):
  batches, states = expected
  last = states[-1].values()
  total = {
    key: {name: sum(s[key][name] for s in last) for name in ALL.data.sources}
    for key in ("drawn", "split", "elements")
  }
  assert total["drawn"]["edits"] == 2 * 64  # used up and dropped
  assert total["drawn"]["posteriors"] > 0 and total["drawn"]["codes"] > 0
  assert total["split"]["stories"] > 50 and total["split"]["prose"] > 20
  assert sum(s["damaged"].get("damaged", {"skipped": 0})["skipped"] for s in last)
  middle = states[STEPS // 2].values()
  assert any(s["cut"] for s in middle)  # a document is only partly placed
  assert all(s["drawn"]["edits"] < 16 for s in middle)  # not dropped yet
  read = [b.slots[0].weights[(b.slots[0].noise_caps == 0)] for b in batches]
  assert np.concatenate(read).size and not np.any(np.concatenate(read))


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_global_batch_is_the_same_on_every_host_count(expected, hosts):
  data = host_batches(hosts=hosts)
  for batch in expected[0][:8]:
    assert_same_batch(batch, next_global(data))
  assert all_states(data) == expected[1][8]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_no_batch_and_no_state(expected, workers):
  data = host_batches(changed(ALL, data=dict(workers=workers)))
  try:
    for batch, state in zip(expected[0][:6], expected[1][1:]):
      assert_same_batch(batch, next_global(data))
      assert all_states(data) == state
  finally:
    data[0].close()


@pytest.mark.parametrize("hosts", [1, 4])
def test_what_two_hosts_saved_goes_on_bit_by_bit_on_one_or_four(expected, hosts):
  batches, states = expected
  two = host_batches(hosts=2)
  for d in two:
    d.restore(states[18])
  for batch in batches[18:20]:
    assert_same_batch(batch, next_global(two))
  saved = all_states(two)
  assert saved == states[20]
  data = host_batches(hosts=hosts)
  for d in data:
    d.restore(saved)
  for batch in batches[20:]:  # through the end of a source
    assert_same_batch(batch, next_global(data))
  assert all_states(data) == states[STEPS]


def test_a_host_count_that_does_not_divide_is_refused_with_those_that_do():
  with pytest.raises(ValueError, match=r"data.lanes=8 .*3 hosts; use \[1, 2, 4, 8\]"):
    config_lib.validate_devices(ALL, devices=4, hosts=3)


def test_counts_and_the_summary_tell_epochs_shares_and_losses(expected):
  (data,) = host_batches()
  data.restore(expected[1][STEPS])
  counts = data.tally().counts()
  assert counts["edits"]["epochs"] == 2.0
  assert counts["damaged"]["damaged"] >= 1
  assert counts["damaged"]["skipped"] >= counts["damaged"]["damaged"]
  assert counts["damaged"]["damage"][0].startswith("shard: record")
  assert counts["stories"]["pieces"] > 2 * counts["stories"]["split"]
  assert abs(sum(c["share"] for c in counts.values()) - 1) < 1e-12
  assert json.loads(json.dumps(counts)) == counts  # as data.json keeps it
  said = data.tally().summary()
  assert "edits 2.00 epochs" in said
  assert f"{counts['damaged']['damaged']} damaged" in said


def test_a_posterior_is_another_sample_in_the_next_epoch_on_any_host(expected):
  drawn = [
    batch.slots[0].latents[n, slot]
    for batch in expected[0]
    for n, slot in itertools.product(range(16), range(3))
    if batch.slots[0].weights[n, slot]
    and not float(batch.slots[0].latents[n, slot, 0, 0, 0]).is_integer()
  ]
  assert len(drawn) > 50
  assert len({d.tobytes() for d in drawn}) == len(drawn)
