"""Whether all processes of a run are there, before JAX joins them.

Owns: the wait for them, at the address that JAX then takes, who is missing, and which
was started wrongly. Not: the joining (sharding.py), their end (training/peers.py).

JAX waits as long, and then aborts every process without saying which was not there.
"""

import contextlib
import importlib.metadata
import re
import socket
import time

from tfusion.version import __version__

SECONDS = 300.0  # for all processes to come, as JAX waits
AGAIN_SECONDS = 0.5  # between two calls at a door that is not open yet
LATE_SECONDS = 10.0  # for the others to come and hear of a fault that is known
FAULT_SECONDS = 30.0  # for a process that was started wrongly to tell the others
HELLO = "tfusion"
FAULT = " but "  # of a hello, before what is wrong


def versions() -> dict[str, str]:
  """Of what all processes of a run must have alike."""
  found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
  return {"tfusion": __version__} | found


def place(how: str) -> tuple[str, int, int] | None:
  """Takes HOST:PORT,INDEX,COUNT apart.

  Args:
    how: as a person wrote it.

  Returns:
    The address of process 0, the index of this process and their count; None if it is
    something else.
  """
  # No more digits than a port or a count of processes has.
  match = re.fullmatch(r"(.+:\d{1,5}),(\d{1,6}),(\d{1,6})", how)
  if not match or int(match[2]) >= int(match[3]):
    return None
  return match[1], int(match[2]), int(match[3])


def muster(address: str, index: int, count: int, *, fault: str = "") -> None:
  """Returns when all processes have come; all of them must call it.

  Args:
    address: HOST:PORT of process 0, free there.
    index: of this process.
    count: of processes.
    fault: why this one cannot go on, which all others are told; empty if it can.

  Raises:
    ValueError: not all came within SECONDS; names those that did not, where process 0
      did. Or two came as the same one, with another count, of other versions, or with
      a fault.
  """
  host, _, port = address.rpartition(":")
  end = time.monotonic() + (FAULT_SECONDS if fault else SECONDS)
  fault = fault and f"process {index} was started wrongly: {fault}"
  if index:
    _report(host.strip("[]"), int(port), index, count, end, fault)
  else:
    _wait_for_all(address, int(port), count, end, fault)


def _wait_for_all(address: str, port: int, count: int, end: float, fault: str) -> None:
  try:
    listener = socket.create_server(("", port), backlog=count)
  except OSError as error:
    raise ValueError(
      f"process 0 cannot listen at {address} ({error}); choose a free port"
    ) from error
  came: dict[int, socket.socket] = {}
  with listener:
    while len(came) < count - 1 and (left := end - time.monotonic()) > 0:
      listener.settimeout(left)
      with contextlib.suppress(TimeoutError):
        wrong = _let_in(listener.accept()[0], came, count)
        if wrong and not fault:
          fault, end = wrong, min(end, time.monotonic() + LATE_SECONDS)
  if missing := sorted(set(range(1, count)) - set(came)):
    names = ", ".join(map(str, missing))
    fault = (
      fault or f"of {count} processes, {names} did not come within {SECONDS:.0f} s"
    )
  for one in came.values():
    _tell(one, fault)
  if fault:
    raise ValueError(fault)


def _let_in(one: socket.socket, came: dict[int, socket.socket], count: int) -> str:
  """Takes a process down; returns what is wrong with it."""
  one.settimeout(5.0)
  try:
    text, _, own = one.makefile("rb").readline(1000).decode().partition(FAULT)
    said = text.split()
    hello, index, of = said[0], int(said[1]), int(said[2])
  except (OSError, ValueError, IndexError):
    said, own, hello, index, of = [], "", "", -1, -1
  if hello != HELLO:
    one.close()  # no process of ours
    return ""
  if index in came:
    fault = f"two processes came as number {index}; give each an INDEX of its own"
    _tell(one, fault)
    return fault
  came[index] = one
  if own:
    return own.strip()
  if of != count:
    return f"process {index} says COUNT={of}, process 0 {count}"
  if said[3:] != _versions():
    theirs = ", ".join(said[3:]) or "an older tfusion"
    return (
      f"process {index} runs {theirs}, process 0 {', '.join(_versions())}; install the"
      " same on all hosts"
    )
  return ""


def _tell(one: socket.socket, fault: str) -> None:
  with contextlib.suppress(OSError):
    one.sendall(f"{fault}\n".encode())
    one.recv(1)  # it closes first: the port is free for JAX at once
  one.close()


def _versions() -> list[str]:
  return [f"{name}={version}" for name, version in versions().items()]


def _report(
  host: str, port: int, index: int, count: int, end: float, fault: str
) -> None:
  while True:
    left = end - time.monotonic()
    try:
      with socket.create_connection((host, port), max(left, AGAIN_SECONDS)) as one:
        hello = " ".join([HELLO, str(index), str(count), *_versions()])
        hello += fault and FAULT + " ".join(fault.split())[:600]
        one.sendall(f"{hello}\n".encode())
        one.settimeout(SECONDS + 10.0)
        said = one.makefile("rb").readline(1000).decode("utf-8", errors="replace")
      break
    except OSError as error:
      if left <= 0:
        raise ValueError(
          f"process 0 did not come to {host}:{port} within {SECONDS:.0f} s ({error})"
        ) from error
      time.sleep(AGAIN_SECONDS)
  if not said.endswith("\n"):
    raise ValueError(f"process 0 at {host}:{port} has ended, or is of another program")
  if fault := said.strip():
    raise ValueError(fault)
