"""The events of any run: update, record, log, save, evaluate, finish.

Owns: their order, and the files of a workdir that every run has. Not: what is trained
on what, which the loops say (loop.py of a model, autoencoder.py of an autoencoder).

Starting always means going on if the workdir holds a checkpoint.
"""

import abc
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tfusion import lock as lock_lib
from tfusion import report
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.progress import ReaderGone, say
from tfusion.sharding import gather_json, global_batch
from tfusion.training import metrics
from tfusion.training.optim import make_schedule
from tfusion.training.stop import StopSignals

Values = dict[str, Any]
TELL_SECONDS = 5.0  # between two words of the first host while it takes the lock


class Hold:
  """The lock of a workdir, which the first of several hosts holds for all."""

  def __init__(self, lock: lock_lib.Lock | None):
    """Keeps the lock of the first host; None on the others."""
    self._lock = lock

  def check(self) -> None:
    """Proves that this host's lock is still held; the other hosts have none.

    Raises:
      lock.Lost: it has become another run's.
    """
    if self._lock:
      self._lock.check()

  def check_together(self) -> None:
    """As `check`, on all hosts: they go on together or fail together."""
    fault = None
    try:
      self.check()
    except lock_lib.Lost as error:
      fault = str(error)
    if fault := gather_json(fault)[0]:
      raise lock_lib.Lost(fault)


