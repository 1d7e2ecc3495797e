"""The rows of one step again, without training.

Owns: going there from a saved state, the names of the documents. Not: lanes
(data/lanes.py), where states are saved (checkpoint.py), the page (row_page.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfusion import sequence
from tfusion.config import Config
from tfusion.data.lane_state import LaneState
from tfusion.data.lanes import Lane
from tfusion.data.pipeline import Corpus


class TakenRow(NamedTuple):
  """A row of a global batch and where it came from."""

  row: sequence.Batch[np.ndarray]  # one row: its arrays are without b
  lane: int
  documents: tuple[str, ...]  # "source[index]" of each in order; ", piece n" of one cut
  lengths: tuple[int, ...]  # positions of each


def rows_of_step(
  corpus: Corpus,
  config: Config,
  step: int,
  *,
  states: dict[int, dict[str, Any]] | None = None,
  done: int = 0,
  progress: Callable[[int], None] = lambda rows: None,
) -> list[TakenRow]:
  """Returns the rows of the global batch that update `step` takes, in order.

  Args:
    corpus: of the run.
    config: of the run.
    step: update, from 1 on; what metrics.jsonl calls step.
    states: of all lanes after update `done`; without them, the run's beginning.
    done: updates done, below `step`.
    progress: called with the number of rows replayed so far.

  Raises:
    ValueError: `step` is not behind `done`, or the sources have changed.
  """
  if step <= done:
    raise ValueError(f"step {step}: must be behind update {done}, where this begins")
  per_lane = config.train.batch_rows // config.data.lanes
  rows: list[TakenRow] = []
  for number in range(config.data.lanes):
    state = None if states is None else LaneState.from_json(states[number])
    lane = Lane(corpus.train, corpus.tokenizer, config, lane=number, state=state)
    skipped = per_lane * (step - 1 - done)
    for n in range(skipped):
      next(lane)
      progress(number * (skipped + per_lane) + n + 1)
    for _ in range(per_lane):
      row, names = next(lane), tuple(_names(lane))
      rows.append(TakenRow(row, number, names, tuple(lane.last_lengths)))
  return rows


def _names(lane: Lane):
  for key in lane.last_keys:
    piece = "" if key.piece is None else f", piece {key.piece + 1}"
    yield f"{key.source}[{lane.document_index(key)}]{piece}"
