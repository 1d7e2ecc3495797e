"""Samples text, token by token, in the rows that want text.

Owns: the loop over tokens, which tokens may not come. Not: how one is drawn
(choices.py), which rows want text (interleaved.py).

Randomness: fold_in(fold_in(key of the row, TEXT), position) for a token.

b batch  l sampled tokens  d width  v vocab
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.config import ModelConfig
from tfusion.generate import store as store_lib
from tfusion.generate.choices import TextChoice, draw
from tfusion.generate.feeding import logits_of
from tfusion.generate.store import Store
from tfusion.model.transfusion import Params, bind
from tfusion.sequence import CodeBook, SpecialTokens
from tfusion.sharding import by_row, replicate

TEXT = 0  # stream of randomness
CHUNK = 64  # tokens that one call writes, at most
LEAST = 128  # positions that are attended over, at least


def reach(at: int) -> int:
  """Positions that are attended over where a row of so many elements gets the next.

  It depends on nothing but the row, so that neighbours change no bit.
  """
  return max(LEAST, 1 << at.bit_length())


class Written(NamedTuple):
  """What a call gives of every row."""

  ids_bl: jax.Array  # i32[b, CHUNK]
  count_b: jax.Array  # i32, how many of them; 0 for a row that took no part
  ended_b: jax.Array  # bool, the last of them stopped the row


@functools.partial(
  jax.jit,
  static_argnames=("config", "special", "book", "choice", "length"),
  donate_argnames="store",
)
def write(
  config: ModelConfig,
  params: Params,
  *,
  special: SpecialTokens,
  book: CodeBook | None = None,
  choice: TextChoice,
  length: int,
  store: Store,
  index_b: jax.Array,
  live_d: jax.Array,
  at_b: jax.Array,
  writing_b: jax.Array,
  keys_b: jax.Array,
  limit: jax.Array,
  most: jax.Array,
  least: jax.Array,
  next_b: jax.Array | None = None,
  seen_bv: jax.Array | None = None,
) -> tuple[Store, Written]:
  """Samples text until a row has sampled BOI or EOS or more than fits, or `most`.

  Args:
    config: of the model.
    params: of the model.
    special: ids of the special tokens.
    book: where images are codes, which text has none of. Without a book and without
      patches there are no images: BOI is not sampled.
    choice: how a token is drawn.
    length: cache positions to attend over.
    store: of all rows.
    index_b, live_d: as Party has them.
    at_b: i32, elements so far, at most `limit`.
    writing_b: bool, the rows that take part.
    keys_b: keys of the rows.
    limit: i32, elements that a row may have. One more is sampled: it may be EOS, which
      takes no place.
    most: i32, tokens of a row, at most CHUNK and what `length` has room for.
    least: i32; the call ends when no more rows than these still write.
    next_b: i32, position, of RoPE, of the next element; None: `at_b`.
    seen_bv: bool, the tokens that stand in each row; for `choice.repetition`.

  Returns:
    The store with the sampled elements, and which these are.
  """
  model = bind(config, params)
  sample = functools.partial(_sample, _never(config, special, book), choice)

  def step(state):
    cache, logits_bv, writing_b, ended_b, ids_bl, count_b, number, *seen = state
    here_b = at_b + count_b
    token_b = by_row(sample)(logits_bv, keys_b, here_b, *seen)
    if seen:
      seen = [by_row(lambda seen_v, token: seen_v.at[token].set(True))(*seen, token_b)]
    next_bl = jnp.arange(CHUNK)[None] == count_b[:, None]
    ids_bl = jnp.where(next_bl & writing_b[:, None], token_b[:, None], ids_bl)
    positions_bl = None if next_b is None else (next_b + count_b)[:, None]
    view = model.look(
      here_b[:, None], here_b[:, None], length=length, positions_bl=positions_bl
    )
    x_bld, cache = model.extend(model.embed_text(token_b[:, None]), view, cache)
    # A row that has ended keeps its last logits, as nothing stands behind them.
    logits_bv = jnp.where(writing_b[:, None], logits_of(model, x_bld), logits_bv)
    count_b = count_b + writing_b
    last_b = (token_b[:, None] == np.asarray([special.eos, *special.bois])).any(1)
    stops_b = writing_b & (last_b | (at_b + count_b > limit))
    rows = (writing_b & ~stops_b, ended_b | stops_b, ids_bl, count_b)
    return cache, logits_bv, *rows, number + 1, *seen

  def goes_on(state):
    return (jnp.sum(state[2]) > least) & (state[6] < most)

  count_b, ended_b = jnp.zeros_like(at_b), jnp.zeros_like(writing_b)
  ids_bl = jnp.zeros_like(at_b[:, None] + jnp.arange(CHUNK)[None])
  cache = store_lib.take(store.cache, index_b, length=length)
  logits_bv = store_lib.take_rows(store.logits_rv, index_b)
  seen = () if seen_bv is None else (seen_bv,)
  rows = (writing_b, ended_b, ids_bl, count_b)
  state = (cache, logits_bv, *rows, jnp.int32(0), *seen)
  cache, logits_bv, _, ended_b, ids_bl, count_b, *_ = jax.lax.while_loop(
    goes_on, step, state
  )
  store = Store(
    store_lib.put(store.cache, cache, index_b, live_d, at_b, count=CHUNK),
    store_lib.put_logits(store.logits_rv, logits_bv, index_b, live_d),
  )
  return store, Written(*(replicate(x) for x in (ids_bl, count_b, ended_b)))


def _never(config: ModelConfig, special: SpecialTokens, book: CodeBook | None):
  """Ids that text may not have."""
  never = [special.pad, special.bos, special.eoi]
  if config.patches == "none" and book is None:
    never.append(special.boi)
  codes = range(0) if book is None else range(book.first, config.vocab_size)
  return np.asarray([*never, *codes])


def _sample(never: np.ndarray, choice: TextChoice, logits_v, key, position, *seen):
  logits_v = logits_v.at[never].set(-jnp.inf)
  key = jax.random.fold_in(jax.random.fold_in(key, TEXT), position)
  return draw(key, logits_v, choice, *seen)
