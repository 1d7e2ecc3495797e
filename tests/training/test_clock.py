"""Promises of tfusion/training/clock.py."""

import jax
import pytest
import tiny

from tfusion.training import clock as clock_lib


@pytest.mark.parametrize(
  "ready, waited",
  [((True, True), 3.0), ((True, False), 0.0), ((False, False), 0.0), ((), 3.0)],
)
def test_waiting_for_rows_counts_only_if_the_device_had_nothing_left_to_do(
  monkeypatch, ready, waited
):
  class Array:
    def __init__(self, ready):
      self.is_ready = lambda: ready

  monkeypatch.setattr(jax, "Array", Array)
  monkeypatch.setattr(clock_lib, "time", tiny.clock_that_reads(0.0, 10.0, 13.0))
  clock = clock_lib.Clock()
  device = (7, [Array(x) for x in ready]) if ready else None  # 7: a step, no array
  assert clock.wait_for(iter(["rows"]), device=device) == "rows"
  assert clock.seconds["data"] == waited
