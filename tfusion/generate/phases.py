"""What generation computes on the device: feed, sample text, sample an image.

All of it works on a cache of keys and values.

Owns: the three phases. Not: which row is in which phase (interleaved.py), the reverse
process (diffusion/samplers.py).

Every row of a batch takes part in every phase. A row that does not need it computes
too, but behind the elements that it shows, where its next ones overwrite the result.

Randomness: fold_in(fold_in(key of the row, TEXT), position) for a token, and
fold_in(fold_in(fold_in(key of the row, IMAGE), image), number) for an image, where
number 0 is the noise at t = T and number 1 + s that of step s; of an image in codes it
is the number of the code.

b batch (guidance doubles it)  l queries  n image slots  m patches of an image
d width  v vocab  h w c latent height, width, channels
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from tfusion.diffusion.samplers import denoise, guide, make_steps
from tfusion.generate.choices import TextChoice, draw, nucleus
from tfusion.kinds import Kind
from tfusion.model.layers import Keys, View
from tfusion.model.transformer import empty_keys
from tfusion.model.transfusion import Params, Transfusion, bind, dtype_of
from tfusion.sequence import (
  A,
  CodeBook,
  Elements,
  KindSizes,
  SpecialTokens,
  count_positions,
  number_patches,
  position_steps,
)
from tfusion.sharding import by_row, join_rows, spec, split_rows

TEXT, IMAGE = 0, 1  # streams of randomness


class Block(NamedTuple, Generic[A]):
  """Elements to put into the cache; ragged rows are padded at their ends."""

  tokens_bl: A  # i32
  patch_bl: A  # i32, as in sequence.Batch
  hi_bl: A  # i32, the last cache position seen
  latents: tuple[A, ...]  # of every kind f32[b, n, h, w, c], clean
  at_b: A  # i32, cache position of the first element
  count_b: A  # i32, elements of the row
  positions_bl: A | None = None  # i32, of RoPE; None: those of the cache


def make_block(
  config: ModelConfig,
  laid: Sequence[Elements],
  *,
  at: Sequence[int] | np.ndarray,
  length: int,
  first: Sequence[int] | np.ndarray | None = None,
) -> Block[np.ndarray]:
  """Pads rows of elements, which go to the cache positions `at`, to one length.

  `first` are the positions, of RoPE, of their first elements; None: `at`.
  """
  b, kinds = len(laid), config.every_kind
  counts = [[image.kind for image in e.images] for e in laid]
  slots = tuple(max(1, *(own.count(k) for own in counts)) for k in range(len(kinds)))
  block: Block[np.ndarray] = Block(
    tokens_bl=np.zeros((b, length), np.int32),
    patch_bl=np.full((b, length), -1, np.int32),
    hi_bl=np.asarray(at, np.int32)[:, None] + np.arange(length, dtype=np.int32),
    latents=tuple(
      np.zeros((b, n, *kind.shape), np.float32)
      for kind, n in zip(kinds, slots, strict=True)
    ),
    at_b=np.asarray(at, np.int32),
    count_b=np.asarray([len(e.tokens_l) for e in laid], np.int32),
  )
  for row, e in enumerate(laid):
    own = len(e.tokens_l)
    block.tokens_bl[row, :own] = e.tokens_l
    block.patch_bl[row, :own] = e.patch_l
    block.hi_bl[row, :own] = at[row] + e.hi_l
    number_patches(block.patch_bl[row], e.images, _sizes(config, slots))
    used = [0] * len(kinds)
    for image in e.images:
      block.latents[image.kind][row, used[image.kind]] = image.latent
      used[image.kind] += 1
  if config.positions == "sequence":
    return block
  first_b = np.asarray(at if first is None else first, np.int32)
  sizes = _sizes(config, slots)
  counted_bl = np.stack([count_positions(own_l, sizes) for own_l in block.patch_bl])
  return block._replace(positions_bl=first_b[:, None] + counted_bl)


def _sizes(config: ModelConfig, slots: Sequence[int]) -> list[KindSizes]:
  """Of every kind, in rows of so many slots."""
  return [
    KindSizes(n, kind.shape, kind.patches, position_steps(config.positions, kind.grid))
    for kind, n in zip(config.every_kind, slots, strict=True)
  ]


@functools.partial(jax.jit, static_argnames=("config", "batch", "length"))
def empty_cache(config: ModelConfig, *, batch: int, length: int) -> Keys:
  """A cache of `length` positions for `batch` rows."""
  return empty_keys(config, batch=batch, length=length, dtype=dtype_of(config))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def feed(
  config: ModelConfig, params: Params, *, cache: Keys, block: Block[jax.Array]
) -> tuple[Keys, jax.Array]:
  """Puts given elements into the cache, images clean: at t = 0.

  Returns:
    The cache and the logits after each row's last element, f32[b, v].
  """
  model = bind(config, params)
  x_bld, cache = _extend(model, block, cache)
  last = by_row(lambda x_ld, count: x_ld[jnp.maximum(count - 1, 0)][None])
  return cache, _logits(model, last(x_bld, block.count_b))


@functools.partial(
  jax.jit,
  static_argnames=("config", "special", "book", "choice", "limit"),
  donate_argnames="cache",
)
def sample_text(
  config: ModelConfig,
  params: Params,
  *,
  special: SpecialTokens,
  book: CodeBook | None = None,
  choice: TextChoice,
  limit: int,
  cache: Keys,
  logits_bv: jax.Array,
  at_b: jax.Array,
  writing_b: jax.Array,
  keys_b: jax.Array,
  next_b: jax.Array | None = None,
  seen_bv: jax.Array | None = None,
) -> tuple[Keys, jax.Array, jax.Array]:
  """Samples text until every writing row has sampled BOI or EOS or more than fits.

  Args:
    config: of the model.
    params: of the model.
    special: ids of the special tokens.
    book: where images are codes, which text has none of. Without a book and without
      patches there are no images: BOI is not sampled.
    choice: how a token is drawn.
    limit: elements that a row may have. One more is sampled: it may be EOS, which
      takes no place.
    cache: of every row's elements so far, with room for one behind the limit.
    logits_bv: f32, after each row's last element.
    at_b: i32, elements so far, at most `limit`.
    writing_b: bool, the rows that take part.
    keys_b: keys of the rows.
    next_b: i32, position, of RoPE, of the next element; None: `at_b`.
    seen_bv: bool, the tokens that stand in each row; for `choice.repetition`.

  Returns:
    The cache with the sampled elements; the ids i32[b, limit], of which the last is the
    one that stopped the row; their counts i32[b], 0 for a row that took no part.
  """
  model = bind(config, params)
  never = np.asarray([special.pad, special.bos, special.eoi])
  if config.patches == "none" and book is None:
    never = np.append(never, special.boi)

  def sample(logits_v, key, position, *seen):
    logits_v = logits_v.at[never].set(-jnp.inf)
    if book is not None:
      logits_v = logits_v.at[book.first :].set(-jnp.inf)
    key = jax.random.fold_in(jax.random.fold_in(key, TEXT), position)
    return draw(key, logits_v, choice, *seen)

  def step(state):
    cache, logits_bv, writing_b, ids_bl, count_b, *seen = state
    here_b = at_b + count_b
    token_b = by_row(sample)(logits_bv, keys_b, here_b, *seen)
    if seen:
      seen = [by_row(lambda seen_v, token: seen_v.at[token].set(True))(*seen, token_b)]
    next_bl = jnp.arange(limit)[None] == count_b[:, None]
    ids_bl = jnp.where(next_bl & writing_b[:, None], token_b[:, None], ids_bl)
    x_bld = model.embed_text(token_b[:, None])
    positions_bl = None if next_b is None else (next_b + count_b)[:, None]
    view = model.look(
      here_b[:, None], here_b[:, None], length=cache.length, positions_bl=positions_bl
    )
    x_bld, cache = model.extend(x_bld, view, cache)
    count_b = count_b + writing_b
    stops_b = (token_b == special.boi) | (token_b == special.eos)
    for other in special.other_bois:
      stops_b = stops_b | (token_b == other)
    writing_b = writing_b & ~stops_b & (at_b + count_b <= limit)
    return cache, _logits(model, x_bld), writing_b, ids_bl, count_b, *seen

  count_b = jnp.zeros_like(at_b)
  ids_bl = jnp.zeros_like(at_b[:, None] + jnp.arange(limit)[None])
  seen = () if seen_bv is None else (seen_bv,)
  state = (cache, logits_bv, writing_b, ids_bl, count_b, *seen)
  cache, _, _, ids_bl, count_b, *_ = jax.lax.while_loop(
    lambda state: jnp.any(state[2]), step, state
  )
  return cache, _replicate(ids_bl), _replicate(count_b)


@functools.partial(
  jax.jit,
  static_argnames=("config", "kind", "diffusion", "sample", "length"),
  donate_argnames="cache",
)
def sample_image(
  config: ModelConfig,
  params: Params,
  *,
  kind: Kind,
  diffusion: DiffusionConfig,
  sample: SampleConfig,
  length: int,
  cache: Keys,
  unconditional: Block[jax.Array],
  at_b: jax.Array,
  image_b: jax.Array,
  keys_b: jax.Array,
  next_b: jax.Array | None = None,
) -> tuple[Keys, jax.Array]:
  """Denoises one image in every row and writes the clean one into the cache.

  Only the patches are computed, over the same cache positions in every step; at last
  the clean image is written there at t = 0, as a given one is (ours: the paper does not
  say at which t later text sees it). With guidance every row has a second one
  beside it that stands behind `unconditional`.

  Args:
    config: of the model.
    params: of the model.
    kind: of the image.
    diffusion: the noise process of that kind.
    sample: sampler, steps and guidance; a guidance of 1 is none and costs half.
    length: cache positions to attend over: those of all rows up to their image's end.
    cache: of every row's elements so far, the last being BOI.
    unconditional: the prefix of the guidance branch, up to BOI.
    at_b: i32, elements so far: where the first patch goes.
    image_b: i32, how many images the row drew before.
    keys_b: keys of the rows.
    next_b: i32, position, of RoPE, of the first patch; None: `at_b`.

  Returns:
    The cache and the images f32[b, h, w, c].
  """
  model = bind(config, params)
  # The loop works in this copy, over whose noisy patches every step writes its own.
  prefix = jax.tree.map(lambda x: x[:, :, :, :length], cache)
  null = None if sample.guidance == 1.0 else unconditional
  stand = _Stand(kind, at_b, at_b if next_b is None else next_b)
  guidance = _guidance(sample, diffusion.timesteps)
  predict, prefix = _predictor(model, prefix, stand, null, guidance)

  def draw_noise(number):
    def one(key, image, number):
      for data in (IMAGE, image, number):
        key = jax.random.fold_in(key, data)
      return jax.random.normal(key, kind.shape)

    return by_row(one)(keys_b, image_b, jnp.zeros_like(image_b) + number)

  clean_bhwc = denoise(
    predict,
    draw_noise(0),
    prefix,
    steps=make_steps(
      sample.sampler,
      steps=sample.steps,
      timesteps=diffusion.timesteps,
      start=sample.start,
      schedule=diffusion.schedule,
      shift=diffusion.t_shift,
    ),
    draw=lambda number: draw_noise(1 + number),
    clip=diffusion.clip,
    target=diffusion.target,
    schedule=diffusion.schedule,
  )
  view = _look(model, stand, cache)
  _, cache = _denoised(model, kind, clean_bhwc, 0, view, cache)
  return cache, _replicate(clean_bhwc)


@functools.partial(
  jax.jit,
  static_argnames=("config", "special", "book", "sample", "length"),
  donate_argnames="cache",
)
def sample_codes(
  config: ModelConfig,
  params: Params,
  *,
  special: SpecialTokens,
  book: CodeBook,
  sample: SampleConfig,
  length: int,
  cache: Keys,
  images: Block[jax.Array],
  unconditional: Block[jax.Array],
  at_b: jax.Array,
  image_b: jax.Array,
  keys_b: jax.Array,
) -> tuple[Keys, jax.Array]:
  """Samples the codes of one image in every row, code by code, and caches them.

  As Chameleon's code does: of all logits those of codes are left, `guide_codes` mixes
  those of three rows, and `nucleus` says which are drawn from. Their number is fixed
  (arXiv 2405.09818, section 2); EOI follows by rule.

  Args:
    config: of the model.
    params: of the model.
    special: ids of the special tokens.
    book: which ids are codes, and how many an image has.
    sample: its guidance, image_guidance, code_temperature and code_top_p; if both
      scales are 1 nothing guides, which costs a third.
    length: cache positions to attend over: those of all rows up to their image's end.
    cache: of every row's elements so far, the last being BOI.
    images: the images of every row up to BOI, without its text.
    unconditional: the same without images.
    at_b: i32, elements so far: where the first code goes.
    image_b: i32, how many images the row drew before.
    keys_b: keys of the rows.

  Returns:
    The cache and the codes i32[b, per_image], as token ids.
  """
  model = bind(config, params)
  guided = (sample.guidance, sample.image_guidance) != (1.0, 1.0)
  branches = [jax.tree.map(lambda x: x[:, :, :, :length], cache)]
  counts = [at_b]
  for block in (images, unconditional) if guided else ():
    _, other = _extend(model, block, jax.tree.map(jnp.zeros_like, branches[0]))
    branches.append(other)
    counts.append(block.count_b)
  joined = jax.tree.map(lambda *x: join_rows(*x, axis=1), *branches)
  # BOI is read again, for its logits.
  boi_at_b = jnp.maximum(join_rows(*counts) - 1, 0)

  def step(state, number):
    token_b, joined = state
    at_b1 = (boi_at_b + number)[:, None]
    view = model.look(at_b1, at_b1, length=length)
    x_bld, joined = model.extend(model.embed_text(token_b[:, None]), view, joined)
    logits_bv = _logits(model, x_bld)[:, book.first : book.first + book.size]
    if guided:
      parts = split_rows(logits_bv, parts=3)
      logits_bv = guide_codes(
        *parts, scale=sample.guidance, image_scale=sample.image_guidance
      )
    draw = by_row(functools.partial(_draw_code, sample=sample))
    code_b = draw(logits_bv, keys_b, image_b, jnp.zeros_like(image_b) + number)
    code_b = code_b + book.first
    return (join_rows(*[code_b] * len(branches)), joined), code_b

  begin = (jnp.full_like(boi_at_b, special.boi), joined)
  _, codes_nb = jax.lax.scan(step, begin, jnp.arange(book.per_image))
  codes_bn = codes_nb.T
  positions_bn = at_b[:, None] + jnp.arange(book.per_image)[None]
  view = model.look(positions_bn, positions_bn, length=cache.length)
  _, cache = model.extend(model.embed_text(codes_bn), view, cache)
  return cache, _replicate(codes_bn)


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


def _guidance(
  sample: SampleConfig, timesteps: int
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Mixes both predictions at t, as `sample.guidance` and the knobs beside it say."""
  first, last = sample.guidance_from * timesteps, sample.guidance_to * timesteps
  everywhere = (sample.guidance_from, sample.guidance_to) == (0.0, 1.0)

  def mix(conditional, unconditional, t):
    scale: Any = sample.guidance
    if not everywhere:
      scale = jnp.where((t > first) & (t <= last), sample.guidance, 1.0)
    rescale = sample.guidance_rescale
    return guide(conditional, unconditional, scale=scale, rescale=rescale)

  return mix


