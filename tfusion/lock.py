"""The lock of a workdir: one run at a time writes there.

Owns: lock.json, its heartbeat, whether its owner still lives. Not: what a run writes,
how the hosts of one run hear of it (training/hold.py).

  {"owner": "...", "command": "tfusion train ...", "host": "lab1", "process": 4711,
   "since": "2026-11-28 10:02:11", "here": "...", "started": "...",
   "beats": "000000042"}

flock would do on one machine, but disks that several machines share may not pass it on.
So the file is made by O_EXCL, which such disks do keep, and stays until its owner is
done. An owner that was killed leaves it behind; whether it was is seen by

  the process, where the owner is of this machine and of this container: `here`, the
    boot and the namespace that a process number belongs to, is ours, and no process of
    that number runs, or one that started at another time;
  its heartbeat otherwise: a thread of the owner counts beats up in the file, and a
    count that stands still while the waiting process watches is a dead owner's. No
    clocks of two machines are compared.

An owner that was only asleep, as a laptop with its lid closed, can lose the lock so. It
asks `check` before it writes. Beats are written through the open file: they cannot
touch the file of whoever came after.

In a bucket, `create` stands for O_EXCL: the store makes an object only if there is
none. Nothing is written in place there, so the beats are an object of their own, which
is called after the owner.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfusion import buckets, files

FILE = "lock.json"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # no beat for so long: the owner is dead, or as good as dead
LOOK_SECONDS = 1.0  # between two looks at another's heartbeat
_DIGITS = 9  # of the count of beats: always as long, so that it is written in place


class Lost(ValueError):
  """Another run has taken the workdir over."""


class Lock:
  """A held lock; made by `hold`."""

  def __init__(self, path: Path, handle: int | None, facts: dict[str, Any]):
    """Begins to beat.

    Args:
      path: of the file.
      handle: of the open file, which is this process's own; None in a bucket.
      facts: that stand in it.
    """
    self._path, self._handle, self._facts = path, handle, facts
    self._beats, self._done = 0, threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()

  @property
  def owner(self) -> str:
    """What no other lock is called."""
    return self._facts["owner"]

  def check(self) -> None:
    """Proves that the lock is still held.

    Raises:
      Lost: it is another's, or nobody's.
    """
    try:
      now = _read(self._path)
    except FileNotFoundError:
      now = {}
    if now.get("owner") == self._facts["owner"]:
      return
    whose = f"is in use by {_name(now)}" if now else f"has no {FILE} any more"
    raise Lost(
      f"--workdir={self._path.parent}: {whose}; it was taken from this run, which began"
      f" {self._facts['since']} and gave no sign of life for {SILENT_SECONDS:.0f} s, or"
      " was removed. This run stops and writes no more; started again, it goes on from"
      " the newest checkpoint once the other has ended"
    )

  def release(self) -> None:
    """Ends the heartbeat and removes the file, if it is still this process's."""
    self._done.set()
    self._thread.join()
    with contextlib.suppress(Lost, OSError):
      self.check()
      self._path.unlink()
    with contextlib.suppress(OSError):
      _end(self._path, self._handle, self._facts)

  def _beat(self) -> None:
    while not self._done.wait(BEAT_SECONDS):
      self._beats += 1
      # A disk that does not answer now may do so at the next beat; `check` decides.
      with contextlib.suppress(OSError):
        _write(self._path, self._handle, self._facts, self._beats)


@contextlib.contextmanager
def hold(workdir: str | Path) -> Iterator[Lock]:
  """Holds the lock of a workdir for the time of a `with`, however that ends.

  Waits SILENT_SECONDS at most, and only where an owner of another machine may have been
  killed.

  Raises:
    ValueError: another run holds it; names its command, host and process.
    OSError: the file cannot be made.
  """
  lock = _take(files.to_path(workdir))
  try:
    yield lock
  finally:
    lock.release()


def owner(workdir: str | Path) -> str | None:
  """The `owner` of the lock of a workdir; None where there is none."""
  try:
    return _read(files.to_path(workdir) / FILE).get("owner")
  except OSError:  # as of a folder that is not there
    return None


def _take(workdir: Path) -> Lock:
  path = workdir / FILE
  facts = {
    "owner": uuid.uuid4().hex,
    "command": " ".join(["tfusion", *sys.argv[1:]]),
    "host": socket.gethostname(),
    "process": os.getpid(),
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    "here": _here(),
    "started": _started(os.getpid()),
  }
  while True:
    with contextlib.suppress(FileExistsError):
      return Lock(path, _make(path, facts), facts)
    dead = _find_dead(path)
    if dead is not None and (lock := _replace(path, dead, facts)) is not None:
      print(f"{path}: the run of {_name(dead)} was killed; this one takes over")
      return lock


def _make(path: Path, facts: dict[str, Any]) -> int | None:
  """Makes a file with these facts; returns it open. FileExistsError: there is one."""
  if there := buckets.of(path):
    _write(path, None, facts, 0)
    try:
      there.create(_text(facts))
    except FileExistsError:
      # Ours it is where the store made it and its answer was lost on the way.
      if _read(path).get("owner") != facts["owner"]:
        _end(path, None, facts)
        raise
    return None
  handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
  try:
    _write(path, handle, facts, 0)
  except OSError as error:  # as of a full disk
    os.close(handle)
    path.unlink(missing_ok=True)
    raise OSError(error.errno, error.strerror, str(path)) from error
  return handle


