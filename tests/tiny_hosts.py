"""Commands in processes that start in a moment: forks of one that has imported all.

Not a test: shared by the tests of runs of several hosts.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[1]
# Of a process that is a host of two devices. It finds no compiled programs: JAX keeps
# those of the first process alone, and the first would wait for the others while they
# compile, which gloo does for 30 seconds.
ENV = {
  "JAX_PLATFORMS": "cpu",
  "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  "JAX_NUM_CPU_DEVICES": "2",
  "PYTHONPATH": str(ROOT),
}
# Answers ["start", [file, arguments]] with a process number, and ["poll", number] with
# an exit status, null while there is none. A child goes on behind the loop and ends as
# any Python program does.
SERVER = """
import importlib.util, json, os, sys
from tfusion import cli

for name in ("tfusion.run", "matplotlib.figure", "tensorboardX"):
  if importlib.util.find_spec(name.partition(".")[0]):
    importlib.import_module(name)  # and all that it imports

PRELUDE

def serve():
  for line in sys.stdin:
    what, value = json.loads(line)
    if what == "poll":
      process, status = os.waitpid(value, os.WNOHANG)
      answer = os.waitstatus_to_exitcode(status) if process else None
    elif not (answer := os.fork()):
      return value
    print(json.dumps(answer), flush=True)
  os._exit(0)

printed, args = serve()
for number, name in enumerate((os.devnull, printed, printed)):
  file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
  os.dup2(file, number)
  os.close(file)
sys.argv = ["tfusion", *args]
sys.exit(cli.main(args))
"""


class Host:
  """A process of a command; what it prints goes to a file."""

  def __init__(self, server: "Server", number: int, printed: pathlib.Path):
    """Of a process that runs."""
    self.number, self.status = number, None
    self._server, self._printed = server, printed

  @property
  def said(self) -> str:
    """What it has printed so far."""
    return self._printed.read_text(errors="replace")

  def poll(self) -> int | None:
    """Its exit status; below 0, the number of a signal; None while it runs."""
    if self.status is None:
      self.status = self._server.ask("poll", self.number)
    return self.status

  def wait(self, *, within: float) -> int:
    """Its exit status; an AssertionError where there is none within these seconds."""
    end = time.monotonic() + within
    while (status := self.poll()) is None:
      assert time.monotonic() < end, f"still runs after {within} s:\n{self.said}"
      time.sleep(0.02)
    return status

  def wait_for(self, text: str) -> None:
    """Waits until it has printed this; an AssertionError where it ends before."""
    end = time.monotonic() + 300
    while text not in self.said:
      alive = self.poll() is None and time.monotonic() < end
      assert alive or text in self.said, f"waits for {text!r}:\n{self.said}"
      time.sleep(0.02)

  def send(self, signal: int) -> None:
    """Sends a signal, unless it has ended."""
    if self.poll() is None:
      os.kill(self.number, signal)


class Server:
  """Starts hosts."""

  def __init__(self, process: subprocess.Popen):
    """Of a process that runs SERVER."""
    self._process = process

  def start(self, args: Sequence[str], printed: pathlib.Path) -> Host:
    """Starts `tfusion` with these arguments."""
    return Host(self, self.ask("start", [str(printed), [*args]]), printed)

  def ask(self, what: str, value):
    """The answer of SERVER."""
    print(json.dumps([what, value]), file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def serving(env: dict[str, str], *, prelude: str = "") -> Iterator[Server]:
  """A server, in this environment besides ENV and our own; its hosts have run the
  prelude, Python code, when they begin."""
  process = subprocess.Popen(
    [sys.executable, "-c", SERVER.replace("PRELUDE", prelude)],
    env=os.environ | ENV | env,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    yield Server(process)
    process.stdin.close()


@contextlib.contextmanager
def two_hosts(
  server: Server, *args: str, second: Sequence[str] = ()
) -> Iterator[list[Host]]:
  """Two hosts of a command, which do not outlive the `with`; the second has more
  arguments."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  folder = pathlib.Path(tempfile.mkdtemp())
  hosts = [
    server.start(
      [*args, *second * i, "--distributed", f"{address},{i},2"], folder / f"{i}.txt"
    )
    for i in range(2)
  ]
  try:
    yield hosts
  finally:
    for host in hosts:
      host.send(9)
    for host in hosts:
      host.wait(within=60)


def ends(hosts: list[Host], *statuses: int, within: float = 300) -> list[str]:
  """What hosts have printed that end with these statuses."""
  end = time.monotonic() + within
  found = [host.wait(within=max(end - time.monotonic(), 0.1)) for host in hosts]
  said = [host.said for host in hosts]
  assert found == list(statuses), "\n".join(said)
  return said


def run_two_hosts(server: Server, *args: str) -> list[str]:
  """Runs a command on two hosts to its end; returns what they printed."""
  with two_hosts(server, *args) as hosts:
    return ends(hosts, 0, 0)
