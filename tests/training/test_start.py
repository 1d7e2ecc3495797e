"""Promises of tfusion/training/start.py: what a run with weights begins with."""

import jax
import numpy as np
import pytest
import tiny
import tiny_weights
from interop import test_weights as own

from tfusion.interop.weights import InitFrom
from tfusion.training import start
from tfusion.training.step import abstract_state, train_step

pytestmark = [pytest.mark.usefixtures("mesh"), pytest.mark.slow]


def begun(folder, **changes):
  """The config of a tiny run with a folder's weights, and its state."""
  weights = own.Weights(folder)
  config = own.config_of(weights, train__init_from=str(folder), **changes)
  mesh = jax.sharding.get_mesh()
  return config, start.new_state(config, mesh, jax.random.key(0), InitFrom.of(config))


def after(config, state, *, updates: int):
  """The state after updates on text and images."""
  step = jax.jit(lambda s, b: train_step(config, s, b, jax.random.key(1))[0])
  for number in range(updates):
    state = step(state, tiny.put(tiny.batch(config, seed=number)))
  return state


def changed(old, new) -> set[str]:
  """The parameters that are not what they were."""
  olds = jax.tree_util.tree_flatten_with_path(old)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator=".")
    for (path, x), y in zip(olds, jax.tree.leaves(new), strict=True)
    if not np.array_equal(x, y)
  }


@pytest.mark.parametrize(
  "kind",
  [
    "llama",
    pytest.param("qwen2", marks=pytest.mark.long),
    pytest.param("qwen3", marks=pytest.mark.long),
  ],
)
def test_a_frozen_tower_says_of_text_what_it_said_bit_for_bit(kind, tmp_path):
  # LMFusion (arXiv 2412.15188): the tower is frozen and patches have weights of their
  # own, so nothing that a text alone meets can change.
  folder = tiny_weights.folder(tmp_path, kind, tie_word_embeddings=True)
  frozen = dict(model__untied="all", train__text_lr_factor=0.0)
  config, state = begun(folder, **frozen)
  before = own.logits(config, state.params, own.IDS)
  later = after(config, state, updates=3)
  np.testing.assert_array_equal(own.logits(config, later.params, own.IDS), before)
  moved = changed(state.params, later.params)
  assert "transformer.blocks.image.attention.wq" in moved
  assert "transformer.image_norm.scale" in moved and "patches.w_in" in moved
  assert all("image" in name or "patches" in name for name in moved)


@pytest.mark.long
def test_without_weights_of_their_own_or_with_a_rate_text_changes(tmp_path):
  folder = tiny_weights.folder(tmp_path)
  for changes in (
    dict(model__untied="all", train__text_lr_factor=0.1),
    dict(model__untied="none"),
  ):
    config, state = begun(folder, **changes)
    before = own.logits(config, state.params, own.IDS)
    later = own.logits(config, after(config, state, updates=3).params, own.IDS)
    assert not np.array_equal(later, before)


def test_a_change_of_low_rank_is_learned_beside_weights_that_stay(tmp_path):
  folder = tiny_weights.folder(tmp_path)
  changes = dict(model__untied="all", model__lora_rank=3, train__text_lr_factor=0.0)
  config, state = begun(folder, **changes)
  before = own.logits(config, state.params, own.IDS)
  plain, unchanged = begun(folder, model__untied="all")
  np.testing.assert_array_equal(own.logits(plain, unchanged.params, own.IDS), before)
  later = after(config, state, updates=3)
  assert np.abs(own.logits(config, later.params, own.IDS) - before).max() > 1e-3
  moved = changed(state.params, later.params)
  assert {f"lora.mlp_w_up_{which}" for which in ("up", "down")} <= moved
  kinds = ("image", "patches", "lora.")
  assert all(any(kind in name for kind in kinds) for name in moved)


def test_the_average_begins_with_the_weights_too(tmp_path):
  _, state = begun(tiny_weights.folder(tmp_path), optim__ema_decay=0.9)
  tiny.assert_same_tree(state.ema, state.params)
  assert int(state.step) == 0
  moments = jax.tree.leaves(state.opt_state)
  assert all(not np.any(np.asarray(x)) for x in moments)


def test_memory_is_printed_before_anything_is_read(tmp_path, capsys, monkeypatch):
  folder, said = tiny_weights.folder(tmp_path, files=2), []

  def load(self, model, wanted):
    said.append(capsys.readouterr().out)
    raise KeyboardInterrupt

  monkeypatch.setattr(own.Weights, "load", load)
  with pytest.raises(KeyboardInterrupt):
    begun(folder)
  (line,) = said[0].splitlines()
  assert line.startswith(f"{folder}: LlamaForCausalLM, ")
  assert " numbers in 2 files, F32; the state takes " in line
  assert "GiB of each of 1 devices (parameters " in line


def test_memory_is_that_of_each_devices_part():
  config = tiny.config(model__width=1024, model__vocab_size=8192)
  wanted = abstract_state(config, jax.sharding.get_mesh())
  numbers = sum(x.size for x in jax.tree.leaves(wanted.params))
  gib = 4 * numbers / 2**30
  assert f"parameters {gib:.2f}, optimizer {2 * gib:.2f})" in start.memory(wanted)
