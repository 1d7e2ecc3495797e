"""Promises of tfusion/run.py: runs from Python, whole ones of four updates."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
import tiny_experiments
from PIL import Image
from tiny import assert_same_tree

import tfusion
from tfusion import cli, lock
from tfusion.data import pipeline
from tfusion.evaluate import likelihood
from tfusion.numerals import SEEDS

pytestmark = pytest.mark.slow  # whole runs are trained

PROMPT = "image 2 of train <image>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run, as `train` returned it."""
  folder = tmp_path_factory.mktemp("model")
  config = tfusion.experiment(tiny_experiments.write(folder, tiny_experiments.MODEL))
  return tfusion.train(config, folder / "run")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
  """The same of an autoencoder."""
  folder = tmp_path_factory.mktemp("autoencoder")
  text = tiny_experiments.AUTOENCODER
  config = tfusion.experiment(tiny_experiments.write(folder, text))
  return tfusion.train(config, folder / "run")


def pixels(made):
  return [np.asarray(image) for image in made.images]


def test_train_evaluates_as_the_command_does_and_returns_what_load_returns(trained):
  workdir = trained.workdir
  assert (workdir / "samples" / "step_00000004.png").is_file()
  assert (workdir / "report.html").is_file()
  assert json.loads((workdir / "eval.json").read_text())["step"] == 4
  loaded = tfusion.load(str(workdir))
  assert (
    (loaded.step, loaded.config)
    == (trained.step, trained.config)
    == (
      4,
      tfusion.experiment(workdir.parent / "experiment.py"),
    )
  )
  assert_same_tree(loaded.params, trained.params)
  assert loaded.tokenizer.sha256 == trained.tokenizer.sha256
  assert repr(loaded) == f"Run({str(workdir)!r}, step=4)"


def test_the_parameters_are_the_average_that_a_run_samples_with(trained):
  """With the same numbers a prompt of the command line gives the same image."""
  made = trained.sample("an image <image>", seed=0)
  sheet = json.loads((trained.workdir / "samples" / "step_00000004.json").read_text())
  assert sheet["prompts"][0]["text"] == made.text


def test_a_run_is_exported_by_python_and_by_the_command_alike(
  trained, tmp_path, capsys
):
  made = trained.export(tmp_path / "a")
  names = "README.md config.json model.safetensors tfusion.safetensors tokenizer.model"
  assert [path.name for path in made] == names.split()
  asked = ["export", "--workdir", str(trained.workdir), "--to", str(tmp_path / "b")]
  assert cli.main(asked) == 0
  assert capsys.readouterr().out.split() == [str(tmp_path / "b" / p.name) for p in made]
  for path in made:
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
  card = (tmp_path / "a" / "README.md").read_text()
  held_out = json.loads(
    (trained.workdir / "validation.jsonl").read_text().splitlines()[-1]
  )
  assert f"| held out: loss_text | {held_out['loss_text']:.4g} |" in card
  assert "a moving average" in card and str(trained.workdir) not in card
  # It begins another run with the weights that this one samples with.
  again = tfusion.experiment(trained.workdir.parent / "experiment.py")
  train = dataclasses.replace(again.train, init_from=str(tmp_path / "a"))
  with tfusion.set_mesh(again):
    params = tfusion.init_params(dataclasses.replace(again, train=train))
  assert_same_tree(params, trained.params)
  # An earlier step has other weights; a folder that is there is left alone.
  cli.main([*asked[:-1], str(tmp_path / "c"), "--step", "2"])
  assert (tmp_path / "c" / "model.safetensors").read_bytes() != made[2].read_bytes()
  assert cli.main(asked) == 2
  assert "is there already; choose a new folder" in capsys.readouterr().err


def test_an_earlier_checkpoint_is_opened_by_its_path_or_its_step(trained):
  path = trained.workdir / "checkpoints" / "2"
  by_path, by_step = tfusion.load(path), tfusion.load(trained.workdir, step=2)
  assert by_path.step == by_step.step == 2
  assert by_path.workdir == trained.workdir
  assert_same_tree(by_path.params, by_step.params)
  with pytest.raises(AssertionError):
    assert_same_tree(by_path.params, trained.params)
  with pytest.raises(ValueError, match=r"no step 3 in .*: it has \[2, 4\]"):
    tfusion.load(trained.workdir, step=3)
  with pytest.raises(ValueError, match="step=4: .* is the checkpoint of another step"):
    tfusion.load(path, step=4)


def test_a_damaged_checkpoint_that_was_asked_for_is_no_other(trained):
  record = trained.workdir / "checkpoints" / "2" / "record.0-of-1"
  whole = record.read_bytes()
  record.write_bytes(whole[:-1])
  try:
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
      tfusion.load(trained.workdir, step=2)
  finally:
    record.write_bytes(whole)


