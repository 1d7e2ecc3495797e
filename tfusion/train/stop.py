"""Being told to stop: by Ctrl-C, SIGTERM, or the run itself.

Owns: the signal handlers while a run lasts. Not: what is saved then (loop.py,
autoencoder.py).
"""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from tfusion.progress import say

AGREE_EVERY = 10  # steps between two times that hosts ask each other whether to stop


class StopSignals:
  """Remembers Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once."""

  def __init__(self):
    self.name = None
    self.before = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self.before[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_):
    for number, handler in self.before.items():
      signal.signal(number, handler)

  def agreed(self, step: int, *, due: bool) -> bool:
    """True if any host was told to stop; all hosts answer alike.

    Args:
      step: updates done.
      due: an evaluation belongs to it. Several hosts ask each other then and every
        AGREE_EVERY steps, and say False between: to ask is to wait for the device.
    """
    if jax.process_count() == 1:
      return self.name is not None
    if step % AGREE_EVERY and not due:
      return False
    told = multihost_utils.process_allgather(np.asarray(self.name is not None))
    if told.any() and self.name is None:
      self.name = "another host"
    return bool(told.any())

  def request(self, name: str):
    """Stops as a signal would, which `name` is, or another reason."""
    self.name = self.name or name

  def _remember(self, number, frame):
    del frame
    self.name = signal.Signals(number).name
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    say(f"{self.name}: saving and stopping")