def _find_dead(path: Path) -> dict[str, Any] | None:
  """What stands in the file of an owner that lives no more; None: it is gone.

  Raises:
    ValueError: the owner lives.
  """
  try:
    seen = _read(path)
  except FileNotFoundError:
    return None
  here = _here()
  if not here or seen.get("here") != here:
    return _watch(path, seen)
  if _started(seen["process"]) == seen["started"]:
    raise _in_use(path, seen)
  return seen


def _replace(path: Path, dead: dict[str, Any], facts: dict[str, Any]) -> Lock | None:
  """Puts a file in the place of a dead owner's; None if another was faster.

  Several may have found the same owner dead. Who makes the file that is called after it
  replaces it, and looks before whether that has been done.
  """
  claim = path.with_name(f"{FILE}.{dead.get('owner', 'nobody')}.tmp")
  try:
    claim.touch(0o644, exist_ok=False)
  except FileExistsError:
    _wait_for(claim)
    return None
  aside = path.with_name(f"{FILE}.{facts['owner']}.tmp")
  try:
    if _read(path).get("owner") != dead.get("owner"):
      return None
    if there := buckets.of(path):
      _write(path, None, facts, 0)
      there.write_bytes(_text(facts))  # at once, as a rename is
      _end(path, None, dead)
      return Lock(path, None, facts)
    handle = _make(aside, facts)
    os.replace(aside, path)
    return Lock(path, handle, facts)
  except FileNotFoundError:
    return None
  finally:
    claim.unlink(missing_ok=True)


def _wait_for(claim: Path) -> None:
  """Waits for another's replacement; it takes no time, unless that one is killed."""
  end = time.monotonic() + SILENT_SECONDS
  while claim.exists():
    if time.monotonic() > end:
      claim.unlink(missing_ok=True)
    time.sleep(min(LOOK_SECONDS, 0.05))


def _watch(path: Path, seen: dict[str, Any]) -> dict[str, Any] | None:
  """Waits until the heartbeat has stood still for long enough; as `_find_dead`."""
  print(
    f"{path}: held by {_name(seen)}; watching for {SILENT_SECONDS:.0f} s whether that"
    " still runs",
    flush=True,
  )
  left, looked = SILENT_SECONDS, time.monotonic()
  while left > 0:
    time.sleep(LOOK_SECONDS)
    try:
      now = _read(path)
    except FileNotFoundError:
      return None  # released
    if now != seen:
      raise _in_use(path, now)
    # A look that took long, since this process was stopped or the disk did not answer,
    # says no more of the owner than another: it may have been held up as well.
    before, looked = looked, time.monotonic()
    left -= min(looked - before, 2 * LOOK_SECONDS)
  return seen


def _in_use(path: Path, owner: dict[str, Any]) -> ValueError:
  return ValueError(
    f"--workdir={path.parent}: is in use by {_name(owner)}; two runs in one workdir"
    " would destroy each other's checkpoints. Wait for its end, stop it (a Ctrl-C or"
    " SIGTERM lets it save), or choose another workdir"
  )


def _name(owner: dict[str, Any]) -> str:
  if "host" not in owner:
    return "a run that has not said yet which it is"
  return (
    f"`{owner['command']}`, process {owner['process']} on host {owner['host']}, since"
    f" {owner['since']}"
  )


def _read(path: Path) -> dict[str, Any]:
  """What stands in the file; without an owner where it is just being written.

  Raises:
    FileNotFoundError: there is none.
  """
  try:
    values = json.loads(path.read_bytes())
  except ValueError:
    return {}
  if not isinstance(values, dict):
    return {}
  if buckets.is_bucket(path):
    with contextlib.suppress(FileNotFoundError):
      values["beats"] = _beats_of(path, values).read_text()
  return values


def _text(facts: dict[str, Any]) -> bytes:
  return (json.dumps(facts, indent=1) + "\n").encode()


def _beats_of(path: Path, facts: dict[str, Any]) -> Path:
  """In a bucket, the object with the beats of an owner."""
  return path.with_name(f"{FILE}.{facts.get('owner', 'nobody')}.beats")


def _write(path: Path, handle: int | None, facts: dict[str, Any], beats: int) -> None:
  count = f"{beats:0{_DIGITS}d}"
  if handle is None:
    _beats_of(path, facts).write_text(count)
    return
  os.pwrite(handle, _text(facts | {"beats": count}), 0)
  os.fsync(handle)


def _end(path: Path, handle: int | None, facts: dict[str, Any]) -> None:
  """Gives back what an owner beats through."""
  if handle is None:
    _beats_of(path, facts).unlink(missing_ok=True)
  else:
    os.close(handle)


def _here() -> str:
  """The boot of this machine and the container that process numbers belong to; empty
  where the system does not say."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


def _started(process: int) -> str:
  """When a process of this machine began, in ticks since the boot; empty if it runs no
  more, or the system does not say."""
  try:
    # The name in parentheses may hold anything.
    state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except (OSError, ValueError):
    return ""
  return "" if state in "ZX" else rest[18]
