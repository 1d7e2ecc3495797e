"""The run: build, restore, loop, validate, save. The only stateful function.

Owns: the order of events and the workdir's files. Not: what a step computes (step.py),
what is evaluated beside the validation loss (functions handed in).

Starting always means going on if the workdir holds a checkpoint.
"""

import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from tfusion import config as config_lib
from tfusion import report
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.data.pipeline import Corpus, HostBatches, heldout_rows, open_corpus
from tfusion.model.transfusion import Params, parameter_count
from tfusion.sequence import live_elements
from tfusion.sharding import describe, global_batch, make_mesh
from tfusion.train import metrics
from tfusion.train.optim import make_schedule
from tfusion.train.step import (
  TrainState,
  abstract_state,
  init_state,
  shardings,
  train_step,
)
from tfusion.train.stop import StopSignals
from tfusion.train.validate import validate


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
) -> TrainState:
  """Trains to config.train.steps, or until Ctrl-C or SIGTERM, which save and stop.

  Args:
    config: checked.
    workdir: gets config.json, run.json, data.json, tokenizer.model, metrics.jsonl,
      speed.jsonl, validation.jsonl, checkpoints/ and report.html.
    evaluations: checked before training; called after the validation loss, every
      eval_every_steps and at the end.

  Returns:
    The last state.

  Raises:
    ValueError: the config does not fit the machines, the data or the workdir.
    FloatingPointError: max_skipped_updates non-finite updates in a row.
    OSError: a checkpoint could not be written; earlier ones are whole.
  """
  hosts = jax.process_count()
  config_lib.validate_devices(config, devices=jax.device_count(), hosts=hosts)
  workdir = workdir_lib.check_writable(workdir)
  changes = workdir_lib.check_same_run(config, workdir)
  clock = metrics.Clock()
  with clock.measure("init"):
    corpus = open_corpus(config, workdir)
    for evaluation in evaluations:
      evaluation.check(corpus)
    workdir_lib.save_config(config, workdir)
  t = config.train
  saved = workdir / "checkpoints"
  with (
    jax.set_mesh(make_mesh(config.mesh)),
    Checkpoints(
      saved, keep_last=t.keep_last, keep_every_steps=t.keep_every_steps
    ) as checkpoints,
    contextlib.closing(
      HostBatches(corpus, config, host=jax.process_index(), hosts=hosts)
    ) as data,
    StopSignals() as stop,
  ):
    run = _Run(config, workdir, corpus, clock, checkpoints, data)
    run.evaluations = evaluations
    run.start(changes)
    while run.step < t.steps and not stop.agreed(run.step, due=run.is_due()):
      run.advance()
      if run.is_due() and not stop.agreed(run.step, due=True):
        run.evaluate()
    run.finish(stopped_by=stop.name)
    return run.state


