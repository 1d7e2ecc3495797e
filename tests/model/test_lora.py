"""Promises of tfusion/model/lora.py: a change of low rank, and nothing but that."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from tfusion.model import lora
from tfusion.model.transfusion import bind, parameter_count

pytestmark = pytest.mark.usefixtures("mesh")

ROOT = pathlib.Path(__file__).parents[2]
OWN = dict(model__lora_rank=3, model__untied="all", model__head_size=6)


def test_every_matrix_of_text_gets_its_change_and_nothing_else_does():
  config = tiny.config(**OWN)
  params = tiny.params(config.model)
  got = jax.jit(lora.merged)(params)
  changes = jax.tree.map(lambda x: np.asarray(x, np.float64), params["lora"])
  old, new = params["transformer"]["blocks"], got["transformer"]["blocks"]
  assert len(changes) == 14
  for module, name, inputs in (
    *(("attention", w, 1) for w in ("wq", "wk", "wv")),
    ("attention", "wo", 2),
    *(("mlp", w, 1) for w in ("w_gate", "w_up", "w_down")),
  ):
    down, up = (changes[f"{module}_{name}_{which}"] for which in ("down", "up"))
    assert down.shape[-1] == up.shape[1] == 3 and down.ndim == 2 + inputs
    change = np.stack([np.tensordot(a, b, 1) for a, b in zip(down, up)])
    assert np.abs(change).max() > 0.1
    was = np.asarray(old[module][name])
    np.testing.assert_allclose(new[module][name], was + change, atol=1e-6)
    flat = change.reshape(2, int(np.prod(down.shape[1:-1])), -1)
    assert all(np.linalg.matrix_rank(x) == 3 for x in flat)
  tiny.assert_same_tree(new["image"], old["image"])
  tiny.assert_same_tree(new["mlp_norm"], old["mlp_norm"])
  same = {k: v for k, v in got.items() if k != "transformer"}
  tiny.assert_same_tree(same, {k: params[k] for k in same})


@pytest.mark.slow
def test_a_model_begins_as_one_without():
  config = tiny.config(**OWN)
  plain = tiny.config(**OWN | dict(model__lora_rank=0))
  params = tiny.params(config.model)
  changes = params["lora"]
  params["lora"] = {k: x * (not k.endswith("_up")) for k, x in changes.items()}
  batch = tiny.put(tiny.batch(config))
  noisy = tuple(slots.latents for slots in batch.slots)
  t = tuple(np.full(slots.starts.shape, 500, np.int32) for slots in batch.slots)
  inputs = batch, noisy, tiny.put(t)
  run = lambda c, p: jax.jit(lambda p, *x: bind(c.model, p)(*x))(p, *inputs)  # noqa: E731
  without = {k: v for k, v in params.items() if k != "lora"}
  tiny.assert_same_tree(run(config, params), run(plain, without))
  logits = np.asarray(run(config, params | {"lora": changes})[0])
  assert np.abs(logits - np.asarray(run(plain, without)[0])).max() > 0.1


def test_its_size_goes_by_the_rank():
  d, h, g, k, f, n = 32, 4, 2, 6, 48, 2
  plain = parameter_count(tiny.config(**OWN | dict(model__lora_rank=0)).model)
  each = 2 * (d + h * k) + 2 * (d + g * k) + 3 * (d + f)
  assert parameter_count(tiny.config(**OWN).model) - plain == n * 3 * each


STEPS = """
import json, sys
import jax, numpy as np
sys.path.insert(0, "tests")
import tiny
from tfusion.config import MeshConfig
from tfusion.sharding import make_mesh
from tfusion.training import start, step

config = tiny.config(**json.loads(sys.argv[1]), train__batch_rows=8)
mesh = make_mesh(MeshConfig(**json.loads(sys.argv[2])))
with jax.set_mesh(mesh):
  state = start.new_state(config, mesh, jax.random.key(0))
  batch = tiny.put(tiny.batch(config, rows=8))
  for _ in range(2):
    state, _ = jax.jit(lambda s, b: step.train_step(config, s, b, jax.random.key(1)))(
      state, batch
    )
  print(state.params["lora"]["attention_wq_down"].sharding.spec)
  np.savez(sys.argv[3], *map(np.asarray, jax.tree.leaves(state.params)))
"""


@pytest.mark.long
@pytest.mark.slow
def test_two_updates_on_eight_devices_are_those_of_one(tmp_path):
  changes = json.dumps(OWN | dict(train__text_lr_factor=0.0))
  found = []
  for axes, count in (({"data": 1}, 1), ({"fsdp": 4, "tensor": 2}, 8)):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    done = subprocess.run(
      [sys.executable, "-c", STEPS, changes, json.dumps(axes), tmp_path / str(count)],
      env=os.environ | flags | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=240,
    )
    assert done.returncode == 0, done.stderr
    numbers = np.load(tmp_path / f"{count}.npz")
    found.append([numbers[name] for name in numbers.files])
  assert "fsdp" in done.stdout
  for one, many in zip(*found, strict=True):
    np.testing.assert_allclose(many, one, atol=2e-5)