class _Stand(NamedTuple):
  """Where one image in every row goes."""

  kind: Kind
  at_b: jax.Array  # i32, place in the cache of the first patch
  next_b: jax.Array  # i32, its position, of RoPE


def _predictor(
  model: Transfusion,
  prefix: Keys,
  stand: _Stand,
  unconditional: Block[jax.Array] | None,
  guidance: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
):
  """Returns the noise predictor, guided if there is an unconditional prefix, and the
  cache of prefixes that it works in."""
  kind = stand.kind
  if unconditional is None:
    view = _look(model, stand, prefix)
    return (
      lambda x_bhwc, t, cache: _denoised(model, kind, x_bhwc, t, view, cache)
    ), prefix
  null = jax.tree.map(jnp.zeros_like, prefix)
  _, null = _extend(model, unconditional, null)
  both = jax.tree.map(lambda a, b: join_rows(a, b, axis=1), prefix, null)
  # No image stands in that prefix, so its positions are its places.
  at_b, next_b = (
    join_rows(own_b, unconditional.count_b) for own_b in (stand.at_b, stand.next_b)
  )
  view = _look(model, _Stand(kind, at_b, next_b), both)

  def predict(x_bhwc, t, cache):
    noise, cache = _denoised(model, kind, join_rows(x_bhwc, x_bhwc), t, view, cache)
    conditional, unconditional = split_rows(noise)
    return guidance(conditional, unconditional, t), cache

  return predict, both


