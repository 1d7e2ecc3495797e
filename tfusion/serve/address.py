"""Where a model is served: an address of this machine, taken before the work begins.

Owns: the socket, what has to be installed. Not: what is answered (application.py).
"""

import errno
import importlib.util
import socket

HOST, PORT = "127.0.0.1", 8642  # which no other machine reaches


def check_library() -> None:
  """Raises ValueError if the extra `serve` is not installed."""
  if importlib.util.find_spec("aiohttp") is None:
    raise ValueError("aiohttp is missing: pip install 'tfusion[serve]'")


def listen(host: str, port: int) -> socket.socket:
  """Takes an address before the work begins.

  Args:
    host: a name or an address of this machine.
    port: 0: any that is free.

  Raises:
    ValueError: the port is in use or not to be had, or the host is none of here.
  """
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
  except (socket.gaierror, UnicodeError) as error:
    raise ValueError(f"--host={host}: is no address ({error})") from error
  taken = socket.socket(family, kind)
  taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    taken.bind(address)
    taken.listen()
  except OSError as error:
    taken.close()
    why = error.strerror
    if error.errno == errno.EADDRINUSE:
      why = "another program has it; stop that, or choose another port, as in --port=0"
    elif error.errno == errno.EADDRNOTAVAIL:
      why = "is no address of this machine; 127.0.0.1 is, and 0.0.0.0 is all of them"
    raise ValueError(f"--host={host} --port={port}: {why}") from error
  return taken
