"""A thread beside the loop: a run that stands still, or has lost a host, ends.

Owns: when that is, what is said then, the exit status. Not: the connections between
hosts (peers.py), what the clock counts (clock.py).

A run stands still where no update comes to its end for train.stall_seconds. To open the
data, to compile, to evaluate and to save may take longer: they stand still where they
show no progress for LONG_TIMES as long. So does a save that goes on beside updates. The
stop of this process, as by Ctrl-Z, counts nothing.

What hangs is most often a disk, so this thread touches none: whatever does has a thread
of its own, for which nobody waits.
"""

import atexit
import contextlib
import faulthandler
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from tfusion import buckets, errors, files, progress
from tfusion.progress import say
from tfusion.training import peers as peers_lib
from tfusion.training.clock import Clock
from tfusion.training.peers import Peers, Word

STATUS = os.EX_TEMPFAIL  # 75: the same command goes on
LOOK_SECONDS = 1.0  # between two looks
BUCKET_SECONDS = 30.0  # between two looks into a bucket, each of which is a request
ASLEEP_SECONDS = 10.0  # between two looks: this process was stopped itself
# So many times train.stall_seconds for what is no update: an hour, where a save to a
# slow disk takes half of one and a disk that hangs does not answer in a day.
LONG_TIMES = 6.0
DOING = {
  "init": "opening the data or restoring a checkpoint",
  "compile": "compiling the step",
  "save": "saving a checkpoint",
  "evaluate": "an evaluation",
}
WRITE_SECONDS = 5.0  # for the stacks to be written; the disk may be what hangs
LAST_SECONDS = 30.0  # for all that is said at the end
GRACE_SECONDS = 5.0  # for this host to fail by itself where another has
TELL_SECONDS = 2.0  # for words to reach the others before this process ends
PROFILE = "profile"  # a file of the workdir that asks for one
SLOW_TIMES = 2.0  # a host is slow that needs so many times what the others do ...
SLOW_SHARE = 0.5  # ... and so much of an update; the devices hide what is less
GOES_ON = "the same command, on all hosts, goes on from the last checkpoint"
# How XLA and its collectives begin what they raise, of whatever type.
_OF_XLA = re.compile(
  r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): "
)


