"""Promises of tfusion/interop/weights.py: the numbers of a folder are the model's."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
import tiny_weights
from interop import plain_llama
from safetensors.numpy import load_file, save_file

from tfusion import sequence
from tfusion.interop.weights import InitFrom, Weights
from tfusion.model.transfusion import bind
from tfusion.training import start

pytestmark = pytest.mark.usefixtures("mesh")

ROOT = pathlib.Path(__file__).parents[2]
LLAMA3 = dict(rope_scaling=tiny_weights.LLAMA3, rope_theta=500.0)
# What transformers 5 writes in place of rope_theta and rope_scaling.
NEWER = dict(rope_parameters=tiny_weights.LLAMA3 | {"rope_theta": 500.0})
MODELS = {
  "Llama 2": ("llama", {}),
  "Llama 3.2": ("llama", dict(tie_word_embeddings=True, **LLAMA3)),
  "the first Llama": ("llama", dict(num_key_value_heads=4)),
  "SmolLM": ("llama", dict(tie_word_embeddings=True, rope_theta=100000.0)),
  "Qwen2.5": ("qwen2", dict(tie_word_embeddings=True, rope_theta=1e6)),
  "Qwen3": ("qwen3", {}),
}


def config_of(weights: Weights, **changes):
  """A tiny config with the model of a folder."""
  knobs = {f"model__{k}": v for k, v in weights.knobs.items()}
  return tiny.config(**knobs | changes)


def load(folder: pathlib.Path, **changes):
  """The config and the parameters that training would begin with."""
  weights = Weights(folder)
  config = config_of(weights, train__init_from=str(folder), **changes)
  mesh = jax.sharding.get_mesh()
  return config, start.new_state(
    config, mesh, jax.random.key(0), InitFrom.of(config)
  ).params


def logits(config, params, ids) -> np.ndarray:
  """[l, v] of a text that begins with its first id."""
  row = tiny.pack([(sequence.Text(np.asarray(ids[1:], np.int32), 1.0),)], config)
  batch = tiny.put(sequence.stack([row]))
  none = np.zeros((1, config.data.image_slots, *config.model.image_shape), np.float32)
  t = np.zeros((1, config.data.image_slots), np.int32)
  has_images = config.model.patches != "none"
  images = tiny.put((none,)) if has_images else (), tiny.put((t,)) if has_images else ()
  made = jax.jit(lambda p, *x: bind(config.model, p)(*x)[0])(params, batch, *images)
  return np.asarray(made[0, : len(ids)])


IDS = [tiny.SPECIAL.bos, *range(5, 23)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_in_plain_numpy(name, tmp_path):
  kind, changes = MODELS[name]
  values = tiny_weights.config(kind, **changes)
  numbers = tiny_weights.tensors(values)
  files = 3 if kind == "qwen2" else 1
  tiny_weights.write(tmp_path, values, numbers, files=files)
  config, params = load(tmp_path, model__patches="none")
  want = plain_llama.logits(values, numbers, IDS)
  got = logits(config, params, IDS)
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(got, want, atol=1e-4)


def same(a, b) -> None:
  np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_16_bit_numbers_are_widened_exactly_and_both_forms_of_rope_are_read(tmp_path):
  values = tiny_weights.config(**LLAMA3)
  numbers = tiny_weights.tensors(values)
  numbers = {k: x.astype(ml_dtypes.bfloat16) for k, x in numbers.items()}
  tiny_weights.write(tmp_path / "a", values, numbers)
  config, params = load(tmp_path / "a")
  wide = {k: x.astype(np.float32) for k, x in numbers.items()}
  newer = {k: v for k, v in values.items() if k not in LLAMA3} | NEWER
  tiny_weights.write(tmp_path / "b", newer, wide)
  other, again = load(tmp_path / "b")
  assert other.model == config.model and len(config.model.rope_scaling) == 4
  tiny.assert_same_tree(again, params)
  same(params["embedding"], wide["model.embed_tokens.weight"])


@pytest.mark.slow
def test_rows_without_weights_begin_as_the_mean_and_the_image_part_is_new(tmp_path):
  numbers = load_file(tiny_weights.folder(tmp_path / "a") / "model.safetensors")
  config, params = load(tmp_path / "a", model__vocab_size=48)
  for ours, name in (("embedding", "model.embed_tokens"), ("head", "lm_head")):
    rows = np.asarray(params[ours] if ours == "embedding" else params[ours].T)
    theirs = numbers[f"{name}.weight"]
    same(rows[:40], theirs)
    mean = np.broadcast_to(theirs.mean(axis=0, dtype=np.float64), (8, 32))
    np.testing.assert_allclose(rows[40:], mean, atol=1e-7)
  fresh = tiny.config(**{f"model__{k}": v for k, v in vars(config.model).items()})
  mesh = jax.sharding.get_mesh()
  want = start.new_state(fresh, mesh, jax.random.key(0)).params
  tiny.assert_same_tree(params["patches"], want["patches"])


@pytest.mark.slow
@pytest.mark.parametrize("untied", ["mlp", "all"])
def test_weights_of_patches_begin_as_copies_of_those_of_text(untied, tmp_path):
  _, params = load(tiny_weights.folder(tmp_path, "qwen3"), model__untied=untied)
  blocks = params["transformer"]["blocks"]
  image = blocks["image"]
  assert set(image) == (
    {"mlp"} if untied == "mlp" else {"mlp", "attention", "mlp_norm", "attention_norm"}
  )
  for name, own in image.items():
    tiny.assert_same_tree(own, blocks[name])
  if untied == "all":
    same(
      params["transformer"]["image_norm"]["scale"],
      params["transformer"]["norm"]["scale"],
    )


# What does not fit.


def refusal(folder: pathlib.Path, **changes) -> str:
  with pytest.raises(ValueError) as error:
    model = config_of(Weights(folder), **changes).model
    InitFrom(str(folder), model).check()
  return str(error.value)


def test_missing_extra_wrong_and_quantised_tensors_are_all_named_at_once(tmp_path):
  folder = tiny_weights.folder(tmp_path)
  numbers = load_file(folder / "model.safetensors")
  del numbers["model.norm.weight"], numbers["model.layers.1.mlp.up_proj.weight"]
  numbers["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
  numbers["visual.proj"] = np.zeros(3, np.float32)
  numbers["model.layers.0.self_attn.q_proj.weight"] = np.zeros((16, 32), np.float32)
  numbers["model.layers.0.mlp.down_proj.weight"] = np.zeros((32, 48), np.int8)
  # Old files have it; it follows from the config.
  numbers["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
  save_file(numbers, folder / "model.safetensors")
  text = refusal(folder)
  for part in (
    "2 tensors missing: model.layers.1.mlp.up_proj.weight, model.norm.weight;",
    "2 tensors left over: model.layers.2.mlp.up_proj.weight, visual.proj;",
    "1 tensors of another shape: model.layers.0.self_attn.q_proj.weight [16, 32], not"
    " [32, 32];",
    "1 tensors quantised: model.layers.0.mlp.down_proj.weight is I8;",
    f"train.init_from={folder}: ",
  ):
    assert part in text
  assert "inv_freq" not in text


@pytest.mark.parametrize("keep", [0.6, 0.0001])
def test_a_file_of_which_only_half_is_there_is_named(keep, tmp_path):
  folder = tiny_weights.folder(tmp_path, files=3)
  half = folder / "model-00002-of-00003.safetensors"
  data = half.read_bytes()
  half.write_bytes(data[: int(len(data) * keep)])
  text = refusal(folder)
  assert f"{half.name} is damaged, or only half of it is there" in text
  assert "copy it again" in text and "00001-of" not in text


def test_files_that_an_index_names_and_are_not_there_are_named(tmp_path):
  folder = tiny_weights.folder(tmp_path, files=3)
  (folder / "model-00003-of-00003.safetensors").unlink()
  (folder / "model-00001-of-00003.safetensors").unlink()
  text = refusal(folder)
  assert "2 of 3 files that model.safetensors.index.json names are not there" in text
  assert "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors" in text


def test_an_index_of_other_files_is_told_from_the_right_one(tmp_path):
  folder = tiny_weights.folder(tmp_path, files=2)
  index = folder / "model.safetensors.index.json"
  values = json.loads(index.read_text())
  values["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
  index.write_text(json.dumps(values))
  assert "model.norm.weight in model-00001-of-00002.safetensors" in refusal(folder)
  index.write_text("{}")
  assert "no index of tensors" in refusal(folder)


def test_a_folder_that_is_none_says_what_it_should_hold(tmp_path):
  with pytest.raises(ValueError, match="gs://a/b: .*copy them to this machine"):
    Weights("gs://a/b")
  with pytest.raises(ValueError, match="holds no config.json; give the folder of"):
    Weights(tmp_path / "absent")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="no JSON"):
    Weights(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(tiny_weights.config()))
  (tmp_path / "pytorch_model.bin").write_bytes(b"x")
  with pytest.raises(ValueError, match="holds neither model.safetensors nor .*pickles"):
    Weights(tmp_path)


def test_a_model_with_other_knobs_or_fewer_rows_is_refused_by_name(tmp_path):
  folder = tiny_weights.folder(tmp_path, "qwen3")
  text = refusal(folder, model__layers=3, model__norm_eps=1e-5, model__head_size=0)
  for part in (
    "model.layers=3, there 2",
    "model.norm_eps=1e-05, there 1e-06",
    "model.head_size=8, there 16",
  ):
    assert part in text
  assert "model.vocab_size=32: there are 40 rows" in refusal(
    folder, model__vocab_size=32
  )


# On several devices.

SHARDED = """
import json, sys
import jax, numpy as np
sys.path.insert(0, "tests")
import tiny, tiny_weights
from interop import test_weights as own
from tfusion.config import MeshConfig
from tfusion.interop import tensors
from tfusion.sharding import make_mesh

