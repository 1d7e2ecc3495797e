"""The lock of a workdir, which the first of several hosts holds for all.

Owns: how all hosts hear of it. Not: the lock itself (lock.py).
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import jax

from tfusion import lock as lock_lib
from tfusion.sharding import gather_json
from tfusion.training.clock import Clock
from tfusion.training.watch import Watch, watching

TELL_SECONDS = 5.0  # between two words of the first host while it takes the lock
# A shared disk may show a file to other hosts late: NFS, after a minute.
LOOKS, LOOK_SECONDS = 90, 1.0


class Hold:
  """The lock of a workdir, which the first of several hosts holds for all."""

  def __init__(self, lock: lock_lib.Lock | None):
    """Keeps the lock of the first host; None on the others."""
    self._lock = lock
    # Of the run, where it is watched.
    self.watch: Watch | None = None
    self.clock = Clock()

  def check(self) -> None:
    """Proves that this host's lock is still held; the other hosts have none.

    Raises:
      lock.Lost: it has become another run's.
    """
    if self._lock:
      self._lock.check()

  def check_together(self) -> None:
    """As `check`, on all hosts: they go on together or fail together."""
    fault = None
    try:
      self.check()
    except lock_lib.Lost as error:
      fault = str(error)
    if fault := gather_json(fault)[0]:
      raise lock_lib.Lost(fault)


@contextlib.contextmanager
def hold(workdir: str | Path) -> Iterator[Hold]:
  """Holds a workdir for the time of a `with`; all hosts must enter it.

  Raises:
    ValueError: another run holds it; on all hosts.
    ValueError: the hosts have folders of their own under this name; on all hosts.
    OSError: the lock cannot be written; ValueError from several hosts.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_count() == 1:
      yield Hold(stack.enter_context(lock_lib.hold(workdir)))
      return
    pool = stack.enter_context(futures.ThreadPoolExecutor(1))
    taking: futures.Future[lock_lib.Lock] | None = None
    if jax.process_index() == 0:
      taking = pool.submit(stack.enter_context, lock_lib.hold(workdir))
    # The first may watch a heartbeat for a minute; programs of several hosts wait for
    # each other for half of that, so it tells the others again and again.
    while (answer := gather_json(_answer(taking))[0]) is None:
      pass
    if answer:
      raise ValueError(answer)
    lock = taking.result() if taking else None
    _check_shared(workdir, lock)
    yield Hold(lock)


@contextlib.contextmanager
def hold_watched(config: Any, workdir: Path, clock: Clock) -> Iterator[Hold]:
  """As `hold`, with the watch over a run, which begins first.

  Args:
    config: with train.stall_seconds.
    workdir: of the run.
    clock: of the run.

  Raises:
    ValueError: another run holds the workdir; on all hosts.
    OSError: the lock cannot be written; ValueError from several hosts.
  """
  limit = config.train.stall_seconds
  with watching(workdir, limit, clock) as watch, hold(workdir) as held:
    held.watch, held.clock = watch, clock
    yield held


def _check_shared(workdir: str | Path, lock: lock_lib.Lock | None) -> None:
  """Refuses a workdir in which not all hosts find the lock of the first: each would
  save its shards where the others never look, and no checkpoint would be whole."""
  owner = gather_json(lock and lock.owner)[0]
  for _ in range(LOOKS):
    sees = gather_json(lock_lib.owner(workdir) == owner)
    if all(sees):
      return
    time.sleep(LOOK_SECONDS)
  blind = ", ".join(str(host) for host, own in enumerate(sees) if not own)
  raise ValueError(
    f"--workdir={workdir}: host {blind} does not find the {lock_lib.FILE} that host 0"
    " has written there; name a folder that all hosts share, or a bucket"
  )


def _answer(taking: futures.Future[lock_lib.Lock] | None) -> str | None:
  """What keeps the lock from being taken, or nothing; None: that is not known yet."""
  if taking is None:
    return None
  try:
    taking.result(timeout=TELL_SECONDS)
    return ""
  except TimeoutError as error:
    return str(error) if taking.done() else None  # a disk's own, or ours
  except (ValueError, OSError) as error:
    return str(error)
