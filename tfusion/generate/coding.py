"""Samples the codes of one image in every row that stands behind BOI.

Owns: the three branches of guidance, the loop over codes. Not: what is left to draw
from (choices.py), which rows are at an image (interleaved.py).

As Chameleon's code does: of all logits those of codes are left, `guide_codes` mixes
those of three rows, and `nucleus` says which are drawn from. Their number is fixed
(arXiv 2405.09818, section 2); EOI follows by rule.

Randomness: fold_in(fold_in(fold_in(key of the row, IMAGE), image), number of the code).

b batch  j rows of all branches of guidance, branch by branch  n codes of an image
d width  v vocab
"""

import functools

import jax
import jax.numpy as jnp

from tfusion.config import ModelConfig, SampleConfig
from tfusion.generate import store as store_lib
from tfusion.generate.blocks import Block
from tfusion.generate.choices import nucleus
from tfusion.generate.drawing import IMAGE
from tfusion.generate.feeding import extend, logits_of
from tfusion.generate.store import Store
from tfusion.model.transfusion import Params, bind
from tfusion.sequence import CodeBook, SpecialTokens
from tfusion.sharding import by_row, join_rows, replicate, split_rows


def is_guided(sample: SampleConfig) -> bool:
  """Whether anything guides; if both scales are 1 nothing does, which costs a third."""
  return (sample.guidance, sample.image_guidance) != (1.0, 1.0)


@functools.partial(
  jax.jit,
  static_argnames=("config", "special", "book", "sample", "length"),
  donate_argnames="store",
)
def sample_codes(
  config: ModelConfig,
  params: Params,
  *,
  special: SpecialTokens,
  book: CodeBook,
  sample: SampleConfig,
  length: int,
  store: Store,
  index_b: jax.Array,
  live_d: jax.Array,
  others: tuple[Block[jax.Array], ...],
  at_b: jax.Array,
  image_b: jax.Array,
  keys_b: jax.Array,
) -> tuple[Store, jax.Array]:
  """Samples the codes of one image in every row, code by code, into the store.

  Args:
    config: of the model.
    params: of the model.
    special: ids of the special tokens.
    book: which ids are codes, and how many an image has.
    sample: its guidance, image_guidance, code_temperature and code_top_p.
    length: cache positions to attend over: those of all rows up to their image's end.
    store: of all rows; of these the last element is BOI.
    index_b, live_d: as Party has them.
    others: where there is guidance, the images of every row up to BOI without its text,
      and BOI without images.
    at_b: i32, elements so far: where the first code goes.
    image_b: i32, how many images the row drew before.
    keys_b: keys of the rows.

  Returns:
    The store and the codes i32[b, per_image], as token ids.
  """
  model = bind(config, params)
  branches = [store_lib.take(store.cache, index_b, length=length)]
  counts = [at_b]
  for block in others:
    _, other = extend(model, block, jax.tree.map(jnp.zeros_like, branches[0]))
    branches.append(other)
    counts.append(block.count_b)
  joined = jax.tree.map(lambda *x: join_rows(*x, axis=1), *branches)
  # BOI is read again, for its logits.
  boi_at_j = jnp.maximum(join_rows(*counts) - 1, 0)

  def read(token_j, joined, number):
    at_j1 = (boi_at_j + number)[:, None]
    view = model.look(at_j1, at_j1, length=length)
    return model.extend(model.embed_text(token_j[:, None]), view, joined)

  def step(state, number):
    x_jld, joined = read(state[0], state[1], number)
    logits_bv = logits_of(model, x_jld)[:, book.first : book.first + book.size]
    if others:
      parts = split_rows(logits_bv, parts=3)
      logits_bv = guide_codes(
        *parts, scale=sample.guidance, image_scale=sample.image_guidance
      )
    draw = by_row(functools.partial(_draw_code, sample=sample))
    code_b = draw(logits_bv, keys_b, image_b, jnp.zeros_like(image_b) + number)
    code_b = code_b + book.first
    return (join_rows(*[code_b] * len(branches)), joined), code_b

  start = (jnp.full_like(boi_at_j, special.boi), joined)
  state, codes_nb = jax.lax.scan(step, start, jnp.arange(book.per_image))
  _, joined = read(
    state[0], state[1], book.per_image
  )  # the last code, for what follows
  own = jax.tree.map(lambda x: split_rows(x, parts=len(branches), axis=1)[0], joined)
  put = store_lib.put(store.cache, own, index_b, live_d, at_b, count=book.per_image)
  return store._replace(cache=put), replicate(codes_nb.T)


def guide_codes(full, images, unconditional, *, scale: float, image_scale: float):
  """Guidance of logits by text and by images: u + image_scale (i - u) + scale (f - i),
  where i sees the images alone and u nothing, as in Chameleon's code."""
  by_images = image_scale * (images - unconditional)
  return unconditional + by_images + scale * (full - images)


def _draw_code(logits_v, key, image, number, *, sample: SampleConfig) -> jax.Array:
  if sample.code_temperature == 0:
    return jnp.argmax(logits_v).astype(jnp.int32)
  for data in (IMAGE, image, number):
    key = jax.random.fold_in(key, data)
  logits_v = nucleus(logits_v / sample.code_temperature, sample.code_top_p)
  return jax.random.categorical(key, logits_v).astype(jnp.int32)