class _Run:
  """The loop's variables, and a method for each of its events."""

  def __init__(self, config, workdir, corpus, clock, checkpoints, data):
    self.config, self.workdir, self.corpus = config, workdir, corpus
    self.clock, self.checkpoints, self.data = clock, checkpoints, data
    self.mesh = jax.sharding.get_mesh()
    self.root = jax.random.key(config.seed)
    self.first = jax.process_index() == 0  # this host speaks and writes
    self.compiled = None
    self.previous = None  # step and metrics that may still be on the device
    self.done = np.zeros(5)  # seconds, data seconds, elements, FLOPs, updates so far
    self.logged = np.zeros(5)  # the same at the last line of the log

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
      self.files = {
        name: metrics.JsonLines(
          self.workdir / f"{name}.jsonl", last_step=self.step, writes=self.first
        )
        for name in ("metrics", "speed", "validation")
      }
      self.board = metrics.TensorBoard(self.workdir / "tensorboard", writes=self.first)
      validated = self.files["validation"].last_step
    logging.info("%s", "\n".join(describe(self.state, self.sharding)))
    facts = metrics.environment() | {
      "parameters": parameter_count(config.model),
      "peak_flops": self.peak * jax.device_count(),
      "peak_flops_source": source,
      "mesh": dict(self.mesh.shape),
      "command": " ".join(["tfusion", *sys.argv[1:]]),
    }
    self.write_json("run.json", facts)
    self.say(
      f"{facts['parameters']:,} parameters on {facts['devices']} x {facts['device']}"
      f" ({facts['peak_flops'] / 1e9:,.0f} GFLOP/s, {source})"
    )
    if restored:
      self.say(f"goes on after step {self.step} of {self.checkpoints.directory}")
      # The schedule has no memory: it is that of the config of this start. On all
      # hosts: under a mesh of several, this too is a program of all of them.
      updates = self.step - int(self.state.skipped_total)
      rate = float(make_schedule(config)(updates))
      if changes:
        self.say(f"with {', '.join(changes)}; the learning rate is now {rate:.3g}")
      # Another host's view of the file may be old: the first decides.
      missing = multihost_utils.broadcast_one_to_all(np.asarray(validated < self.step))
      if self.is_due() and missing:
        self.evaluate()  # the run was stopped before it

  def advance(self):
    """One update, and the checkpoint that is due after it."""
    host_batch = self.clock.wait_for(self.data, device=self.previous)
    batch = global_batch(host_batch, mesh=self.mesh)
    if self.compiled is None:
      with self.clock.measure("compile"):
        step = functools.partial(train_step, self.config)
        step = jax.jit(step, donate_argnums=0, out_shardings=(self.sharding, None))
        self.compiled = step.lower(self.state, batch, self.root).compile()
    self.state, values = self.compiled(self.state, batch, self.root)
    self.record()  # of the step before, while the device works on this one
    self.step += 1
    self.previous = self.step, values
    hosts = jax.process_count()
    self.done[2] += live_elements(host_batch) * hosts
    self.done[3] += metrics.batch_flops(self.config.model, host_batch) * hosts
    self.done[4] += 1
    t = self.config.train
    if self.step % t.save_every_steps == 0 or self.step >= t.steps:
      self.save()

  def is_due(self) -> bool:
    """True if an evaluation belongs to the step that was just done."""
    t = self.config.train
    return self.step % t.eval_every_steps == 0 or self.step >= t.steps

  def record(self):
    """Writes the metrics of the last step that was handed to the device."""
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

  def log(self, values: dict[str, Any]):
    seconds = self.clock.seconds
    outside = sum(seconds[name] for name in ("init", "compile", "save", "evaluate"))
    self.done[:2] = self.clock.elapsed - outside, seconds["data"]
    took, waited, elements, flops, steps = np.maximum(self.done - self.logged, 1e-9)
    speed = {
      "step": values["step"],
      "seconds": self.clock.elapsed,
      "elements_per_s": elements / took,
      "step_ms": 1e3 * took / steps,
      "mfu": flops / took / (self.peak * jax.device_count()),
      "data_wait_share": waited / took,
      "eta_seconds": took / steps * (self.config.train.steps - values["step"]),
    }
    self.logged = self.done.copy()
    for name, line in (("metrics", values), ("speed", speed)):
      self.files[name].append(line)
      self.board.write(name, line)
    self.say(
      metrics.progress_line(values["step"], self.config.train.steps, values, speed)
    )

  def save(self, *, wait: bool = False):
    """Starts a checkpoint; what is logged so far is on disk before it."""
    self.record()
    with self.clock.measure("save"):
      self.checkpoints.save(self.step, self.state, self.data.lane_states(), wait=wait)

  def evaluate(self):
    """Validation loss, the functions handed in, and the page."""
    self.record()
    with self.clock.measure("evaluate"):
      params = self.state.sampling_params
      batches = (global_batch(b, mesh=self.mesh) for b in self.heldout)
      line = {"step": self.step} | validate(self.config, params, batches)
      image = line["loss_image"]  # None: no held-out row has an image
      self.say(
        f"step {self.step}  held out: text {line['loss_text']:.3f} (perplexity"
        f" {line['perplexity']:.2f})  image {'-' if image is None else f'{image:.4f}'}"
      )
      self.say(f"step {self.step}  read: {self.data.summary()}")
      for evaluation in self.evaluations:
        evaluation(self.step, params, self.corpus)
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
    self.write_json(
      "data.json", {"sources": self.data.counts(), "row_fill": self.data.fill()}
    )
    if self.first:
      report.write_report(self.workdir)

  def write_json(self, name: str, values: dict):
    if self.first:
      workdir_lib.write_json(self.workdir, name, values)

  def say(self, text: str):
    if self.first:
      print(text, flush=True)
