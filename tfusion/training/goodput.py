"""What the time of a run went into, over all its starts: goodput.json.

Owns: the file, and what a start adds to it. Not: the seconds of this start (clock.py).

  {"seconds": {"step": 812.1, "data": 3.0, ..., "lost": 40.2, "down": 9.1},
   "goodput": 0.87, "starts": [...]}

`step` is training; `lost` is what was done after the checkpoint that a later start went
on from, and so was done again; `down` lies between the starts. It is told by the clock
that counts from the machine's boot, which nobody sets, where both starts had the same,
and else by the system's clock.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from tfusion import workdir as workdir_lib
from tfusion.training.clock import Clock

FILE = "goodput.json"
OUTSIDE = ("init", "compile", "save", "evaluate")  # of the training itself
REPEATED = ("step", "data", "save", "evaluate")  # what is lost with the updates
MARKS = 16  # newest checkpoints of a start whose time is remembered
EVERY_SECONDS = 10.0  # between two writes, unless something has come to its end


class Goodput:
  """The account of a run; only the first host keeps it."""

  def __init__(self, workdir: Path, step: int, clock: Clock, *, writes: bool):
    """Begins the account of this start; settles those of earlier ones.

    Args:
      workdir: of the run; an account that cannot be read is begun anew.
      step: updates done, of the checkpoint that this start goes on from.
      clock: of this start.
      writes: whether this host does.
    """
    self._workdir, self._clock, self._writes = workdir, clock, writes
    self._written = 0.0
    self._starts = _read(workdir / FILE) if writes else []
    for start in self._starts:
      _settle(start, step)
    since = {name: now - clock.elapsed for name, now in _clocks().items()}
    self._own: dict[str, Any] = {"since": since, "step": step, "marks": []}
    self._starts.append(self._own)

  def mark(self, step: int) -> None:
    """A checkpoint of this step has begun to be written."""
    self._own["marks"] = [*self._own["marks"], [step, self._seconds()]][-MARKS:]
    self.write(step)

  def write(self, step: int, *, now: bool = True) -> None:
    """Writes the account.

    Args:
      step: updates done.
      now: also if it was written a moment ago.
    """
    ago = self._clock.elapsed - self._written
    if not self._writes or (not now and ago < EVERY_SECONDS):
      return
    self._written = self._clock.elapsed
    self._own |= {"step": step, "until": _clocks(), "seconds": self._seconds()}
    seconds = total(self._starts)
    whole = sum(seconds.values())
    values = {"seconds": seconds, "goodput": seconds.get("step", 0.0) / (whole or 1.0)}
    workdir_lib.write_json(self._workdir, FILE, values | {"starts": self._starts})

  def _seconds(self) -> dict[str, float]:
    spent = {name: float(x) for name, x in self._clock.seconds.items()}
    outside = sum(spent.get(name, 0.0) for name in OUTSIDE)
    step = self._clock.elapsed - outside - spent.get("data", 0.0)
    return {"step": max(step, 0.0)} | spent


def total(starts: list[dict[str, Any]]) -> dict[str, float]:
  """The seconds of all starts, by what they went into."""
  seconds: dict[str, float] = {}
  for start in starts:
    for name, x in start.get("seconds", {}).items():
      seconds[name] = seconds.get(name, 0.0) + x
  down = sum(map(_down, starts, starts[1:]))
  return seconds | ({"down": down} if len(starts) > 1 else {})


def _down(before: dict[str, Any], after: dict[str, Any]) -> float:
  """Seconds between two starts, by the last clock that both know."""
  until, since = before.get("until", {}), after["since"]
  known = [name for name in since if name in until]
  # A clock that was set back takes nothing away.
  return max(since[known[-1]] - until[known[-1]], 0.0) if known else 0.0


def _clocks() -> dict[str, float]:
  """Now, by the system's clock, and by that of this boot where there is one."""
  found = {"system": time.time()}
  with contextlib.suppress(OSError, AttributeError):
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found[boot] = time.clock_gettime(time.CLOCK_BOOTTIME)
  return found


def _settle(start: dict[str, Any], step: int) -> None:
  """Counts as lost what an earlier start did beyond this step."""
  if start["step"] <= step or "seconds" not in start:
    return
  seconds = start["seconds"]
  kept: dict[str, float] = {}
  for marked, then in start["marks"]:
    if marked <= step:
      kept = then
  for name in REPEATED:
    lost = max(seconds.get(name, 0.0) - kept.get(name, 0.0), 0.0)
    if lost:
      seconds[name] -= lost
      seconds["lost"] = seconds.get("lost", 0.0) + lost
  start["step"] = step


def _read(path: Path) -> list[dict[str, Any]]:
  """The starts that stand in a file; none of one that is not ours or is damaged."""
  with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
    starts = json.loads(path.read_text())["starts"]
    for start in starts:
      _ = start["since"]["system"] + start["step"], [*start["marks"]]
    return starts
  return []
