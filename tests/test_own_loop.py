"""Promises of tfusion/own_loop.py: its pieces give what `tfusion train` gives."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_experiments

import tfusion
from tfusion.sharding import make_mesh

pytestmark = pytest.mark.slow  # whole runs are trained

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  folder = tmp_path_factory.mktemp("experiment")
  return tiny_experiments.write(folder, tiny_experiments.MODEL)


@pytest.fixture(scope="module")
def config(experiment):
  return tfusion.experiment(experiment, prompts=())


def steps(config, count):
  """The state after some steps, and the metrics of each."""
  state, found = tfusion.init_state(config), []
  with tfusion.batches(config) as batches:
    for _ in range(count):
      state, metrics = tfusion.train_step(config, state, next(batches))
      found.append({name: float(x) for name, x in metrics.items()})
  return state, found


def test_a_loop_of_ones_own_gives_the_numbers_of_train(config, tmp_path):
  run = tfusion.train(config, tmp_path / "run")
  with tfusion.set_mesh(config):
    state, found = steps(config, 4)
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  for number, (line, metrics) in enumerate(zip(lines, found, strict=True), start=1):
    assert json.loads(line) == {"step": number} | metrics
  pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(run.params), strict=True)
  assert all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.long
def test_a_loss_and_an_optimizer_of_ones_own_need_the_parameters_alone(config):
  with tfusion.set_mesh(config), tfusion.batches(config) as batches:
    params, batch = tfusion.init_params(config), next(batches)

    @jax.jit
    def loss_of(params, key):
      noise, t = tfusion.draw_noise(config, key, batch)
      predicted = tfusion.predict(config, params, batch, noise, t)
      text, image = tfusion.losses(config, params, predicted, batch, noise, t)
      return text.mean() + config.diffusion.image_weight * image.mean()

    key = jax.random.key(1)
    gradient = jax.jit(jax.grad(loss_of))(params, key)
    wanted, _ = jax.jit(tfusion.gradients, static_argnums=0)(config, params, batch, key)
  for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
    # The two divide by their counts in another order.
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_the_parameters_of_a_state_are_those_made_alone(config):
  with tfusion.set_mesh(config):
    state, params = tfusion.init_state(config), tfusion.init_params(config)
    other = tfusion.init_params(config, jax.random.key(7))
  for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(x, y)
  assert np.any(other["embedding"] != params["embedding"])


def test_without_a_mesh_it_is_said_how_to_get_one(config):
  for call in (
    lambda: tfusion.init_state(config),
    lambda: tfusion.init_params(config),
    lambda: tfusion.train_step(config, None, None),
  ):
    with pytest.raises(ValueError, match=r"call tfusion.set_mesh\(config\) before"):
      call()


def test_batches_are_on_the_mesh_in_use_or_on_the_configs(config):
  one = make_mesh(config.mesh, devices=jax.devices()[:1])
  with jax.set_mesh(one), tfusion.batches(config) as batches:
    assert next(batches).tokens_bl.sharding.mesh == one
  with tfusion.batches(config) as batches:
    batch = next(batches)
    assert batch.tokens_bl.sharding.mesh == make_mesh(config.mesh)
    assert batch.tokens_bl.shape == (config.train.batch_rows, config.data.row_length)
    assert batches.tokenizer.decode(np.asarray(batch.tokens_bl[0]))


def test_batches_keep_their_tokenizer_in_a_workdir_and_leave_nothing_without(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
  (tmp_path / "scratch").mkdir()
  with tfusion.batches(config) as batches:
    next(batches)
    assert list((tmp_path / "scratch").iterdir())
  del batches
  assert not list((tmp_path / "scratch").iterdir())
  tfusion.batches(config, tmp_path / "kept").close()
  assert (tmp_path / "kept" / "tokenizer.model").is_file()


def test_a_config_that_does_not_fit_the_devices_is_refused(experiment):
  many = tfusion.experiment(experiment, fsdp=64)
  for call in (tfusion.set_mesh, tfusion.batches):
    with pytest.raises(ValueError, match="does not fit .* devices"):
      call(many)


ON_FOUR = """
import sys, jax, tfusion
config = tfusion.experiment(sys.argv[1], fsdp=2)
tfusion.set_mesh(config)
batches, state = tfusion.batches(config), tfusion.init_state(config)
for _ in range(2):
  state, metrics = tfusion.train_step(config, state, next(batches))
  print(float(metrics["loss"]))
for tree in (state, tfusion.init_state(config)):
  x = tree.params["embedding"]
  print(len(x.sharding.device_set), x.addressable_shards[0].data.shape)
  print(tree.opt_state[1][0].mu["embedding"].sharding == x.sharding)
"""


@pytest.mark.long
def test_the_same_lines_share_a_state_out_over_several_devices(experiment, config):
  done = subprocess.run(
    [sys.executable, "-c", ON_FOUR, str(experiment)],
    env=os.environ
    | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  *losses, first, same, second, also_same = done.stdout.splitlines()
  assert first == second == "4 (320, 8)" and same == also_same == "True"
  with tfusion.set_mesh(config):
    _, found = steps(config, 2)
  # Sums over devices are in another order.
  wanted = [metrics["loss"] for metrics in found]
  np.testing.assert_allclose(list(map(float, losses)), wanted, rtol=2e-5)
