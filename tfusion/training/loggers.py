"""Where the numbers of a run go too: TensorBoard, and Weights & Biases.

Owns: what each of them needs, and that a run which goes on adds to what is there,
without a point twice or a gap. Not: the lines, which log.py writes to the run's own
files first; from these, a logger is given what it lacks.

Only the first host has loggers. The knob is train.loggers; each name is an extra.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tfusion import buckets, files
from tfusion import workdir as workdir_lib
from tfusion.progress import say
from tfusion.training import due

Lines = Mapping[str, Sequence[dict[str, Any]]]  # of files of the run, by their names
Row = dict[str, float]  # the numbers of an update, as "file/name"

LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
FILES = ("metrics", "speed", "validation")  # of the run, that loggers are given
STATE = "wandb.json"
EVERY_SECONDS = 10.0  # between two times that W&B is given something


class Logger(Protocol):
  """Somewhere that numbers go."""

  def write(self, group: str, line: dict[str, Any]) -> None:
    """Takes a line of a file of the run.

    Args:
      group: the name of the file, such as "metrics".
      line: with `step`; what is no number is left out.
    """

  def close(self, *, failed: bool) -> None:
    """Ends it; the run has failed, or has stopped or come to its end."""


def check(names: Sequence[str], workdir: Path) -> None:
  """Refuses loggers that cannot be, before any work.

  Args:
    names: of train.loggers.
    workdir: of the run.

  Raises:
    ValueError: an extra is not installed, nothing can be appended in the workdir, or
      nobody is signed in to Weights & Biases.
  """
  for name in names:
    if importlib.util.find_spec(LIBRARIES[name]) is None:
      raise ValueError(
        f"train.loggers={tuple(names)}: {LIBRARIES[name]} is not installed; run `pip"
        f" install 'tfusion[{name}]'`, or leave {name!r} out"
      )
  if "tensorboard" in names and buckets.is_bucket(workdir):
    raise ValueError(
      f"train.loggers={tuple(names)}: TensorBoard appends to its files, which cannot be"
      f" done in a bucket ({workdir}); leave 'tensorboard' out"
    )
  if "wandb" in names:
    import wandb

    with _explained(wandb.errors.Error):
      wandb.login(force=True, verify=False)  # offline, it asks for nothing


def opened(config: Any, workdir: Path, step: int, lines: Lines) -> list[Logger]:
  """Opens the loggers of a run, and gives them what they lack of it.

  Args:
    config: with train.loggers.
    workdir: of the run.
    step: updates done; those behind it will be done again.
    lines: of FILES, up to `step`.

  Raises:
    ValueError: Weights & Biases cannot begin.
  """
  made: list[Logger] = []
  for name in config.train.loggers:
    if name == "tensorboard":
      made.append(TensorBoard(workdir, step, lines))
    else:
      made.append(WeightsAndBiases(config, workdir, lines))
  return made


class TensorBoard:
  """Event files in the workdir's tensorboard/, one for each start."""

  def __init__(self, workdir: Path, step: int, lines: Lines):
    """Begins a file. Whoever reads it drops what earlier ones have behind `step`."""
    from tensorboardX import SummaryWriter

    folder = workdir / "tensorboard"
    new = not folder.is_dir() or not any(folder.iterdir())
    self._writer = SummaryWriter(str(folder), purge_step=step + 1)
    if new:
      for group, line in ((g, line) for g, of in lines.items() for line in of):
        self._add(group, line)
      self._writer.flush()

  def write(self, group: str, line: dict[str, Any]) -> None:
    """Writes the numbers of a line, each as `group/name`."""
    self._add(group, line)
    self._writer.flush()  # so that a killed run loses nothing

  def close(self, *, failed: bool) -> None:
    """Ends the file."""
    del failed
    self._writer.close()

  def _add(self, group: str, line: dict[str, Any]) -> None:
    for name, value in _numbers(group, line).items():
      self._writer.add_scalar(name, value, line["step"])