def _extend(
  model: Transfusion, block: Block[jax.Array], cache: Keys
) -> tuple[jax.Array, Keys]:
  clean_t = tuple(
    jnp.zeros(own.shape[:2], jnp.int32, out_sharding=spec("batch", None))
    for own in block.latents
  )
  x_bld, _ = model.embed(block.tokens_bl, block.latents, clean_t, block.patch_bl)
  places_bl = block.at_b[:, None] + jnp.arange(x_bld.shape[1])[None]
  view = model.look(
    places_bl,
    block.hi_bl,
    length=cache.length,
    positions_bl=block.positions_bl,
    patch_bl=block.patch_bl,
    slots=tuple(own.shape[1] for own in block.latents),
    of="both",
  )
  return model.extend(x_bld, view, cache)


def _look(model: Transfusion, stand: _Stand, cache: Keys) -> View:
  """What the patches of one image in every row see, and where they go."""
  config, (kind, at_b, next_b) = model.config, stand
  patches = kind.patches
  places_bl = at_b[:, None] + jnp.arange(patches)[None]
  hi_bl = jnp.broadcast_to(at_b[:, None] + (patches - 1), places_bl.shape)
  if config.positions == "sequence":
    return model.look(places_bl, hi_bl, length=cache.length, of="image")
  slots = tuple(1 for _ in config.every_kind)
  before = config.patches_by_kind[: config.every_kind.index(kind)]
  patch_m = np.arange(patches, dtype=np.int32) + sum(before)
  positions_m = count_positions(patch_m, _sizes(config, slots))
  return model.look(
    places_bl,
    hi_bl,
    length=cache.length,
    positions_bl=next_b[:, None] + positions_m[None],
    patch_bl=jnp.zeros_like(places_bl) + patch_m[None],
    slots=slots,
    of="image",
  )


def _denoised(model: Transfusion, kind: Kind, x_bhwc, t, view: View, cache: Keys):
  """What is predicted of one image at t in every row; also returns the cache."""
  assert view.write_at_b is not None, "`look` says where its inputs are written"
  t_bn = jnp.zeros_like(view.write_at_b)[:, None] + t
  x_bnmd, skips = model.embed_images(x_bhwc[:, None], t_bn, kind)
  x_bmd, cache = model.extend(x_bnmd[:, 0], view, cache)
  return model.predict_images(x_bmd[:, None], skips, kind)[:, 0], cache


def _logits(model: Transfusion, x_b1d: jax.Array) -> jax.Array:
  """f32[b, v] with the whole vocabulary on every device of a row, to sample from."""
  return jax.sharding.reshard(model.logits(x_b1d)[:, 0], spec("batch", None))


def _replicate(x: jax.Array) -> jax.Array:
  return jax.sharding.reshard(x, jax.P())