class Watch:
  """What the loop tells the thread, and the thread the loop."""

  def __init__(self, workdir: Path, stall_seconds: float, clock: Clock):
    """Watches nothing yet.

    Args:
      workdir: gets the stacks of a run that stands still.
      stall_seconds: without an update, that end the run; 0: none do.
      clock: knows whether the loop does something else than updates.
    """
    self.peers: Peers | None = None
    self.paces: dict[int, float] = {}  # of other hosts, as `tell_pace` was told
    # The step whose save goes on beside updates, if any.
    self.under_way: Callable[[], int | None] = lambda: None
    self._profile_asked = threading.Event()
    self._handler: Any = None  # of SIGUSR1, before
    self._workdir, self._limit, self._clock = workdir, stall_seconds, clock
    self._beats = 0
    self._seen: Any = None  # signs of life, and since when there was no other
    self._since = 0.0
    self._save: int | None = None  # what `under_way` said, and since when it does
    self._save_since = 0.0
    self._gone: set[int] = set()  # hosts that have come to their end
    self._lost = self._ends_itself = False
    self._left: tuple[float, str, int] | None = None  # by when to end, why, how
    self._lock, self._done = threading.Lock(), threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
    self._profiles = threading.Thread(
      target=self._look_for_profile, daemon=True, name="profile"
    )

  def beat(self) -> None:
    """An update has come to its end; the first call begins the watch."""
    self._beats += 1

  def tell_pace(self, seconds: float) -> None:
    """Tells the first host what an update costs this host beside its devices."""
    self.paces[jax.process_index()] = seconds
    if self.peers and jax.process_index():
      self._say("pace", seconds)

  def host_ms(self) -> list[float | None]:
    """What `tell_pace` was told last, by host; None of a host not heard of yet."""
    paces = dict(self.paces)  # the thread may add to them
    found = (paces.get(host) for host in range(jax.process_count()))
    return [None if pace is None else 1e3 * pace for pace in found]

  def slow(self, step_seconds: float) -> str:
    """Names a host for which the others wait; empty if there is none.

    All devices finish an update together, so a slow host shows in what it does beside
    them: reading its data, its Python. While that is shorter than the work of the
    devices, which goes on meanwhile, no host waits for it. A slow device does not show.

    Args:
      step_seconds: of an update.
    """
    paces = dict(self.paces)
    host = max(paces, key=lambda host: paces[host])
    most = paces.pop(host)
    median = statistics.median(paces.values()) if paces else most
    if most < max(SLOW_TIMES * median, SLOW_SHARE * step_seconds) or not paces:
      return ""
    name = f" ({self.peers.names[host]})" if self.peers else ""
    return (
      f"host {host}{name} is slow: of the {1e3 * step_seconds:.0f} ms of an update it"
      f" needs {1e3 * most:.0f} for itself, the median of the others is"
      f" {1e3 * median:.0f}"
    )

  def take_profile(self) -> bool:
    """Whether a profile was asked for since the last call."""
    asked = self._profile_asked.is_set()
    self._profile_asked.clear()
    return asked

  def start(self) -> None:
    """Starts the thread; all hosts must call it."""
    self.peers = peers_lib.meet()
    if jax.process_count() > 1 and not self.peers and jax.process_index() == 0:
      say(
        "warning: hosts cannot reach the first one on a free port; a host that is"
        " killed will be noticed by JAX alone, after two minutes"
      )
    self._thread.start()
    if jax.process_index() == 0:
      self._profiles.start()
    if threading.current_thread() is threading.main_thread():
      asked = self._profile_asked
      self._handler = signal.signal(signal.SIGUSR1, lambda *_: asked.set())

  def stop(self, error: BaseException | None) -> None:
    """Ends the thread, and tells the other hosts how this one ends.

    Of several hosts, where a program on the devices has failed: waits until it is known
    which host is lost, and ends the process with that.

    Args:
      error: by which the run ends.
    """
    if self._handler is not None:
      signal.signal(signal.SIGUSR1, self._handler)
    said = f"{type(error).__name__}: {error}"
    if self.peers and error and _is_of_devices(error):
      self._thread.join(peers_lib.SILENT_SECONDS + ASLEEP_SECONDS)
      self._end(f"the hosts lost each other, and all answer ({said[:300]}); {GOES_ON}")
    if not self.peers:
      self._done.set()
      self._thread.join()
      return
    known = error and errors.explain(error)
    status = 2 if known else 130 if isinstance(error, KeyboardInterrupt) else 1
    self._ends_itself = True
    self._say("end", error and [known or said, status])
    if error and not self._all_end():
      # JAX waits at the exit for hosts that are gone, and aborts: what ended this one
      # is said by then.
      atexit.register(_exit_now, status)
    self._done.set()
    self._thread.join()
    self.peers.close()

  def _all_end(self) -> bool:
    """Whether the other hosts end too, of themselves; waits for their word."""
    end = time.monotonic() + GRACE_SECONDS + LOOK_SECONDS
    others = set(range(jax.process_count())) - {jax.process_index()}
    while time.monotonic() < end and not others <= self._gone:
      time.sleep(0.1)
    return others <= self._gone and not self._lost

  def _run(self) -> None:
    looked = time.monotonic()
    while not self._done.is_set():
      words: list[Word] = []
      if self.peers:
        words = self.peers.listen(LOOK_SECONDS)
      else:
        self._done.wait(LOOK_SECONDS)
      now = time.monotonic()
      asleep, looked = now - looked > ASLEEP_SECONDS, now
      for word in words:
        self._hear(word)
      if self._left and now > self._left[0] and not self._ends_itself:
        self._end(*self._left[1:])
      if stalled := self._stalled(now, asleep):
        self._end_stalled(jax.process_index(), stalled)

  def _stalled(self, now: float, asleep: bool) -> str:
    """What has stood still for too long; empty if nothing has.

    Args:
      now: of the clock that nobody sets.
      asleep: whether this process was stopped itself since the last call.
    """
    phase, save = self._clock.phase, self.under_way()
    seen = self._beats, phase, progress.shown()
    if asleep or seen != self._seen or not (self._beats or phase):
      self._since, self._seen = now, seen
    if asleep or save != self._save or save is None:
      self._save_since, self._save = now, save
    if not self._limit or self._ends_itself:
      return ""
    most, knob = LONG_TIMES * self._limit, f"train.stall_seconds={self._limit:g}"
    long = f"{most:g} s, {LONG_TIMES:g} times {knob}"
    if now - self._save_since > most:
      return f"the save of step {save} has not come to its end for {long},"
    if phase and now - self._since > most:
      return f"{DOING.get(phase, phase)} has shown no progress for {long},"
    if not phase and now - self._since > self._limit:
      return f"no update for {knob}"
    return ""

  def _hear(self, word: Word) -> None:
    name = f"host {word.host}"
    if self.peers:
      name += f" ({self.peers.names[word.host]})"
    if word.kind == "pace":
      self.paces[word.host] = word.value
    elif word.kind == "profile":
      self._profile_asked.set()
    elif word.kind == "stalled":
      self._end_stalled(word.host, word.value)
    elif word.kind == "end":
      self._gone.add(word.host)
      if word.value:
        why, status = word.value
        # The first goes last: without it, JAX would abort the others.
        grace = GRACE_SECONDS * (1 if jax.process_index() else 2)
        self._left = time.monotonic() + grace, f"{name}: {why}", status
    elif word.kind == "lost" and word.host not in self._gone:
      self._gone.add(word.host)
      self._lost = True
      if self._ends_itself:
        return
      self._end(
        f"{name} {word.value}: killed, out of memory or cut off; {GOES_ON}", told=True
      )

  def _end_stalled(self, host: int, what: str) -> None:
    """Writes the stacks of this host, and ends.

    Args:
      host: that stands still.
      what: does, in words that go on with the host's name.
    """
    with _at_last(STATUS):
      if host == jax.process_index():
        self._say("stalled", what)
      elif self.peers and jax.process_index() == 0:
        time.sleep(TELL_SECONDS)  # it was given on; the others hear it before this ends
      path = self._workdir / f"stacks_host_{jax.process_index()}.txt"
      where = "above"
      with contextlib.suppress(OSError), tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        where += f" and in {path}" if _write_soon(path, file.read()) else ""
      if sys.__stderr__ is not None:
        faulthandler.dump_traceback(sys.__stderr__)
      self._end(
        f"{what} on host {host}; the stacks of all threads stand {where}. Look there"
        " for what it waits for, such as a disk that does not answer, or raise that"
        f" knob; {GOES_ON}",
        told=True,
      )

  def _end(self, why: str, status: int = STATUS, *, told: bool = False) -> None:
    """Ends the process at once: what hangs would keep it for ever."""
    with self._lock, _at_last(status):  # one thread speaks
      line = f"tfusion: host {jax.process_index()} ends: {why}\n"
      with contextlib.suppress(OSError):
        os.write(2, line.encode())
      with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
      if told and self.peers:
        time.sleep(TELL_SECONDS if jax.process_index() == 0 else 0.0)
      os._exit(status)

  def _say(self, kind: str, value: Any = None) -> None:
    if self.peers:
      self.peers.say(kind, value)

  def _look_for_profile(self) -> None:
    """Looks, on the first host, for the file that asks for a profile; has a thread of
    its own, which may stand still with the disk."""
    path = self._workdir / PROFILE
    pause = BUCKET_SECONDS if buckets.is_bucket(path) else LOOK_SECONDS
    while not self._done.wait(pause):
      with contextlib.suppress(OSError):  # a store that does not answer is asked again
        if path.is_file():
          path.unlink()
          self._profile_asked.set()
          self._say("profile")


@contextlib.contextmanager
def watching(workdir: Path, stall_seconds: float, clock: Clock) -> Iterator[Watch]:
  """Watches for the time of a `with`; all hosts must enter it."""
  watch = Watch(workdir, stall_seconds, clock)
  watch.start()
  try:
    yield watch
  except BaseException as error:
    watch.stop(error)
    raise
  watch.stop(None)


@contextlib.contextmanager
def _at_last(status: int) -> Iterator[None]:
  """Ends the process where the block of a `with` hangs, as on a disk that holds what
  is printed."""
  timer = threading.Timer(LAST_SECONDS, lambda: os._exit(status))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _write_soon(path: Path, text: str) -> bool:
  """Whether a file was written within WRITE_SECONDS."""
  written = threading.Event()

  def write() -> None:
    with contextlib.suppress(OSError):
      files.write_whole(path, text)
      written.set()

  threading.Thread(target=write, daemon=True, name="stacks").start()
  return written.wait(WRITE_SECONDS)


def _exit_now(status: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(status)


def _is_of_devices(error: BaseException) -> bool:
  """Whether a program on the devices of several hosts has failed."""
  return isinstance(error, ValueError | RuntimeError) and bool(
    _OF_XLA.match(str(error))
  )
