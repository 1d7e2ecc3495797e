"""The log of a run: its files of numbers, and what it says on the console.

Owns: metrics.jsonl, speed.jsonl, validation.jsonl, spikes.jsonl. Not: where numbers go
too (loggers.py), the page that shows them (report/), the rule for spikes (spikes.py).

`metrics.jsonl` and `validation.jsonl` hold values alone, which a resumed run repeats
bit for bit; times stand in `speed.jsonl`.

Nothing can be appended to an object of a bucket. There the lines stay in memory and the
object is written anew: before every checkpoint and evaluation, so that nothing is lost
that a checkpoint counts as done; every REWRITE_SECONDS between; and at the end.
"""

import json
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tfusion import buckets, files
from tfusion.config import Config
from tfusion.lock import Lost
from tfusion.progress import say
from tfusion.report import spikes
from tfusion.training import loggers
from tfusion.training.clock import Clock
from tfusion.training.goodput import Goodput
from tfusion.training.hold import Hold
from tfusion.training.loggers import Logger
from tfusion.training.profiles import Profiles
from tfusion.training.spikes import Spikes
from tfusion.training.stop import StopSignals

Values = dict[str, Any]
REWRITE_SECONDS = 60.0  # in a bucket, at most, between a line and its being there
NO_TRAINING = ("init", "compile", "save", "evaluate")  # seconds that no rate counts


