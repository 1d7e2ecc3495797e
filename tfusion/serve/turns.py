"""Whose turn it is: one generation at a time, the others wait in line.

Owns: the line, the one thread that samples, the end of a generation that nobody wants
any more. Not: what is generated (a Run), what clients are told (application.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

E = TypeVar("E")  # an event


class Turns:
  """A line in front of one thread. All methods are called on one event loop."""

  def __init__(self) -> None:
    """Begins with an empty line."""
    # One thread for all: what JAX is told of a mesh holds for a thread.
    self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
    self._line: list[object] = []  # the first has its turn
    self._moved = asyncio.Event()  # of the line as it is; another after each move

  def __len__(self) -> int:
    return len(self._line)

  async def wait(self, ticket: object) -> AsyncIterator[int]:
    """Stands in line; yields how many are before, after each move, until none is.

    Whoever has waited must call `leave` with the same ticket, also after a cancel.
    """
    self._line.append(ticket)
    while before := self._line.index(ticket):
      yield before
      await self._moved.wait()

  async def take(self, events: Iterator[E]) -> AsyncIterator[E]:
    """The events of a generator, each made in the thread when it is asked for."""
    loop, end = asyncio.get_running_loop(), object()
    while True:
      event: Any = await loop.run_in_executor(self._thread, next, events, end)
      if event is end:
        return
      yield event

  def leave(self, ticket: object, events: Iterator[Any]) -> None:
    """Ends a turn or the waiting for it, and lets the next one begin.

    Args:
      ticket: as it was given to `wait`.
      events: a generator, which is closed first, behind what it may be doing now.
    """
    if not self._line or self._line[0] is not ticket:  # it had no turn yet
      _close(events)
      self._move(ticket)
      return
    loop = asyncio.get_running_loop()

    def moved(_: Future) -> None:
      with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
        loop.call_soon_threadsafe(self._move, ticket)

    self._thread.submit(_close, events).add_done_callback(moved)

  async def close(self, _: Any = None) -> None:
    """Lets the thread end behind the event that it is making."""
    self._thread.shutdown(wait=False, cancel_futures=True)

  def _move(self, ticket: object) -> None:
    if ticket in self._line:
      self._line.remove(ticket)
    self._moved.set()
    self._moved = asyncio.Event()


def _close(events: Iterator[Any]) -> None:
  close = getattr(events, "close", None)
  if close is not None:
    close()
