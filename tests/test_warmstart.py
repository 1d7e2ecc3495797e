"""Promises of tfusion/warmstart.py and experiments/warmstart.py, with whole runs."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
import tiny
import tiny_hosts
import tiny_weights
from safetensors.numpy import load_file

import tfusion
from tfusion import config as config_lib
from tfusion import warmstart
from tfusion.data.tokenizer import Tokenizer
from tfusion.interop import export
from tfusion.interop.weights import InitFrom, Weights
from tfusion.training import loop

ROOT = pathlib.Path(__file__).parents[1]


def fitted(folder, tower="frozen"):
  c = config_lib.defaults()
  warmstart.fit(c, str(folder), tower=tower)
  return c


def test_a_folder_decides_the_model_and_the_tokenizer(tmp_path, capsys):
  folder = tiny_weights.with_tokenizer(tmp_path, "qwen3")
  c = fitted(folder)
  assert (c.model.width, c.model.head_size, c.model.qk_norm) == (32, 16, "rms")
  assert c.data.tokenizer == str(folder / "tokenizer.json")
  assert c.train.init_from == str(folder)
  # 257 pieces and PAD, BOS, BOI, EOI: 261, for which there are 260 rows.
  assert c.model.vocab_size == 320
  assert "261 pieces with BOI and EOI in 320 rows, of which 60 are new" in (
    capsys.readouterr().out
  )


def test_rows_that_a_vocabulary_has_to_spare_are_used_first(tmp_path):
  folder = tiny_weights.with_tokenizer(tmp_path, vocab_size=272)
  assert fitted(folder).model.vocab_size == 272


def test_what_was_exported_brings_its_image_part_and_its_noise(tmp_path):
  changes = dict(
    model__vocab_size=320, model__image_shape=(8, 4, 3), model__untied="mlp"
  )
  changes |= dict(diffusion__schedule="linear", diffusion__target="v")
  exported = tiny.config(sample__sampler="heun", **changes)
  own = Tokenizer(tiny_weights.tokenizer())
  params = tiny.params(exported.model)
  export.export(tmp_path / "out", exported, params, own, step=7)
  c = fitted(tmp_path / "out", "low")
  assert (c.diffusion.schedule, c.diffusion.target) == ("linear", "v")
  assert c.sample.sampler == "euler"  # the default's ddpm is not of that schedule
  assert config_lib.from_dict(c).model == exported.model
  assert c.train.text_lr_factor == 0.1


@pytest.mark.parametrize(
  "tower, factor, untied",
  [
    ("frozen", 0.0, "all"),
    ("low", 0.1, "all"),
    ("lora", 0.0, "all"),
    ("full", 1.0, "none"),
  ],
)
def test_a_tower_says_what_becomes_of_texts_weights(tower, factor, untied, tmp_path):
  c = fitted(tiny_weights.with_tokenizer(tmp_path), tower)
  assert (c.train.text_lr_factor, c.model.untied) == (factor, untied)
  assert c.train.image_lr_factor == 1.0
  assert c.model.lora_rank == (16 if tower == "lora" else 0)


def test_what_is_missing_or_unknown_is_named(tmp_path):
  folder = tiny_weights.with_tokenizer(tmp_path)
  with pytest.raises(ValueError, match="which weights"):
    fitted("")
  with pytest.raises(ValueError, match="tower='warm': choose one of"):
    fitted(folder, "warm")
  (folder / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="tokenizer.json: is no BPE"):
    fitted(folder)
  (folder / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match="holds no tokenizer.json or tokenizer.model"):
    fitted(folder)


# Whole runs.


@pytest.fixture
def small(tmp_path):
  """A run of two updates on the digits, of the experiment's smoke."""
  folder = tiny_weights.with_tokenizer(tmp_path / "llama")
  config = tiny.experiment("warmstart", f"weights={folder},smoke")
  train = dataclasses.replace(
    config.train, steps=2, save_every_steps=1, eval_every_steps=2, eval_rows=4
  )
  data = dataclasses.replace(config.data, sources=("digits",))
  return dataclasses.replace(config, train=train, data=data)


def longer(config, steps: int):
  train = dataclasses.replace(config.train, steps=steps)
  return dataclasses.replace(config, train=train)


