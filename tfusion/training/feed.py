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
from tfusion.training.stop import StopSignals


class Feed(Generic[Rows]):
  """Batches on the host, and the failure for which all hosts stop."""

  def __init__(self, batches: Iterator[Rows], clock: Clock, stop: StopSignals):
    """Takes nothing yet.

    Args:
      batches: of this host; started anew by the next `next` after an error.
      clock: counts the wait.
      stop: is told where a data worker of one host of several has died.
    """
    self._failed: ChildProcessError | None = None
    self._batches, self._clock, self._stop = batches, clock, stop

  def next(self, *, device: Any) -> Rows:
    """The next batch.

    Args:
      device: the tree of arrays that the device may still be computing.

    Raises:
      Exception: what the data raised. Of several hosts, one whose data worker has died
        for the first time takes the batch from new workers instead: to save takes all
        hosts, and the others wait for this one in the step.
    """
    try:
      return self._clock.wait_for(self._batches, device=device)
    except ChildProcessError as error:
      if jax.process_count() == 1 or self._failed:
        raise
      self._failed = error
      self._stop.request(signal.SIGCHLD)
      return self._clock.wait_for(self._batches, device=device)

  def raise_failure(self) -> None:
    """Raises, on all hosts, what the data of one raised, after they all have saved.

    Raises:
      ChildProcessError: names the host.
    """
    if self._stop.agreed_on != signal.SIGCHLD:
      return
    said = gather_json(self._failed and str(self._failed))
    host, why = next((host, why) for host, why in enumerate(said) if why)
    raise ChildProcessError(f"host {host}: {why}")
