"""Promises of tfusion/model/patches.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tfusion.model.patches import (
  LinearPatches,
  patchify,
  sinusoids,
  unpatchify,
  waves,
)

pytestmark = pytest.mark.usefixtures("mesh")


def make(**changes) -> LinearPatches:
  model = tiny.config(**changes).model
  return tiny.fill(lambda rngs: LinearPatches(model, model.every_kind[0], rngs=rngs))


def normal(*shape: int) -> jax.Array:
  return tiny.put(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def test_patches_follow_each_other_left_to_right_then_top_to_bottom():
  h, w, c = 4, 6, 2
  y, x, channel = np.meshgrid(range(h), range(w), range(c), indexing="ij")
  numbered = (100 * y + 10 * x + channel).astype(np.float32)
  patches = np.asarray(patchify(tiny.put(numbered[None, None]), patch=(2, 2)))[0, 0]
  assert patches.shape == (2 * 3, 2 * 2 * 2)
  assert patches[0].tolist() == [0, 1, 10, 11, 100, 101, 110, 111]
  assert patches[1].tolist() == [20, 21, 30, 31, 120, 121, 130, 131]
  assert patches[3].tolist() == [200, 201, 210, 211, 300, 301, 310, 311]


@pytest.mark.slow
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 16, 3)])
def test_unpatchify_undoes_patchify_exactly(patch, shape):
  x = np.arange(6 * np.prod(shape), dtype=np.float32).reshape(2, 3, *shape)
  patches = patchify(tiny.put(x), patch=(patch, patch))
  assert patches.shape == (
    *(2, 3, shape[0] // patch * (shape[1] // patch)),
    patch**2 * shape[2],
  )
  grid = shape[0] // patch, shape[1] // patch
  back = unpatchify(patches, patch=(patch, patch), grid=grid)
  np.testing.assert_array_equal(np.asarray(back), x)


@pytest.mark.slow
def test_sinusoids_turn_from_once_per_step_to_once_in_ten_thousand():
  t = np.asarray([[0, 1, 500, 1000]])
  got = np.asarray(sinusoids(tiny.put(t)), np.float64)
  assert got.shape == (1, 4, 256)
  frequency = 10_000.0 ** (-np.arange(128) / 128)
  angle = t[..., None] * frequency
  want = np.concatenate([np.cos(angle), np.sin(angle)], -1)
  # float32 holds an angle of 1000 to 6e-5.
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_waves_of_places_are_those_of_maes_code_one_by_one():
  rows, columns, width = 2, 3, 8
  got = waves((rows, columns), width)
  assert got.shape == (rows * columns, width) and got.dtype == np.float32
  for row in range(rows):
    for column in range(columns):
      want = []
      for place in (column, row):
        angles = [place / 10_000.0 ** (i / 2) for i in range(2)]
        want += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
      np.testing.assert_allclose(got[row * columns + column], want, atol=1e-7)


@pytest.mark.slow
def test_the_encoder_adds_one_time_vector_to_every_projected_patch_of_an_image():
  patches = make()
  x = normal(2, 3, 4, 4, 2)
  t = tiny.put(np.asarray([[0, 1, 999], [5, 5, 1000]]))
  encode = jax.jit(lambda x, t: patches.encode(x, t, dtype=jnp.float32)[0])
  got = np.asarray(encode(x, t))
  silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
  p = {k: np.asarray(v) for k, v in nnx.to_pure_dict(nnx.state(patches)).items()}
  hidden = silu(np.asarray(sinusoids(t)) @ p["w_time1"] + p["b_time1"])
  time = hidden @ p["w_time2"] + p["b_time2"]
  vectors = np.asarray(patchify(x, patch=(2, 2))) @ p["w_in"] + p["b_in"]
  # float32 sums of 256 terms.
  np.testing.assert_allclose(got, vectors + time[:, :, None], atol=2e-5)
  assert not np.allclose(time[0, 0], time[0, 1], atol=1e-3)  # t = 0 is not t = 1


def test_the_decoder_draws_every_patch_from_its_own_output_alone():
  patches = make()
  x = np.asarray(normal(1, 1, 4, 32))  # 4 patches of width 32
  other = x.copy()
  other[0, 0, 1] += 1
  decode = jax.jit(functools.partial(patches.decode, grid=(2, 2)))
  before, after = (np.asarray(decode(tiny.put(x))) for x in (x, other))
  moved = (before != after)[0, 0].all(-1)
  assert before.shape == (1, 1, 4, 4, 2)
  assert moved.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_the_decoder_answers_in_float32_whatever_the_matmuls_are():
  patches = make()
  x, t = normal(1, 1, 4, 4, 2), tiny.put(np.ones((1, 1), np.int32))
  encoded = jax.eval_shape(
    lambda x, t: patches.encode(x, t, dtype=jnp.bfloat16)[0], x, t
  )
  assert encoded.dtype == jnp.bfloat16 and encoded.shape == (1, 1, 4, 32)
  assert (
    jax.eval_shape(functools.partial(patches.decode, grid=(2, 2)), encoded).dtype
    == jnp.float32
  )
