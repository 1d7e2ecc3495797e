"""What lo and hi are: the attention mask of a Transfusion row in two integers a query.

Owns: the meaning of the intervals, and which tiles of queries x keys are live at all.
Not: how they come from documents (sequence.py), attention itself (dense.py,
chunked.py, tpu/, gpu/).

b batch  q queries  k keys  c blocks of queries  i blocks of queries  j blocks of keys

Query i sees the keys lo[i] <= j <= hi[i], both ends included, counted along the keys.
An image is contiguous, so the mask of arXiv 2408.11039, figure 4, is such an interval:
lo is where the packed document starts, hi is i itself for text and the last patch of
the image for a patch. A row of two documents, t a b and t x x x (x are patches), and
one place of padding:

  key        0  1  2  3  4  5  6  7     lo  hi
  query 0 t  x  .  .  .  .  .  .  .      0   0
  query 1 a  x  x  .  .  .  .  .  .      0   1
  query 2 b  x  x  x  .  .  .  .  .      0   2
  query 3 t  .  .  .  x  .  .  .  .      3   3
  query 4 x  .  .  .  x  x  x  x  .      3   6
  query 5 x  .  .  .  x  x  x  x  .      3   6
  query 6 x  .  .  .  x  x  x  x  .      3   6
  query 7    .  .  .  .  .  .  .  .      8   7     lo > hi: sees nothing

In a packed row lo and hi never decrease, so what a block of queries sees is one narrow
range of keys, and the rest is never touched. Causal, sliding-window and prefix masks,
and decoding against a cache, are other choices of lo and hi.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sizes(NamedTuple):
  """What is known of a call before its numbers: all that a choice of tiles needs."""

  batch: int
  queries: int
  keys: int
  heads: int
  kv_heads: int
  head_dim: int
  dtype: jnp.dtype

  @property
  def group(self) -> int:
    """Query heads that share a key/value head."""
    return self.heads // self.kv_heads


def sizes_of(q_bqhd: jax.Array, k_bknd: jax.Array) -> Sizes:
  """Returns the sizes of a call."""
  batch, queries, heads, head_dim = q_bqhd.shape
  _, keys, kv_heads, _ = k_bknd.shape
  return Sizes(batch, queries, keys, heads, kv_heads, head_dim, q_bqhd.dtype)


class Tiles(NamedTuple):
  """Which tiles of a grid some query sees, and which every query sees whole."""

  live_bij: jax.Array  # bool
  full_bij: jax.Array  # bool; needs no mask


class KeyRange(NamedTuple):
  """The keys that blocks of queries see: `count` chunks of keys from key `first`."""

  first_bc: jax.Array  # i32
  count_bc: jax.Array  # i32, 0 where no query of the block sees any key


def sees(lo_bq: jax.Array, hi_bq: jax.Array, *, keys: int) -> jax.Array:
  """Returns the mask_bqk that lo and hi stand for; for the reference and for tests."""
  index_11k = jnp.arange(keys, dtype=lo_bq.dtype)[None, None]
  return (index_11k >= lo_bq[..., None]) & (index_11k <= hi_bq[..., None])


def alive(lo_bq: jax.Array, hi_bq: jax.Array, *, keys: int) -> jax.Array:
  """Returns bool_bq: does the query see any of the keys?"""
  return jnp.maximum(lo_bq, 0) <= jnp.minimum(hi_bq, keys - 1)


def block_starts(length: int, size: int) -> np.ndarray:
  """Returns where blocks of `size` start; the last is moved back to end at `length`."""
  return np.minimum(np.arange(0, length, size), length - size).astype(np.int32)


def key_ranges(
  lo_bq: jax.Array, hi_bq: jax.Array, *, keys: int, block: int, chunk: int
) -> KeyRange:
  """Returns the live keys of each block of queries, in chunks of `chunk` keys.

  Chunks start at the first live key, not at a multiple of `chunk`: a document shorter
  than a chunk then never costs two. A query that sees nothing widens no range.
  """
  starts_c = block_starts(lo_bq.shape[1], block)
  index_cq = starts_c[:, None] + np.arange(block)
  live_bcq = alive(lo_bq, hi_bq, keys=keys)[:, index_cq]
  first_bc = jnp.min(jnp.where(live_bcq, lo_bq[:, index_cq], keys), axis=-1)
  last_bc = jnp.max(jnp.where(live_bcq, hi_bq[:, index_cq], -1), axis=-1)
  first_bc = jnp.maximum(first_bc, 0)
  live_keys_bc = jnp.maximum(jnp.minimum(last_bc, keys - 1) - first_bc + 1, 0)
  return KeyRange(first_bc, (live_keys_bc + chunk - 1) // chunk)


def tiles(lo_bq, hi_bq, *, keys: int, block_q: int, block_k: int) -> Tiles:
  """Returns the live and the full tiles of the grid of block_q x block_k tiles.

  The last tiles may reach over the ends; queries there are those of the last one, and
  keys there are never seen. The live tiles of a block of queries are taken to be one
  range: that is exact where the intervals of neighbouring queries meet, as in every
  packed row, and otherwise visits the tiles between them too. Any lo and hi will do,
  monotone or not. Work and memory are in proportion to queries + tiles.
  """
  batch, queries = lo_bq.shape
  columns = -(-keys // block_k)
  lo_bq, hi_bq = jnp.maximum(lo_bq, 0), jnp.minimum(hi_bq, keys - 1)
  pad = ((0, 0), (0, -queries % block_q))
  lo_biq = jnp.pad(lo_bq, pad, mode="edge").reshape(batch, -1, block_q)
  hi_biq = jnp.pad(hi_bq, pad, mode="edge").reshape(batch, -1, block_q)
  alive_biq = lo_biq <= hi_biq
  first_bi1 = jnp.min(jnp.where(alive_biq, lo_biq, keys), axis=-1, keepdims=True)
  last_bi1 = jnp.max(jnp.where(alive_biq, hi_biq, -1), axis=-1, keepdims=True)
  starts_11j = (jnp.arange(columns, dtype=jnp.int32) * block_k)[None, None]
  ends_11j = starts_11j + (block_k - 1)
  live_bij = (first_bi1 <= ends_11j) & (last_bi1 >= starts_11j)
  lowest_bi1 = jnp.max(lo_biq, axis=-1, keepdims=True)
  highest_bi1 = jnp.min(hi_biq, axis=-1, keepdims=True)
  full_bij = (lowest_bi1 <= starts_11j) & (highest_bi1 >= ends_11j)
  return Tiles(live_bij, full_bij)
