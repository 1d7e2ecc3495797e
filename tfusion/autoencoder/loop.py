"""The run of an autoencoder: open, restore or start, then update, save, evaluate.

Owns: the order of these, and the only state that changes, as training/loop.py does for
a model. Not: what a step computes (step.py), what happens beside the updates
(training/events.py), what is shown beside the numbers (functions handed in).

Starting always means going on if the workdir holds a checkpoint.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from tfusion import workdir as workdir_lib
from tfusion.autoencoder import adversary, network
from tfusion.autoencoder.codec import Codec
from tfusion.autoencoder.images import ImageBatches, heldout_images, open_images
from tfusion.autoencoder.perceptual import open_features
from tfusion.autoencoder.step import State, init_state, train_step
from tfusion.autoencoder.validate import validate
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.checkpoint import Checkpoints, Restored
from tfusion.config import MeshConfig
from tfusion.data import identity
from tfusion.sharding import global_batch, make_mesh
from tfusion.together import SAME_DATA, check_same, together
from tfusion.training import due, events
from tfusion.training.clock import Clock
from tfusion.training.compiled import CompiledStep
from tfusion.training.feed import Feed
from tfusion.training.hold import Hold, hold_watched
from tfusion.training.log import Log, Values
from tfusion.training.stop import StopSignals

CODEC = "autoencoder.safetensors"  # in the workdir
# Called at every evaluation, on the first host, with the step, held-out images and
# their reconstructions, f32[n, h, w, 3] each.
Evaluation = Callable[[int, np.ndarray, np.ndarray], None]


def train(
  config: AutoencoderConfig,
  workdir: str | Path,
  *,
  evaluations: Sequence[Evaluation] = (),
  stop: StopSignals | None = None,
) -> State:
  """Trains to config.train.steps, or until Ctrl-C or SIGTERM, which save and stop.

  Args:
    config: checked.
    workdir: gets what docs/resuming.md lists and autoencoder.safetensors, a codec with
      the averaged weights if there are any, written anew at every save.
    evaluations: called every eval_every_steps and at the end.
    stop: not yet entered; says afterwards whether the run was stopped.

  Returns:
    The last state.

  Raises:
    ValueError: the config does not fit the machines, the images or the workdir, or the
      workdir is in use.
    FloatingPointError: max_skipped_updates non-finite updates in a row.
    OSError: a checkpoint could not be written; earlier ones are whole.
  """
  workdir, clock = _check(config, workdir), Clock()
  with contextlib.ExitStack() as stack:
    # Open the workdir, the data, the devices.
    held = stack.enter_context(hold_watched(config, workdir, clock))
    changes = events.check_start(config, workdir)
    checkpoints = stack.enter_context(events.open_checkpoints(config, workdir, held))
    with clock.measure("init"):
      shape = config.data.image_shape
      features, weights = open_features(config.loss.features, image_shape=shape)
      data, heldout_nhwc = _open_data(config, workdir)
      workdir_lib.save_config(config, workdir)
    mesh = make_mesh(MeshConfig())
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(stop or StopSignals())

    # Go on from the newest checkpoint, or start.
    root = jax.random.key(config.seed)
    with clock.measure("init"):
      sharding = NamedSharding(mesh, jax.P())
      weights = jax.device_put(weights, sharding)
      restored = checkpoints.restore(_abstract_state(config, sharding))
      step, state = _restored_or_new(config, sharding, root, restored, data)
      log = Log(config, workdir, step, clock, held, stop, _rates, _progress_line)
      stack.push(log)
    is_due = partial(due.evaluation, config)
    save = partial(_save, config, workdir, checkpoints, held, log)
    evaluate = partial(_evaluate, config, workdir, heldout_nhwc, evaluations, held, log)
    _say_what_runs(config, workdir, state, log)
    if restored:
      events.say_resumed(config, workdir, step, state, changes, log)
      if is_due(step) and log.lacks_validation(step):
        evaluate(step, state)

    # Train.
    feed = Feed(data, clock, stop)
    update, adversarial_update = (
      CompiledStep(partial(train_step, config, features, on), sharding, clock)
      for on in (False, True)
    )
    while step < config.train.steps and not stop.agreed(step, due=is_due(step)):
      with events.saving_first(save, log, step, state, data):
        host_bhwc = feed.next(device=log.waiting)
      batch_bhwc = global_batch(host_bhwc, mesh=mesh)
      this = adversarial_update if step >= config.loss.adversary_start else update
      state, values = this(state, batch_bhwc, root, weights)
      log.write()  # of the update before, while the device works on this one
      step += 1
      log.hand_over(step, values, {"images": len(host_bhwc) * jax.process_count()})
      if due.checkpoint(config, step) and not stop.agreed(step, due=True):
        save(step, state, data)
      if is_due(step) and not stop.agreed(step, due=True):
        evaluate(step, state)

    # Stop.
    feed.raise_spoiled()
    save(step, state, data, wait=True)
    events.write_report(workdir)
    events.say_finished(step, workdir, stop, log)
    feed.raise_failure()
    return state


def _check(config: AutoencoderConfig, workdir: str | Path) -> Path:
  """The workdir, which all hosts can write, of a config that fits itself and the
  devices."""
  with together():
    network.validate(config.model, prefix="model.")
    _check_batch(config)
    _check_adversary(config)
    return workdir_lib.check_writable(workdir)


def _open_data(
  config: AutoencoderConfig, workdir: Path
) -> tuple[ImageBatches, np.ndarray]:
  """The batches to train on and the held-out images, f32[n, h, w, 3]; the workdir keeps
  what they are."""
  opened = {
    split: open_images(config, workdir, split=split) for split in ("train", "test")
  }
  named, found = identity.recognise(opened, config.data.sources, workdir)
  _, _, path = config.loss.features.partition(":")
  if path:  # a trained network is as much a part of the loss as its weights
    found.files["loss.features"] = identity.check_file(workdir, "loss.features", path)
  check_same(identity.digests(found), remedy=SAME_DATA)
  if jax.process_index() == 0:
    identity.keep(found, workdir)
  data = ImageBatches(
    named["train"], config, host=jax.process_index(), hosts=jax.process_count()
  )
  return data, heldout_images(named["test"], config)


def _abstract_state(config: AutoencoderConfig, sharding: NamedSharding) -> State:
  shapes = jax.eval_shape(partial(init_state, config), jax.random.key(config.seed))
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
  )


def _restored_or_new(
  config: AutoencoderConfig,
  sharding: NamedSharding,
  root: jax.Array,
  restored: Restored | None,
  data: ImageBatches,
) -> tuple[int, State]:
  """The updates done and the state after them; the data go on from there."""
  if restored:
    data.restore(restored.lanes[0])  # those of all hosts are alike
    return restored.step, restored.state
  return 0, jax.jit(partial(init_state, config), out_shardings=sharding)(root)


def _say_what_runs(
  config: AutoencoderConfig, workdir: Path, state: State, log: Log
) -> None:
  """Writes run.json and says how large the networks are and what they run on."""
  adversary_count = sum(x.size for x in state.adversary.values())
  facts = events.write_facts(
    workdir,
    {
      "parameters": network.parameter_count(config.model),
      "parameters_of_adversary": adversary_count,
    },
  )
  log.say(
    f"{facts['parameters']:,} parameters and {adversary_count:,} of the adversary on"
    f" {facts['devices']} x {facts['device']}"
  )


def _save(
  config: AutoencoderConfig,
  workdir: Path,
  checkpoints: Checkpoints,
  held: Hold,
  log: Log,
  step: int,
  state: State,
  data: ImageBatches,
  *,
  wait: bool = False,
) -> bool:
  """Saves the codec beside the checkpoint, with the averaged weights if there are
  any; whether there was something to save."""
  saved = events.save(checkpoints, held, log, step, state, data, wait=wait)
  if saved and log.first:
    with log.clock.measure("save"):
      Codec(config.model, jax.device_get(state.best_params)).save(workdir / CODEC)
  return saved


def _evaluate(
  config: AutoencoderConfig,
  workdir: Path,
  heldout_nhwc: np.ndarray,
  evaluations: Sequence[Evaluation],
  held: Hold,
  log: Log,
  step: int,
  state: State,
) -> None:
  """Held-out images: their PSNR, rate and use of codes, and the functions handed in."""
  with events.evaluating(held, log):
    line, made_nhwc = validate(config, state.best_params, heldout_nhwc)
    log.say(_heldout_line(step, line))
    if log.first:
      for evaluation in evaluations:
        evaluation(step, heldout_nhwc, made_nhwc)
    log.write_validation({"step": step} | line)  # a killed evaluation is done again
    if step < config.train.steps:  # the last page is written when all else is
      events.write_report(workdir)


def _rates(since: dict[str, float]) -> Values:
  return {"images_per_s": since["images"] / since["seconds"]}


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
      f"loss.adversary_levels={config.loss.adversary_levels}: needs images of at"
      f" least {least} pixels along a side, data.image_shape={shape}; lower it"
    )


def _progress_line(values: Values, speed: Values, steps: int) -> str:
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
    f" {speed['images_per_s']:,.0f} images/s  {speed['step_ms']:.0f} ms  data wait"
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
