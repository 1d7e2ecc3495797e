"""The other hosts of a run: whether they live, and short words between them.

Owns: a TCP connection from every host to the first, beside those of the devices. Not:
what follows from a word or from a lost host (watch.py).

JAX notices a killed process after 100 seconds, and a collective waits for it until
then, or for ever. The system closes the connections of a killed process at once, and a
machine that is gone gives no sign of life.
"""

import contextlib
import json
import os
import selectors
import socket
import time
import uuid
from typing import Any, NamedTuple

import jax

from tfusion.sharding import gather_json

CONNECT_SECONDS = 20.0  # for all hosts to reach the first
BEAT_SECONDS = 5.0  # between two signs of life
SILENT_SECONDS = 60.0  # without any: the host is lost; JAX would wait for 100
STOPPED_SECONDS = 10.0  # more than that beside a wait: this process was stopped itself


class Word(NamedTuple):
  """What a host says, or what is said of it."""

  host: int
  kind: str
  value: Any


class Peers:
  """Connections of this host: of the first to all others, of another to the first.

  Words go to all other hosts, by way of the first. Those of kind `lost` are of the
  connections themselves; `beat` is not given on.
  """

  def __init__(self, ends: dict[int, socket.socket], names: list[str]):
    """Takes open connections.

    Args:
      ends: by the host at the other end.
      names: of all hosts, for messages.
    """
    self.names, self.host = names, jax.process_index()
    self._ends = ends
    self._unread = dict.fromkeys(ends, b"")
    self._heard = dict.fromkeys(ends, time.monotonic())
    self._beaten = 0.0
    self._listened = time.monotonic()
    self._selector = selectors.DefaultSelector()
    for host, end in ends.items():
      self._selector.register(end, selectors.EVENT_READ, host)

  def say(self, kind: str, value: Any = None, *, host: int | None = None) -> None:
    """Tells all other hosts."""
    own = self.host if host is None else host
    line = json.dumps([own, kind, value]).encode() + b"\n"
    for other in [x for x in list(self._ends) if x != host]:
      self._send(other, line)

  def listen(self, seconds: float) -> list[Word]:
    """What has been said; waits for it, and gives signs of life.

    Args:
      seconds: to wait at most.
    """
    if time.monotonic() - self._beaten > BEAT_SECONDS:
      self._beaten = time.monotonic()
      self.say("beat")
    words: list[Word] = []
    for key, _ in self._selector.select(seconds):
      words += self._read(key.data)
    now, before = time.monotonic(), self._listened
    self._listened = now
    if now - before - seconds > STOPPED_SECONDS:
      # The others may have been stopped with it: what they say next is waited for.
      self._heard = dict.fromkeys(self._heard, now)
    for host, heard in list(self._heard.items()):
      if now - heard > SILENT_SECONDS:
        words += self._lose(host, f"gave no sign of life for {SILENT_SECONDS:.0f} s")
    if self.host == 0:  # gives on what the others cannot hear
      for word in words:
        self.say(word.kind, word.value, host=word.host)
    return words

  def close(self) -> None:
    """Closes the connections; a word of kind `end` should have gone before."""
    for end in self._ends.values():
      end.close()
    self._selector.close()

  def _send(self, host: int, line: bytes) -> None:
    with contextlib.suppress(OSError, KeyError):  # reading tells of one that is gone
      self._ends[host].sendall(line)

  def _read(self, host: int) -> list[Word]:
    try:
      data = self._ends[host].recv(1 << 16)
    except OSError:
      data = b""
    if not data:
      return self._lose(host, "has ended without a word")
    self._heard[host] = time.monotonic()
    *lines, self._unread[host] = (self._unread[host] + data).split(b"\n")
    words = [Word(*json.loads(line)) for line in lines]
    return [word for word in words if word.kind != "beat"]

  def _lose(self, host: int, how: str) -> list[Word]:
    self._selector.unregister(self._ends[host])
    self._ends.pop(host).close()
    del self._unread[host], self._heard[host]
    return [Word(host, "lost", how)]


def meet() -> Peers | None:
  """Connects all hosts with the first; all must call it.

  Returns:
    None where one cannot reach the first, and of one host alone.
  """
  if jax.process_count() == 1:
    return None
  listener = None
  own = {"name": f"{socket.gethostname()}, process {os.getpid()}"}
  if jax.process_index() == 0:
    listener = socket.create_server(("", 0), backlog=jax.process_count())
    own |= {"key": uuid.uuid4().hex, "port": str(listener.getsockname()[1])}
    own |= {f"address{i}": x for i, x in enumerate(_addresses())}
  everyone = gather_json(own)
  first = everyone[0]
  end = time.monotonic() + CONNECT_SECONDS
  if listener:
    ends = _accept(listener, first["key"], jax.process_count() - 1, end)
    listener.close()
  else:
    ends = _connect(first, end)
  whole = len(ends) == (jax.process_count() - 1 if listener else 1)
  if all(gather_json(whole)):
    return Peers(ends, [one["name"] for one in everyone])
  for one in ends.values():
    one.close()
  return None


def _addresses() -> list[str]:
  """Under which other machines may find this one, and other processes of it."""
  found = [socket.gethostname(), "127.0.0.1"]
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    probe.connect(("192.0.2.1", 9))  # sends nothing: asks which way packets would go
    found.insert(0, probe.getsockname()[0])
  return list(dict.fromkeys(found))


def _accept(
  listener: socket.socket, key: str, count: int, end: float
) -> dict[int, socket.socket]:
  """The connections of the others, by host, as far as they come in time."""
  ends: dict[int, socket.socket] = {}
  while len(ends) < count and (left := end - time.monotonic()) > 0:
    listener.settimeout(left)
    with contextlib.suppress(OSError, ValueError):
      one, _ = listener.accept()
      one.settimeout(5.0)
      said, _, host = one.makefile("rb").readline(100).decode().strip().partition(" ")
      if said == key:  # else it is no host of this run
        ends[int(host)] = one
      else:
        one.close()
  return ends


def _connect(first: dict[str, str], end: float) -> dict[int, socket.socket]:
  """The connection to the first host; none where it cannot be reached."""
  for name in sorted(name for name in first if name.startswith("address")):
    left = max(end - time.monotonic(), 1.0)
    with contextlib.suppress(OSError):
      one = socket.create_connection((first[name], int(first["port"])), min(left, 5.0))
      one.sendall(f"{first['key']} {jax.process_index()}\n".encode())
      return {0: one}
  return {}
