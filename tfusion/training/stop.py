"""Being told to stop: by Ctrl-C, SIGTERM, or the run itself.

Owns: the signal handlers while a run lasts, the exit status of a run that was stopped.
Not: what is saved then (loop.py).
"""

import _thread
import signal
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from tfusion.progress import ReaderGone, say

# What stands for a batch that one host of several could not make: nothing is saved.
SPOILED = signal.SIGABRT
AGREE_EVERY = 10  # steps between two times that hosts ask each other whether to stop


class StopSignals:
  """Remembers Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once.

  `told` is the signal that came to this process, `agreed_on` the one by which all hosts
  stop; 0 without one. `waited` are the seconds that went into asking the others.
  """

  def __init__(self):
    self.told = self.agreed_on = 0
    self.waited = 0.0
    self.before = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self.before[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_):
    for number, handler in self.before.items():
      signal.signal(number, handler)

  @property
  def name(self) -> str | None:
    """Of the signal by which all hosts stop."""
    return signal.Signals(self.agreed_on).name if self.agreed_on else None

  @property
  def status(self) -> int:
    """The exit status of the run, the same on all hosts.

    0 only where nothing is left to do. Else what a shell says of a program that the
    signal ended, so that a scheduler starts it again: 143 after SIGTERM, 130 after
    Ctrl-C.
    """
    return 128 + self.agreed_on if self.agreed_on else 0

  def agreed(self, step: int, *, due: bool) -> bool:
    """True if any host was told to stop; all hosts answer alike.

    Args:
      step: updates done.
      due: an evaluation belongs to it. Several hosts ask each other then and every
        AGREE_EVERY steps, and say False between: to ask is to wait for the device.
    """
    if jax.process_count() == 1:
      self.agreed_on = self.told
    elif step % AGREE_EVERY == 0 or due:
      begin = time.perf_counter()
      told = multihost_utils.process_allgather(np.asarray(self.told))
      self.waited += time.perf_counter() - begin
      self.agreed_on = int(SPOILED if SPOILED in told else told.max())
    return bool(self.agreed_on)

  def request(self, number: int):
    """Stops as a signal would: SIGPIPE where nobody reads what the run says, SIGCHLD
    where a data worker has died, SPOILED, which nothing outweighs."""
    if not self.told or number == SPOILED:
      self.told = int(number)

  def raise_if_reader_gone(self) -> None:
    """Raises ReaderGone if the run stopped because nobody reads what it says."""
    if self.name == "SIGPIPE":
      raise ReaderGone

  def _remember(self, number, frame):
    del frame
    if self.told != SPOILED:
      self.told = number
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    # By a thread of its own, which waits for its turn: this one may be in the middle of
    # printing, and would fail at a second line. `threading` has a lock that this one
    # may hold, too.
    text = f"{signal.Signals(number).name}: saving and stopping"
    _thread.start_new_thread(say, (text,))
