"""The run of a model: build, restore, loop, validate, save.

Owns: what is built and handed to the run's events (run.py), where alone state is kept.
Not: what a step computes (step.py), what is evaluated beside the validation loss
(functions handed in).

Starting always means going on if the workdir holds a checkpoint.
"""

import contextlib
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import logging

from tfusion import config as config_lib
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.data import census, identity, notices, numbers
from tfusion.data.pipeline import Corpus, HostBatches, heldout_rows, open_corpus
from tfusion.data.tally import Tally
from tfusion.model.transfusion import Params, parameter_count
from tfusion.sequence import Batch, live_elements
from tfusion.sharding import describe, gather_json, global_batch, make_mesh
from tfusion.training import metrics
from tfusion.training.run import Run, Values, hold
from tfusion.training.step import (
  TrainState,
  abstract_state,
  init_state,
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
  stop: StopSignals | None = None,
) -> TrainState:
  """Trains to config.train.steps, or until Ctrl-C or SIGTERM, which save and stop.

  Args:
    config: checked.
    workdir: gets lock.json while it lasts, config.json, identity.json, documents.json,
      numbers.json, run.json, data.json, tokenizer.model, metrics.jsonl, speed.jsonl,
      validation.jsonl, checkpoints/ and report.html.
    evaluations: checked before training; called after the validation loss, every
      eval_every_steps and at the end.
    reference: a file of a known-good run, which the report draws behind this one.
    stop: not yet entered; says afterwards whether the run was stopped.

  Returns:
    The last state.

  Raises:
    ValueError: the config does not fit the machines, the data or the workdir, or
      another run holds the workdir.
    FloatingPointError: max_skipped_updates non-finite updates in a row.
    OSError: a checkpoint could not be written; earlier ones are whole.
  """
  hosts = jax.process_count()
  config_lib.validate_devices(config, devices=jax.device_count(), hosts=hosts)
  workdir = workdir_lib.check_writable(workdir)
  clock, t = metrics.Clock(), config.train
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(hold(workdir))
    changes = workdir_lib.check_same_run(config, workdir)
    with clock.measure("init"):
      corpus = open_corpus(config, workdir)
      for evaluation in evaluations:
        evaluation.check(corpus)
      if jax.process_index() == 0:
        identity.keep(corpus.identity, workdir)
        numbers.keep(corpus.train, workdir)
      workdir_lib.save_config(config, workdir)
    if reference and jax.process_index() == 0:
      shutil.copy(reference, workdir / "reference.json")
    stack.enter_context(jax.set_mesh(make_mesh(config.mesh)))
    checkpoints = stack.enter_context(
      Checkpoints(
        workdir / "checkpoints",
        keep_last=t.keep_last,
        keep_every_steps=t.keep_every_steps,
        check_lock=held.check,
      )
    )
    data = HostBatches(corpus, config, host=jax.process_index(), hosts=hosts)
    stack.callback(data.close)
    stop = stack.enter_context(stop or StopSignals())
    run = _ModelRun(config, workdir, clock, checkpoints, held=held, counts=2)
    run.corpus, run.data, run.evaluations = corpus, data, evaluations
    run.start(changes)
    run.loop(stop)
    return run.state


