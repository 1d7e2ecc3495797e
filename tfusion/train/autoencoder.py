"""The run of an autoencoder: build, restore, loop, judge, save.

Owns: the order of events and the workdir's files, as loop.py does for a model. Not:
what a step computes (reconstruction.py), what is drawn beside (functions handed in).

Starting always means going on if the workdir holds a checkpoint.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from tfusion import report
from tfusion import workdir as workdir_lib
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.checkpoint import Checkpoints
from tfusion.config import MeshConfig
from tfusion.data.pictures import PictureBatches, heldout_pictures, open_pictures
from tfusion.model import autoencoder
from tfusion.model.codec import Codec
from tfusion.sharding import (
  fetch_rows,
  global_batch,
  make_mesh,
  put_rows,
)
from tfusion.train import adversary, metrics, reconstruction
from tfusion.train.optim import make_schedule
from tfusion.train.perceptual import open_features
from tfusion.train.stop import StopSignals

CODEC = "autoencoder.safetensors"  # in the workdir
# Called at every evaluation, on the first host, with the step, held-out pictures and
# their reconstructions, f32[n, h, w, 3] each.
Evaluation = Callable[[int, np.ndarray, np.ndarray], None]


def train(
  config: AutoencoderConfig,
  workdir: str | Path,
  *,
  evaluations: Sequence[Evaluation] = (),
) -> reconstruction.State:
  """Trains to config.train.steps, or until Ctrl-C or SIGTERM, which save and stop.

  Args:
    config: checked.
    workdir: gets config.json, run.json, metrics.jsonl, speed.jsonl, validation.jsonl,
      checkpoints/, report.html and autoencoder.safetensors, a codec with the averaged
      weights if there are any, written anew at every save.
    evaluations: called every eval_every_steps and at the end.

  Returns:
    The last state.

  Raises:
    ValueError: the config does not fit the machines, the pictures or the workdir.
    FloatingPointError: max_skipped_updates non-finite updates in a row.
    OSError: a checkpoint could not be written; earlier ones are whole.
  """
  autoencoder.validate(config.model, prefix="model.")
  _check_batch(config)
  _check_adversary(config)
  workdir = workdir_lib.check_writable(workdir)
  changes = workdir_lib.check_same_run(config, workdir)
  t, clock = config.train, metrics.Clock()
  with clock.measure("init"):
    features = open_features(config.loss.features, image_shape=config.data.image_shape)
    sources = open_pictures(config, workdir, split="train")
    heldout = heldout_pictures(open_pictures(config, workdir, split="test"), config)
    workdir_lib.save_config(config, workdir)
  with (
    jax.set_mesh(make_mesh(MeshConfig())),
    Checkpoints(
      workdir / "checkpoints",
      keep_last=t.keep_last,
      keep_every_steps=t.keep_every_steps,
    ) as checkpoints,
    StopSignals() as stop,
  ):
    hosts = dict(host=jax.process_index(), hosts=jax.process_count())
    pictures = PictureBatches(sources, config, **hosts)
    run = _Run(config, workdir, clock, checkpoints, pictures, heldout)
    run.evaluations = evaluations
    run.start(features, changes)
    while run.step < t.steps and not stop.agreed(run.step, due=run.is_due()):
      run.advance()
      if run.is_due() and not stop.agreed(run.step, due=True):
        run.evaluate()
    run.finish(stopped_by=stop.name)
    return run.state


class _Run:
  """The loop's variables, and a method for each of its events."""

  def __init__(self, config, workdir, clock, checkpoints, pictures, heldout):
    self.config, self.workdir, self.clock = config, workdir, clock
    self.checkpoints, self.pictures, self.heldout = checkpoints, pictures, heldout
    self.mesh = jax.sharding.get_mesh()
    self.root = jax.random.key(config.seed)
    self.first = jax.process_index() == 0  # this host speaks and writes
    self.compiled = {}  # by whether the adversary takes part
    self.previous = None  # step and metrics that may still be on the device
    self.done = np.zeros(3)  # seconds, data seconds, updates so far
    self.logged = np.zeros(3)  # the same at the last line of the log

  def start(self, features, changes: Sequence[str]):
    """Restores or initialises, and says what was found and what has changed."""
    config = self.config
    with self.clock.measure("init"):
      everywhere = NamedSharding(self.mesh, jax.P())
      self.everywhere, self.network = everywhere, features[0]
      self.weights = jax.device_put(features[1], everywhere)
      init = functools.partial(reconstruction.init_state, config)
      abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(init, self.root),
      )
      restored = self.checkpoints.restore(abstract)
      if restored:
        self.step, self.state = restored.step, restored.state
        self.pictures.restore(restored.lanes[0])  # those of all hosts are alike
      else:
        self.step, self.state = 0, jax.jit(init, out_shardings=everywhere)(self.root)
      self.judge = jax.jit(
        functools.partial(reconstruction.judge, config),
        out_shardings=(everywhere, None),
      )
      self.files = {
        name: metrics.JsonLines(
          self.workdir / f"{name}.jsonl", last_step=self.step, writes=self.first
        )
        for name in ("metrics", "speed", "validation")
      }
      self.board = metrics.TensorBoard(self.workdir / "tensorboard", writes=self.first)
      validated = self.files["validation"].last_step
    facts = metrics.environment() | {
      "parameters": autoencoder.parameter_count(config.model),
      "parameters_of_adversary": sum(x.size for x in self.state.adversary.values()),
      "command": " ".join(["tfusion", *sys.argv[1:]]),
    }
    if self.first:
      workdir_lib.write_json(self.workdir, "run.json", facts)
    self.say(
      f"{facts['parameters']:,} parameters and {facts['parameters_of_adversary']:,} of"
      f" the adversary on {facts['devices']} x {facts['device']}"
    )
    if restored:
      self.say(f"goes on after step {self.step} of {self.checkpoints.directory}")
      if changes:
        rate = float(make_schedule(config)(self.step - int(self.state.skipped_total)))
        self.say(f"with {', '.join(changes)}; the learning rate is now {rate:.3g}")
      missing = multihost_utils.broadcast_one_to_all(np.asarray(validated < self.step))
      if self.is_due() and missing:
        self.evaluate()  # the run was stopped before it

  def advance(self):
    """One update, and the checkpoint that is due after it."""
    batch = self.clock.wait_for(self.pictures, device=self.previous)
    x_bhwc = global_batch(batch, mesh=self.mesh)
    adversarial = self.step >= self.config.loss.adversary_start
    if adversarial not in self.compiled:
      with self.clock.measure("compile"):
        step = functools.partial(
          reconstruction.train_step, self.config, self.network, adversarial
        )
        step = jax.jit(step, donate_argnums=0, out_shardings=(self.everywhere, None))
        step = step.lower(self.state, x_bhwc, self.root, self.weights)
        self.compiled[adversarial] = step.compile()
    step = self.compiled[adversarial]
    self.state, values = step(self.state, x_bhwc, self.root, self.weights)
    self.record()  # of the step before, while the device works on this one
    self.step += 1
    self.previous = self.step, values
    self.done[2] += 1
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
        " look at the pictures of these steps, then start again: the run goes on from"
        f" the last checkpoint in {self.checkpoints.directory}"
      )
    if values["skipped"]:
      self.say(f"step {step}: not finite, update skipped")
    if step % self.config.train.log_every_steps == 0:
      self.log({"step": step} | values)

  def log(self, values: dict[str, Any]):
    seconds, t = self.clock.seconds, self.config.train
    outside = sum(seconds[name] for name in ("init", "compile", "save", "evaluate"))
    self.done[:2] = self.clock.elapsed - outside, seconds["data"]
    took, waited, steps = np.maximum(self.done - self.logged, 1e-9)
    speed = {
      "step": values["step"],
      "seconds": self.clock.elapsed,
      "pictures_per_s": steps * t.batch_pictures / took,
      "step_ms": 1e3 * took / steps,
      "data_wait_share": waited / took,
      "eta_seconds": took / steps * (t.steps - values["step"]),
    }
    self.logged = self.done.copy()
    for name, line in (("metrics", values), ("speed", speed)):
      self.files[name].append(line)
      self.board.write(name, line)
    self.say(_progress_line(t.steps, values, speed))

  def save(self, *, wait: bool = False):
    """Starts a checkpoint; what is logged so far is on disk before it."""
    self.record()
    with self.clock.measure("save"):
      lanes = {jax.process_index(): self.pictures.state()}
      saved = self.checkpoints.save(self.step, self.state, lanes, wait=wait)
      if saved and self.first:
        codec = Codec(self.config.model, jax.device_get(self.state.best_params))
        codec.save(self.workdir / CODEC)

  def evaluate(self):
    """Held-out pictures: their PSNR, rate and use of codes, and the functions."""
    self.record()
    with self.clock.measure("evaluate"):
      line, made = self.judge_heldout()
      self.say(_heldout_line(self.step, line))
      if self.first:
        for evaluation in self.evaluations:
          evaluation(self.step, self.heldout, made)
      line = {"step": self.step} | line
      self.files["validation"].append(line)  # now: a killed evaluation is done again
      self.board.write("validation", line)
      if self.first:
        report.write_report(self.workdir)

  def judge_heldout(self) -> tuple[dict[str, float], np.ndarray]:
    """Means over held-out pictures, and their reconstructions."""
    size, sums, made = self.config.train.batch_pictures, None, []
    params, n = self.state.best_params, len(self.heldout)
    for start in range(0, n, size):
      x_bhwc = np.zeros((size, *self.heldout.shape[1:]), np.float32)
      weights_b = (np.arange(start, start + size) < n).astype(np.float32)
      x_bhwc[: n - start] = self.heldout[start : start + size]
      judged, pictures = self.judge(params, *put_rows((x_bhwc, weights_b)))
      made.append(fetch_rows(pictures)[: n - start])
      sums = judged if sums is None else jax.tree.map(np.add, sums, judged)
    count, codes = float(sums.count), self.config.model.codes
    line = {
      "pictures": count,
      "psnr": float(sums.psnr) / count,
      "loss_pixel": float(sums.pixel) / count,
      "bits_per_pixel": float(sums.bits) / count / np.prod(self.heldout.shape[1:3]),
    }
    if codes:
      used, perplexity = map(float, reconstruction.use_of_codes(sums.codes_v))
      line |= {"codes_used": used, "codes_perplexity": perplexity}
    return line, np.concatenate(made)

  def finish(self, *, stopped_by: str | None):
    """Saves, and says where things are."""
    self.save(wait=True)
    if self.first:
      report.write_report(self.workdir)
    counts = ", ".join(f"{k} {v:.0f} s" for k, v in self.clock.seconds.items())
    if stopped_by:
      self.say(f"stopped by {stopped_by} after step {self.step}, saved; the same")
      self.say("command goes on from here")
    self.say(f"{self.clock.elapsed:.0f} s in all ({counts}), see {self.workdir}")

  def say(self, text: str):
    if self.first:
      print(text, flush=True)


