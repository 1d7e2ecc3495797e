"""Being told to stop: Ctrl-C and SIGTERM.

Owns: the signal handlers while a run lasts. Not: what is saved then (loop.py,
autoencoder.py).
"""

import signal
import threading


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

  def _remember(self, number, frame):
    del frame
    self.name = signal.Signals(number).name
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"{self.name}: saving and stopping", flush=True)
