"""Puts what is given into the cache, images clean: at t = 0.

Owns: the forward pass over given elements. Not: their arrays (blocks.py).

b batch  l queries  n image slots  d width  v vocab
"""

import functools

import jax
import jax.numpy as jnp

from tfusion.config import ModelConfig
from tfusion.generate import store as store_lib
from tfusion.generate.blocks import Block
from tfusion.generate.store import Store
from tfusion.model.layers import Cache
from tfusion.model.transfusion import Params, Transfusion, bind
from tfusion.sharding import by_row, spec


@functools.partial(
  jax.jit, static_argnames=("config", "length"), donate_argnames="store"
)
def feed(
  config: ModelConfig,
  params: Params,
  *,
  length: int,
  store: Store,
  index_b: jax.Array,
  live_d: jax.Array,
  block: Block[jax.Array],
) -> Store:
  """Puts given elements of some rows into the store, and the logits after the last.

  Args:
    config: of the model.
    params: of the model.
    length: cache positions to attend over: those of all rows up to the block's end.
    store: of all rows.
    index_b, live_d: as Party has them.
    block: of these rows.
  """
  model = bind(config, params)
  cache = store_lib.take(store.cache, index_b, length=length)
  x_bld, cache = extend(model, block, cache)
  last = by_row(lambda x_ld, count: x_ld[jnp.maximum(count - 1, 0)][None])
  logits_bv = logits_of(model, last(x_bld, block.count_b))
  count = block.tokens_bl.shape[1]
  return Store(
    store_lib.put(store.cache, cache, index_b, live_d, block.at_b, count=count),
    store_lib.put_logits(store.logits_rv, logits_bv, index_b, live_d),
  )


def extend(
  model: Transfusion, block: Block[jax.Array], cache: Cache
) -> tuple[jax.Array, Cache]:
  """Runs a block on a cache; returns the outputs [b, l, d] and the cache."""
  if block.patch_bl is None:
    x_bld = model.embed_text(block.tokens_bl)
  else:
    clean_t = tuple(
      jnp.zeros(own.shape[:2], jnp.int32, out_sharding=spec("batch", None))
      for own in block.latents
    )
    x_bld, _ = model.embed(block.tokens_bl, block.latents, clean_t, block.patch_bl)
  places_bl = block.at_b[:, None] + jnp.arange(x_bld.shape[1])[None]
  view = model.look(
    places_bl,
    block.hi_bl,
    length=cache[0].length,
    positions_bl=block.positions_bl,
    patch_bl=block.patch_bl,
    slots=tuple(own.shape[1] for own in block.latents),
    of="text" if block.patch_bl is None else "both",
  )
  return model.extend(x_bld, view, cache)


def logits_of(model: Transfusion, x_b1d: jax.Array) -> jax.Array:
  """f32[b, v] with the whole vocabulary on every device of a row, to sample from."""
  return jax.sharding.reshard(model.logits(x_b1d)[:, 0], spec("batch", None))