def test_one_prompt_gives_one_sample_and_several_or_a_count_give_several(trained):
  one = trained.sample(PROMPT)
  assert isinstance(one, tfusion.Sample) and one.prompt == PROMPT
  assert one.images[0].size == (8, 8) and one.text.startswith("<image>")
  several = trained.sample([PROMPT, "image"], count=2)
  assert isinstance(several, tfusion.Samples)
  assert [made.prompt for made in several] == [PROMPT] * 2 + ["image"] * 2
  assert [made.number for made in several] == [0, 1, 0, 1]
  assert len(trained.sample(PROMPT, count=1)) == len(trained.sample([PROMPT])) == 1


def test_the_seed_decides_a_sample(trained):
  first, again = trained.sample(PROMPT, seed=3), trained.sample(PROMPT, seed=3)
  assert first.text == again.text
  np.testing.assert_array_equal(pixels(first), pixels(again))
  other = trained.sample(PROMPT, seed=4)
  assert any(np.any(a != b) for a, b in zip(pixels(first), pixels(other)))
  with pytest.raises(ValueError, match=f"seed={SEEDS}: must be"):
    trained.sample(PROMPT, seed=SEEDS)


def test_a_second_call_compiles_nothing(trained):
  trained.sample(PROMPT)
  compiled = []

  def listen(name, *_, **__):
    if "backend_compile" in name:
      compiled.append(name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    trained.sample("image 3 of train <image>", seed=9)
    assert compiled == []
    trained.sample(PROMPT, steps=3)  # so that the test would see it
    assert compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_knobs_of_sampling_hold_for_the_call_alone(trained):
  made = trained.sample(PROMPT, steps=3, guidance=1.0, **{"diffusion.clip": 1.0})
  asked = made.call["sample"]
  assert (asked["steps"], asked["guidance"], asked["sampler"]) == (3, 1.0, "ddim")
  assert trained.config.sample.steps == 2
  with pytest.raises(ValueError, match="^model.width: is no knob of sampling"):
    trained.sample(PROMPT, width=32)
  with pytest.raises(ValueError, match="^stepz: no such knob"):
    trained.sample(PROMPT, stepz=3)
  with pytest.raises(ValueError, match="sample.sampler='dpm': choose one of"):
    trained.sample(PROMPT, sampler="dpm")


def test_load_takes_knobs_that_leave_the_model_what_it_is(trained):
  loaded = tfusion.load(trained.workdir, steps=3)
  assert loaded.sample(PROMPT).call["sample"]["steps"] == 3
  with pytest.raises(ValueError, match="model.width: 16 -> 32"):
    tfusion.load(trained.workdir, width=32)


def test_a_run_is_read_while_another_process_trains_it(trained):
  before = sorted(trained.workdir.rglob("*"))
  with lock.hold(trained.workdir):
    held = sorted(trained.workdir.rglob("*"))
    tfusion.load(trained.workdir).sample(PROMPT)
    assert sorted(trained.workdir.rglob("*")) == held
  assert sorted(trained.workdir.rglob("*")) == before


def test_evaluate_returns_what_it_writes(trained):
  found = trained.evaluate(steps=1)
  assert found == json.loads((trained.workdir / "eval.json").read_text())
  assert found["step"] == 4 and found["text_perplexity"] > 1
  assert found["sampler"].startswith("ddim 1 steps")


def test_evaluations_by_name_are_kept_beside_those_that_were_there(trained):
  before = trained.evaluate(steps=1)
  found = trained.evaluate("loss", steps=1)
  assert found["loss_grid"] > 0
  assert found["text_perplexity"] == before["text_perplexity"]
  again = trained.evaluate("small", steps=1)
  assert again["finished"] == found["finished"]
  with pytest.raises(ValueError, match="'los' is unknown"):
    trained.evaluate("los")


def test_samples_of_a_run_are_saved_as_the_command_saves_them(trained, tmp_path):
  paths = trained.sample(PROMPT).save(tmp_path)
  assert [path.name for path in paths][-2:] == ["sample_000.txt", "sample_000.json"]


def test_an_autoencoder_is_trained_and_opened_by_the_same_functions(autoencoder):
  workdir = autoencoder.workdir
  assert (workdir / "samples" / "step_00000004.png").is_file()
  loaded = tfusion.load(workdir)
  assert isinstance(loaded, tfusion.AutoencoderRun)
  assert (loaded.step, loaded.config) == (autoencoder.step, autoencoder.config)
  assert loaded.codec.sha256 == autoencoder.codec.sha256
  latents = loaded.codec.encode(np.zeros((2, 8, 8, 3), np.uint8))["mean"]
  assert loaded.codec.decode(latents).shape == (2, 8, 8, 3)
  assert repr(loaded) == f"AutoencoderRun({str(workdir)!r}, step=4)"
  assert tfusion.load(workdir / "checkpoints" / "4").step == 4
  with pytest.raises(ValueError, match="step=2: of an autoencoder only the newest"):
    tfusion.load(workdir, step=2)


def test_a_folder_without_a_run_or_with_one_of_another_model_is_refused(
  trained, tmp_path
):
  with pytest.raises(ValueError, match="holds no config.json; train there first"):
    tfusion.load(tmp_path)
  experiment = trained.workdir.parent / "experiment.py"
  other = tfusion.experiment(experiment, width=32)
  with pytest.raises(ValueError, match="model.width: 16 -> 32"):
    tfusion.train(other, trained.workdir)


@pytest.mark.parametrize(
  ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_what_stops_training_ends_the_program_when_the_run_is_saved(
  trained, tmp_path, monkeypatch, number, ends
):
  experiment = trained.workdir.parent / "experiment.py"
  config = tfusion.experiment(experiment, eval_every_steps=9, **{"eval.prompts": ()})
  take, batches = pipeline.HostBatches.__next__, []

  def told(self):
    batches.append(take(self))
    if len(batches) == 2:
      os.kill(os.getpid(), number)
    return batches[-1]

  with monkeypatch.context() as patch:
    patch.setattr(pipeline.HostBatches, "__next__", told)
    with pytest.raises(ends) as stopped:
      tfusion.train(config, tmp_path / "run")
  if ends is SystemExit:
    assert stopped.value.code == 143
  else:
    assert "the run is saved" in str(stopped.value)
  assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
  assert tfusion.load(tmp_path / "run").step == 2


def test_an_image_is_captioned_whatever_it_comes_as(trained, tmp_path):
  pixels_hwc = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
  path = tmp_path / "given.png"
  Image.fromarray(pixels_hwc).save(path)
  want = trained.sample(f"<image:{path}>").text
  for given in (path, str(path), pixels_hwc, Image.open(path)):
    assert trained.caption(given) == want
  with_text = trained.sample(f"<image:{path}>a red").text
  assert trained.caption(path, prompt="a red") == with_text


def test_an_edit_is_the_image_behind_an_image_and_an_instruction(trained, tmp_path):
  pixels_hwc = np.zeros((4, 4, 3), np.uint8)
  made = trained.edit(pixels_hwc, "make <it> red", seed=3)
  path = tmp_path / "given.png"
  Image.fromarray(pixels_hwc).save(path)
  asked = trained.sample(rf"<image:{path}>make \<it\> red<image>", seed=3)
  np.testing.assert_array_equal(np.asarray(made), np.asarray(asked.images[0]))


def test_a_prompt_in_parts_is_written_with_what_was_given(trained):
  pixels_hwc = np.zeros((4, 4, 3), np.uint8)
  made = trained.sample(("one ", pixels_hwc, " two <image>"))
  assert made.prompt == "one <image:(given)> two <image>"
  assert [type(part) for part in made.parts][:4] == [str, np.ndarray, str, np.ndarray]
  several = trained.sample([("a", pixels_hwc), "b <image>"])
  assert len(several) == 2
  assert json.dumps(several[0].call)  # it can be kept in a file


def test_a_text_is_scored_by_the_probability_of_its_tokens(trained):
  score = trained.score("image 2 of train")
  ids = trained.tokenizer.encode("image 2 of train")
  assert (score.tokens, score.text_bytes) == (len(ids), 16) and score.nats > 0
  assert score.perplexity == pytest.approx(np.exp(score.nats / len(ids)))
  assert score.bits_per_byte == pytest.approx(score.nats / np.log(2) / 16)
  # The whole is its beginning and what follows behind that.
  with jax.set_mesh(trained._trained.mesh):
    first, rest = ids[:2].tolist(), ids[2:].tolist()
    parts = likelihood.measure(trained._trained, [([], first), (first, rest)])
  assert score.nats == pytest.approx(-sum(one.log for one in parts), rel=1e-5)


def test_a_text_longer_than_a_row_is_scored_in_pieces_and_none_is_refused(trained):
  room = trained.config.data.row_length - 1
  text = "image of train " * room
  assert trained.score(text).tokens == len(trained.tokenizer.encode(text)) > room
  with pytest.raises(ValueError, match="at most .* fit a row of data.row_length"):
    trained.score(text, context="a")
  with pytest.raises(ValueError, match="give some text"):
    trained.score("")