class _ModelRun(Run):
  """The run of a model on a corpus; counts are elements and FLOPs."""

  corpus: Corpus
  evaluations: Sequence[Evaluation]

  def start(self, changes: Sequence[str]):
    """Restores or initialises, and says what was found and what has changed."""
    config = self.config
    with self.clock.measure("init"):
      self.sharding = shardings(config, self.mesh)
      restored = self.checkpoints.restore(abstract_state(config, self.mesh))
      if restored:
        self.step, self.state = restored.step, restored.state
        self.data.restore(restored.lanes)
      else:
        init = functools.partial(init_state, config)
        self.step, self.state = 0, jax.jit(init, out_shardings=self.sharding)(self.root)
      self.heldout = heldout_rows(
        self.corpus.test,
        self.corpus.tokenizer,
        config,
        rows=config.train.eval_rows,
        host=jax.process_index(),
        hosts=jax.process_count(),
      )
      self.peak, source = metrics.peak_flops()
      self.open_files()
    logging.info("%s", "\n".join(describe(self.state, self.sharding)))
    facts = self.facts = self.write_facts(
      {
        "parameters": parameter_count(config.model),
        "peak_flops": self.peak * jax.device_count(),
        "peak_flops_source": source,
        "mesh": dict(self.mesh.shape),
      }
    )
    self.say(
      f"{facts['parameters']:,} parameters on {facts['devices']} x {facts['device']}"
      f" ({facts['peak_flops'] / 1e9:,.0f} GFLOP/s, {source})"
    )
    for line in notices.found_lines(self.corpus.train, self.corpus.test):
      self.say(line)
    self.contents = census.of(self.corpus.train, self.corpus.test)
    self.write_data()
    if restored:
      self.go_on(changes)

  def update(self, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    step = functools.partial(train_step, self.config)
    args = self.state, batch, self.root
    return self.program("step", step, *args)(*args)

  def count(self, host_batch: Batch) -> tuple[float, float]:
    hosts, model = jax.process_count(), self.config.model
    flops = metrics.batch_flops(model, host_batch)
    return live_elements(host_batch) * hosts, flops * hosts

  def speed(self, took: float, counts: Sequence[float]) -> Values:
    elements, flops = counts
    rate = flops / took / jax.device_count()
    if rate > self.peak:
      self.raise_peak(rate)
    return {"elements_per_s": elements / took, "mfu": rate / self.peak}

  def raise_peak(self, rate: float):
    """Corrects the peak that MFU is a share of, where a device was seen to do more: it
    was measured in a busy moment."""
    self.peak = max(rate, metrics.peak_flops()[0])
    total = self.peak * jax.device_count()
    self.facts |= {"peak_flops": total, "peak_flops_source": "measured while training"}
    self.write_json("run.json", self.facts)
    self.say(
      f"faster than the {self.facts['device']} was at the start: MFU is counted from"
      f" {total / 1e9:,.0f} GFLOP/s from here on"
    )

  def progress(self, values: Values, speed: Values) -> str:
    return metrics.progress_line(values["step"], self.config.train.steps, values, speed)

  def judge(self) -> Values:
    """The validation loss, and the functions handed in."""
    params = self.state.sampling_params
    batches = (global_batch(b, mesh=self.mesh) for b in self.heldout)
    line = validate(self.config, params, batches)
    image = line["loss_image"]  # None: no held-out row has an image
    self.say(
      f"step {self.step}  held out: text {line['loss_text']:.3f} (perplexity"
      f" {line['perplexity']:.2f})  image {'-' if image is None else f'{image:.4f}'}"
    )
    tally = self.tally()
    self.say(f"step {self.step}  read: {tally.summary()}")
    for warning in tally.warnings():
      self.say(f"step {self.step}  warning: {warning}")
    for evaluation in self.evaluations:
      evaluation(self.step, params, self.corpus)
    return line

  def lane_states(self) -> dict[int, Any]:
    return self.data.lane_states()

  def write_report(self):
    self.write_data()
    super().write_report()

  def write_data(self):
    """Writes data.json: what the sources hold, and what has been read of them."""
    tally = self.tally()
    values = {"sources": tally.counts(), "row_fill": tally.fill()}
    values |= {
      "found": notices.found(self.corpus.train, self.corpus.test),
      "contents": self.contents,
    }
    self.write_json("data.json", values)

  def tally(self) -> Tally:
    """What all lanes have given so far, those of other hosts included."""
    states = [own.values() for own in gather_json(self.data.lane_states())]
    return Tally(self.corpus.train, self.config, [s for own in states for s in own])
