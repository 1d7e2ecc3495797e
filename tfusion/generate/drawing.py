"""Denoises one image in every row that stands behind BOI.

Owns: the branches of guidance, the loop on their caches, the clean image in the store.
Not: the reverse process (diffusion/samplers.py), which rows are at an image
(interleaved.py).

An image takes three programs: `begin` computes the prefix of every branch, once;
`advance` takes denoising steps, all or a part, in the same program; `finish` writes the
clean image into the store at t = 0, as a given one is (ours: the paper does not say at
which t later text sees it). Only the patches are computed in a step, over the same
cache positions each time.

Randomness: fold_in(fold_in(fold_in(key of the row, IMAGE), image), number), where
number 0 is the noise at t = T and number 1 + s that of step s.

b batch  j rows of all branches of guidance, branch by branch  l queries  m patches of
an image  d width  h w c latent height, width, channels
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from tfusion.diffusion import samplers
from tfusion.generate import store as store_lib
from tfusion.generate.blocks import Block, sizes
from tfusion.generate.feeding import extend
from tfusion.generate.store import Store
from tfusion.kinds import Kind
from tfusion.model.layers import Cache, View
from tfusion.model.transfusion import Params, Transfusion, bind
from tfusion.sequence import count_positions
from tfusion.sharding import by_row, join_rows, replicate, split_rows

IMAGE = 1  # stream of randomness


class Drawing(NamedTuple):
  """One image in every row, on its way."""

  walk: samplers.Walk  # f32[b, h, w, c]; its memory is the cache of all branches
  at_j: jax.Array  # i32, place in the cache of the first patch
  next_j: jax.Array  # i32, its position, of RoPE


@functools.partial(jax.jit, static_argnames=("config", "kind", "length"))
def begin(
  config: ModelConfig,
  params: Params,
  *,
  kind: Kind,
  length: int,
  store: Store,
  index_b: jax.Array,
  others: tuple[Block[jax.Array], ...],
  at_b: jax.Array,
  image_b: jax.Array,
  keys_b: jax.Array,
  next_b: jax.Array | None = None,
) -> Drawing:
  """Pure noise behind the prefix of every branch of guidance.

  Args:
    config: of the model.
    params: of the model.
    kind: of the image.
    length: cache positions to attend over: those of all rows up to their image's end.
    store: of all rows; of these the last element is BOI.
    index_b: as Party has it.
    others: the prefixes, up to BOI, of the branches beside the row itself: that of its
      images alone, if they guide apart, and that of nothing.
    at_b: i32, elements so far: where the first patch goes.
    image_b: i32, how many images the row drew before.
    keys_b: keys of the rows.
    next_b: i32, position, of RoPE, of the first patch; None: `at_b`.
  """
  model = bind(config, params)
  # The loop works in these copies, over whose noisy patches every step writes its own.
  branches = [store_lib.take(store.cache, index_b, length=length)]
  at, following = [at_b], [at_b if next_b is None else next_b]
  for block in others:
    _, cache = extend(model, block, jax.tree.map(jnp.zeros_like, branches[0]))
    branches.append(cache)
    at.append(block.count_b)
    following.append(_next_of(block))
  joined = jax.tree.map(lambda *x: join_rows(*x, axis=1), *branches)
  noise_bhwc = _draw_noise(kind, keys_b, image_b, 0)
  walk = samplers.begin(noise_bhwc, joined)
  return Drawing(walk, join_rows(*at), join_rows(*following))


@functools.partial(
  jax.jit,
  static_argnames=("config", "kind", "diffusion", "sample"),
  donate_argnames="drawing",
)
def advance(
  config: ModelConfig,
  params: Params,
  *,
  kind: Kind,
  diffusion: DiffusionConfig,
  sample: SampleConfig,
  drawing: Drawing,
  image_b: jax.Array,
  keys_b: jax.Array,
  first: jax.Array,
  last: jax.Array,
) -> Drawing:
  """Takes denoising steps.

  Args:
    config: of the model.
    params: of the model.
    kind: of the image.
    diffusion: the noise process of that kind.
    sample: sampler, steps and guidance.
    drawing: from `begin`, or an earlier part of the steps.
    image_b: i32, how many images the row drew before.
    keys_b: keys of the rows.
    first, last: i32, of the steps of `evaluations`.
  """
  model = bind(config, params)
  view = _look(model, kind, drawing)
  parts = drawing.at_j.shape[0] // image_b.shape[0]

  def predict(x_bhwc, t, cache):
    x_jhwc = join_rows(*[x_bhwc] * parts)
    out_jhwc, cache = _predict(model, kind, x_jhwc, t, view, cache)
    branches = split_rows(out_jhwc, parts=parts)
    return _guide(sample, diffusion.timesteps, branches, t), cache

  walk = samplers.denoise(
    predict,
    drawing.walk,
    steps=evaluations(sample, diffusion),
    draw=lambda number: _draw_noise(kind, keys_b, image_b, 1 + number),
    clip=diffusion.clip,
    target=diffusion.target,
    schedule=diffusion.schedule,
    first=first,
    last=last,
  )
  return drawing._replace(walk=walk)


@functools.partial(jax.jit, static_argnames=("config", "kind"), donate_argnames="store")
def finish(
  config: ModelConfig,
  params: Params,
  *,
  kind: Kind,
  store: Store,
  index_b: jax.Array,
  live_d: jax.Array,
  drawing: Drawing,
) -> tuple[Store, jax.Array]:
  """Runs the clean image through the model and puts it into the store.

  Returns:
    The store and the images f32[b, h, w, c].
  """
  model = bind(config, params)
  clean_bhwc = drawing.walk.x
  parts = drawing.at_j.shape[0] // index_b.shape[0]
  cache = jax.tree.map(
    lambda x: split_rows(x, parts=parts, axis=1)[0], drawing.walk.memory
  )
  at_b, next_b = (
    split_rows(x_j, parts=parts)[0] for x_j in (drawing.at_j, drawing.next_j)
  )
  own = Drawing(samplers.begin(clean_bhwc, cache), at_b, next_b)
  _, cache = _predict(model, kind, clean_bhwc, 0, _look(model, kind, own), cache)
  put = store_lib.put(store.cache, cache, index_b, live_d, at_b, count=kind.patches)
  return store._replace(cache=put), replicate(clean_bhwc)


def evaluations(sample: SampleConfig, diffusion: DiffusionConfig) -> samplers.Steps:
  """The steps of an image: as often as `t` has numbers the model is asked."""
  return samplers.make_steps(
    sample.sampler,
    steps=sample.steps,
    timesteps=diffusion.timesteps,
    start=sample.start,
    schedule=diffusion.schedule,
    shift=diffusion.t_shift,
  )


def _draw_noise(kind: Kind, keys_b, image_b, number) -> jax.Array:
  def one(key, image, number):
    for data in (IMAGE, image, number):
      key = jax.random.fold_in(key, data)
    return jax.random.normal(key, kind.shape)

  return by_row(one)(keys_b, image_b, jnp.zeros_like(image_b) + number)


def _guide(
  sample: SampleConfig, timesteps: int, branches: tuple[jax.Array, ...], t: jax.Array
) -> jax.Array:
  """Mixes the predictions at t, as `sample.guidance` and the knobs beside it say."""
  if len(branches) == 1:
    return branches[0]
  first, last = sample.guidance_from * timesteps, sample.guidance_to * timesteps
  everywhere = (sample.guidance_from, sample.guidance_to) == (0.0, 1.0)

  def within(scale: float) -> Any:
    return scale if everywhere else jnp.where((t > first) & (t <= last), scale, 1.0)

  own, *images, null = branches
  how: dict[str, Any] = dict(scale=within(sample.guidance))
  if images:
    how |= dict(images=images[0], image_scale=within(sample.guidance_by_images))
  return samplers.guide(own, null, rescale=sample.guidance_rescale, **how)


def _next_of(block: Block[jax.Array]) -> jax.Array:
  """Positions, of RoPE, behind a block that begins a row."""
  if block.positions_bl is None:
    return block.count_b
  last = by_row(lambda positions_l, count: positions_l[count - 1] + 1)
  return last(block.positions_bl, block.count_b)


def _look(model: Transfusion, kind: Kind, drawing: Drawing) -> View:
  """What the patches of one image in every row see, and where they go."""
  config, (walk, at_j, next_j) = model.config, drawing
  patches, length = kind.patches, walk.memory[0].length
  places_jl = at_j[:, None] + jnp.arange(patches)[None]
  hi_jl = jnp.broadcast_to(at_j[:, None] + (patches - 1), places_jl.shape)
  if config.positions == "sequence":
    return model.look(places_jl, hi_jl, length=length, of="image")
  slots = tuple(1 for _ in config.every_kind)
  before = config.patches_by_kind[: config.every_kind.index(kind)]
  patch_m = np.arange(patches, dtype=np.int32) + sum(before)
  positions_m = count_positions(patch_m, sizes(config, slots))
  return model.look(
    places_jl,
    hi_jl,
    length=length,
    positions_bl=next_j[:, None] + positions_m[None],
    patch_bl=jnp.zeros_like(places_jl) + patch_m[None],
    slots=slots,
    of="image",
  )


def _predict(model: Transfusion, kind: Kind, x_jhwc, t, view: View, cache: Cache):
  """What is predicted of one image at t in every row; also returns the cache."""
  assert view.write_at_b is not None, "`look` says where its inputs are written"
  t_jn = jnp.zeros_like(view.write_at_b)[:, None] + t
  x_jnmd, skips = model.embed_images(x_jhwc[:, None], t_jn, kind)
  x_jmd, cache = model.extend(x_jnmd[:, 0], view, cache)
  return model.predict_images(x_jmd[:, None], skips, kind)[:, 0], cache
