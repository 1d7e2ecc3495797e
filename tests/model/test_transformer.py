"""Promises of tfusion/model/transformer.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tfusion.model.layers import View, rope_angles
from tfusion.model.transformer import REMAT, Transformer, empty_cache

pytestmark = pytest.mark.usefixtures("mesh")

MODEL = dataclasses.replace(tiny.config().model, layers=3)
B, L, D = 2, 8, MODEL.width


def make(model=MODEL) -> Transformer:
  return tiny.fill(lambda rngs: Transformer(model, rngs=rngs))


@pytest.fixture(scope="module")
def transformer(mesh) -> Transformer:
  return make()


@pytest.fixture(scope="module")
def x_bld(mesh):
  return tiny.put(np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32))


def view(first: int = 0, stop: int = L, *, lo=0, write_at=None) -> View:
  """Causal text with an image at positions 3 to 5."""
  positions = np.broadcast_to(np.arange(first, stop), (B, stop - first))
  hi = np.where((positions >= 3) & (positions <= 5), 5, positions)
  positions, lo, hi, write_at = tiny.put(
    (positions, np.full_like(positions, lo), hi, write_at)
  )
  angles = rope_angles(positions, head_dim=MODEL.head_dim, theta=MODEL.rope_theta)
  return View(*angles, lo, hi, write_at)


@pytest.mark.slow
def test_the_scan_over_layers_is_one_layer_after_the_other(transformer, x_bld):
  sees = view()
  scanned, keys = jax.jit(lambda x: transformer(x, sees))(x_bld)
  assert keys is None
  graphdef, params = nnx.split(transformer.blocks)

  def unrolled(x):
    for i in range(MODEL.layers):
      layer = nnx.merge(graphdef, jax.tree.map(lambda p: p[i], params))  # noqa: B023
      x, _ = layer(x, sees, None, i)
    return transformer.norm(x)

  # The compiler may fuse and so round differently; values are about 1.
  want = jax.jit(unrolled)(x_bld)
  np.testing.assert_allclose(scanned, want, atol=1e-5)
  for unroll in (2, 5):  # one that leaves a rest, one above the number of layers
    several = make(dataclasses.replace(MODEL, unroll=unroll))
    got, _ = jax.jit(lambda x: several(x, sees))(x_bld)  # noqa: B023
    np.testing.assert_allclose(got, want, atol=1e-5)


UNROLLS = (1, MODEL.layers)


@pytest.fixture(scope="module", params=UNROLLS, ids="unroll {}".format)
def unroll(request) -> int:
  return request.param


@pytest.fixture(scope="module")
def gradient_without_remat(unroll, x_bld):
  return gradient("none", unroll, x_bld)


def trace(remat: str, unroll: int, x_bld):
  """The gradient of a loss, traced, and the parameters to run it on."""
  model = dataclasses.replace(MODEL, remat=remat, unroll=unroll)
  graphdef, params = nnx.split(make(model))
  sees = view()

  def loss(params, x):
    return jnp.sum(jnp.square(nnx.merge(graphdef, params)(x, sees)[0]))

  return jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x_bld), params


def gradient(remat: str, unroll: int, x_bld):
  """The program of a gradient as JAX traced it and as compiled, and what it gives."""
  traced, params = trace(remat, unroll, x_bld)
  compiled = traced.lower().compile()
  return traced.jaxpr.jaxpr, compiled, jax.tree.leaves(compiled(params, x_bld))


def checkpoints(jaxpr):
  """Policy and prevent_cse of everything that a program computes again."""
  for equation in jaxpr.eqns:
    if "prevent_cse" in equation.params:
      yield equation.params["policy"], equation.params["prevent_cse"]
    for inner in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from checkpoints(inner)


@pytest.mark.slow
@pytest.mark.parametrize(
  "remat", ["dots", pytest.param("full", marks=pytest.mark.long)]
)
def test_remat_computes_again_and_changes_no_gradient(
  remat, unroll, x_bld, gradient_without_remat
):
  _, plain, want = gradient_without_remat
  jaxpr, compiled, got = gradient(remat, unroll, x_bld)
  for a, b in zip(got, want, strict=True):
    # Recomputed values may be fused and so rounded differently.
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
  flops = [c.cost_analysis()["flops"] for c in (compiled, plain)]
  assert flops[0] > flops[1]  # something is computed again
  # Unrolled, the compiler could see that a layer is computed twice and keep the first
  # result. XLA for CPUs forgets the barrier against it too early to show that here.
  apart = [flag for policy, flag in checkpoints(jaxpr) if policy is REMAT[remat]]
  assert apart and set(apart) == {unroll > 1}


@pytest.mark.slow
def test_remat_of_dots_keeps_the_products_with_weights_that_full_remat_makes_again(
  x_bld,
):
  none, dots, full = (
    trace(remat, 1, x_bld)[0].lower().as_text().count("dot_general")
    for remat in ("none", "dots", "full")
  )
  # Of q, k, v, o, gate and up; down is the last of its layer, and nothing asks for it.
  assert full - dots == 6
  assert dots > none  # scores, which are many, are made again


@pytest.mark.slow
def test_a_row_fed_in_parts_to_the_cache_gives_what_it_gives_at_once(
  transformer, x_bld
):
  sees = view()
  whole, _ = jax.jit(lambda x: transformer(x, sees))(x_bld)
  # More places than positions: what was never written must not be seen.
  cache = empty_cache(MODEL, batch=B, length=L + 3, dtype=jnp.float32)
  cache = jax.tree.map(lambda k: k + 100.0, cache)
  parts = []
  for first, stop in ((0, 3), (3, 6), (6, 7), (7, 8)):  # the image in one part
    sees = view(first, stop, write_at=np.full(B, first))
    out, cache = jax.jit(transformer)(x_bld[:, first:stop], sees, cache)
    parts.append(np.asarray(out))
  # Sums run over another number of keys.
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)


@pytest.mark.slow
def test_an_image_written_again_replaces_the_one_before(transformer, x_bld):
  noisy = x_bld.at[:, 3:6].add(1.0)
  cache = empty_cache(MODEL, batch=B, length=L, dtype=jnp.float32)
  step = jax.jit(transformer)
  _, cache = step(x_bld[:, :3], view(0, 3, write_at=np.zeros(B, int)), cache)
  image = view(3, 6, write_at=np.full(B, 3))
  _, dirty = step(noisy[:, 3:6], image, cache)
  once, _ = step(x_bld[:, 3:6], image, cache)
  again, _ = step(x_bld[:, 3:6], image, dirty)
  np.testing.assert_array_equal(once, again)


@pytest.mark.slow
def test_an_empty_cache_has_a_place_for_every_layer_and_key_head():
  cache = empty_cache(MODEL, batch=B, length=11, dtype=jnp.bfloat16)
  (keys,) = cache
  assert keys.k_nbgsk.shape == keys.v_nbgsk.shape == (3, B, 2, 11, 8)
  assert keys.k_nbgsk.dtype == jnp.bfloat16 and not keys.k_nbgsk.any()
  assert keys.length == 11


def test_a_cache_of_layers_apart_has_an_array_for_each():
  cache = empty_cache(MODEL, batch=B, length=11, dtype=jnp.float32, apart=True)
  assert len(cache) == MODEL.layers == 3
  assert all(x.shape == (1, B, 2, 11, 8) for x in jax.tree.leaves(cache))
