"""Promises of tfusion/training/optim.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.config import OptimConfig
from tfusion.training.optim import (
  decay_mask,
  make_optimizer,
  make_schedule,
  tower_of,
  update_ema,
)


def schedule(**changes):
  values = dict(
    optim__peak_lr=1.0, optim__end_lr=0.1, optim__warmup_steps=10, train__steps=110
  )
  made = make_schedule(tiny.config(**(values | changes)))
  return lambda step: float(made(step))


def test_the_rate_warms_up_in_a_line_and_falls_in_a_cosine_to_the_last_step():
  lr = schedule()
  assert [lr(i) for i in (0, 1, 5, 10)] == pytest.approx([0, 0.1, 0.5, 1.0])
  for step in (35, 60, 85, 110):
    want = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
    assert lr(step) == pytest.approx(want, rel=1e-6)
  assert lr(110) == lr(500) == pytest.approx(0.1)


def test_an_exponential_falls_by_one_ratio_at_every_update_to_the_last_step():
  lr = schedule(optim__decay="exponential")
  assert [lr(i) for i in (0, 1, 5, 10)] == pytest.approx([0, 0.1, 0.5, 1.0])
  ratios = [lr(i + 1) / lr(i) for i in range(10, 110)]
  assert ratios == pytest.approx([0.1 ** (1 / 100)] * 100, rel=1e-5)
  assert lr(110) == lr(500) == pytest.approx(0.1)
  assert schedule(optim__decay="exponential", optim__warmup_steps=0)(0) == 1.0
  short = schedule(optim__decay="exponential", optim__warmup_steps=50, train__steps=20)
  assert [short(i) for i in (0, 10, 19)] == pytest.approx([0, 0.5, 0.95])


def test_an_exponential_between_equal_ends_is_constant():
  lr = schedule(optim__decay="exponential", optim__end_lr=1.0)
  assert {lr(i) for i in (10, 50, 110, 500)} == {1.0}


def test_without_warm_up_the_first_update_is_at_the_peak():
  assert schedule(optim__warmup_steps=0)(0) == 1.0


def test_a_run_shorter_than_its_warm_up_only_warms_up():
  lr = schedule(optim__warmup_steps=50, train__steps=20)
  assert [lr(i) for i in (0, 10, 19)] == pytest.approx([0, 0.5, 0.95])


@pytest.mark.parametrize("size", ["0.16b", "7b"])
def test_the_papers_rate_at_its_landmarks(size):
  lr = make_schedule(tiny.paper(f"size={size}"))
  got = [float(lr(i)) for i in (2000, 4000, 127_000, 250_000)]
  # Halfway the cosine stands between its ends.
  assert got == pytest.approx([1.5e-4, 3e-4, (3e-4 + 1.5e-5) / 2, 1.5e-5], rel=1e-4)


@pytest.mark.parametrize("size", ["0.16b", "0.37b", "0.76b", "1.4b", "7b"])
def test_the_papers_runs_are_the_papers(size):
  config = tiny.paper(f"size={size}")
  assert config.optim == OptimConfig(  # arXiv 2408.11039, section 4.1
    peak_lr=3e-4,
    end_lr=1.5e-5,
    warmup_steps=4000,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
  )
  assert config.train.steps == 250_000 and config.train.accumulate == 1
  assert (config.train.batch_rows, config.data.row_length) == (512, 4096)
  assert config.model.image_shape == (32, 32, 8) and config.model.patch == 2


def test_the_rate_of_chameleon_7b_is_its_own_and_that_of_the_baseline_the_papers():
  # arXiv 2405.09818, section 2.3, but for where its decay "to 0" ends.
  own = tiny.experiment("chameleon", "size=7b,recipe=chameleon_7b_original")
  lr = make_schedule(own)
  got = [float(lr(i)) for i in (2000, 4000, 127_000, 250_000)]
  assert got == pytest.approx([5e-5, 1e-4, 1e-5, 1e-6], rel=1e-4)
  assert own.optim.eps == 1e-5 and own.optim.weight_decay == 0.1
  # arXiv 2408.11039, section 4.1: only the peak is lower.
  baseline = tiny.experiment("chameleon", "size=7b").optim
  assert baseline == OptimConfig(peak_lr=1e-4)


def paths_of(mask) -> dict[str, bool]:
  flat = jax.tree_util.tree_flatten_with_path(mask)[0]
  return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in flat}


def test_matrices_decay_and_norms_and_biases_do_not():
  params = tiny.params(tiny.config().model)
  mask = paths_of(decay_mask(params))
  shapes = paths_of(jax.tree.map(lambda x: x.ndim, params))
  stays = {path for path, decays in mask.items() if not decays}
  assert stays == {
    "patches/b_in",
    "patches/b_out",
    "patches/b_time1",
    "patches/b_time2",
    "transformer/blocks/attention_norm/scale",
    "transformer/blocks/mlp_norm/scale",
    "transformer/norm/scale",
  }
  for path, decays in mask.items():
    # A stack of vectors has two dimensions, a stack of matrices more.
    assert shapes[path] >= 2 if decays else shapes[path] <= 2


def test_an_update_is_adamw_with_decay_on_matrices_after_one_global_clip():
  config = tiny.config(
    optim__peak_lr=0.1,
    optim__end_lr=0.1,
    optim__warmup_steps=0,
    optim__weight_decay=0.5,
    optim__clip_norm=1.0,
    optim__eps=1e-8,
  )
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(3, 2)), "scale": rng.normal(size=3)}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  optimizer = make_optimizer(config)
  state = optimizer.init(params)
  m = {k: np.zeros(x.shape) for k, x in params.items()}
  v = {k: np.zeros(x.shape) for k, x in params.items()}
  update = jax.jit(optimizer.update)
  for count in (1, 2, 3):
    size = {1: 10.0, 2: 0.01, 3: 1.0}[count]  # clipped, not clipped
    grads = {k: size * rng.normal(size=x.shape) for k, x in params.items()}
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    updates, state = update(
      jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads), state, params
    )
    for k, g in grads.items():
      g = g / max(norm, 1.0)
      m[k] = 0.9 * m[k] + 0.1 * g
      v[k] = 0.95 * v[k] + 0.05 * g**2
      step = (m[k] / (1 - 0.9**count)) / (np.sqrt(v[k] / (1 - 0.95**count)) + 1e-8)
      decay = 0.5 * np.asarray(params[k]) if k == "w" else 0.0
      # float32 moments.
      np.testing.assert_allclose(updates[k], -0.1 * (step + decay), rtol=2e-4)


def test_the_average_forgets_its_start_and_then_follows_its_decay():
  ema, params = {"w": jnp.asarray([1.0])}, {"w": jnp.asarray([3.0])}

  def after(step, decay):
    return float(update_ema(ema, params, decay=decay, step=jnp.int32(step))["w"][0])

  assert after(0, 0.99) == pytest.approx(0.1 * 1 + 0.9 * 3)
  assert after(8, 0.99) == pytest.approx(0.5 * 1 + 0.5 * 3)
  assert after(10**6, 0.99) == pytest.approx(0.99 * 1 + 0.01 * 3, rel=1e-6)
  assert after(8, 0.2) == pytest.approx(0.2 * 1 + 0.8 * 3)  # never above the decay


def test_the_average_of_equal_weights_is_bit_for_bit_those_weights():
  params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)}
  got = update_ema(params, params, decay=0.995, step=jnp.int32(77))
  assert jnp.array_equal(got["w"], params["w"])


OF_PATCHES = {
  "patches": 8,  # weights and biases of linear patches
  "transformer/blocks/image": 9,
  "transformer/image_norm": 1,
}


def test_what_patches_alone_have_is_told_from_what_text_uses():
  params = tiny.params(tiny.config(model__untied="all").model)
  found = paths_of(jax.tree_util.tree_map_with_path(lambda p, _: tower_of(p), params))
  of_patches = [path for path, tower in found.items() if tower == "image"]
  for start, count in OF_PATCHES.items():
    assert sum(path.startswith(start) for path in of_patches) == count
  assert len(of_patches) == sum(OF_PATCHES.values())


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_each_tower_has_its_share_of_the_rate_behind_one_clip(clip):
  plain = tiny.config(optim__clip_norm=clip)
  config = tiny.config(
    optim__clip_norm=clip, train__text_lr_factor=0.5, train__image_lr_factor=3.0
  )
  rng = np.random.default_rng(0)
  grads, params = (
    {
      "head": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
      "patches": {"w_in": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)},
    }
    for _ in range(2)
  )

  def updates(config):
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    for _ in range(2):  # the first has a rate of 0
      out, state = optimizer.update(grads, state, params)
    return out

  got, want = updates(config), updates(plain)
  np.testing.assert_allclose(got["head"], 0.5 * want["head"], rtol=1e-6)
  want = want["patches"]["w_in"]
  np.testing.assert_allclose(got["patches"]["w_in"], 3 * want, rtol=1e-6)
  assert np.abs(want).max() > 0


def test_factors_of_one_add_nothing_to_the_optimizer():
  params = {"w": jnp.zeros(2)}
  assert len(make_optimizer(tiny.config()).init(params)) == 2
  assert len(make_optimizer(tiny.config(train__text_lr_factor=2.0)).init(params)) == 3