@pytest.mark.slow
def test_a_run_begins_with_the_weights_and_one_that_goes_on_does_not_read_them(
  small, tmp_path, monkeypatch, capsys
):
  folder, workdir = tmp_path / "llama", tmp_path / "run"
  numbers = load_file(folder / "model.safetensors")
  state = loop.train(small, workdir, weights=InitFrom.of(small))
  out = capsys.readouterr().out
  assert "LlamaForCausalLM" in out and "the state takes" in out
  # Frozen: after two updates text's weights are still those of the file.
  table = np.asarray(state.params["embedding"])
  np.testing.assert_array_equal(table[:260], numbers["model.embed_tokens.weight"])
  shutil.rmtree(folder)
  tiny.assert_same_tree(
    loop.train(longer(small, 3), workdir, weights=InitFrom.of(small)).params[
      "transformer"
    ]["blocks"]["attention"],
    state.params["transformer"]["blocks"]["attention"],
  )
  assert "the state takes" not in capsys.readouterr().out


@pytest.mark.long
def test_two_hosts_of_two_devices_begin_with_the_same_weights(tmp_path):
  folder, workdir = tiny_weights.with_tokenizer(tmp_path / "llama"), tmp_path / "run"
  numbers = load_file(folder / "model.safetensors")
  experiment = ROOT / "experiments" / f"warmstart.py:weights={folder},smoke"
  knobs = dict(steps=2, save_every_steps=2, eval_every_steps=2, eval_rows=4)
  args = [f"--config.train.{name}={value}" for name, value in knobs.items()]
  args += ["--config.mesh.fsdp=4", "--config.data.sources=('pydoc',)"]
  args += ["--config.eval.text_rows=4"]
  with tiny_hosts.serving({}) as server:
    said = tiny_hosts.run_two_hosts(
      server, "train", "--config", str(experiment), "--workdir", str(workdir), *args
    )
  assert ["of each of 4 devices" in one for one in said] == [True, False]
  run = tfusion.load(workdir, **{"mesh.fsdp": 1})
  table = np.asarray(run.params["embedding"])
  np.testing.assert_array_equal(table[:260], numbers["model.embed_tokens.weight"])
  head = np.asarray(run.params["head"])
  np.testing.assert_array_equal(head[:, :260], numbers["lm_head.weight"].T)


@pytest.mark.slow
def test_python_starts_from_the_weights_too(small, tmp_path):
  numbers = load_file(tmp_path / "llama" / "model.safetensors")
  with tfusion.set_mesh(small):
    state, params = tfusion.init_state(small), tfusion.init_params(small)
  tiny.assert_same_tree(state.params, params)
  table = np.asarray(params["embedding"])
  np.testing.assert_array_equal(table[:260], numbers["model.embed_tokens.weight"])


def test_a_folder_that_is_not_there_is_named_before_any_work(small, tmp_path):
  shutil.rmtree(tmp_path / "llama")
  with pytest.raises(ValueError, match="train.init_from=.*holds no config.json"):
    tfusion.train(small, tmp_path / "run")
  assert not list((tmp_path / "run").iterdir())


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(tmp_path):
  folder = tiny_weights.with_tokenizer(tmp_path, vocab_size=257)
  weights = Weights(folder)
  # Special tokens that it lacks are added above the rows, and may be.
  weights.check_tokenizer(Tokenizer(tiny_weights.tokenizer()))
  with pytest.raises(ValueError) as error:
    weights.check_tokenizer(Tokenizer(tiny_weights.tokenizer(pieces=10)))
  text = str(error.value)
  assert "has 271 pieces, and the weights have 257 rows" in text
  assert f"set data.tokenizer={folder / 'tokenizer.json'}" in text


def test_a_tokenizer_of_other_words_is_refused(tmp_path):
  folder = tiny_weights.with_tokenizer(tmp_path)
  other = Tokenizer(tiny_weights.tokenizer(name="<|end_of_text|>"))
  with pytest.raises(ValueError, match="not that of the weights"):
    Weights(folder).check_tokenizer(other)


def test_edits_are_learned_beside_what_the_weights_know_or_alone(tmp_path):
  folder = tiny_weights.with_tokenizer(tmp_path)
  pairs, edits = "shapes:pairs,things=2", "shapes:edits,things=2,length=90"
  asked = f"weights={folder},things=2,triples=90"
  mixed = tiny.experiment("edit", f"{asked},share=0.25")
  assert mixed.data.sources == (pairs, edits) and mixed.data.weights == (0.25, 0.75)
  assert mixed.train.init_from == str(folder)
  alone = tiny.experiment("edit", f"{asked},share=0")
  assert alone.data.sources == (edits,) and alone.data.weights == ()
  before = tiny.experiment("edit", "things=2")
  assert before.data.sources == (pairs,) and not before.train.init_from
  with pytest.raises(ValueError, match="edit.py: share=1: from 0 to below 1"):
    tiny.experiment("edit", f"{asked},share=1")
