"""Parameters and the matmuls with them.

Owns: how a weight is made, gathered, multiplied and given its gradient. Not: what is
multiplied (layers.py, patches.py), which axes lie on which devices (sharding.py).

b batch  l positions  d width

Parameters are float32; a matmul is in the dtype of its inputs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tfusion.attention import platform
from tfusion.sharding import fsdp_shards, gather, scatter, unreduced

ROWS = 8  # that a CPU multiplies one by one, at most


def param(rngs: nnx.Rngs, names: tuple[str | None, ...], shape, *, std: float):
  """Makes a float32 parameter ~ N(0, std^2), or ones for std = 0, with axis names."""
  if std == 0.0:
    return nnx.Param(jnp.ones(shape, jnp.float32), names=names)
  value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param(value, names=names)


def zeros(names: tuple[str | None, ...], shape) -> nnx.Param:
  """Makes a float32 parameter of zeros, with axis names."""
  return nnx.Param(jnp.zeros(shape, jnp.float32), names=names)


def outputs_of(x_bl: jax.Array) -> jax.P:
  """The spec of outputs [b, l, d] for inputs [b, l, ...]: they stay where these are."""
  return jax.P(*jax.typeof(x_bl).sharding.spec[:2], None)


class Product(NamedTuple):
  """How inputs and a weight are multiplied; hashable."""

  names: tuple[str | None, ...]  # axes of the weight, as RULES of sharding.py has them
  gradient: str  # dtype in which the gradient of the weight is made and crosses devices
  inputs: int = 1  # axes contracted: the last of the inputs, the first of the weight
  out_sharding: jax.P | None = None
  out_dtype: str | None = None  # None: that of the inputs


def linear(x: jax.Array, weight: nnx.Param, gradient: str, **how) -> jax.Array:
  """Multiplies inputs by a weight in the dtype of the inputs.

  Args:
    x: [b, l, ...inputs].
    weight: float32 [...inputs, ...outputs], maybe sharded over fsdp. Its names may have
      lost their leading layers axis to the scan.
    gradient: dtype of the weight's gradient, `ModelConfig.gradient_dtype`.
    **how: fields of Product.

  Returns:
    [b, l, ...outputs].
  """
  return multiply(x, weight[...], Product(names_of(weight), gradient, **how))


def names_of(weight: nnx.Param) -> tuple[str | None, ...]:
  """The names of a parameter's axes, less a leading `layers` that the scan took."""
  names = weight.get_metadata("names")
  return tuple(names[len(names) - weight[...].ndim :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(x: jax.Array, w: jax.Array, how: Product) -> jax.Array:
  """What `linear` does, with the weight as an array.

  The gradient of w is x^T g as written, and leaves the matmul in how.gradient: its sums
  over devices are in that dtype too. JAX would ask for g^T x, for which XLA's CPU
  backend transposes g, fused with all the elementwise work that made it, and would
  round to the dtype of x first.
  """
  if x.ndim - how.inputs == 2 and is_row_by_row(*x.shape[:2]):
    rows = [_contract(x[row : row + 1], w, how) for row in range(x.shape[0])]
    return jnp.concatenate(rows)
  return _contract(x, w, how)


def is_row_by_row(rows: int, positions: int) -> bool:
  """Whether every row is multiplied by itself: where text is sampled, a position of
  each, on a CPU. XLA reads a weight at once for one row, and copies it first for more,
  which pays from about eight on. And it adds up in the same order for any number."""
  alone = jax.sharding.get_abstract_mesh().size <= 1
  return positions == 1 and rows <= ROWS and alone and platform() == "cpu"


def _contract(x, w, how: Product):
  last = tuple(range(x.ndim - how.inputs, x.ndim))
  gathered, inputs, _ = gathered_weight(w, x.dtype, how)
  return jax.lax.dot_general(
    x,
    gathered,
    ((last, inputs), ((), ())),
    preferred_element_type=how.out_dtype,
    out_sharding=how.out_sharding,
  )


def gathered_weight(
  w: jax.Array, dtype, how: Product
) -> tuple[jax.Array, tuple[int, ...], tuple[int, ...]]:
  """The weight, cast and then gathered over fsdp: half the bytes cross devices.

  Also returns which of its axes are inputs and which are outputs: the axis that was cut
  is brought to the front, where a shard is whole rows of the memory.
  """
  names, inputs = how.names, tuple(range(how.inputs))
  outputs = tuple(range(how.inputs, w.ndim))
  w = w.astype(dtype)
  if _is_last_cut(how):
    w, names = jnp.moveaxis(w, -1, 0), (names[-1], *names[:-1])
    inputs, outputs = tuple(n + 1 for n in inputs), (0,)
  return gather(w, names), inputs, outputs


def _is_last_cut(how: Product) -> bool:
  """Whether fsdp cuts the one output of a weight."""
  return fsdp_shards() > 1 and how.names[-1] == "embed" and how.inputs > 0


def _multiply_forward(x, w, how: Product):
  # Not multiply(): a remat policy that keeps matmuls must find one here.
  return _contract(x, w, how), (x, w)


def _multiply_backward(how: Product, saved, g):
  x, w = saved
  g = g.astype(x.dtype)
  gathered, _, outputs = gathered_weight(w, x.dtype, how)
  last = tuple(range(g.ndim - len(outputs), g.ndim))
  dx = jax.lax.dot_general(
    g,
    gathered,
    ((last, outputs), ((), ())),
    out_sharding=jax.typeof(x).sharding,
  )
  dw = _weight_gradient(x, g, jax.typeof(w).sharding, how)
  return dx, dw.astype(w.dtype)


def _weight_gradient(x, g, sharding, how: Product):
  """x^T g, summed over all devices that hold rows."""
  rows = tuple(range(x.ndim - how.inputs))
  dtype = jnp.promote_types(x.dtype, how.gradient)
  if fsdp_shards() == 1:
    return jax.lax.dot_general(
      x,
      g,
      ((rows, rows), ((), ())),
      preferred_element_type=dtype,
      out_sharding=sharding,
    )
  names, pair = how.names, (x, g)
  if _is_last_cut(how):
    names, pair = (names[-1], *names[:-1]), (g, x)
  own = unreduced(names, over=jax.typeof(x).sharding.spec[: len(rows)])
  dw = jax.lax.dot_general(
    *pair, ((rows, rows), ((), ())), preferred_element_type=dtype, out_sharding=own
  )
  dw = scatter(dw, names)
  return jnp.moveaxis(dw, 0, -1) if _is_last_cut(how) else dw


multiply.defvjp(_multiply_forward, _multiply_backward)
