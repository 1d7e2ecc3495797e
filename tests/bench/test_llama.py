"""Promises of bench/llama.py: a plain Llama, and as much of it as ours has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.bench import llama
from tfusion.model.transfusion import bind
from tfusion.training import step as step_lib

pytestmark = pytest.mark.usefixtures("mesh")

CONFIG = tiny.config(optim__warmup_steps=0)


@pytest.fixture(scope="module")
def start(mesh):
  return jax.jit(functools.partial(llama.init_state, CONFIG))(jax.random.key(0))


@pytest.mark.slow
def test_it_has_our_parameters_but_those_of_patches(start):
  ours = jax.eval_shape(lambda: step_lib.init_state(CONFIG, jax.random.key(0)))
  shapes = lambda params: jax.tree.map(lambda x: x.shape, params)  # noqa: E731
  want = {k: v for k, v in ours.params.items() if k != "patches"}
  assert shapes(start.params) == shapes(want) and len(want) == len(ours.params) - 1


@pytest.mark.parametrize("untied", ["mlp", "all"])
def test_of_untied_weights_it_has_those_of_text(untied):
  own = tiny.config(optim__warmup_steps=0, model__untied=untied)
  shapes = [
    jax.eval_shape(functools.partial(llama.init_state, c), jax.random.key(0)).params
    for c in (own, CONFIG)
  ]
  assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_its_loss_is_that_of_our_model_on_causal_text(start):
  rows = llama.make_rows(CONFIG)
  assert rows.shape == (4, CONFIG.data.row_length + 1)
  _, metrics = jax.jit(functools.partial(llama.train_step, CONFIG))(
    start, tiny.put(rows), jax.random.key(0)
  )
  batch = tiny.batch(CONFIG)
  index = np.broadcast_to(np.arange(CONFIG.data.row_length, dtype=np.int32), (4, 24))
  batch = batch._replace(
    tokens_bl=rows[:, :-1],
    positions_bl=index,
    lo_bl=np.zeros_like(index),
    hi_bl=index,
    patch_bl=np.full_like(index, -1),
  )
  params = start.params | {"patches": tiny.params(CONFIG.model)["patches"]}
  given = tiny.put((batch, (batch.slots[0].latents,), (np.zeros((4, 3), np.int32),)))
  logits, _ = jax.jit(lambda *x: bind(CONFIG.model, params)(*x))(*given)
  nats = -jax.nn.log_softmax(logits)
  want = np.mean(np.take_along_axis(np.asarray(nats), rows[:, 1:, None], -1))
  # float32 sums of 96 terms.
  assert float(metrics["loss"]) == pytest.approx(want, rel=1e-5)


@pytest.mark.long
def test_it_learns_and_parts_of_a_batch_change_nothing(start):
  rows, losses = tiny.put(llama.make_rows(CONFIG)), []
  for parts in (1, 2):
    config = tiny.config(optim__warmup_steps=0, train__accumulate=parts)
    step, state = jax.jit(functools.partial(llama.train_step, config)), start
    for _ in range(3):
      state, metrics = step(state, rows, jax.random.key(0))
      losses.append(float(metrics["loss"]))
  assert losses[2] < losses[1] < losses[0]
  np.testing.assert_allclose(losses[3:], losses[:3], rtol=1e-5)  # sums of parts
  assert jnp.isfinite(metrics["grad_norm"])
