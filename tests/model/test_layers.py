"""Promises of tfusion/model/layers.py, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tfusion.model.layers import (
  Attention,
  Block,
  Keys,
  RMSNorm,
  SwiGLU,
  View,
  drop,
  rope,
  rope_angles,
)
from tfusion.sharding import spec

pytestmark = pytest.mark.usefixtures("mesh")


def first_layer(kind, model) -> nnx.Module:
  """The module that the scan hands to the first layer."""
  graphdef, params = nnx.split(tiny.fill(lambda rngs: kind(model, rngs=rngs)))
  return nnx.merge(graphdef, jax.tree.map(lambda x: x[0], params))


def numbers(module: nnx.Module) -> dict:
  values = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  return jax.tree.map(lambda v: np.asarray(v, np.float64), values)


# RoPE.


@pytest.mark.slow
def test_rope_is_a_rotation_of_complex_numbers():
  b, l, h, k = 2, 5, 3, 8
  x = np.random.default_rng(0).normal(size=(b, l, h, k)).astype(np.float32)
  positions = np.asarray([[0, 1, 2, 3, 4], [7, 100, 0, 4095, 31]])
  cos, sin = rope_angles(jnp.asarray(positions), head_dim=k, theta=10_000.0)
  got = np.asarray(rope(jnp.asarray(x), cos, sin))
  frequency = 10_000.0 ** (-2 * np.arange(k // 2) / k)
  turn = np.exp(1j * positions[:, :, None, None] * frequency)
  z = (x[..., : k // 2] + 1j * x[..., k // 2 :]) * turn
  want = np.concatenate([z.real, z.imag], -1)
  # float32 holds an angle of 4095 to 2.4e-4.
  np.testing.assert_allclose(got, want, atol=1e-3)
  np.testing.assert_allclose(got[0], want[0], atol=1e-6)
  np.testing.assert_array_equal(got[0, 0], x[0, 0])  # position 0 does not turn


@pytest.mark.slow
def test_scores_after_rope_depend_on_the_distance_alone():
  q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

  def score(m, n):
    turned = [
      rope(jnp.asarray(x), *rope_angles(jnp.asarray([[p]]), head_dim=16, theta=1e4))
      for x, p in ((q, m), (k, n))
    ]
    return float(jnp.sum(turned[0] * turned[1]))

  # float32 angles of about 100.
  assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
  assert abs(score(7, 3) - score(7, 4)) > 1e-2


def test_scaling_of_llama_3_stretches_slow_turns_alone():
  # Its published numbers (arXiv 2407.21783 has none; transformers calls it llama3).
  factor, low, high, before = scaling = (8.0, 1.0, 4.0, 8192.0)
  at = jnp.asarray([[1]])
  frequency, stretched = (
    np.arctan2(sin, cos)[0, 0].astype(np.float64)
    for cos, sin in (
      rope_angles(at, head_dim=128, theta=500_000.0, scaling=s) for s in ((), scaling)
    )
  )
  wave = 2 * np.pi / frequency
  is_fast, is_slow = wave < before / high, wave > before / low
  assert 10 < is_fast.sum() < 50 and 10 < is_slow.sum() < 50
  np.testing.assert_allclose(stretched[is_fast], frequency[is_fast], rtol=1e-5)
  np.testing.assert_allclose(stretched[is_slow], frequency[is_slow] / factor, rtol=1e-5)
  share = ((before / wave - low) / (high - low))[~is_fast & ~is_slow]
  between = frequency[~is_fast & ~is_slow]
  want = (1 - share) * between / factor + share * between
  np.testing.assert_allclose(stretched[~is_fast & ~is_slow], want, rtol=1e-5)


@pytest.mark.slow
def test_rope_of_rows_and_columns_depends_on_both_distances_and_on_text_is_as_ever():
  q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

  def angles(row, column):
    at = (jnp.asarray([[place]]) for place in (row, column))
    return rope_angles(*at, head_dim=16, theta=1e4)

  def score(m, n):
    turned = [rope(jnp.asarray(x), *angles(*p)) for x, p in ((q, m), (k, n))]
    return float(jnp.sum(turned[0] * turned[1]))

  here = score((7, 4), (3, 9))
  # float32 angles of about 100.
  assert score((107, 54), (103, 59)) == pytest.approx(here, abs=1e-4)
  assert abs(score((7, 4), (4, 9)) - here) > 1e-2
  assert abs(score((7, 4), (3, 8)) - here) > 1e-2
  text = rope_angles(jnp.asarray([[31]]), head_dim=16, theta=1e4)
  for a, b in zip(angles(31, 31), text, strict=True):
    np.testing.assert_array_equal(a, b)
  # Pairs take turns, so rows and columns each have the slow and the fast ones.
  by_row, by_column = angles(31, 0)[1][0, 0], angles(0, 31)[1][0, 0]
  np.testing.assert_array_equal(by_row[::2], text[1][0, 0, ::2])
  np.testing.assert_array_equal(by_column[1::2], text[1][0, 0, 1::2])
  assert not by_row[1::2].any() and not by_column[::2].any()


@pytest.mark.slow
def test_rope_keeps_bfloat16_but_turns_in_float32():
  x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8)).astype(jnp.bfloat16)
  angles = rope_angles(jnp.arange(4)[None], head_dim=8, theta=1e4)
  got = rope(x, *angles)
  assert got.dtype == jnp.bfloat16 and angles[0].dtype == jnp.float32
  assert jnp.array_equal(got, rope(x.astype(jnp.float32), *angles).astype(jnp.bfloat16))


# RMSNorm and SwiGLU.


@pytest.mark.slow
def test_rmsnorm_divides_by_the_root_mean_square_and_scales():
  norm = tiny.fill(lambda rngs: RMSNorm(6, stack=(), eps=1e-5, rngs=rngs))
  scale = np.asarray(norm.scale[...])
  x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32) * 5
  want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
  got = np.asarray(norm(jnp.asarray(x)))
  np.testing.assert_allclose(got, want * scale, rtol=1e-6)
  tiny_x = norm(jnp.full((1, 1, 6), 1e-10))
  assert np.all(np.abs(np.asarray(tiny_x)) < 1e-6)  # eps, not 0 / 0


def test_rmsnorm_keeps_bfloat16_but_computes_in_float32():
  norm = jax.jit(tiny.fill(lambda rngs: RMSNorm(64, stack=(), eps=1e-5, rngs=rngs)))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 64)), jnp.bfloat16)
  want = norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
  assert norm(x).dtype == jnp.bfloat16 and jnp.array_equal(norm(x), want)


def test_swiglu_gates_one_projection_with_the_silu_of_the_other():
  mlp = first_layer(SwiGLU, tiny.config().model)
  x = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
  p = numbers(mlp)
  gate = x @ p["w_gate"]
  want = (gate / (1 + np.exp(-gate)) * (x @ p["w_up"])) @ p["w_down"]
  # float32 sums of 48 terms of about 1.
  got = jax.jit(mlp)(tiny.put(x))
  np.testing.assert_allclose(np.asarray(got), want, atol=1e-5)


# Attention.


def view(positions, lo, hi, *, head_dim: int, write_at=None) -> View:
  positions, lo, hi, write_at = tiny.put((positions, lo, hi, write_at))
  angles = rope_angles(positions, head_dim=head_dim, theta=10_000.0)
  return View(*angles, lo, hi, write_at)


def turned(x, positions) -> np.ndarray:
  """RoPE of [b, l, heads, k], float64."""
  half = x.shape[-1] // 2
  angle = positions[:, :, None, None] * 10_000.0 ** (-np.arange(half) / half)
  z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], -1)


def normed(x_blhk, p: dict) -> np.ndarray:
  """A layer norm of every head if there is a bias, else an RMSNorm."""
  x = x_blhk - x_blhk.mean(-1, keepdims=True) if "bias" in p else x_blhk
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * p["scale"] + p.get("bias", 0)


def reference(p: dict, x, positions, lo, hi) -> np.ndarray:
  """Attention with grouped queries, one query and head at a time, float64."""
  q, k, v = (
    np.einsum("bld,dhk->blhk", x, p[f"w{name}"]) + p.get(f"b_{name}", 0)
    for name in "qkv"
  )
  if "q_norm" in p:
    q, k = normed(q, p["q_norm"]), normed(k, p["k_norm"])
  q, k = turned(q, positions), turned(k, positions)
  out = np.zeros(x.shape)
  for b, i, head in np.ndindex(q.shape[:3]):
    group = head * k.shape[2] // q.shape[2]
    seen = slice(lo[b, i], hi[b, i] + 1)
    score = k[b, seen, group] @ q[b, i, head] / np.sqrt(q.shape[-1])
    share = np.exp(score - score.max())
    out[b, i] += share / share.sum() @ v[b, seen, group] @ p["wo"][head]
  return out


CHAMELEON = dict(model__qk_norm="layer")
QWEN = dict(model__qk_norm="rms", model__attention_bias=True)


@pytest.mark.slow
@pytest.mark.parametrize(
  "kv_heads, how", [(1, {}), (2, {}), (4, {}), (2, CHAMELEON), (2, QWEN)]
)
def test_attention_sees_its_interval_and_shares_keys_among_neighbouring_heads(
  kv_heads, how
):
  model = tiny.config(model__kv_heads=kv_heads, **how).model
  attention = first_layer(Attention, model)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 7, 32)).astype(np.float32)
  # Row 0: text of 2, three patches, text. Row 1: two documents.
  positions = np.asarray([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 2, 3]])
  lo = np.asarray([[0] * 7, [0, 0, 0, 3, 3, 3, 3]])
  hi = np.asarray([[0, 1, 4, 4, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
  sees = view(positions, lo, hi, head_dim=8)
  got, keys = jax.jit(lambda x: attention(x, sees, None, 0))(tiny.put(x))
  assert keys is None
  want = reference(numbers(attention), x, positions, lo, hi)
  # float32 against float64.
  np.testing.assert_allclose(np.asarray(got), want, atol=1e-5)


@pytest.mark.slow
def test_new_keys_are_written_at_each_rows_own_place_in_the_cache(mesh):
  model = tiny.config().model
  attention = first_layer(Attention, model)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 32)).astype(np.float32)
  old = rng.normal(size=(3, 2, 2, 9, 8)).astype(np.float32)
  places = np.asarray([[4, 5, 6], [0, 1, 2]])
  sees = view(
    places, np.zeros_like(places), places, head_dim=8, write_at=np.asarray([4, 0])
  )
  heads = jax.NamedSharding(mesh, spec("layers", "batch", "kv_heads", None, None))
  cache = jax.device_put(Keys(old, old), heads)
  step = jax.jit(lambda x, cache, layer: attention(x, sees, cache, layer))
  out, keys = step(tiny.put(x), cache, jnp.int32(1))
  p = numbers(attention)
  new_k = turned(np.einsum("bld,dgk->blgk", x, p["wk"]), places)
  new_v = np.einsum("bld,dgk->blgk", x, p["wv"])
  for got, new in ((keys.k_nbgsk, new_k), (keys.v_nbgsk, new_v)):
    want = old.astype(np.float64)
    want[1, 0, :, 4:7] = new[0].swapaxes(0, 1)
    want[1, 1, :, 0:3] = new[1].swapaxes(0, 1)
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-5)
    changed = np.asarray(got) != old
    assert changed.any(axis=(2, 4)).sum() == 6  # the other places not at all
  # The second row stands at the start: what it sees is what it has written.
  want = reference(p, x[1:], places[1:], np.zeros_like(places[1:]), places[1:])
  np.testing.assert_allclose(out[1:], want, atol=1e-5)


# Blocks.


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["before", "after"])
def test_a_block_has_its_norms_before_or_behind_what_it_adds(norms):
  block = first_layer(Block, tiny.config(model__norms=norms).model)
  places = np.broadcast_to(np.arange(5), (2, 5))
  sees = view(places, np.zeros_like(places), places, head_dim=8)
  x = tiny.put(np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32))

  def both(x):
    attend = lambda x: block.attention(x, sees, None, 0)[0]  # noqa: E731
    a, m = block.attention_norm, block.mlp_norm
    before, after = x + attend(a(x)), x + a(attend(x))
    before, after = before + block.mlp(m(before)), after + m(block.mlp(after))
    return block(x, sees, None, 0)[0], before if norms == "before" else after

  got, want = jax.jit(both)(x)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_dropout_is_exact_random_by_row_position_and_place_and_keeps_the_mean():
  keys_b = tiny.put(np.arange(4))
  x = np.random.default_rng(0).normal(size=(4, 50, 32)).astype(np.float32)

  @jax.jit
  def apply(x, keys_b, place):
    return drop(x, jax.vmap(jax.random.key)(keys_b), place, rate=0.5)

  got = np.asarray(apply(tiny.put(x), keys_b, 3))
  stays = got != 0
  np.testing.assert_array_equal(got[stays], (2 * x)[stays])
  # 6,400 numbers: five deviations are 0.031.
  assert np.mean(stays) == pytest.approx(0.5, abs=0.031)
  # The mask of a row is its own, whatever the others are; of no two positions alike.
  other = np.asarray(apply(tiny.put(x[::-1].copy()), tiny.put(np.arange(4)[::-1]), 3))
  np.testing.assert_array_equal(other[::-1], got)
  assert len(np.unique(stays.reshape(-1, 32), axis=0)) == 200
  assert (stays != (np.asarray(apply(tiny.put(x), keys_b, 4)) != 0)).any()


def test_a_block_drops_only_where_it_is_given_keys():
  model = tiny.config(model__dropout=0.5).model
  block = first_layer(Block, model)
  places = np.broadcast_to(np.arange(5), (2, 5))
  sees = view(places, np.zeros_like(places), places, head_dim=8)
  x = tiny.put(np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32))
  without = first_layer(Block, tiny.config().model)
  keys_b = tiny.put(np.arange(2))

  def all_three(x, keys_b):
    keys_b = jax.vmap(jax.random.key)(keys_b)
    dropped = block(x, sees._replace(drop_b=keys_b), None, 1)[0]
    attended = x + drop(
      block.attention(block.attention_norm(x), sees, None, 1)[0], keys_b, 2, rate=0.5
    )
    mlp = drop(block.mlp(block.mlp_norm(attended)), keys_b, 3, rate=0.5)
    same = block(x, sees, None, 1)[0], without(x, sees, None, 1)[0]
    return dropped, attended + mlp, *same

  dropped, want, idle, plain = jax.jit(all_three)(x, keys_b)
  np.testing.assert_allclose(dropped, want, atol=1e-6)
  np.testing.assert_array_equal(idle, plain)
