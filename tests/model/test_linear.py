"""Promises of tfusion/model/linear.py, against einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.model.linear import ROWS, Product, multiply
from tfusion.sharding import spec

pytestmark = pytest.mark.usefixtures("mesh")


@pytest.mark.parametrize(
  "letters, inputs, x_shape, w_shape",
  [
    ("bld,df->blf", 1, (2, 3, 4), (4, 5)),
    ("bld,dhk->blhk", 1, (2, 3, 4), (4, 2, 3)),
    ("blhk,hkd->bld", 2, (2, 3, 2, 4), (2, 4, 5)),
    ("bnmd,dp->bnmp", 1, (2, 1, 3, 4), (4, 5)),
  ],
)
def test_linear_is_the_einsum_and_has_its_gradients(letters, inputs, x_shape, w_shape):
  rng = np.random.default_rng(0)
  x, w = (rng.normal(size=s).astype(np.float32) for s in (x_shape, w_shape))
  x, out = tiny.put(x), spec("batch", *[None] * (len(letters.split(">")[1]) - 1))

  def both(x, w):
    how = Product((None,) * w.ndim, "float32", inputs=inputs, out_sharding=out)
    ours = lambda x, w: multiply(x, w, how)  # noqa: E731
    einsum = lambda x, w: jnp.einsum(letters, x, w, out_sharding=out)  # noqa: E731
    results = []
    for function in (ours, einsum):
      y, pull = jax.vjp(function, x, w)
      results.append((y, *pull(jnp.sin(y))))
    return results

  got, want = jax.jit(both)(x, jnp.asarray(w))
  for a, b in zip(got, want, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("gradient", ["float32", "bfloat16"])
def test_the_gradient_of_a_weight_leaves_the_matmul_in_the_dtype_that_is_asked(
  gradient,
):
  rng = np.random.default_rng(0)
  x, g = (rng.normal(size=(1, 300, n)).astype(jnp.bfloat16) for n in (4, 5))
  w, how = np.ones((4, 5), np.float32), Product((None, None), gradient)
  pull = jax.jit(lambda x, w, g: jax.vjp(lambda w: multiply(x, w, how), w)[1](g)[0])
  got = np.asarray(pull(tiny.put(x), jnp.asarray(w), tiny.put(g)))
  want = np.einsum("blx,bly->xy", x.astype(np.float64), g.astype(np.float64))
  assert got.dtype == np.float32
  # Products of bfloat16 are exact in float32; their sum of 300 terms is not.
  np.testing.assert_allclose(
    got,
    want,
    **(dict(rtol=1e-5, atol=1e-5) if gradient == "float32" else dict(rtol=2**-8)),
  )
  rounded = got.astype(jnp.bfloat16).astype(np.float32)
  assert np.array_equal(got, rounded) == (gradient == "bfloat16")


@pytest.mark.parametrize("width", [12, 256])
def test_a_position_of_each_row_is_multiplied_the_same_beside_any_number(width):
  """As text is sampled: to the last bit, for up to as many rows as go one by one."""
  rng = np.random.default_rng(0)
  w = jnp.asarray(rng.normal(size=(width, 2, width)).astype(np.float32))
  x = rng.normal(size=(ROWS + 1, 1, width)).astype(np.float32)
  how = Product((None,) * 3, "float32", out_sharding=spec("batch", None, None, None))
  product = jax.jit(lambda x: multiply(x, w, how))
  alone = [np.asarray(product(tiny.put(x[row : row + 1]))) for row in range(len(x))]
  for rows in (2, 5, ROWS):
    beside = np.asarray(product(tiny.put(x[:rows])))
    np.testing.assert_array_equal(beside, np.concatenate(alone[:rows]))
  want = np.einsum("bld,dhk->blhk", x.astype(np.float64), np.asarray(w, np.float64))
  # Sums of up to 256 products in float32, of a row or of all, against float64.
  np.testing.assert_allclose(product(tiny.put(x)), want, atol=1e-4)
  np.testing.assert_allclose(np.concatenate(alone), want, atol=1e-4)