class Log:
  """What a run writes down and says; only the first host does either. It ends with the
  block of a `with`, or with the stack that it was pushed on.

  The metrics of an update are handed over while the device still computes them, and
  written when it has the next update to work on, so that it never waits for them.
  """

  def __init__(
    self,
    config: Any,
    workdir: Path,
    step: int,
    clock: Clock,
    held: Hold,
    stop: StopSignals,
    rates: Callable[[dict[str, float]], Values],
    line: Callable[[Values, Values, int], str],
  ):
    """Opens the files, without the lines behind the checkpoint.

    Args:
      config: with `train`.
      workdir: of the run.
      step: updates done so far.
      clock: runs since the start of this process.
      held: the workdir; its watch is told of every update.
      stop: is told where nobody reads any more what the run says.
      rates: what speed.jsonl says beside times, of the `seconds` and the counts since
        the last line, by name as `hand_over` was given them.
      line: the line for the console, of a line of metrics.jsonl, one of speed.jsonl
        and the updates of the whole run.
    """
    self.first = jax.process_index() == 0
    self.waiting: tuple[int, dict[str, jax.Array]] | None = None
    self._train, self._workdir = config.train, workdir
    self.clock = clock
    self._held, self._stop, self._watch = held, stop, held.watch
    self._goodput = Goodput(workdir, step, clock, writes=self.first)
    self._spikes, self._spike_said = Spikes(), -config.train.log_every_steps
    self._profiles = Profiles(workdir, self.say)
    # `inspect data` shows the rows of models.
    self._has_rows = isinstance(config, Config)
    self._rates, self._line = rates, line
    # Counts now, and at the last line.
    self._done: defaultdict[str, float] = defaultdict(int)
    self._logged: defaultdict[str, float] = defaultdict(int)
    self._files = {
      name: JsonLines(workdir / f"{name}.jsonl", last_step=step, writes=self.first)
      for name in ("metrics", "speed", "validation", "spikes")
    }
    self._loggers: list[Logger] = []
    if self.first and config.train.loggers:
      kept = {name: read_lines(self._files[name].path) for name in loggers.FILES}
      self._loggers = loggers.opened(config, workdir, step, kept)
    if self._watch:
      self._watch.beat()

  def say(self, text: str) -> None:
    """Prints; where nobody reads any more, the run is told to stop."""
    if self.first and not say(text):
      self._stop.request(signal.SIGPIPE)

  def hand_over(
    self, step: int, values: dict[str, jax.Array], counts: dict[str, float]
  ) -> None:
    """Takes the metrics of an update, which `write` writes.

    Args:
      step: updates done, this one included.
      values: f32[] each, with `skipped`; may still be on the device.
      counts: what the update worked through, over all hosts.
    """
    self.waiting = step, values
    for name, count in (counts | {"updates": 1}).items():
      self._done[name] += count
    if self._watch:
      self._profiles.turn(step, self._watch.take_profile, values)

  def write(self) -> None:
    """Writes what was handed over last; waits for the device if it must.

    Raises:
      FloatingPointError: max_skipped_updates non-finite updates in a row.
      lock.Lost: the workdir has become another run's.
    """
    if self.waiting is None:
      return
    (step, arrays), self.waiting = self.waiting, None
    begin = time.perf_counter()
    values = {name: float(x) for name, x in jax.device_get(arrays).items()}
    self._done["blocked"] += time.perf_counter() - begin
    if self._watch:
      self._watch.beat()
    limit = self._train.max_skipped_updates
    if values["skipped"] >= limit:
      raise FloatingPointError(
        f"step {step}: the loss or its gradient was not finite in {limit} updates in a"
        " row (train.max_skipped_updates), which were skipped; lower optim.peak_lr or"
        " look at the data of these steps, then start again: the run goes on from the"
        f" last checkpoint in {self._workdir / 'checkpoints'}"
      )
    if values["skipped"]:
      self.say(f"step {step}: not finite, update skipped")
    self._mark_spikes(step, values)
    if step % self._train.log_every_steps == 0:
      self._write_line({"step": step} | _without_absent(values))

  def mark_saved(self, step: int) -> None:
    """A checkpoint has begun to be written: up to it, nothing will be done again."""
    self._goodput.mark(step)
    self._profiles.stop(())  # a run may end here

  def write_validation(self, line: Values) -> None:
    """Adds a line, with `step`, to validation.jsonl."""
    self._files["validation"].append(line)
    self._files["validation"].flush()
    self._give("validation", line)

  def flush(self) -> None:
    """Writes the lines that a bucket does not have yet; elsewhere there are none.

    Raises:
      OSError: they cannot be written.
    """
    for lines in self._files.values():
      lines.flush()

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    """As `flush`, unless the workdir has become another run's; ends the loggers."""
    unwritten = any(lines.unwritten for lines in self._files.values())
    with suppress(Lost):
      if unwritten or self._loggers:
        self._held.check()
      self.flush()
      for logger in self._loggers:
        logger.close(failed=kind is not None)

  def lacks_validation(self, step: int) -> bool:
    """True if validation.jsonl has no line of this step; all hosts answer alike."""
    # Another host's view of the file may be old: the first decides.
    lacks = self._files["validation"].last_step < step
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(lacks)))

  def _give(self, name: str, line: Values) -> None:
    for logger in self._loggers:
      logger.write(name, line)

  def _write_line(self, values: Values) -> None:
    due = any(lines.is_due for lines in self._files.values())
    if due and jax.process_count() == 1:  # several hosts ask each other when they save
      self._held.check()
    spent = self.clock.seconds
    self._done["seconds"] = self.clock.elapsed - sum(spent[k] for k in NO_TRAINING)
    self._done["waited"] = spent["data"]
    self._done["asked"] = self._stop.waited
    self._done["computed"] = self.clock.computed
    since = {k: max(x - self._logged[k], 1e-9) for k, x in self._done.items()}
    self._logged = self._done.copy()
    step_seconds = since["seconds"] / since["updates"]
    speed = {
      "step": values["step"],
      "seconds": self.clock.elapsed,
      **self._rates(since),
      "step_ms": 1e3 * step_seconds,
      "data_wait_share": since["waited"] / since["seconds"],
      "eta_seconds": step_seconds * (self._train.steps - values["step"]),
    }
    if self._watch and jax.process_count() > 1:
      own = since["seconds"] - since["blocked"] - since["asked"] - since["computed"]
      self._watch.tell_pace(max(own, 0.0) / since["updates"])
      speed["host_ms"] = self._watch.host_ms()
      if slow := self._watch.slow(step_seconds):
        self.say(f"step {values['step']}  {slow}")
    for name, line in (("metrics", values), ("speed", speed)):
      self._files[name].append(line)
      self._give(name, line)
    self.say(self._line(values, speed, self._train.steps))
    self._goodput.write(values["step"], now=False)

  def _mark_spikes(self, step: int, values: dict[str, float]) -> None:
    """Writes down, and says, where an update is far from those before it."""
    for key, value, median in self._spikes.find(values):
      line = {"step": step, "key": key, "value": value, "median": median}
      self._files["spikes"].append(line)
      if step - self._spike_said < self._train.log_every_steps:
        continue  # one of them is enough to see
      self._spike_said = step
      rows = ""
      if self._has_rows:
        rows = f"; see `{spikes.command(self._workdir, step)}`"
      self.say(
        f"step {step}  {key} {value:.4g}: far above its running median of"
        f" {median:.4g}{rows}"
      )


