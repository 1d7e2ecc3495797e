"""Attention over a row that is cut into shards on the devices of one mesh axis.

Owns: which shards of keys travel, and how results over them become one (a ring, as in
arXiv 2310.01889). Not: attention within two shards, which any implementation computes.

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
c distances: at distance r, shard s of the queries meets shard s - r of the keys

Nothing else is known here of a mask than its intervals: seen from a shard of keys they
are lo and hi less the place of its first key. So a causal order of shards is neither
needed nor assumed: an image that straddles a cut looks ahead, to distance -1 = C - 1.

A distance at which no query of any shard sees a key is skipped, exchange and all. With
documents shorter than a shard that leaves 0, 1 and, for straddling images, C - 1,
whatever the length of the row. Shards go straight to where they are needed, so a
skipped distance costs later ones nothing. What a device holds beside its own shards is
one shard of keys and values that visits it; the backward pass fetches them again.

An exchange waits for the attention before it: both are in one loop over distances, so
that the kernel is compiled once for all of them.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tfusion.attention import intervals
from tfusion.attention.dense import DEAD_LSE


class Distances(NamedTuple):
  """What a device knows of its shard of a row; the same executable for every mask."""

  order_1c: jax.Array  # i32, the distances that anyone needs, then the others
  needed_1: jax.Array  # i32, how many are needed
  live: Any  # of the implementation; two axes in front, 1 and the distances


@dataclasses.dataclass(frozen=True)
class Ring:
  """The functions of an implementation, for shards over a mesh axis.

  They run inside shard_map, with the shards of q, k, v, lo and hi that lie on a device;
  lo and hi count along the whole row.
  """

  inner: ModuleType
  axis: str

  def find_live(self, lo_bq, hi_bq, sizes: intervals.Sizes, blocks) -> Distances:
    """Returns what is live at every distance; see `tfusion.attention.gradient`."""
    count = lax.axis_size(self.axis)

    def one(distance):
      origin = self._origin(distance, sizes.keys)
      seen = intervals.alive(lo_bq - origin, hi_bq - origin, keys=sizes.keys)
      live = self.inner.find_live(lo_bq - origin, hi_bq - origin, sizes, blocks)
      return jnp.any(seen), live

    seen_c, live = lax.map(one, jnp.arange(count))
    # An exchange is one operation of all devices, those of other rows of the batch too:
    # all must agree on it. One that takes part alone waits for the others forever.
    everywhere = jax.sharding.get_abstract_mesh().manual_axes
    seen_c = lax.pmax(seen_c.astype(jnp.int32), everywhere)
    return Distances(
      jnp.argsort(-seen_c, stable=True).astype(jnp.int32)[None],
      jnp.sum(seen_c, keepdims=True),
      jax.tree.map(lambda x: x[None], live),
    )

  def forward(
    self, q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, distances: Distances, **options
  ):
    """Returns (o_bqhd in q's dtype, lse_bhq f32) over the keys of all shards."""

    def visit(i, state):
      distance = distances.order_1c[0, i]
      kv_bknd = self._fetch((k_bknd, v_bknd), distance)
      args = self._seen(lo_bq, hi_bq, k_bknd.shape[1], distances, distance)
      return _merge(*state, *self.inner.forward(q_bqhd, *kv_bknd, *args, **options))

    b, q, h, _ = q_bqhd.shape
    nothing = (
      jnp.zeros(q_bqhd.shape, jnp.float32),
      jnp.full((b, h, q), DEAD_LSE, jnp.float32),
    )
    o_bqhd, lse_bhq = lax.fori_loop(0, distances.needed_1[0], visit, nothing)
    return o_bqhd.astype(q_bqhd.dtype), lse_bhq

  def backward(
    self,
    q_bqhd,
    k_bknd,
    v_bknd,
    lo_bq,
    hi_bq,
    distances: Distances,
    *of_queries,
    **options,
  ):
    """Returns (dq_bqhd, dk_bknd, dv_bknd) from lse, delta and do, all of whole rows."""
    backward = getattr(self.inner, "backward", functools.partial(_pull, self.inner))

    def visit(i, grads):
      distance = distances.order_1c[0, i]
      kv_bknd = self._fetch((k_bknd, v_bknd), distance)
      args = self._seen(lo_bq, hi_bq, k_bknd.shape[1], distances, distance)
      dq_bqhd, *dkv_bknd = backward(q_bqhd, *kv_bknd, *args, *of_queries, **options)
      # The way back is the rest of the way around.
      dkv_bknd = self._fetch(dkv_bknd, -distance % lax.axis_size(self.axis))
      return [total + x for total, x in zip(grads, (dq_bqhd, *dkv_bknd))]

    operands = (q_bqhd, k_bknd, v_bknd)
    nothing = [jnp.zeros(x.shape, jnp.float32) for x in operands]
    grads = lax.fori_loop(0, distances.needed_1[0], visit, nothing)
    return tuple(x.astype(of.dtype) for x, of in zip(grads, operands))

  def _origin(self, distance, keys: int):
    """Where in the row the shard of keys starts that this device meets."""
    shard = (lax.axis_index(self.axis) - distance) % lax.axis_size(self.axis)
    return (shard * keys).astype(jnp.int32)

  def _seen(self, lo_bq, hi_bq, keys: int, distances: Distances, distance):
    """Returns lo, hi and live as the implementation takes them."""
    origin = self._origin(distance, keys)
    pick = lambda x: lax.dynamic_index_in_dim(x[0], distance, keepdims=False)  # noqa: E731
    return lo_bq - origin, hi_bq - origin, jax.tree.map(pick, distances.live)

  def _fetch(self, arrays, distance):
    """Returns the arrays of the device at this distance before this one."""
    count = lax.axis_size(self.axis)

    def step(by, arrays):
      to = [(i, (i + by) % count) for i in range(count)]
      return [lax.ppermute(x, self.axis, to) for x in arrays] if by else arrays

    steps = [functools.partial(step, by) for by in range(count)]
    return lax.switch(distance, steps, list(arrays))


def _merge(o_bqhd, lse_bhq, new_bqhd, new_bhq):
  """Joins results over two sets of keys; o is f32, a query may have seen none."""
  top_bhq = jnp.maximum(lse_bhq, new_bhq)
  sum_bhq = jnp.exp(lse_bhq - top_bhq) + jnp.exp(new_bhq - top_bhq)
  # DEAD_LSE is so large that the log is lost in it: what has seen nothing keeps it.
  both_bhq = top_bhq + jnp.log(sum_bhq)
  share = lambda x_bhq: jnp.exp(x_bhq - both_bhq).swapaxes(1, 2)[..., None]  # noqa: E731
  return o_bqhd * share(lse_bhq) + new_bqhd * share(new_bhq), both_bhq


def _pull(inner, q, k, v, lo, hi, live, lse_bhq, delta_bhq, do_bqhd, **options):
  """The backward pass of an implementation that leaves its own to JAX.

  With shares w = exp(lse of these keys - lse of all), o is the sum of w o of the parts.
  """
  run = lambda q, k, v: inner.forward(q, k, v, lo, hi, live, **options)  # noqa: E731
  (part_bqhd, part_bhq), pull = jax.vjp(run, q, k, v)
  share_bhq = jnp.exp(part_bhq - lse_bhq)
  dot_bqh = jnp.sum(do_bqhd.astype(jnp.float32) * part_bqhd.astype(jnp.float32), -1)
  dlse_bhq = share_bhq * (dot_bqh.swapaxes(1, 2) - delta_bhq)
  do = do_bqhd * share_bhq.swapaxes(1, 2)[..., None]
  return pull((do.astype(do_bqhd.dtype), dlse_bhq))
