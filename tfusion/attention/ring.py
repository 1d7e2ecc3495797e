"""Attention over a row that is cut into shards on the devices of one mesh axis.

Owns: which shards of keys travel, and how results over them become one (a ring, as in
arXiv 2310.01889). Not: attention within two shards, which any implementation computes.

b batch  q queries  k keys  h query heads  n key/value heads  d head dim
c distances: at distance r, shard s of the queries meets shard s - r of the keys

Nothing else is known here of a mask than its intervals: seen from a shard of keys they
are lo and hi less the place of its first key. So a causal order of shards is neither
needed nor assumed: an image that straddles a cut looks ahead, to distance -1 = C - 1.

Every shard meets its two neighbours, at distances 1 and -1. One that is farther is met
only where a document is so long that some query sees it: shards then travel on around
the ring, a device at a time, to distance 2, 3 and so on.

  forward    0 (sends k, v both ways), -1, 1 (sends them on to 2), 2, ... far
  backward   far (sends k, v back to far - 1), ... 2, 1 (sends dk, dv home), -1 (the
             same), 0

So that no exchange is waited for, the next keys travel while these are attended to, and
the backward pass takes the way back: it starts with what the forward pass met last, a
sum of dk and dv goes home with the keys it belongs to, and a device attends to its own
keys last, beside the last way home. Exchange and attention stand in one computation
for that, with no condition between them: a compiler overlaps nothing with a branch.
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

  far_1: jax.Array  # i32, the farthest distance to visit, from 1 to C - 2
  live: Any  # of the implementation; two axes in front, 1 and the distances


@dataclasses.dataclass(frozen=True)
class Ring:
  """The functions of an implementation, for shards over a mesh axis.

  They run inside shard_map, with the shards of q, k, v, lo and hi that lie on a device;
  lo and hi count along the whole row.
  """

  inner: ModuleType
  axis: str
  devices: int  # of the axis, 2 at least

  @property
  def kept(self) -> int:
    """Arrays like k that `forward` gives to `backward`: keys and values of the shard
    ahead and, where another is behind, of the one at distance far."""
    return 2 if self.devices == 2 else 4

  def find_live(self, lo_bq, hi_bq, sizes: intervals.Sizes, blocks) -> Distances:
    """Returns what is live at every distance; see `tfusion.attention.gradient`."""

    def one(distance):
      origin = self._origin(distance, sizes.keys)
      seen = intervals.alive(lo_bq - origin, hi_bq - origin, keys=sizes.keys)
      live = self.inner.find_live(lo_bq - origin, hi_bq - origin, sizes, blocks)
      return jnp.any(seen), live

    distance_c = jnp.arange(self.devices)
    seen_c, live = lax.map(one, distance_c)
    seen_c &= distance_c < self.devices - 1  # that one is ahead
    # An exchange is one operation of all devices, those of other rows of the batch too:
    # all must agree on it. One that takes part alone waits for the others forever.
    everywhere = jax.sharding.get_abstract_mesh().manual_axes
    far = lax.pmax(jnp.max(jnp.where(seen_c, distance_c, 1)), everywhere)
    return Distances(far.astype(jnp.int32)[None], jax.tree.map(lambda x: x[None], live))

  def forward(
    self, q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, distances: Distances, **options
  ):
    """Returns (o_bqhd in q's dtype, lse_bhq f32) over the keys of all shards, and what
    `backward` is to be given of other shards."""

    def meet(state, kv_bknd, distance):
      args = self._seen(lo_bq, hi_bq, k_bknd.shape[1], distances, distance)
      return _merge(*state, *self.inner.forward(q_bqhd, *kv_bknd, *args, **options))

    def visit(i, carry):
      kv_bknd, state = carry
      return self._pass(kv_bknd, 1), meet(state, kv_bknd, i + 1)

    b, q, h, _ = q_bqhd.shape
    nothing = (
      jnp.zeros(q_bqhd.shape, jnp.float32),
      jnp.full((b, h, q), DEAD_LSE, jnp.float32),
    )
    own = (k_bknd, v_bknd)
    ahead = kept = self._pass(own, -1)
    state = meet(nothing, own, 0)
    if self.devices > 2:
      behind = self._pass(own, 1)
    state = meet(state, ahead, self.devices - 1)
    if self.devices > 2:
      far = distances.far_1[0]
      if self.devices > 3:
        behind, state = lax.fori_loop(0, far - 1, visit, (behind, state))
      state = meet(state, behind, far)
      kept = (*ahead, *behind)
    o_bqhd, lse_bhq = state
    return o_bqhd.astype(q_bqhd.dtype), lse_bhq, *kept

  def backward(
    self,
    q_bqhd,
    k_bknd,
    v_bknd,
    lo_bq,
    hi_bq,
    distances: Distances,
    lse_bhq,
    delta_bhq,
    do_bqhd,
    *kept,
    **options,
  ):
    """Returns (dq_bqhd, dk_bknd, dv_bknd) from lse, delta and do, all of whole rows,
    and what `forward` has kept."""
    pulled = functools.partial(_pull, self.inner)
    backward: Any = getattr(self.inner, "backward", pulled)

    def meet(dq_bqhd, kv_bknd, distance):
      args = self._seen(lo_bq, hi_bq, k_bknd.shape[1], distances, distance)
      of_queries = lse_bhq, delta_bhq, do_bqhd
      part_bqhd, *dkv_bknd = backward(q_bqhd, *kv_bknd, *args, *of_queries, **options)
      return dq_bqhd + part_bqhd, dkv_bknd

    dq_bqhd, others = jnp.zeros(q_bqhd.shape, jnp.float32), {}
    if self.devices > 2:
      dq_bqhd, others[-1] = self._come_back(meet, dq_bqhd, kept[2:], distances)
    dq_bqhd, others[1] = meet(dq_bqhd, kept[:2], self.devices - 1)
    own, others = lax.optimization_barrier(((k_bknd, v_bknd), others))
    home = [self._pass(dkv_bknd, hops) for hops, dkv_bknd in others.items()]
    dq_bqhd, own = meet(dq_bqhd, own, 0)
    dk_bknd, dv_bknd = (
      sum(x.astype(jnp.float32) for x in parts) for parts in zip(*home, own)
    )
    return (
      dq_bqhd.astype(q_bqhd.dtype),
      dk_bknd.astype(k_bknd.dtype),
      dv_bknd.astype(v_bknd.dtype),
    )

  def _come_back(self, meet, dq_bqhd, kv_bknd, distances: Distances):
    """Meets the shards at distances far, far - 1, ... 1, of which the first is given.

    Returns dq with theirs, and dk and dv of the shard at distance 1.
    """
    if self.devices == 3:
      return meet(dq_bqhd, kv_bknd, 1)
    far = distances.far_1[0]

    def first(dq_bqhd, kv_bknd, _, distance):
      dq_bqhd, dkv_bknd = meet(dq_bqhd, kv_bknd, distance)
      return dq_bqhd, [x.astype(jnp.float32) for x in dkv_bknd]

    def later(dq_bqhd, kv_bknd, sums_bknd, distance):
      sums_bknd = self._pass(sums_bknd, -1)
      dq_bqhd, dkv_bknd = meet(dq_bqhd, kv_bknd, distance)
      return dq_bqhd, [s + x for s, x in zip(sums_bknd, dkv_bknd)]

    def visit(i, carry):
      def beside(function):
        def branch(dq_bqhd, kv_bknd, sums_bknd):
          next_bknd = self._pass(kv_bknd, -1)
          dq_bqhd, sums_bknd = function(dq_bqhd, kv_bknd, sums_bknd, far - i)
          return dq_bqhd, next_bknd, sums_bknd

        return branch

      return lax.cond(i > 0, beside(later), beside(first), *carry)

    nothing = [jnp.zeros(x.shape, jnp.float32) for x in kv_bknd]
    carry = lax.fori_loop(0, far - 1, visit, (dq_bqhd, list(kv_bknd), nothing))
    return lax.cond(far > 1, later, first, *carry, 1)

  def _origin(self, distance, keys: int):
    """Where in the row the shard of keys starts that this device meets."""
    shard = (lax.axis_index(self.axis) - distance) % self.devices
    return (shard * keys).astype(jnp.int32)

  def _seen(self, lo_bq, hi_bq, keys: int, distances: Distances, distance):
    """Returns lo, hi and live as the implementation takes them."""
    origin = self._origin(distance, keys)
    pick = lambda x: lax.dynamic_index_in_dim(x[0], distance, keepdims=False)  # noqa: E731
    return lo_bq - origin, hi_bq - origin, jax.tree.map(pick, distances.live)

  def _pass(self, arrays, hops: int):
    """Returns the arrays of the device so many before this one."""
    to = [(i, (i + hops) % self.devices) for i in range(self.devices)]
    return [lax.ppermute(x, self.axis, to) for x in arrays]


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