def _check_batch(config: AutoencoderConfig) -> None:
  devices = jax.device_count()
  if config.train.batch_pictures % devices:
    raise ValueError(
      f"train.batch_pictures={config.train.batch_pictures}: must divide over the"
      f" {devices} devices"
    )


def _check_adversary(config: AutoencoderConfig) -> None:
  least, shape = adversary.least_side(config.loss), config.data.image_shape
  if min(shape[:2]) < least and config.loss.adversary_start < config.train.steps:
    raise ValueError(
      f"loss.adversary_levels={config.loss.adversary_levels}: needs pictures of at"
      f" least {least} pixels along a side, data.image_shape={shape}; lower it"
    )


def _progress_line(steps: int, values: dict, speed: dict) -> str:
  """One line for the console."""
  left = int(speed["eta_seconds"])
  price = "codebook" if "loss_codebook" in values else "KL"
  shown = values.get("loss_codebook", values.get("kl_nats"))
  adversary_shown = (
    f"  adversary {values['loss_discriminator']:.3f}"
    if values["loss_discriminator"]
    else ""
  )
  return (
    f"step {values['step']}/{steps}  loss {values['loss']:.4f}  L1"
    f" {values['loss_pixel']:.4f}  perceptual {values['loss_perceptual']:.4f}  {price}"
    f" {shown:.4g}{adversary_shown}  PSNR {values['psnr']:.2f} dB "
    f" {speed['pictures_per_s']:,.0f} pictures/s  {speed['step_ms']:.0f} ms  data wait"
    f" {speed['data_wait_share']:.1%}  left {left // 60}:{left % 60:02d}"
  )


def _heldout_line(step: int, line: dict[str, float]) -> str:
  used = (
    f"  {line['codes_used']:.1%} of the codes used, perplexity"
    f" {line['codes_perplexity']:.0f}"
    if "codes_used" in line
    else ""
  )
  return (
    f"step {step}  held out: PSNR {line['psnr']:.2f} dB  L1 {line['loss_pixel']:.4f} "
    f" rate {line['bits_per_pixel']:.3f} bits per pixel{used}"
  )
