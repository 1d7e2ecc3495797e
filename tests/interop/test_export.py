"""Promises of tfusion/interop/export.py: out as others have it, back as it was."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
import tiny_weights
from interop import plain_llama
from interop import test_weights as own
from safetensors.numpy import load_file

from tfusion.data.tokenizer import Tokenizer
from tfusion.interop import card, export, tensors
from tfusion.interop.weights import InitFrom, Weights
from tfusion.training import start

pytestmark = pytest.mark.usefixtures("mesh")

ROOT = pathlib.Path(__file__).parents[2]
SCALING = (32.0, 1.0, 4.0, 64.0)
KINDS = {
  "llama": dict(model__rope_scaling=SCALING, model__rope_theta=500.0),
  "qwen2": dict(model__attention_bias=True),
  "qwen3": dict(model__qk_norm="rms", model__head_size=16),
  "tfusion": dict(model__qk_norm="layer", model__norms="after"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer(tiny_weights.tokenizer())


def made(to: pathlib.Path, tokenizer: Tokenizer, **changes):
  """A config, random parameters and the folder that they are exported to."""
  config = tiny.config(**{"model__vocab_size": 320} | changes)
  params = tiny.params(config.model)
  export.export(to, config, params, tokenizer, step=7)
  return config, params


def begun(config, folder: pathlib.Path):
  """The parameters of a run that begins with a folder."""
  mesh, first = jax.sharding.get_mesh(), InitFrom(str(folder), config.model)
  first.check()
  return start.new_state(config, mesh, jax.random.key(0), first).params


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    dict(model__untied="all", model__patch_places="learned", **KINDS["qwen3"]),
    dict(model__untied="mlp", **KINDS["qwen2"]),
    dict(model__patches="unet", model__unet_widths=(8, 8), **KINDS["llama"]),
    dict(model__patches="none", **KINDS["tfusion"]),
    dict(model__untied="all", **KINDS["tfusion"]),
    dict(model__kinds=("wide:4x8x2,patch=2",), **KINDS["llama"]),
  ],
  ids=["qwen3", "qwen2", "unet", "chameleon", "untied chameleon", "kinds"],
)
def test_what_went_out_comes_back_bit_for_bit(changes, tmp_path, tokenizer):
  config, params = made(tmp_path / "out", tokenizer, **changes)
  back = begun(config, tmp_path / "out")
  assert jax.tree.structure(back) == jax.tree.structure(params)
  tiny.assert_same_tree(back, params)
  weights = Weights(tmp_path / "out")
  assert tiny.config(**{f"model__{k}": v for k, v in weights.knobs.items()}) == config
  weights.check_tokenizer(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_text_has_the_names_and_shapes_of_hugging_face_and_its_logits(
  kind, tmp_path, tokenizer
):
  config, params = made(tmp_path / "out", tokenizer, **KINDS[kind])
  values = json.loads((tmp_path / "out" / "config.json").read_text())
  assert values["model_type"] == kind and values["tfusion"]["step"] == 7
  assert values["architectures"] == [f"{tiny_weights.CLASSES[kind]}ForCausalLM"]
  numbers = load_file(tmp_path / "out" / "model.safetensors")
  as_theirs = tiny_weights.tensors(tiny_weights.config(kind, vocab_size=320))
  shapes = {name: x.shape for name, x in as_theirs.items()}
  assert {name: x.shape for name, x in numbers.items()} == shapes
  want = plain_llama.logits(values, numbers, own.IDS)
  got = own.logits(config, params, own.IDS)
  np.testing.assert_allclose(got, want, atol=1e-4)
  images = load_file(tmp_path / "out" / "tfusion.safetensors")
  assert images and all(name.startswith("tfusion.patches.") for name in images)


@pytest.mark.slow
def test_changes_of_low_rank_are_added_to_their_matrices(tmp_path, tokenizer):
  lora = dict(model__lora_rank=2, model__untied="all")
  config, params = made(tmp_path / "out", tokenizer, **lora, **KINDS["llama"])
  values = json.loads((tmp_path / "out" / "config.json").read_text())
  numbers = load_file(tmp_path / "out" / "model.safetensors")
  want = own.logits(config, params, own.IDS)
  got = plain_llama.logits(values, numbers, own.IDS)
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert values["tfusion"]["model"]["lora_rank"] == 0
  # Another such run may begin with it: its own change is new, and adds nothing yet.
  again = begun(config, tmp_path / "out")
  np.testing.assert_allclose(own.logits(config, again, own.IDS), want, atol=1e-5)
  assert not np.any(again["lora"]["mlp_w_up_up"])


def test_a_model_of_text_alone_has_no_file_of_images(tmp_path, tokenizer):
  made(tmp_path / "out", tokenizer, model__patches="none")
  names = {path.name for path in (tmp_path / "out").iterdir()}
  files = "README.md config.json model.safetensors tokenizer.json"
  assert names == set(files.split())


@pytest.mark.slow
def test_large_models_lie_in_several_files_with_an_index(
  tmp_path, tokenizer, monkeypatch
):
  monkeypatch.setattr(tensors, "FILE_BYTES", 20_000)
  config, params = made(tmp_path / "out", tokenizer, model__untied="all")
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  files = sorted(set(index["weight_map"].values()))
  count = len(files)
  assert count > 3 and files[0] == f"model-00001-of-{count:05}.safetensors"
  text = [load_file(tmp_path / "out" / name) for name in files]
  size = sum(x.nbytes for part in text for x in part.values())
  assert index["metadata"]["total_size"] == size
  assert (tmp_path / "out" / "tfusion.safetensors.index.json").is_file()
  tiny.assert_same_tree(begun(config, tmp_path / "out"), params)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, tokenizer):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="--to=.*is there already; choose a new folder"):
    made(tmp_path / "out", tokenizer)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
  with pytest.raises(ValueError, match="write to this machine"):
    export.check("gs://bucket/out")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, tokenizer, monkeypatch):
  with monkeypatch.context() as broken:
    broken.setattr(card, "write", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      made(tmp_path / "out", tokenizer)
  assert not (tmp_path / "out").exists()
  made(tmp_path / "out", tokenizer)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_sentencepiece_model_keeps_its_name(tmp_path):
  path = tmp_path / "own.model"
  own_kind = Tokenizer.train(["a few words of text"], vocab_size=300, path=path)
  made(tmp_path / "out", own_kind)
  assert (tmp_path / "out" / "tokenizer.model").read_bytes() == path.read_bytes()
  assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_the_card_says_what_it_is_and_names_no_place(tmp_path, tokenizer):
  changes = dict(
    data__sources=("shards:/home/someone/images",),
    train__init_from="/home/someone/Llama-3.2-1B",
    train__text_lr_factor=0.0,
    model__untied="all",
  )
  _, params = made(tmp_path / "out", tokenizer, **changes)
  text = (tmp_path / "out" / "README.md").read_text()
  total = sum(x.size for x in jax.tree.leaves(params))
  for part in (
    "---\nlibrary_name: tfusion\n",
    f"A Transfusion model of {total:,} parameters",
    "| began with | Llama-3.2-1B |",
    "| sources | shards |",
    "| updates | 7 of 20 |",
    "| of text, of images | x 0, x 1 |",
    "The text part alone is a LlamaForCausalLM",
    "experiments/warmstart.py:weights=FOLDER",
  ):
    assert part in text, part
  assert "/home" not in text and str(tmp_path) not in text
  made(tmp_path / "other", tokenizer, **KINDS["tfusion"])
  text = (tmp_path / "other" / "README.md").read_text()
  assert "transformers has no class" in text and "AutoModel" not in text


SHARDED = """
import sys
sys.path.insert(0, "tests")
import jax
from interop import test_export as own, test_weights
from tfusion.config import MeshConfig
from tfusion.data.tokenizer import Tokenizer
from tfusion.sharding import make_mesh

folder, to = map(own.pathlib.Path, sys.argv[1:])
with jax.set_mesh(make_mesh(MeshConfig(fsdp=4, tensor=2))):
  config, params = test_weights.load(folder)
  tokenizer = Tokenizer((folder / "tokenizer.json").read_bytes())
  own.export.export(to, config, params, tokenizer, step=7)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_model_on_many_devices_gives_the_same_files(tmp_path, tokenizer):
  made(tmp_path / "one", tokenizer, model__untied="all")
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  done = subprocess.run(
    [sys.executable, "-c", SHARDED, tmp_path / "one", tmp_path / "many"],
    env=os.environ | flags | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  for name in ("model.safetensors", "tfusion.safetensors", "tokenizer.json"):
    one, many = (tmp_path / which / name for which in ("one", "many"))
    assert one.read_bytes() == many.read_bytes(), name
