"""The seconds of a run, by what they went into."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

Rows = TypeVar("Rows")


class Clock:
  """Seconds of the loop by what they went into."""

  def __init__(self):
    self.start = time.perf_counter()
    self.seconds: defaultdict[str, float] = defaultdict(float)
    self.phase = ""  # what is being measured; a thread may ask (watch.py)
    # Seconds of handing over updates, where that may be to compute them (compiled.py).
    self.computed = 0.0

  @contextmanager
  def measure(self, name: str):
    """Adds the time inside to `name`."""
    begin, (before, self.phase) = time.perf_counter(), (self.phase, name)
    try:
      yield
    finally:
      self.phase = before
      self.seconds[name] += time.perf_counter() - begin

  def wait_for(self, rows: Iterator[Rows], *, device: Any) -> Rows:
    """Takes the next rows; counts as `data` the time that the device may have idled.

    That is none if what the device was computing, the tree `device`, still is not
    ready when the rows are there, and else all of it, which is an upper bound.
    """
    start = time.perf_counter()
    batch = next(rows)
    arrays = [x for x in jax.tree.leaves(device) if isinstance(x, jax.Array)]
    if all(x.is_ready() for x in arrays):  # type: ignore[attr-defined]  # not in stubs
      self.seconds["data"] += time.perf_counter() - start
    return batch

  @property
  def elapsed(self) -> float:
    """Seconds since the clock was made."""
    return time.perf_counter() - self.start
