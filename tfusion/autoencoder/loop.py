"""The run of an autoencoder: build, restore, loop, judge, save.

Owns: what is built and handed to the run's events (run.py), as loop.py does for a
model. Not: what a step computes (reconstruction.py), what is drawn beside (functions
handed in).

Starting always means going on if the workdir holds a checkpoint.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from tfusion import workdir as workdir_lib
from tfusion.autoencoder import adversary, network
from tfusion.autoencoder import step as reconstruction
from tfusion.autoencoder.codec import Codec
from tfusion.autoencoder.images import PictureBatches, heldout_pictures, open_pictures
from tfusion.autoencoder.perceptual import open_features
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.checkpoint import Checkpoints
from tfusion.config import MeshConfig
from tfusion.data import identity
from tfusion.data.sources import Source
from tfusion.sharding import fetch_rows, make_mesh, put_rows
from tfusion.training import metrics
from tfusion.training.run import Run, Values, hold
from tfusion.training.stop import StopSignals

CODEC = "autoencoder.safetensors"  # in the workdir
# Called at every evaluation, on the first host, with the step, held-out pictures and
# their reconstructions, f32[n, h, w, 3] each.
Evaluation = Callable[[int, np.ndarray, np.ndarray], None]


def train(
  config: AutoencoderConfig,
  workdir: str | Path,
  *,
  evaluations: Sequence[Evaluation] = (),
  stop: StopSignals | None = None,
) -> reconstruction.State:
  """Trains to config.train.steps, or until Ctrl-C or SIGTERM, which save and stop.

  Args:
    config: checked.
    workdir: gets lock.json while it lasts, config.json, identity.json, documents.json,
      run.json, metrics.jsonl, speed.jsonl, validation.jsonl,
      checkpoints/, report.html and autoencoder.safetensors, a codec with the averaged
      weights if there are any, written anew at every save.
    evaluations: called every eval_every_steps and at the end.
    stop: not yet entered; says afterwards whether the run was stopped.

  Returns:
    The last state.

  Raises:
    ValueError: the config does not fit the machines, the pictures or the workdir, or
      another run holds the workdir.
    FloatingPointError: max_skipped_updates non-finite updates in a row.
    OSError: a checkpoint could not be written; earlier ones are whole.
  """
  network.validate(config.model, prefix="model.")
  _check_batch(config)
  _check_adversary(config)
  workdir = workdir_lib.check_writable(workdir)
  t, clock = config.train, metrics.Clock()
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(hold(workdir))
    changes = workdir_lib.check_same_run(config, workdir)
    with clock.measure("init"):
      shape = config.data.image_shape
      features = open_features(config.loss.features, image_shape=shape)
      sources, heldout = _open_data(config, workdir)
      workdir_lib.save_config(config, workdir)
    stack.enter_context(jax.set_mesh(make_mesh(MeshConfig())))
    checkpoints = stack.enter_context(
      Checkpoints(
        workdir / "checkpoints",
        keep_last=t.keep_last,
        keep_every_steps=t.keep_every_steps,
        check_lock=held.check,
      )
    )
    stop = stack.enter_context(stop or StopSignals())
    hosts = dict(host=jax.process_index(), hosts=jax.process_count())
    run = _AutoencoderRun(config, workdir, clock, checkpoints, held=held, counts=1)
    run.data = PictureBatches(sources, config, **hosts)
    run.heldout, run.evaluations = heldout, evaluations
    run.start(features, changes)
    run.loop(stop)
    return run.state


def _open_data(
  config: AutoencoderConfig, workdir: Path
) -> tuple[tuple[Source, ...], np.ndarray]:
  """The sources to train on and the held-out pictures, f32[n, h, w, 3]; on the first
  host, the run remembers what they are."""
  opened = {
    split: open_pictures(config, workdir, split=split) for split in ("train", "test")
  }
  named, found = identity.recognise(opened, config.data.sources, workdir)
  _, _, path = config.loss.features.partition(":")
  if path:  # a trained network is as much a part of the loss as its weights
    found.files["loss.features"] = identity.check_file(workdir, "loss.features", path)
  if jax.process_index() == 0:
    identity.keep(found, workdir)
  return named["train"], heldout_pictures(named["test"], config)


class _AutoencoderRun(Run):
  """The run of an autoencoder on pictures, which it counts."""

  heldout: np.ndarray  # pictures, f32[n, h, w, 3]
  evaluations: Sequence[Evaluation]

  def start(self, features, changes: Sequence[str]):
    """Restores or initialises, and says what was found and what has changed."""
    config = self.config
    with self.clock.measure("init"):
      self.sharding = NamedSharding(self.mesh, jax.P())
      self.network = features[0]
      self.weights = jax.device_put(features[1], self.sharding)
      init = functools.partial(reconstruction.init_state, config)
      abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding),
        jax.eval_shape(init, self.root),
      )
      restored = self.checkpoints.restore(abstract)
      if restored:
        self.step, self.state = restored.step, restored.state
        self.data.restore(restored.lanes[0])  # those of all hosts are alike
      else:
        self.step, self.state = 0, jax.jit(init, out_shardings=self.sharding)(self.root)
      self.judged = jax.jit(
        functools.partial(reconstruction.judge, config),
        out_shardings=(self.sharding, None),
      )
      self.open_files()
    adversary_count = sum(x.size for x in self.state.adversary.values())
    facts = self.write_facts(
      {
        "parameters": network.parameter_count(config.model),
        "parameters_of_adversary": adversary_count,
      }
    )
    self.say(
      f"{facts['parameters']:,} parameters and {adversary_count:,} of the adversary on"
      f" {facts['devices']} x {facts['device']}"
    )
    if restored:
      self.go_on(changes)

  def update(
    self, x_bhwc: jax.Array
  ) -> tuple[reconstruction.State, dict[str, jax.Array]]:
    adversarial = self.step >= self.config.loss.adversary_start
    step = functools.partial(
      reconstruction.train_step, self.config, self.network, adversarial
    )
    args = self.state, x_bhwc, self.root, self.weights
    return self.program(adversarial, step, *args)(*args)

  def count(self, x_bhwc: np.ndarray) -> tuple[float]:
    return (len(x_bhwc) * jax.process_count(),)

  def speed(self, took: float, counts: Sequence[float]) -> Values:
    return {"pictures_per_s": counts[0] / took}

  def progress(self, values: Values, speed: Values) -> str:
    return _progress_line(self.config.train.steps, values, speed)

  def lane_states(self) -> dict[int, Any]:
    return {jax.process_index(): self.data.state()}

  def save(self, *, wait: bool = False) -> bool:
    """Saves the codec too, with the averaged weights if there are any."""
    saved = super().save(wait=wait)
    if saved and self.first:
      with self.clock.measure("save"):
        codec = Codec(self.config.model, jax.device_get(self.state.best_params))
        codec.save(self.workdir / CODEC)
    return saved

  def judge(self) -> Values:
    """Held-out pictures: their PSNR, rate and use of codes, and the functions."""
    line, made = self.judge_heldout()
    self.say(_heldout_line(self.step, line))
    if self.first:
      for evaluation in self.evaluations:
        evaluation(self.step, self.heldout, made)
    return line

  def judge_heldout(self) -> tuple[dict[str, float], np.ndarray]:
    """Means over held-out pictures, and their reconstructions."""
    size, sums, made = self.config.train.batch_images, None, []
    params, n = self.state.best_params, len(self.heldout)
    for start in range(0, n, size):
      x_bhwc = np.zeros((size, *self.heldout.shape[1:]), np.float32)
      weights_b = (np.arange(start, start + size) < n).astype(np.float32)
      x_bhwc[: n - start] = self.heldout[start : start + size]
      judged, pictures = self.judged(params, *put_rows((x_bhwc, weights_b)))
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


def _check_batch(config: AutoencoderConfig) -> None:
  devices = jax.device_count()
  if config.train.batch_images % devices:
    raise ValueError(
      f"train.batch_images={config.train.batch_images}: must divide over the"
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
