"""How far a long piece of work is: done, rate, time left.

Owns: that line. Not: the training loop's own (train/metrics.py).
"""

import time

EVERY_SECONDS = 3.0


class Progress:
  """Prints a line every few seconds; nothing at all for work that takes less."""

  def __init__(self, what: str, total: int):
    """Starts the clock.

    Args:
      what: the line's first words, such as "photos: images decoded".
      total: pieces of work in all.
    """
    self._what, self._total = what, total
    self._start = self._shown = time.monotonic()

  def show(self, done: int) -> None:
    """Says that `done` pieces are done, if it is time to."""
    now = time.monotonic()
    if now - self._shown < EVERY_SECONDS or not done:
      return
    self._shown = now
    rate = done / (now - self._start)
    left = int((self._total - done) / rate)
    print(
      f"{self._what} {done:,} of {self._total:,}, {rate:,.1f}/s,"
      f" left {left // 60}:{left % 60:02d}",
      flush=True,
    )