class JsonLines:
  """A file of one JSON object a line; each has a `step`."""

  def __init__(self, path: Path, *, last_step: int, writes: bool):
    """Opens for appending; drops lines beyond `last_step`, which are done again, and
    a last line that a killed run left unfinished. Only one host `writes`."""
    self.path, self.writes = path, writes
    kept = [line for line in read_lines(path) if line["step"] <= last_step]
    self.last_step = kept[-1]["step"] if kept else -1
    self._lines = [json.dumps(line) + "\n" for line in kept]
    self._appends = not buckets.is_bucket(path)
    self.unwritten, self._written = writes, 0.0
    self.flush()

  @property
  def is_due(self) -> bool:
    """Whether the next line is written at once."""
    return self._appends or time.monotonic() - self._written >= REWRITE_SECONDS

  def append(self, line: dict[str, Any]):
    """Adds a line; one open and close, so that a killed run loses nothing. What is not
    finite becomes null. Raises OSError, naming the file, if the disk is full."""
    self.last_step = line["step"]
    if not self.writes:
      return
    text = json.dumps(_finite(line), allow_nan=False) + "\n"
    if self._appends:
      with _naming(self.path), self.path.open("a") as file:
        file.write(text)
      return
    self._lines.append(text)
    self.unwritten = True
    if self.is_due:
      self.flush()

  def flush(self):
    """Writes the file anew if lines of it are only in memory, as in a bucket."""
    if self.unwritten:
      with _naming(self.path):
        files.write_whole(self.path, "".join(self._lines))
      self.unwritten, self._written = False, time.monotonic()
    if self._appends:
      self._lines = []


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Reads the whole lines of a .jsonl file; an unfinished last line is left out.

  Raises:
    ValueError: a whole line is damaged; it is named.
  """
  if not path.is_file():
    return []
  found = []
  for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
    try:
      if line:
        found.append(json.loads(line))
        float(found[-1]["step"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      raise ValueError(
        f"{path}: line {number} is damaged ({type(error).__name__}: {error}):"
        f" {line[:60]!r}; delete that line, or restore the file"
      ) from error
  return found


@contextmanager
def _naming(path: Path):
  """Names the file in an OSError; a write to a full disk does not say which it was."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def _finite(value: Any) -> Any:
  """JSON has no nan and no inf: null stands for them."""
  if isinstance(value, dict):
    return {key: _finite(x) for key, x in value.items()}
  if isinstance(value, list):
    return [_finite(x) for x in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_absent(values: Values) -> Values:
  """Leaves out the losses of kinds of which the batch had no image: they are no 0."""
  absent = {
    f"loss_{key.removeprefix('images_')}"
    for key, count in values.items()
    if key.startswith("images_") and not count
  }
  return {key: x for key, x in values.items() if key not in absent}
