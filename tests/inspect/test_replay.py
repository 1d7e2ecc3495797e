"""The rows of a step, found again: those that training took."""

import numpy as np
import pytest
import tiny
from tiny_sources import ALL, SOURCES, tokenizer

from tfusion import sequence
from tfusion.data import pipeline
from tfusion.inspect import replay

CORPUS = pipeline.Corpus(SOURCES, (), tokenizer())


@pytest.fixture(scope="module")
def taken():
  """The batches of updates 1 to 7, and the states after each; 0 is the beginning."""
  data = pipeline.HostBatches(CORPUS, ALL, host=0, hosts=1)
  batches, states = [None], [data.lane_states()]
  for _ in range(7):
    batches.append(next(data))
    states.append(data.lane_states())
  return batches, states


@pytest.mark.parametrize("step, done", [(1, 0), (5, 0), (7, 3), (7, 6)])
def test_the_rows_of_a_step_are_those_that_training_took(taken, step, done):
  batches, states = taken
  shown = []
  rows = replay.rows_of_step(
    CORPUS, ALL, step, states=states[done], done=done, progress=shown.append
  )
  for n, row in enumerate(rows):
    assert row.lane == n // 2
    tiny.assert_same_batch(row.row, sequence.row_of(batches[step], n))
  assert len(rows) == ALL.train.batch_rows
  # Rows that were only passed over, of all that are read.
  assert shown == sorted(shown) and all(0 < n < 16 * (step - done) for n in shown)
  assert len(shown) == 16 * (step - done - 1)


def test_documents_are_named_by_source_index_and_piece(taken):
  rows = replay.rows_of_step(CORPUS, ALL, 4)
  names = [name for row in rows for name in row.documents]
  assert any(", piece 2" in name for name in names)
  for row in rows:
    starts = np.unique(row.row.lo_l[row.row.hi_l >= row.row.lo_l])
    for name, start in zip(row.documents, starts, strict=True):
      if name.startswith("prose[") and "piece" not in name:
        text = tokenizer().decode(row.row.tokens_l[row.row.lo_l == start])
        assert text == SOURCES[3].make(int(name[6:-1]))[0]


def test_a_step_that_is_not_behind_the_state_is_refused(taken):
  with pytest.raises(ValueError, match="step 3: must be behind update 3"):
    replay.rows_of_step(CORPUS, ALL, 3, states=taken[1][3], done=3)
