"""The run of a model: open, restore or start, then update, save, evaluate until done.

Owns: the order of these, and the only state that changes. Not: what a step computes
(step.py), what happens beside the updates (events.py), what is evaluated beside the
validation loss (functions handed in).

Starting always means going on if the workdir holds a checkpoint.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from absl import logging

from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Restored
from tfusion.config import Config
from tfusion.data import identity, numbers
from tfusion.data.pipeline import (
  Corpus,
  HostBatches,
  heldout_rows,
  open_corpus,
)
from tfusion.model.transfusion import Params, parameter_count
from tfusion.sequence import Batch, live_elements
from tfusion.sharding import describe, global_batch, make_mesh
from tfusion.together import SAME_DATA, check_same, together
from tfusion.training import due, events
from tfusion.training import executable as executable_lib
from tfusion.training.clock import Clock
from tfusion.training.compiled import CompiledStep
from tfusion.training.data_report import DataReport
from tfusion.training.feed import Feed
from tfusion.training.flops import batch_flops
from tfusion.training.hold import Hold, hold_watched
from tfusion.training.log import Log, Values
from tfusion.training.lowered import lower_step
from tfusion.training.speed import Speed
from tfusion.training.start import FirstWeights, new_state
from tfusion.training.step import (
  TrainState,
  abstract_state,
  shardings,
  train_step,
)
from tfusion.training.stop import StopSignals
from tfusion.training.validate import validate


class Evaluation(Protocol):
  """What is done beside the validation loss, on all hosts."""

  def check(self, corpus: Corpus) -> None:
    """Called before training; raises ValueError for what could not be done."""

  def __call__(self, step: int, params: Params, corpus: Corpus) -> None:
    """Called at every evaluation with the parameters to sample with."""


def train(
  config: Config,
  workdir: str | Path,
  *,
  evaluations: Sequence[Evaluation] = (),
  reference: Path | None = None,
  executable: Path | None = None,
  weights: FirstWeights | None = None,
  stop: StopSignals | None = None,
) -> TrainState:
  """Trains to config.train.steps, or until Ctrl-C or SIGTERM, which save and stop.

  Args:
    config: checked.
    workdir: gets what docs/resuming.md lists; goes on if it holds a checkpoint.
    evaluations: checked before training, called after every validation loss.
    reference: a file of a known-good run, which the report draws behind this one.
    executable: a file with the compiled step.
    weights: that a run that begins begins with.
    stop: not yet entered; says afterwards whether the run was stopped.

  Returns:
    The last state.

  Raises:
    ValueError: the config does not fit the machines, the data, the weights or the
      workdir, which may be in use; or the executable is of another step or machine.
    FloatingPointError: max_skipped_updates non-finite updates in a row.
    OSError: a checkpoint could not be written; earlier ones are whole.
  """
  workdir, clock = _check(config, workdir, executable), Clock()
  with contextlib.ExitStack() as stack:
    # Open the workdir, the data, the devices.
    held = stack.enter_context(hold_watched(config, workdir, clock))
    changes = events.check_start(config, workdir)
    checkpoints = stack.enter_context(events.open_checkpoints(config, workdir, held))
    with clock.measure("init"):
      corpus = _open_corpus(config, workdir, evaluations, reference, weights)
    mesh = make_mesh(config.mesh)
    stack.enter_context(jax.set_mesh(mesh))
    data = stack.enter_context(contextlib.closing(_batches(config, corpus)))
    stop = stack.enter_context(stop or StopSignals())

    # Go on from the newest checkpoint, or start.
    root = jax.random.key(config.seed)
    with clock.measure("init"):
      sharding = shardings(config, mesh)
      restored = checkpoints.restore(abstract_state(config, mesh))
      step, state = _restored_or_new(config, mesh, root, restored, data, weights)
      heldout = _heldout_rows(config, corpus)
      speed = Speed(workdir)
      log = Log(config, workdir, step, clock, held, stop, speed.rates, _progress_line)
      stack.push(log)
    reading = DataReport(workdir, corpus, data)
    is_due = partial(due.evaluation, config)
    save = partial(events.save, checkpoints, held, log)
    evaluate = partial(
      _evaluate, config, workdir, corpus, heldout, evaluations, reading, held, log
    )
    _say_what_runs(config, state, sharding, speed, log)
    reading.say_found(log)
    reading.write()
    if restored:
      events.say_resumed(config, workdir, step, state, changes, log)
      if is_due(step) and log.lacks_validation(step):
        evaluate(step, state)

    # Train.
    feed = Feed(data, clock, stop)
    update = CompiledStep(partial(train_step, config), sharding, clock, executable)
    while step < config.train.steps and not stop.agreed(step, due=is_due(step)):
      with events.saving_first(save, log, step, state, data):
        host_batch = feed.next(device=log.waiting)
      state, values = update(state, global_batch(host_batch, mesh=mesh), root)
      log.write()  # of the update before, while the device works on this one
      step += 1
      log.hand_over(step, values, _counts(config, host_batch))
      if due.checkpoint(config, step) and not stop.agreed(step, due=True):
        save(step, state, data)
      if is_due(step) and not stop.agreed(step, due=True):
        evaluate(step, state)

    # Stop.
    feed.raise_spoiled()
    save(step, state, data, wait=True)
    reading.write()
    events.write_report(workdir)
    events.say_finished(step, workdir, stop, log)
    feed.raise_failure()
    return state


def _check(config: Config, workdir: str | Path, executable: Path | None) -> Path:
  """The workdir, which all hosts can write, of a config that fits the devices."""
  with together():
    config_lib.validate_devices(
      config, devices=jax.device_count(), hosts=jax.process_count()
    )
    if executable:
      _check_executable(config, executable)
    return workdir_lib.check_writable(workdir)


def _check_executable(config: Config, executable: Path) -> None:
  if not executable.is_file():
    raise ValueError(
      f"--executable={executable}: there is no such file on this machine; `tfusion"
      " compile --save` writes one"
    )
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    executable_lib.check(executable, lower_step(config, mesh))


def _open_corpus(
  config: Config,
  workdir: Path,
  evaluations: Sequence[Evaluation],
  reference: Path | None,
  weights: FirstWeights | None,
) -> Corpus:
  """The data, all of which can be trained on and evaluated; the workdir keeps what they
  are, with the config."""
  corpus = open_corpus(config, workdir)
  if weights and not workdir_lib.has_checkpoint(workdir):
    weights.check(corpus)
  for evaluation in evaluations:
    evaluation.check(corpus)
  assert corpus.identity is not None, "open_corpus has just found it"
  check_same(identity.digests(corpus.identity), remedy=SAME_DATA)
  if jax.process_index() == 0:
    identity.keep(corpus.identity, workdir)
    numbers.keep(corpus.train, workdir)
  workdir_lib.save_config(config, workdir)
  if reference and jax.process_index() == 0:
    (workdir / "reference.json").write_bytes(reference.read_bytes())
  return corpus


def _batches(config: Config, corpus: Corpus) -> HostBatches:
  return HostBatches(
    corpus, config, host=jax.process_index(), hosts=jax.process_count()
  )


def _restored_or_new(
  config: Config,
  mesh: jax.sharding.Mesh,
  root: jax.Array,
  restored: Restored | None,
  data: HostBatches,
  weights: FirstWeights | None,
) -> tuple[int, TrainState]:
  """The updates done and the state after them; the data go on from there."""
  if restored:
    data.restore(restored.lanes)
    return restored.step, restored.state
  return 0, new_state(config, mesh, root, weights)


def _heldout_rows(config: Config, corpus: Corpus) -> list[Batch[np.ndarray]]:
  return heldout_rows(
    corpus.test,
    corpus.tokenizer,
    config,
    rows=config.train.eval_rows,
    host=jax.process_index(),
    hosts=jax.process_count(),
  )


def _say_what_runs(
  config: Config, state: TrainState, sharding: TrainState, speed: Speed, log: Log
) -> None:
  """Writes run.json and says how large the model is and what it runs on."""
  logging.info("%s", "\n".join(describe(state, sharding)))
  facts = speed.write_facts(
    {
      "parameters": parameter_count(config.model),
      "mesh": dict(jax.sharding.get_mesh().shape),
    }
  )
  log.say(
    f"{facts['parameters']:,} parameters on {facts['devices']} x {facts['device']}"
    f" ({facts['peak_flops'] / 1e9:,.0f} GFLOP/s, {speed.source})"
  )


def _counts(config: Config, host_batch: Batch[np.ndarray]) -> dict[str, float]:
  """What an update works through, over all hosts."""
  hosts = jax.process_count()
  return {
    "elements": live_elements(host_batch) * hosts,
    "flops": batch_flops(config.model, host_batch) * hosts,
  }


def _evaluate(
  config: Config,
  workdir: Path,
  corpus: Corpus,
  heldout: Sequence[Batch[np.ndarray]],
  evaluations: Sequence[Evaluation],
  reading: DataReport,
  held: Hold,
  log: Log,
  step: int,
  state: TrainState,
) -> None:
  """The validation loss, how far the data were read, and the functions handed in."""
  with events.evaluating(held, log):
    mesh, params = jax.sharding.get_mesh(), state.sampling_params
    batches = (global_batch(b, mesh=mesh) for b in heldout)
    line = validate(config, params, batches, first_code=corpus.first_code)
    kinds = {k.name: line[f"loss_{k.name}"] for k in config.model.every_kind}
    # None: no held-out row has one.
    shown = [f"  {k} {'-' if x is None else f'{x:.4f}'}" for k, x in kinds.items()]
    if "loss_codes" in line:
      shown.append(f"  codes {line['loss_codes']:.3f}")
    log.say(
      f"step {step}  held out: text {line['loss_text']:.3f} (perplexity"
      f" {line['perplexity']:.2f}){''.join(shown)}"
    )
    reading.say_read(step, log)
    for evaluation in evaluations:
      evaluation(step, params, corpus)
    log.write_validation({"step": step} | line)  # a killed evaluation is done again
    reading.write()
    if step < config.train.steps:  # the last page is written when all else is
      events.write_report(workdir)


def _progress_line(values: Values, speed: Values, steps: int) -> str:
  left = int(speed["eta_seconds"])
  kinds = [key for key in values if key.startswith("loss_") and key != "loss_text"]
  images = "".join(f"  {key.removeprefix('loss_')} {values[key]:.4f}" for key in kinds)
  return (
    f"step {values['step']}/{steps}  loss {values['loss']:.3f}"
    f"  text {values['loss_text']:.3f}{images}"
    f"  {speed['elements_per_s']:,.0f} elements/s  {speed['step_ms']:.0f} ms"
    f"  MFU {speed['mfu']:.0%}  data wait {speed['data_wait_share']:.1%}"
    f"  left {left // 60}:{left % 60:02d}"
  )
