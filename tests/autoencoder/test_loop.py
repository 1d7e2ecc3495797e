"""Promises of tfusion/autoencoder/loop.py, on real runs on the digits."""

import dataclasses
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny_autoencoder
from PIL import Image
from tiny import assert_same_tree, lines

from tfusion import cli
from tfusion.autoencoder import codec, loop, step
from tfusion.autoencoder.images import ImageBatches
from tfusion.evaluate.reconstructions import Reconstructions

pytestmark = pytest.mark.slow

VAE = tiny_autoencoder.config(optim__ema_decay=0.9)  # the adversary begins at step 2
VALUES = ("metrics.jsonl", "validation.jsonl", "autoencoder.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run that was never stopped, and its last state."""
  workdir = tmp_path_factory.mktemp("straight")
  draw = Reconstructions(workdir / "samples")
  return workdir, loop.train(VAE, workdir, evaluations=[draw])


def assert_same_run(workdir, state, straight):
  for name in VALUES:
    assert (workdir / name).read_bytes() == (straight[0] / name).read_bytes(), name
  assert_same_tree(state, straight[1])


def test_inspect_shows_its_config_and_checkpoints(straight, capsys):
  assert cli.main(["inspect", "run", "--workdir", str(straight[0])]) == 0
  out = capsys.readouterr().out
  assert "loss.adversary_start = 2" in out and "checkpoints: [2, 4]" in out


def test_a_run_that_is_told_to_stop_and_started_again_is_the_same_run(
  tmp_path, monkeypatch, straight, capfd
):
  give, given = ImageBatches.__next__, []

  def stopping(self):
    given.append(0)
    if len(given) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return give(self)

  monkeypatch.setattr(ImageBatches, "__next__", stopping)
  stopped = loop.train(VAE, tmp_path)
  assert int(stopped.step) == 2
  assert "stopped by SIGTERM after step 2, saved" in capfd.readouterr().out
  state = loop.train(VAE, tmp_path)
  said = capfd.readouterr().out
  assert "goes on after step 2 of" in said
  assert said.index("step 2  held out") < said.index("step 3/4")  # it was still due
  assert_same_run(tmp_path, state, straight)


@pytest.mark.long
def test_a_run_that_was_killed_between_two_saves_repeats_what_it_lost(
  tmp_path, straight
):
  workdir = shutil.copytree(straight[0], tmp_path / "run")
  shutil.rmtree(workdir / "checkpoints" / "4")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "lo')  # as a killed process leaves it
  assert_same_run(workdir, loop.train(VAE, workdir), straight)


def test_the_values_of_every_step_are_logged_and_the_adversary_begins_when_told(
  straight,
):
  found = lines(straight[0])
  assert [line["step"] for line in found] == [1, 2, 3, 4]
  assert [line["loss_discriminator"] > 0 for line in found] == [
    False,
    False,
    True,
    True,
  ]
  assert all(line["skipped_total"] == 0 for line in found)
  judged = lines(straight[0], "validation")
  assert [line["step"] for line in judged] == [2, 4]
  assert judged[-1]["images"] == 3  # of two batches, the second padded
  last = lines(straight[0], "speed")[-1]
  assert last["eta_seconds"] == 0 and last["images_per_s"] > 0


def test_the_adversary_learns_from_its_start_on_with_a_schedule_of_its_own(straight):
  state = straight[1]
  init = step.init_state(VAE, jax.random.key(VAE.seed))
  assert any(np.any(state.adversary[n] != x) for n, x in init.adversary.items())

  def counts(opt_state):
    return {int(x) for x in jax.tree.leaves(opt_state) if x.dtype == np.int32}

  assert counts(state.opt_state) == {4} and counts(state.adversary_opt_state) == {2}
  run = step.adversary_run(VAE)  # from update 2 of 4 on
  assert run.train.steps == 2 and run.optim == VAE.optim


def test_the_codec_it_leaves_holds_the_averaged_weights(straight):
  workdir, state = straight
  made = codec.load(workdir / "autoencoder.safetensors")
  assert made.config == VAE.model
  assert all(np.array_equal(made.params[n], x) for n, x in state.ema.items())
  assert not np.array_equal(
    state.ema["encoder.conv_in.kernel"], state.params["encoder.conv_in.kernel"]
  )


def test_the_page_shows_curves_and_reconstructions(straight):
  workdir = straight[0]
  page = (workdir / "report.html").read_text()
  for words in ("Held-out PSNR", "Rate", "step 4", "Reconstructions", "Discriminator"):
    assert words in page, words
  assert "Text loss" not in page and "Cannot be shown" not in page
  with Image.open(workdir / "samples" / "step_00000004.png") as sheet:
    # Three images above three reconstructions, a line around each, drawn larger.
    assert sheet.size[0] * (2 * 9 + 1) == sheet.size[1] * (3 * 9 + 1)


def test_a_workdir_of_another_loss_is_refused_before_work(straight):
  other = dataclasses.replace(VAE.loss, kl_weight=1.0)
  with pytest.raises(ValueError, match="loss.kl_weight: 1e-06 -> 1.0"):
    loop.train(dataclasses.replace(VAE, loss=other), straight[0])


def test_what_may_change_is_said_and_a_finished_run_is_left_as_it_is(
  tmp_path, straight, capfd
):
  workdir = shutil.copytree(straight[0], tmp_path / "run")
  other = dataclasses.replace(VAE, train=dataclasses.replace(VAE.train, keep_last=3))
  assert_same_run(workdir, loop.train(other, workdir), straight)
  assert (
    "with train.keep_last: 2 -> 3; the learning rate is now" in capfd.readouterr().out
  )


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(model__groups=3), r"model.widths=\(4,\)"),
    (dict(loss__features="vgg"), "choose none, random, or vgg16:PATH"),
    (dict(loss__adversary_levels=3), "needs images of at least 24 pixels"),
    (dict(data__sources=("pydoc",)), "has no images"),
  ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, changes, words):
  with pytest.raises(ValueError, match=words):
    loop.train(tiny_autoencoder.config(**changes), tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.long
def test_the_experiments_smoke_run_with_codes_from_the_command_line(tmp_path, capfd):
  from tfusion import cli

  tiny = {
    "model.widths": "(4,)",
    "model.groups": "2",
    "loss.features": "none",
    "data.sources": "('digits',)",
    "data.image_shape": "(8, 8, 1)",
    "loss.adversary_levels": "1",
    "loss.adversary_start": "4",
    "train.steps": "4",
    "train.batch_images": "2",
    "train.eval_every_steps": "4",
    "train.log_every_steps": "2",
  }
  arguments = ["autoencoder", "--config", "experiments/autoencoder.py:smoke,vq"]
  arguments += ["--workdir", str(tmp_path)]
  assert cli.main([*arguments, *(f"--config.{k}={v}" for k, v in tiny.items())]) == 0
  said = capfd.readouterr().out
  # A cell for each pixel, of one of 32 codes.
  assert "rate 5.000 bits per pixel" in said and "of the codes used" in said
  assert codec.load(tmp_path / "autoencoder.safetensors").kind == "codes"
  assert {"codes_used", "codes_perplexity"} <= lines(tmp_path)[-1].keys()
  assert (tmp_path / "samples" / "step_00000004.png").is_file()
