"""The batches of this host as a loop takes them.

Owns: the wait for them, and what several hosts do where the data of one fail. Not:
which batches (data/pipeline.py).
"""

import signal
from collections.abc import Iterator
from typing import Any, Generic

import jax

from tfusion.sharding import gather_json
from tfusion.training.clock import Clock, Rows
from tfusion.training.stop import SPOILED, StopSignals


class Feed(Generic[Rows]):
  """Batches on the host, and the failure for which all hosts stop."""

  def __init__(self, batches: Iterator[Rows], clock: Clock, stop: StopSignals):
    """Takes nothing yet.

    Args:
      batches: of this host; started anew by the next `next` after an error.
      clock: counts the wait.
      stop: is told where the data of one host of several have failed.
    """
    self._failed: Exception | None = None
    self._last: Rows | None = None
    self._batches, self._clock, self._stop = batches, clock, stop

  def next(self, *, device: Any) -> Rows:
    """The next batch.

    Of several hosts, one whose data fail must go on until all have agreed to stop, for
    the others wait for it in the step. It takes the last batch again, and none of the
    updates since the last checkpoint is kept.

    Args:
      device: the tree of arrays that the device may still be computing.

    Raises:
      Exception: what the data raised, of one host alone.
      ValueError: of several, the data of one failed before the first update. It names
        the host.
    """
    if jax.process_count() == 1:
      return self._clock.wait_for(self._batches, device=device)
    fault, batch = None, self._last
    try:
      batch = self._take(device)
    except Exception as error:
      self._failed, fault = error, str(error)
      self._stop.request(SPOILED)
    if self._last is None:
      _raise_of_host(gather_json(fault), ValueError)
    assert batch is not None
    self._last = batch
    return batch

  def raise_spoiled(self) -> None:
    """Raises, on all hosts, what the data of one raised, before anything is saved.

    Raises:
      ValueError: names the host.
    """
    self._raise_if(SPOILED, ValueError, "; the run goes on from its last checkpoint")

  def raise_failure(self) -> None:
    """Raises, on all hosts, that a data worker of one died, after they all have saved.

    Raises:
      ChildProcessError: names the host.
    """
    self._raise_if(signal.SIGCHLD, ChildProcessError)

  def _take(self, device: Any) -> Rows:
    """Where a data worker has died for the first time, the batch of new workers."""
    try:
      return self._clock.wait_for(self._batches, device=device)
    except ChildProcessError as error:
      if self._failed:
        raise
      self._failed = error
      self._stop.request(signal.SIGCHLD)
      return self._clock.wait_for(self._batches, device=device)

  def _raise_if(self, agreed_on: int, kind: type[Exception], then: str = "") -> None:
    if self._stop.agreed_on == agreed_on:
      _raise_of_host(gather_json(self._failed and str(self._failed)), kind, then)


def _raise_of_host(said: list[str | None], kind: type[Exception], then: str = ""):
  """Raises what the first host says that says something."""
  for host, why in enumerate(said):
    if why is not None:
      raise kind(f"host {host}: {why}{then}")