@contextlib.contextmanager
def hold(workdir: str | Path) -> Iterator[Hold]:
  """Holds a workdir for the time of a `with`; all hosts must enter it.

  Raises:
    ValueError: another run holds it; on all hosts.
    OSError: the lock cannot be written; ValueError from several hosts.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_count() == 1:
      yield Hold(stack.enter_context(lock_lib.hold(workdir)))
      return
    pool = stack.enter_context(futures.ThreadPoolExecutor(1))
    taking = None
    if jax.process_index() == 0:
      taking = pool.submit(stack.enter_context, lock_lib.hold(workdir))
    # The first may watch a heartbeat for a minute; programs of several hosts wait for
    # each other for half of that, so it tells the others again and again.
    while (answer := gather_json(_answer(taking))[0]) is None:
      pass
    if answer:
      raise ValueError(answer)
    yield Hold(taking and taking.result())


def _answer(taking: futures.Future | None) -> str | None:
  """What keeps the lock from being taken, or nothing; None: that is not known yet."""
  if taking is None:
    return None
  try:
    taking.result(timeout=TELL_SECONDS)
    return ""
  except TimeoutError as error:
    return str(error) if taking.done() else None  # a disk's own, or ours
  except (ValueError, OSError) as error:
    return str(error)


class Run(abc.ABC):
  """The variables of a run, and a method for each of its events.

  A loop derives from it, sets step, state, data and sharding before `open_files`, and
  says what an update, an evaluation and a line about speed are.
  """

  step: int  # updates done, those of earlier starts included
  state: Any  # with skipped_total, i32[]
  data: Iterator[Any]  # host batches
  sharding: Any  # of the state

  def __init__(
    self,
    config: Any,
    workdir: Path,
    clock: metrics.Clock,
    checkpoints: Checkpoints,
    *,
    held: Hold,
    counts: int,
  ):
    """Opens nothing yet.

    Args:
      config: with seed, optim and train.
      workdir: of the run.
      clock: runs since the start.
      checkpoints: of the run.
      held: the workdir.
      counts: numbers that `count` gives for a batch.
    """
    self.config, self.workdir = config, workdir
    self.clock, self.checkpoints, self.held = clock, checkpoints, held
    self.mesh = jax.sharding.get_mesh()
    self.root = jax.random.key(config.seed)
    self.first = jax.process_index() == 0  # this host speaks and writes
    self.compiled = {}  # programs by what they differ in
    self.previous = None  # step and metrics that may still be on the device
    self.stop = None  # StopSignals, while the loop runs
    self.data_error = None  # what the data raised, where the run stops for it
    # Seconds, seconds of waiting for data, updates, and counts; since the start.
    self.done = np.zeros(3 + counts)
    self.logged = np.zeros(3 + counts)  # the same at the last line of the log

  @abc.abstractmethod
  def update(self, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
    """The state and metrics after one update by a global batch."""

  @abc.abstractmethod
  def count(self, host_batch: Any) -> Sequence[float]:
    """What a batch adds to the counts behind `speed`, over all hosts."""

  @abc.abstractmethod
  def speed(self, took: float, counts: np.ndarray) -> Values:
    """What speed.jsonl says beside times, of `counts` in `took` seconds."""

  @abc.abstractmethod
  def progress(self, values: Values, speed: Values) -> str:
    """The line for the console."""

  @abc.abstractmethod
  def judge(self) -> Values:
    """Evaluates, says what was found, and returns the line of validation.jsonl."""

  @abc.abstractmethod
  def lane_states(self) -> dict[int, Any]:
    """How far the data has been read, for the checkpoint."""

  def open_files(self):
    """Opens the logs, without the lines behind the checkpoint."""
    self.files = {
      name: metrics.JsonLines(
        self.workdir / f"{name}.jsonl", last_step=self.step, writes=self.first
      )
      for name in ("metrics", "speed", "validation")
    }
    self.board = metrics.TensorBoard(self.workdir / "tensorboard", writes=self.first)

  def write_facts(self, facts: Values) -> Values:
    """Writes run.json: these facts, the machine and the command; returns them all."""
    command = {"command": " ".join(["tfusion", *sys.argv[1:]])}
    facts = metrics.environment() | facts | command
    self.write_json("run.json", facts)
    return facts

  def go_on(self, changes: Sequence[str]):
    """Says that the run goes on, and evaluates if it was stopped before it had.

    Args:
      changes: of the config since the last start, as text.
    """
    self.say(f"goes on after step {self.step} of {self.checkpoints.directory}")
    # The schedule has no memory: it is that of the config of this start. On all
    # hosts: under a mesh of several, this too is a program of all of them.
    updates = self.step - int(self.state.skipped_total)
    rate = float(make_schedule(self.config)(updates))
    if changes:
      self.say(f"with {', '.join(changes)}; the learning rate is now {rate:.3g}")
    # Another host's view of the file may be old: the first decides.
    missing = self.files["validation"].last_step < self.step
    missing = multihost_utils.broadcast_one_to_all(np.asarray(missing))
    if self.is_due() and missing:
      self.evaluate()

  def loop(self, stop: StopSignals):
    """Runs to config.train.steps, or until told to stop.

    Raises:
      Exception: what the data raised, after the state was saved.
      ReaderGone: nobody reads what the run says; it stopped and saved.
    """
    t, self.stop = self.config.train, stop
    while self.step < t.steps and not stop.agreed(self.step, due=self.is_due()):
      self.advance()
      if self.is_due() and not stop.agreed(self.step, due=True):
        self.evaluate()
    self.finish(stopped_by=stop.name)
    if self.data_error:
      raise self.data_error
    if stop.name == "SIGPIPE":
      raise ReaderGone

  def advance(self):
    """One update, and the checkpoint that is due after it."""
    host_batch = self.next_batch()
    batch = global_batch(host_batch, mesh=self.mesh)
    self.state, values = self.update(batch)
    self.record()  # of the step before, while the device works on this one
    self.step += 1
    self.previous = self.step, values
    self.done[2:] += 1, *self.count(host_batch)
    t = self.config.train
    if self.step % t.save_every_steps == 0 or self.step >= t.steps:
      self.save()

  def next_batch(self) -> Any:
    """The next rows of this host; if they fail, what was done is saved first.

    Raises:
      Exception: what the data raised.
    """
    try:
      return self.clock.wait_for(self.data, device=self.previous)
    except Exception as error:
      if jax.process_count() == 1:
        if self.step and self.save(wait=True):
          self.say(f"saved after step {self.step}")
        raise
      # To save takes all hosts, and the others wait for this one in the step.
      if self.data_error or not isinstance(error, ChildProcessError):
        raise
      self.data_error = error
      self.stop.request(signal.SIGCHLD)
      return self.clock.wait_for(self.data, device=self.previous)  # from new workers

  def program(self, variant: Any, step: Callable, *args) -> Callable:
    """The program of a step, compiled when its variant is first asked for.

    Args:
      variant: what the programs of this run differ in.
      step: returns state and metrics.
      args: of the step, the state first, which is donated.
    """
    if variant not in self.compiled:
      with self.clock.measure("compile"):
        step = jax.jit(step, donate_argnums=0, out_shardings=(self.sharding, None))
        self.compiled[variant] = step.lower(*args).compile()
    return self.compiled[variant]

  def is_due(self) -> bool:
    """True if an evaluation belongs to the step that was just done."""
    t = self.config.train
    return self.step % t.eval_every_steps == 0 or self.step >= t.steps

  def record(self):
    """Writes the metrics of the last step that was handed to the device.

    Raises:
      FloatingPointError: max_skipped_updates non-finite updates in a row.
    """
    if self.previous is None:
      return
    (step, values), self.previous = self.previous, None
    values = {name: float(x) for name, x in jax.device_get(values).items()}
    limit = self.config.train.max_skipped_updates
    if values["skipped"] >= limit:
      raise FloatingPointError(
        f"step {step}: the loss or its gradient was not finite in {limit} updates in a"
        " row (train.max_skipped_updates), which were skipped; lower optim.peak_lr or"
        " look at the data of these steps, then start again: the run goes on from the"
        f" last checkpoint in {self.checkpoints.directory}"
      )
    if values["skipped"]:
      self.say(f"step {step}: not finite, update skipped")
    if step % self.config.train.log_every_steps == 0:
      self.log({"step": step} | values)

  def log(self, values: Values):
    """Writes a line of metrics and one of speed, and shows both."""
    if jax.process_count() == 1:  # several hosts ask each other when they save
      self.held.check()
    seconds = self.clock.seconds
    outside = sum(seconds[name] for name in ("init", "compile", "save", "evaluate"))
    self.done[:2] = self.clock.elapsed - outside, seconds["data"]
    took, waited, steps, *counts = np.maximum(self.done - self.logged, 1e-9)
    speed = {
      "step": values["step"],
      "seconds": self.clock.elapsed,
      **self.speed(took, counts),
      "step_ms": 1e3 * took / steps,
      "data_wait_share": waited / took,
      "eta_seconds": took / steps * (self.config.train.steps - values["step"]),
    }
    self.logged = self.done.copy()
    for name, line in (("metrics", values), ("speed", speed)):
      self.files[name].append(line)
      self.board.write(name, line)
    self.say(self.progress(values, speed))

  def save(self, *, wait: bool = False) -> bool:
    """Starts a checkpoint; what is logged so far is on disk before it.

    Returns:
      Whether there was something to save.

    Raises:
      lock.Lost: the workdir has become another run's.
    """
    self.record()
    with self.clock.measure("save"):
      self.held.check_together()
      return self.checkpoints.save(self.step, self.state, self.lane_states(), wait=wait)

  def evaluate(self):
    """Judges, and writes what was found and the page."""
    self.record()
    self.held.check_together()
    with self.clock.measure("evaluate"):
      line = {"step": self.step} | self.judge()
      self.files["validation"].append(line)  # now: a killed evaluation is done again
      self.board.write("validation", line)
      self.write_report()

  def finish(self, *, stopped_by: str | None):
    """Saves, and says where things are."""
    self.save(wait=True)
    self.write_report()
    counts = ", ".join(f"{k} {v:.0f} s" for k, v in self.clock.seconds.items())
    if stopped_by:
      self.say(f"stopped by {stopped_by} after step {self.step}, saved; the same")
      self.say("command goes on from here")
    self.say(f"{self.clock.elapsed:.0f} s in all ({counts}), see {self.workdir}")

  def write_report(self):
    """Writes the page."""
    if self.first:
      report.write_report(self.workdir)

  def write_json(self, name: str, values: Values):
    """Writes a file of the workdir, on the first host."""
    if self.first:
      workdir_lib.write_json(self.workdir, name, values)

  def say(self, text: str):
    """Prints, on the first host; where nobody reads any more, the run stops."""
    if self.first and not say(text) and self.stop:
      self.stop.request(signal.SIGPIPE)