largest, read = 0, tensors.Tensors.read
def counted(self, name, index):
  global largest
  part = read(self, name, index)
  largest = max(largest, part.size)
  return part
tensors.Tensors.read = counted
folder = tiny_weights.pathlib.Path(sys.argv[1])
axes = json.loads(sys.argv[2])
with jax.set_mesh(make_mesh(MeshConfig(**axes))):
  config, params = own.load(folder, model__vocab_size=48, model__untied="all")
  where = params["transformer"]["blocks"]["mlp"]["w_up"].sharding.spec
  np.savez(sys.argv[3], *map(np.asarray, jax.tree.leaves(params)))
print(largest, where)
"""


@pytest.mark.long
@pytest.mark.slow
def test_every_device_reads_its_own_part_and_the_numbers_are_those_of_one(tmp_path):
  folder = tiny_weights.folder(tmp_path / "a", "qwen2", files=2)
  said = {}
  for name, axes in (("one", {"data": 1}), ("many", {"fsdp": 4, "tensor": 2})):
    count = 1 if name == "one" else 8
    done = subprocess.run(
      [sys.executable, "-c", SHARDED, folder, json.dumps(axes), tmp_path / name],
      env=os.environ
      | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
      | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said[name] = done.stdout.splitlines()
  one, many = (np.load(tmp_path / f"{name}.npz") for name in said)
  assert len(one.files) == len(many.files) > 30
  for file in one.files:
    np.testing.assert_array_equal(one[file], many[file])
  assert "tensor" in said["many"][-1]
  # Of the embedding, 40 x 32, no device reads more than an eighth but for the mean.
  assert int(said["one"][-1].split()[0]) == 48 * 32
  assert int(said["many"][-1].split()[0]) <= 40 * 32 // 4
  assert (
    "Qwen2ForCausalLM" in said["many"][0] and "of each of 8 devices" in said["many"][0]
  )
