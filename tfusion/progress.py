"""Lines on standard output: how far a long piece of work is; whether anybody reads.

Owns: the line of done, rate and time left; output whose reader has gone. Not: the
training loop's own lines (training/log.py).
"""

import os
import select
import sys
import time

EVERY_SECONDS = 3.0
_shown = 0  # see `shown`


class ReaderGone(BrokenPipeError):
  """Standard output is a pipe of which nobody holds the other end."""


def say(text: str) -> bool:
  """Prints lines at once.

  Returns:
    False if nobody reads them any more, as when the other end of a pipe has gone. From
    then on all that is printed goes nowhere, and is no error.
  """
  _count()
  try:
    print(text, flush=True)
    return True
  except BrokenPipeError:
    close_output()
    return False


def close_output() -> None:
  """Sends all that is and will be printed nowhere."""
  if sys.__stdout__ is None:  # as under pythonw: nothing goes anywhere
    return
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, sys.__stdout__.fileno())
  os.close(nowhere)


def is_reader_gone(error: BaseException) -> bool:
  """Whether an error is that of standard output, and not of another pipe."""
  if isinstance(error, ReaderGone):
    return True
  if not isinstance(error, BrokenPipeError) or sys.__stdout__ is None:
    return False
  ends = select.poll()
  ends.register(sys.__stdout__.fileno(), 0)  # errors are told unasked
  return any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0))


def shown() -> int:
  """How often work of any kind has told that a piece of it is done, or said a line:
  whoever watches a process sees by it that there is progress."""
  return _shown


def _count() -> None:
  global _shown
  _shown += 1


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
    _count()
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
