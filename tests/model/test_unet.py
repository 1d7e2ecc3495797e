"""Promises of tfusion/model/unet.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tfusion.model.unet import Convolution, UNetPatches

pytestmark = pytest.mark.usefixtures("mesh")

SMALL = dict(model__patches="unet", model__unet_widths=(8, 16))


def make(**changes) -> UNetPatches:
  model = tiny.config(**(SMALL | changes)).model
  return tiny.fill(lambda rngs: UNetPatches(model, model.every_kind[0], rngs=rngs))


def normal(*shape: int, seed: int = 0) -> jax.Array:
  values = np.random.default_rng(seed).normal(size=shape)
  return tiny.put(values.astype(np.float32))


@functools.partial(jax.jit, static_argnames="dtype")
def encode(patches, x, t, *, dtype=jnp.float32):
  return patches.encode(x, t, dtype=dtype)


@jax.jit
def decode(patches, middle, skips):
  return patches.decode(middle, skips, grid=skips[-1].shape[2:4])


def there_and_back(patches, x, t):
  middle, skips = encode(patches, x, t)
  return middle, decode(patches, middle, skips)


def times(*values: int) -> jax.Array:
  return tiny.put(np.asarray([values], np.int32))


@pytest.mark.slow
@pytest.mark.parametrize(
  "size, patch", [("0.16b", 2), ("7b", 2), ("0.16b", 8), ("7b", 4)]
)
def test_at_full_width_it_has_0_26_to_0_28_billion_parameters(size, patch):
  model = tiny.paper(f"size={size},patch={patch}").model
  model = dataclasses.replace(model, patches="unet")
  shapes = nnx.eval_shape(
    lambda: UNetPatches(model, model.every_kind[0], rngs=nnx.Rngs(params=0))
  )
  count = sum(x.size for x in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
  assert 0.259e9 < count < 0.28e9


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_that_of_the_library(stride):
  made = tiny.fill(
    lambda rngs: Convolution(3, 5, stride=stride, rngs=rngs, how="float32")
  )
  x = normal(2, 3, 6, 4, 3)
  kernel = made.dense.w[...].reshape(3, 3, 3, 5)
  want = jax.lax.conv_general_dilated(
    np.asarray(x).reshape(6, 6, 4, 3),
    np.asarray(kernel),
    (stride, stride),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  got = np.asarray(made(x)).reshape(want.shape)
  np.testing.assert_allclose(got, want + np.asarray(made.dense.b[...]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  "patch, widths, shape", [(2, (8, 16), (4, 6, 2)), (4, (8, 16, 16), (8, 8, 1))]
)
def test_there_is_a_vector_for_every_patch_and_the_way_back_has_the_shape_of_the_image(
  patch, widths, shape
):
  patches = make(
    model__patch=patch,
    model__unet_widths=widths,
    model__image_shape=shape,
    data__row_length=64,
  )
  x = normal(1, 2, *shape)
  middle, out = there_and_back(patches, x, times(3, 700))
  cells = shape[0] // patch * (shape[1] // patch)
  assert middle.shape == (1, 2, cells, 32) and out.shape == x.shape
  assert np.all(np.isfinite(out))


@pytest.mark.slow
def test_vectors_stand_in_the_order_of_patches():
  patches, x = make(), np.asarray(normal(1, 2, 4, 4, 2))
  moved = x.copy()
  moved[0, 0, :2, 2:] += 0.001  # the second patch of the first row
  before, _ = encode(patches, tiny.put(x), times(5, 9))
  after, _ = encode(patches, tiny.put(moved), times(5, 9))
  change = np.linalg.norm(np.asarray(after - before)[0, 0], axis=-1)
  assert np.argmax(change) == 1


@pytest.mark.slow
def test_the_timestep_acts_on_both_halves():
  patches, x = make(), normal(1, 2, 4, 4, 2)
  early, skips_early = encode(patches, x, times(1, 7))
  late, skips_late = encode(patches, x, times(999, 500))
  assert np.max(np.abs(early - late)) > 1e-3
  # The way up, with the way down of the same image and another time vector.
  other = (skips_late[0], *skips_early[1:])
  same, changed = decode(patches, early, skips_early), decode(patches, early, other)
  assert np.max(np.abs(same - changed)) > 1e-3


@pytest.mark.slow
def test_skips_go_around_the_transformer():
  patches, x = make(), normal(1, 2, 4, 4, 2)
  middle, skips = encode(patches, x, times(10, 20))
  for number in range(1, len(skips)):
    less = (*skips[:number], jnp.zeros_like(skips[number]), *skips[number + 1 :])
    change = decode(patches, middle, less) - decode(patches, middle, skips)
    assert np.max(np.abs(change)) > 1e-4, number


def test_an_image_does_not_see_the_others():
  patches = make()
  x = np.asarray(normal(1, 2, 4, 4, 2))
  alone = there_and_back(patches, tiny.put(x), times(1, 2))[1]
  other = x.copy()
  other[0, 1] += 1.0
  beside = there_and_back(patches, tiny.put(other), times(1, 2))[1]
  change = np.max(np.abs(np.asarray(beside - alone)), axis=(2, 3, 4))
  assert change[0, 1] > 0
  change[0, 1] = 0
  np.testing.assert_array_equal(change, 0)


@pytest.mark.long
@pytest.mark.slow
def test_untrained_it_predicts_nothing_and_every_parameter_can_learn():
  model = tiny.config(**SMALL).model
  fresh = UNetPatches(
    model, model.every_kind[0], rngs=nnx.Rngs(params=jax.random.key(0))
  )
  x = normal(1, 2, 4, 4, 2)
  assert not np.any(there_and_back(fresh, x, times(5, 9))[1])
  graphdef, state = nnx.split(make())
  t = times(5, 9)

  @jax.jit
  @jax.grad
  def slope(state):
    out = there_and_back(nnx.merge(graphdef, state), x, t)[1]
    return jnp.sum(jnp.square(out))

  for path, leaf in jax.tree_util.tree_leaves_with_path(slope(state)):
    assert np.max(np.abs(leaf)) > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_the_channels_of_the_image_come_out_in_float32():
  patches = make()
  _, skips = encode(patches, normal(1, 2, 4, 4, 2), times(5, 9), dtype=jnp.bfloat16)
  assert all(x.dtype == jnp.bfloat16 for x in skips)
  cells = functools.reduce(int.__mul__, skips[-1].shape[2:4])
  middle = tiny.put(np.zeros((1, 2, cells, 32), jnp.bfloat16))
  assert decode(patches, middle, skips).dtype == jnp.float32
