"""Next-token cross entropy of a batch too large for its logits to exist all at once.

Owns: the loop over chunks of positions, its gradient, and from which size on it runs.
Not: the loss of logits that are there (losses.py).

b batch  l sequence  n positions of a device  c positions of a chunk  d width
v vocab; inside shard_map, the part of it that the device holds

A model of the paper with 32,256 tokens and 8 rows of 4,096 positions has logits of 4.2
GB in float32, and as many numbers again in their gradient. Here they exist for a chunk
of positions at a time. The gradient is computed beside the loss, while the logits are
there, so that no matmul is done twice: the loss is a weighted sum, so a later factor
only scales its gradients. Positions without a weight, all patches among them, are left
out: in the paper's mix that is half of the rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from tfusion.model.linear import Product, multiply
from tfusion.sharding import axes_of, gather, scatter_here
from tfusion.training.losses import Sum, text_loss

NAMES = ("embed", "vocab")  # axes of the head, as RULES of sharding.py has them
# Logits of a device that may exist at once, 256 MB in float32. With 32,256 tokens that
# is 2,048 positions: enough that reading and writing the gradient of the head, once for
# each chunk, takes less time than the matmuls.
LOGITS = 1 << 26


def next_token_loss(
  x_bld: jax.Array,
  head_dv: jax.Array,
  targets_bl: jax.Array,
  *,
  weights_bl: jax.Array,
  gradient: str,
  z_loss: float = 0.0,
) -> Sum:
  """What `text_loss` says of the logits of x and the head.

  Args:
    x_bld: outputs of the transformer.
    head_dv: float32, sharded as its names say.
    targets_bl: i32, the next token.
    weights_bl: f32, of each position; those of weight 0 may hold anything.
    gradient: dtype in which the gradient of the head crosses devices. Over chunks it is
      summed in float32.
    z_loss: weight of log^2 Z of every softmax. Over chunks the part of it in the total,
      `Sum.z`, has no gradient of its own; the total has that of both.
  """
  sharding = jax.typeof(x_bld).sharding
  b, l, _ = sharding.shard_shape(x_bld.shape)
  _, v = jax.typeof(head_dv).sharding.shard_shape(head_dv.shape)
  if b * l * v <= LOGITS:
    how = Product(NAMES, gradient, out_dtype="float32")
    logits_blv = multiply(x_bld, head_dv, how)
    return text_loss(logits_blv, targets_bl, weights_bl=weights_bl, z_loss=z_loss)
  rows = P(*sharding.spec[:2])
  targets_bl, weights_bl = (
    jax.sharding.reshard(y, rows) for y in (targets_bl, weights_bl)
  )
  what = _How(gradient, z_loss)
  totals = _totals(x_bld, head_dv, targets_bl, weights_bl, what)
  return Sum(totals.all, jnp.sum(weights_bl), totals.z)


class _How(NamedTuple):
  """What is computed; hashable."""

  gradient: str
  z_loss: float


class _Totals(NamedTuple):
  """f32[] each."""

  all: jax.Array
  z: jax.Array | None  # the part of z_loss; None without


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _totals(x_bld, head_dv, targets_bl, weights_bl, how: _How) -> _Totals:
  """The sum of all, differentiable in x and the head."""
  return _on_devices(x_bld, head_dv, targets_bl, weights_bl, how, False)[0]


def _forward(x_bld, head_dv, targets_bl, weights_bl, how: _How):
  return _on_devices(x_bld, head_dv, targets_bl, weights_bl, how, True)


def _backward(how: _How, gradients, totals: _Totals):
  dx_bld, dw_dv = gradients
  g = totals.all
  return (g * dx_bld).astype(dx_bld.dtype), g * dw_dv, None, None


_totals.defvjp(_forward, _backward)


def _on_devices(x_bld, head_dv, targets_bl, weights_bl, how: _How, learns: bool):
  """(totals, (dx_bld, dw_dv) if it `learns`): each device takes the positions that it
  holds, with its part of the vocabulary."""
  x, head = jax.typeof(x_bld).sharding.spec, jax.typeof(head_dv).sharding.spec
  rows = P(*x[:2])
  gathered_dv = gather(head_dv.astype(x_bld.dtype), NAMES)

  def local(x_bld, w_dv, targets_bl, weights_bl):
    x_nd = x_bld.reshape(-1, x_bld.shape[2])
    of_rows = (x_nd, targets_bl.reshape(-1), weights_bl.reshape(-1))
    totals, gradients = _sweep(*of_rows, w_dv, how, learns, axes_of(rows))
    totals = jax.tree.map(lambda x: lax.psum(x, axes_of(rows)), totals)
    if gradients is None:
      return totals, None
    dx_nd, dw_dv = gradients
    dw_dv = dw_dv.astype(jnp.promote_types(x_bld.dtype, how.gradient))
    dw_dv = scatter_here(dw_dv, NAMES, over=rows).astype(jnp.float32)
    return totals, (lax.psum(dx_nd, "tensor").reshape(x_bld.shape), dw_dv)

  return jax.shard_map(
    local,
    in_specs=(x, jax.typeof(gathered_dv).sharding.spec, rows, rows),
    out_specs=(P(), (x, head) if learns else None),
    check_vma=False,
  )(x_bld, gathered_dv, targets_bl, weights_bl)


class _Gradients(NamedTuple):
  """Of the chunks so far."""

  dx_nd: jax.Array  # those with a weight first
  dw_dv: jax.Array  # f32


class _Chunk(NamedTuple):
  """Positions that have a weight, and at the end some that are to have none."""

  start: jax.Array  # i32[], among those with a weight
  x_cd: jax.Array
  targets_c: jax.Array
  weights_c1: jax.Array


def _sweep(
  x_nd,
  targets_n,
  weights_n,
  w_dv,
  how: _How,
  learns: bool,
  axes: tuple[str, ...],
) -> tuple[_Totals, _Gradients | None]:
  """Goes through the positions that have a weight, a chunk at a time.

  Runs inside shard_map: the vocabulary lies on the axis `tensor`, positions on `axes`.
  """
  n, d = x_nd.shape
  steps = -(-n * w_dv.shape[1] // LOGITS)
  c = -(-n // steps)
  live_n = weights_n > 0
  order_n = jnp.pad(jnp.argsort(~live_n, stable=True), (0, steps * c - n))
  count = jnp.sum(live_n)

  def take(i) -> _Chunk:
    at_c = lax.dynamic_slice(order_n, (i * c,), (c,))
    live_c1 = (i * c + jnp.arange(c) < count)[:, None]
    x_cd = jnp.where(live_c1, x_nd[at_c], 0)
    weights_c1 = jnp.where(live_c1, weights_n[at_c, None], 0.0)
    return _Chunk(i * c, x_cd, targets_n[at_c], weights_c1)

  # Devices among which the vocabulary is spread meet in every chunk: all go as far.
  needed = (lax.pmax(count, axes) + c - 1) // c
  zeros = None
  if learns:
    dx_nd = jnp.zeros((steps * c, d), x_nd.dtype)
    zeros = _Gradients(dx_nd, jnp.zeros(w_dv.shape, jnp.float32))
  none = _Totals(jnp.float32(0), jnp.float32(0) if how.z_loss else None)
  _, totals, gradients = lax.while_loop(
    # The first bound changes nothing, but is a constant, for tfusion compile to read.
    lambda state: (state[0] < steps) & (state[0] < needed),
    lambda state: (state[0] + 1, *_absorb(*state[1:], take(state[0]), w_dv, how)),
    (jnp.int32(0), none, zeros),
  )
  if gradients is not None:
    rank_n = jnp.maximum(jnp.cumsum(live_n) - 1, 0)
    dx_nd = jnp.where(live_n[:, None], gradients.dx_nd[rank_n], 0)
    gradients = gradients._replace(dx_nd=dx_nd)
  return totals, gradients


def _absorb(
  totals: _Totals, gradients: _Gradients | None, chunk: _Chunk, w_dv, how: _How
):
  """Adds a chunk to the totals and the gradients."""
  v = w_dv.shape[1]
  logits_cv = _dot(chunk.x_cd, w_dv, 1, 0)
  top_c1 = lax.pmax(jnp.max(logits_cv, axis=1, keepdims=True), "tensor")
  sum_c1 = jnp.sum(jnp.exp(logits_cv - top_c1), axis=1, keepdims=True)
  lse_c1 = top_c1 + jnp.log(lax.psum(sum_c1, "tensor"))
  vocab_v = lax.axis_index("tensor") * v + jnp.arange(v, dtype=jnp.int32)
  hit_cv = chunk.targets_c[:, None] == vocab_v[None]
  own_c1 = jnp.sum(jnp.where(hit_cv, logits_cv, 0.0), axis=1, keepdims=True)
  nats_c1 = lse_c1 - lax.psum(own_c1, "tensor")
  total, z = totals.all + jnp.sum(nats_c1 * chunk.weights_c1), totals.z
  if z is not None:
    added = jnp.sum(how.z_loss * jnp.square(lse_c1) * chunk.weights_c1)
    total, z = total + added, z + added
  totals = _Totals(total, z)
  if gradients is None:
    return totals, None
  p_cv = jnp.exp(logits_cv - lse_c1)
  if how.z_loss:  # d(log^2 Z) is 2 log Z times the probabilities
    p_cv = p_cv * (1 + 2 * how.z_loss * lse_c1)
  dlogits_cv = ((p_cv - hit_cv) * chunk.weights_c1).astype(w_dv.dtype)
  dx_cd = _dot(dlogits_cv, w_dv, 1, 1).astype(w_dv.dtype)
  dx_nd = lax.dynamic_update_slice(gradients.dx_nd, dx_cd, (chunk.start, 0))
  dw_dv = gradients.dw_dv + _dot(chunk.x_cd, dlogits_cv, 0, 0)
  return totals, _Gradients(dx_nd, dw_dv)


def _dot(a, b, over_a: int, over_b: int) -> jax.Array:
  """A matmul whose sums are in float32."""
  how = (((over_a,), (over_b,)), ((), ()))
  return lax.dot_general(a, b, how, preferred_element_type=jnp.float32)
