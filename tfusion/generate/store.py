"""What is kept of every row between programs: its keys and values, its last logits.

Owns: which rows a program works on, how they are taken out of the store and put back.
Not: what is computed (feeding.py, writing.py, drawing.py, coding.py).

A program works on a copy of the rows that need it, as long as those need it, and puts
back the positions that are new. So no row takes part in what another one does.

r rows of the store  b rows of a program  n layers  g kv heads  s cache positions
k head dim  v vocab
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from tfusion.config import ModelConfig
from tfusion.generate.blocks import round_rows
from tfusion.model.layers import Cache
from tfusion.model.transformer import empty_cache
from tfusion.model.transfusion import dtype_of
from tfusion.sharding import batch_shards, put_rows, spec


class Store(NamedTuple):
  """Of every row."""

  cache: Cache  # of its elements so far
  logits_rv: jax.Array  # f32, after its last element


class Party(NamedTuple):
  """The rows that a program computes, each on the device where the store has it.

  Every device has as many places; those that are left over do not write anything.
  """

  places: tuple[int | None, ...]  # of every row of the program, that of the store
  index_b: jax.Array  # i32, of the store's rows on that device
  live_d: jax.Array  # i32, places of every device that are taken, the first ones

  def array(self, values: Sequence[Any] | np.ndarray, fill: Any) -> jax.Array:
    """Of every row of the program what belongs to its row of the store."""
    own = [fill if place is None else values[place] for place in self.places]
    return put_rows(np.asarray(own, np.asarray(fill).dtype))


def parties(
  rows: Sequence[int], *, of: int, least: int = 1, most: int = 1
) -> list[Party]:
  """Spreads rows of the store over as few programs as hold them.

  Args:
    rows: that want the same.
    of: all rows of the store.
    least: rows of a program on a device, at least; places may be left over.
    most: and at most.
  """
  shards = batch_shards()
  each = of // shards
  by_shard = [[row for row in rows if row // each == d] for d in range(shards)]
  found = []
  while any(by_shard):
    part = [own[:most] for own in by_shard]
    by_shard = [own[most:] for own in by_shard]
    size = round_rows(max(map(len, part)), least=least)
    places = [row for own in part for row in [*own, *[None] * (size - len(own))]]
    index = [0 if row is None else row % each for row in places]
    live = put_rows(np.asarray([len(own) for own in part], np.int32))
    found.append(Party(tuple(places), put_rows(np.asarray(index, np.int32)), live))
  return found


@functools.partial(jax.jit, static_argnames=("config", "rows", "length", "apart"))
def empty_store(
  config: ModelConfig, *, rows: int, length: int, apart: bool = False
) -> Store:
  """A store of `length` positions; `apart` for parameters that are."""
  how: dict[str, Any] = dict(dtype=dtype_of(config), apart=apart)
  cache = empty_cache(config, batch=rows, length=length, **how)
  shape, where = (rows, config.vocab_size), spec("batch", None)
  return Store(cache, jnp.zeros(shape, jnp.float32, out_sharding=where))


KEYS = spec("layers", "batch", "kv_heads", None, None)


def take(cache: Cache, index_b: jax.Array, *, length: int) -> Cache:
  """A copy of the first positions of some rows, with zeros behind the store's end."""

  def local(x_nrgsk, index_b):
    n, _, g, s, k = x_nrgsk.shape
    b = index_b.shape[0]
    copy = jnp.zeros_like(x_nrgsk, shape=(n, b, g, length, k))

    def row(i, copy):
      size = (n, 1, g, min(length, s), k)
      own = jax.lax.dynamic_slice(x_nrgsk, (0, index_b[i], 0, 0, 0), size)
      return _as_read(jax.lax.dynamic_update_slice(copy, own, (0, i, 0, 0, 0)))

    return jax.lax.fori_loop(0, b, row, copy)

  taken = jax.shard_map(local, in_specs=(KEYS, spec("batch")), out_specs=KEYS)
  return jax.tree.map(lambda x: taken(x, index_b), cache)


def put(
  cache: Cache,
  new: Cache,
  index_b: jax.Array,
  live_d: jax.Array,
  at_b: jax.Array,
  *,
  count: int,
) -> Cache:
  """Puts `count` positions of every live row, from `at_b` on, into the store."""

  def local(x_nrgsk, new_nbgsk, index_b, live_d, at_b):
    n, _, g, s, k = x_nrgsk.shape
    size = min(count, s, new_nbgsk.shape[3])

    def row(i, x_nrgsk):
      # At an end, earlier positions are written again, as they are.
      at = jnp.clip(at_b[i], 0, min(s, new_nbgsk.shape[3]) - size)
      own = jax.lax.dynamic_slice(new_nbgsk, (0, i, 0, at, 0), (n, 1, g, size, k))
      place = (0, index_b[i], 0, at, 0)
      return _as_read(jax.lax.dynamic_update_slice(x_nrgsk, own, place))

    return jax.lax.fori_loop(0, live_d[0], row, x_nrgsk)

  specs = (KEYS, KEYS, *(spec("batch"),) * 3)
  write = jax.shard_map(local, in_specs=specs, out_specs=KEYS)
  return jax.tree.map(lambda x, own: write(x, own, index_b, live_d, at_b), cache, new)


def put_logits(logits_rv, new_bv, index_b: jax.Array, live_d: jax.Array) -> jax.Array:
  """Puts the logits of every live row into the store."""

  def local(logits_rv, new_bv, index_b, live_d):
    def row(i, logits_rv):
      own = jax.lax.dynamic_slice_in_dim(new_bv, i, 1)
      return jax.lax.dynamic_update_slice_in_dim(logits_rv, own, index_b[i], 0)

    return jax.lax.fori_loop(0, live_d[0], row, logits_rv)

  wide, each = spec("batch", None), spec("batch")
  write = jax.shard_map(local, in_specs=(wide, wide, each, each), out_specs=wide)
  return write(logits_rv, new_bv, index_b, live_d)


def take_rows(x_r: jax.Array, index_b: jax.Array) -> jax.Array:
  """Some rows of an array that has the store's rows in front."""
  own: Callable = jax.shard_map(
    lambda x_r, index_b: x_r[index_b],
    in_specs=(spec("batch"), spec("batch")),
    out_specs=spec("batch"),
  )
  return own(x_r, index_b)


def _as_read(x_nbgsk):
  """In the order in which attention reads keys: a TPU's compiler would take that of
  what is written, and turn the whole store around for it."""
  return with_layout_constraint(x_nbgsk, Layout((0, 1, 2, 3, 4)))
