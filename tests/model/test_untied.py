"""Promises of tfusion/model/untied.py, against masks over both products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.model import untied
from tfusion.model.linear import Product
from tfusion.sharding import spec
from tfusion.training import step as step_lib
from tfusion.training.flops import batch_flops

pytestmark = pytest.mark.usefixtures("mesh")
KEY = jax.random.key(0)


def test_positions_are_sorted_text_first_and_come_back():
  text_bl = np.asarray([[True, False, True], [False, False, True]])
  x_bld = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
  how = untied.split(tiny.put(text_bl))
  there = untied.sort(tiny.put(x_bld), how)
  np.testing.assert_array_equal(there[:, :, 0], [[0, 4, 10], [2, 6, 8]])
  np.testing.assert_array_equal(how.text_bl, [[True, True, True], [False] * 3])
  np.testing.assert_array_equal(untied.unsort(there, how), x_bld)
  weights = np.arange(12, dtype=np.float32).reshape(2, 3, 2) ** 2
  pulled = jax.grad(lambda x: jnp.sum(untied.sort(x, how) * weights))(tiny.put(x_bld))
  np.testing.assert_array_equal(pulled, untied.unsort(tiny.put(weights), how))


@pytest.mark.parametrize("texts", [0, 1, 7, 8, 13, 24])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # by tiles, or XLA's ragged dot
@pytest.mark.parametrize(
  "letters, inputs, x_shape, w_shape",
  [
    ("bld,dhk->blhk", 1, (2, 12, 4), (4, 2, 3)),
    ("blhk,hkd->bld", 2, (2, 12, 2, 4), (2, 4, 5)),
  ],
)
def test_each_position_is_multiplied_by_the_weight_of_its_modality(
  monkeypatch, texts, platform, letters, inputs, x_shape, w_shape
):
  monkeypatch.setattr(untied, "TILE", 8)
  monkeypatch.setattr(untied, "platform", lambda: platform)
  rng = np.random.default_rng(0)
  x, text, image = (
    rng.normal(size=s).astype(np.float32) for s in (x_shape, w_shape, w_shape)
  )
  text_bl = tiny.put((np.arange(24) < texts).reshape(2, 12))
  out = spec("batch", *[None] * (len(letters.split(">")[1]) - 1))
  names = ("embed", None, None) if inputs == 1 else (None, None, "embed")
  how = Product(names, "float32", inputs, out)

  def ours(x, text, image):
    return untied.multiply(x, untied.Both(text, image, text_bl), how)

  def masked(x, text, image):
    products = [jnp.einsum(letters, x, w, out_sharding=out) for w in (text, image)]
    return jnp.where(text_bl.reshape(2, 12, *[1] * (len(out) - 2)), *products)

  def both(*args):
    results = []
    for function in (ours, masked):
      y, pull = jax.vjp(function, *args)
      results.append((y, *pull(jnp.sin(y))))
    return results

  got, want = jax.jit(both)(tiny.put(x), jnp.asarray(text), jnp.asarray(image))
  for a, b in zip(got, want, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("texts", [0, 50, 96])
def test_the_kernel_of_a_tpu_gives_the_gradients_of_both_weights(texts):
  rng = np.random.default_rng(0)
  x_tk, g_tn = (rng.normal(size=(96, n)).astype(np.float32) for n in (24, 40))
  sizes = jnp.asarray([texts, 96 - texts], jnp.int32)
  got = untied.gradients_on_tpu(x_tk, g_tn, sizes, jnp.float32, interpret=True)
  for own, part in zip(got, (slice(texts), slice(texts, None)), strict=True):
    # Up to 96 products of numbers about 1, in another order.
    np.testing.assert_allclose(own, x_tk[part].T @ g_tn[part], atol=1e-4)


@functools.cache
def gradients_of(config):
  """Gradients and losses of a batch, from the numbers a run starts with."""
  params = jax.jit(step_lib.init_state, static_argnums=0)(config, KEY).params
  batch = tiny.put(tiny.batch(config))
  gradients = jax.jit(step_lib.gradients, static_argnums=0)
  return gradients(config, params, batch, KEY)


OTHER = dict(
  model__qk_norm="layer",
  model__attention_bias=True,
  model__norms="after",
  model__dropout=0.2,
  model__remat="dots",
)


@pytest.mark.parametrize(
  ("which", "changes"),
  [
    pytest.param("mlp", {}, id="mlp"),
    pytest.param("mlp", OTHER, id="mlp-changed", marks=pytest.mark.long),
    pytest.param("all", {}, id="all", marks=pytest.mark.long),
    pytest.param("all", OTHER, id="all-changed"),
  ],
)
def test_at_the_start_it_is_the_tied_model_and_shares_out_its_gradient(which, changes):
  tied, own = (
    gradients_of(tiny.config(**changes, model__untied=u)) for u in ("none", which)
  )
  # In float32, summed tile by tile.
  np.testing.assert_allclose(own[1].text.total, tied[1].text.total, rtol=1e-6)
  np.testing.assert_allclose(own[1].images[0].total, tied[1].images[0].total, rtol=1e-6)
  found, twins = joined(own[0])
  assert twins == {"mlp": 1, "all": 5}[which]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, tied[0])


def joined(grads):
  """The gradients with those of a twin added to those of its text, and how many modules
  have a twin."""
  transformer = dict(grads["transformer"])
  blocks = dict(transformer["blocks"])
  image, count = blocks.pop("image"), 0
  for name, of_image in image.items():
    blocks[name], count = jax.tree.map(jnp.add, blocks[name], of_image), count + 1
  if "image_norm" in transformer:
    norm = transformer.pop("image_norm")
    transformer["norm"] = jax.tree.map(jnp.add, transformer["norm"], norm)
    count += 1
  return grads | {"transformer": transformer | {"blocks": blocks}}, count


@pytest.mark.long
def test_a_modality_gives_the_weights_of_the_other_no_gradient_where_they_do_not_meet():
  c = tiny.config(model__untied="all")
  batch = tiny.batch(c)
  params = tiny.params(c.model)

  def gradient(loss):
    def of(params):
      noise, t = step_lib.draw_noise(c, KEY, placed)
      found = step_lib.predict(c, params, placed, noise, t)
      return loss(params, found, placed)

    placed = tiny.put(batch)
    return jax.jit(jax.grad(of))(params)["transformer"]["blocks"]

  # Rows of text alone.
  rng = np.random.default_rng(0)
  batch = tiny.sequence.stack([tiny.pack([(tiny.text(rng, 9),)], c)] * 4)
  blocks = gradient(lambda p, f, b: step_lib.text_loss(c, p, f, b).total)
  assert all(not np.any(x) for x in jax.tree.leaves(blocks["image"]))
  assert all(np.any(x) for x in jax.tree.leaves(blocks["mlp"]))
  # Behind the last attention a position is its own: text's MLP there does not move what
  # is predicted of images.
  batch = tiny.batch(c)
  shown = lambda b: (b.slots[0].weights > 0)[:, :, None, None, None]  # noqa: E731
  blocks = gradient(lambda p, f, b: jnp.sum(jnp.where(shown(b), f.images[0], 0)))
  assert not np.any(blocks["mlp"]["w_up"][-1]) and np.any(blocks["mlp"]["w_up"][0])
  assert np.any(blocks["image"]["mlp"]["w_up"][-1])


def test_another_row_changes_nothing_in_a_model_that_sorts_all_rows_together():
  c = tiny.config(model__untied="all")
  params, batch = tiny.params(c.model), tiny.batch(c)

  @jax.jit
  def outputs(batch):
    noise, t = jnp.zeros((4, 3, 4, 4, 2)), jnp.zeros((4, 3), jnp.int32)
    return step_lib.predict(c, params, batch, (noise,), (t,)).x_bld

  other = batch._replace(
    tokens_bl=np.where(np.arange(4)[:, None] == 0, batch.tokens_bl, 7),
    patch_bl=np.where(np.arange(4)[:, None] == 0, batch.patch_bl, -1),
  )
  a, b = (np.asarray(outputs(tiny.put(x))) for x in (batch, other))
  live = batch.hi_bl[0] >= batch.lo_bl[0]
  # Its positions lie in other tiles.
  np.testing.assert_allclose(a[0][live], b[0][live], atol=1e-5)
  assert np.abs(a[1:] - b[1:]).max() > 0.1


def test_as_many_operations_as_tied_and_twice_the_weights():
  c = tiny.config()
  own = dataclasses.replace(c.model, untied="all")
  batch = tiny.batch(c)
  assert batch_flops(own, batch) == batch_flops(c.model, batch)
  blocks = tiny.params(own)["transformer"]["blocks"]
  twins = blocks.pop("image")
  assert jax.tree.map(jnp.shape, twins) == jax.tree.map(jnp.shape, blocks)