class WeightsAndBiases:
  """A run of W&B, which takes steps in their order only, and none back.

  So the numbers of an update are given together, when no more of it can come; and
  wandb.json says up to which step they were, before they are. What was given is not
  given again, and what was not stands in the files of the run at the next start.
  """

  def __init__(self, config: Any, workdir: Path, lines: Lines):
    """Begins a run of W&B, or goes on with the one that wandb.json names.

    Raises:
      ValueError: W&B cannot begin.
    """
    import wandb

    self._config, self._workdir = config, workdir
    self._state = _read_state(workdir) or {"id": uuid.uuid4().hex[:8], "step": -1}
    local = files.cache_of(workdir) if buckets.is_bucket(workdir) else workdir
    local.mkdir(parents=True, exist_ok=True)
    with _explained(wandb.errors.Error):
      self._run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "tfusion"),
        name=os.environ.get("WANDB_NAME", workdir.name),
        id=self._state["id"],
        resume="allow",
        dir=str(local),
        config=dataclasses.asdict(config),
        allow_val_change=True,  # a run that goes on may have knobs changed
        settings=wandb.Settings(console="off"),
      )
    self._rows: dict[int, Row] = {}  # not given yet
    self._faults, self._broken = (OSError, wandb.errors.Error), False
    self._given = time.monotonic()
    for group, of in lines.items():
      for line in of:
        self._add(group, line)

  def write(self, group: str, line: dict[str, Any]) -> None:
    """Takes the numbers of a line, each as `group/name`."""
    self._add(group, line)
    if time.monotonic() - self._given >= EVERY_SECONDS:
      self._give(sorted(self._rows)[:-1])  # more may come of the newest

  def close(self, *, failed: bool) -> None:
    """Ends the run of W&B, with all that is whole."""
    steps = sorted(self._rows)
    if steps and self._awaits_evaluation(steps[-1]):
      steps.pop()  # the next start evaluates it
    self._give(steps)
    with self._going_on():
      self._run.finish(exit_code=int(failed))

  def _awaits_evaluation(self, step: int) -> bool:
    evaluated = any(name.startswith("validation/") for name in self._rows[step])
    return due.evaluation(self._config, step) and not evaluated

  def _add(self, group: str, line: dict[str, Any]) -> None:
    if line["step"] > self._state["step"] and not self._broken:
      self._rows.setdefault(line["step"], {}).update(_numbers(group, line))

  def _give(self, steps: Sequence[int]) -> None:
    if not steps:
      return
    before = self._state["step"]
    self._save(steps[-1])
    with self._going_on():
      for step in steps:
        self._run.log(self._rows.pop(step), step=step, commit=True)
    if self._broken:
      self._save(before)
    self._given = time.monotonic()

  def _save(self, step: int) -> None:
    self._state["step"] = step
    workdir_lib.write_json(self._workdir, STATE, self._state)

  @contextlib.contextmanager
  def _going_on(self) -> Iterator[None]:
    """Where the process of W&B is gone, the run goes on without it."""
    try:
      yield
    except self._faults as error:
      if not self._broken:
        say(
          f"warning: Weights & Biases takes no more numbers ({error}); they stand in"
          " the workdir, and the next start gives them"
        )
      self._broken = True


def _numbers(group: str, line: dict[str, Any]) -> Row:
  return {
    f"{group}/{name}": value
    for name, value in line.items()
    if isinstance(value, int | float) and name != "step"
  }


def _read_state(workdir: Path) -> dict[str, Any] | None:
  """What wandb.json says; None if it is not there.

  Raises:
    ValueError: it is damaged.
  """
  path = workdir / STATE
  if not path.is_file():
    return None
  try:
    state = json.loads(path.read_text())
    return {"id": str(state["id"]), "step": int(state["step"])}
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"{path}: is damaged ({error}); restore it, or delete it to begin another run of"
      " Weights & Biases"
    ) from error


@contextlib.contextmanager
def _explained(kind: type[Exception]) -> Iterator[None]:
  """Says what can be done about an error of W&B's.

  Raises:
    ValueError: in its place.
  """
  try:
    yield
  except kind as error:
    raise ValueError(
      f"train.loggers: Weights & Biases says: {error}. Run `wandb login`, or set"
      " WANDB_MODE=offline to write files alone, or leave 'wandb' out"
    ) from error
