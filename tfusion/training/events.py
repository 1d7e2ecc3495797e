"""What happens beside the updates of a run: save, evaluate, go on, end.

Owns: what each does in the runs of models and of autoencoders alike. Not: when it is
due (due.py), their order, which the two loops say.
"""

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from tfusion import report
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.progress import say
from tfusion.sharding import gather_json
from tfusion.training import loggers, machine
from tfusion.training.hold import Hold
from tfusion.training.log import Log, Values
from tfusion.training.optim import make_schedule
from tfusion.training.stop import StopSignals


class HasLaneStates(Protocol):
  """The batches of a run, of a model or of an autoencoder."""

  def lane_states(self) -> dict[int, Any]:
    """How far this host has read the data, by lane, for the checkpoint."""


def check_start(config: Any, workdir: Path) -> list[str]:
  """What is checked of a run whose workdir is held, before any work; on all hosts.

  Returns:
    What `workdir.check_same_run` returns: how the config has changed.

  Raises:
    ValueError: the config is another run's, or names loggers that cannot be.
  """
  changes = workdir_lib.check_same_run(config, workdir)
  if jax.process_index() == 0:
    loggers.check(config.train.loggers, workdir)
  return changes


@contextlib.contextmanager
def open_checkpoints(config: Any, workdir: Path, held: Hold) -> Iterator[Checkpoints]:
  """The checkpoints of a run whose workdir is held; what is being saved at the end of
  the `with` is waited for, and all of it is watched.

  Args:
    config: with train.
    workdir: of the run.
    held: the workdir.

  Raises:
    OSError: the last checkpoint could not be written, and nothing else was raised.
  """
  checkpoints = Checkpoints(
    workdir / "checkpoints",
    keep_last=config.train.keep_last,
    keep_every_steps=config.train.keep_every_steps,
    check_lock=held.check,
  )
  if held.watch:
    held.watch.under_way = lambda: checkpoints.under_way
  raised: type | None = None
  try:
    yield checkpoints
  except BaseException as error:
    raised = type(error)
    raise
  finally:
    with held.clock.measure("save"):
      checkpoints.__exit__(raised)


def write_facts(workdir: Path, facts: Values) -> Values:
  """Writes run.json: these facts, the machine and the command; returns them all. Of
  several hosts, all must call it."""
  program, *options = sys.argv
  program = Path(program).name
  if program in ("tfusion", "__main__.py"):
    program = "tfusion"  # as it is typed; a run may also be trained by another program
  command = {"command": " ".join([program, *options])}
  facts = machine.environment() | facts | command
  if jax.process_count() > 1:
    facts["host_names"] = gather_json(socket.gethostname())
  write_json(workdir, "run.json", facts)
  return facts


def say_resumed(
  config: Any, workdir: Path, step: int, state: Any, changes: Sequence[str], log: Log
) -> None:
  """Says that a run goes on, and with what.

  Args:
    config: with optim and train.
    workdir: of the run.
    step: updates done.
    state: after them, with skipped_total, i32[].
    changes: of the config since the last start, as text.
    log: of the run.
  """
  log.say(f"goes on after step {step} of {workdir / 'checkpoints'}")
  # The schedule has no memory: it is that of the config of this start. On all hosts:
  # under a mesh of several, this too is a program of all of them.
  rate = float(make_schedule(config)(step - int(state.skipped_total)))
  if changes:
    log.say(f"with {', '.join(changes)}; the learning rate is now {rate:.3g}")


def save(
  checkpoints: Checkpoints,
  held: Hold,
  log: Log,
  step: int,
  state: Any,
  data: HasLaneStates,
  *,
  wait: bool = False,
) -> bool:
  """Starts a checkpoint; what is logged so far is on disk before it.

  Args:
    checkpoints: of the run.
    held: the workdir.
    log: of the run.
    step: updates done.
    state: after them.
    data: knows how far this host has read it.
    wait: until the checkpoint is whole.

  Returns:
    Whether there was something to save.

  Raises:
    lock.Lost: the workdir has become another run's.
    OSError: this checkpoint or the last could not be written.
  """
  log.write()
  with log.clock.measure("save"):
    held.check_together()
    log.flush()
    saved = checkpoints.save(step, state, data.lane_states(), wait=wait)
  log.mark_saved(step)
  return saved


@contextlib.contextmanager
def saving_first(
  save: Callable[..., bool], log: Log, step: int, state: Any, data: HasLaneStates
) -> Iterator[None]:
  """Where the data fail, what was done is saved before the error goes on. Several hosts
  save together or not at all: feed.py."""
  try:
    yield
  except Exception:
    if jax.process_count() == 1 and step and save(step, state, data, wait=True):
      log.say(f"saved after step {step}")
    raise


@contextlib.contextmanager
def evaluating(held: Hold, log: Log) -> Iterator[None]:
  """An evaluation: what is logged so far is on disk before it, and its time is no
  training.

  Raises:
    lock.Lost: the workdir has become another run's.
  """
  log.write()
  held.check_together()
  log.flush()
  with log.clock.measure("evaluate"):
    yield


def say_finished(step: int, workdir: Path, stop: StopSignals, log: Log) -> None:
  """Says that a run has ended, what its time went into, and where things are.

  Raises:
    ReaderGone: the run has stopped because nobody reads what it says.
  """
  if stop.name:
    # No one sent this signal: it stands for a data worker (stop.py).
    cause = "a data worker that died" if stop.name == "SIGCHLD" else stop.name
    log.say(f"stopped by {cause} after step {step}, saved; the same")
    log.say("command goes on from here")
  clock = log.clock
  seconds = ", ".join(f"{name} {value:.0f} s" for name, value in clock.seconds.items())
  log.say(f"{clock.elapsed:.0f} s in all ({seconds}), see {workdir}")
  stop.raise_if_reader_gone()


def say_first(text: str) -> None:
  """Prints, on the first host."""
  if jax.process_index() == 0:
    say(text)


def write_report(workdir: Path) -> None:
  """Writes the page, on the first host."""
  if jax.process_index() == 0:
    report.write_report(workdir)


def write_json(workdir: Path, name: str, values: Values) -> None:
  """Writes a file of the workdir, on the first host."""
  if jax.process_index() == 0:
    workdir_lib.write_json(workdir, name, values)
