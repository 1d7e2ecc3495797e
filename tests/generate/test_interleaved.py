"""Promises of tfusion/generate: what the cache gives is what training computes.

`generate_slowly` is the reference: the training forward pass over the whole document,
again at every token and at every denoising step, without a cache and without a batch.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import SPECIAL

from tfusion import config as config_lib
from tfusion import sequence
from tfusion.diffusion.process import cosine_abar
from tfusion.diffusion.samplers import Steps, make_steps
from tfusion.generate import choices, coding, drawing, feeding, interleaved, writing
from tfusion.generate import store as store_lib
from tfusion.generate.blocks import make_block
from tfusion.generate.choices import TextChoice
from tfusion.generate.interleaved import generate
from tfusion.generate.prompt import Blank
from tfusion.model import transfusion
from tfusion.model.transfusion import Transfusion, bind
from tfusion.sequence import CodeBook, Codes, Image, Text
from tfusion.sharding import put_rows, spec

pytestmark = pytest.mark.usefixtures("mesh")

LIMIT = 44  # sample.max_elements
PATCHES = 4
CONFIG = tiny.config(
  data__row_length=64,
  data__image_slots=12,
  sample__max_elements=LIMIT,
  sample__steps=3,
  sample__temperature=0.9,
  # What untrained numbers predict is far out; a wide bound would carry sums in another
  # order from step to step as large differences.
  diffusion__clip=3.0,
)
BOS, BOI = (Text(np.asarray([i], np.int32)) for i in (SPECIAL.bos, SPECIAL.boi))
KEY = jax.random.key(7)
TEXT, IMAGE = 0, 1  # streams of randomness
# Numbers of about 3 in float32 differ by 2e-7 with the order of sums, and the first
# step multiplies what the predicted noise is off by 21, 1 / sqrt(abar) at t = 970.
OTHER_ORDER = 3e-5


def sampling(**changes):
  sample = dataclasses.replace(CONFIG.sample, **changes)
  return dataclasses.replace(CONFIG, sample=sample)


def make_prompts(seed=0):
  """Every order of given text, given images and blanks; 8 rows."""
  rng = np.random.default_rng(seed)
  text, image = (lambda n: tiny.text(rng, n)), (lambda: tiny.image(rng))
  return [
    (text(3), Blank()),
    (),
    (Blank(),),
    (image(), text(4)),
    (text(2),),
    (Blank(), text(5), Blank()),
    (image(), image(), text(1)),
    (text(1), image(), text(6), Blank(), text(2)),
  ]


def make_params():
  params = tiny.params(CONFIG.model, seed=3)
  params["embedding"] = 3 * params["embedding"]  # else all tokens look alike
  return params


@pytest.fixture(scope="module")
def params(mesh):
  return make_params()


@pytest.fixture(scope="module")
def forward(params):
  return make_forward(CONFIG, params)


def make_forward(config, params):
  """The training forward pass of one document: logits of its last element and what is
  predicted of its last image."""
  compiled = jax.jit(lambda *args: bind(config.model, params)(*args))
  dtype = np.float32 if config.diffusion.schedule == "linear" else np.int32

  def run(elements, t=0):
    row = sequence.pack(
      [elements],
      row_length=CONFIG.data.row_length,
      kinds=tiny.kind_sizes(dataclasses.replace(CONFIG, model=config.model)),
      special=SPECIAL,
      causal=config.model.image_attention == "causal",
    )
    batch = sequence.stack([row])
    t_bn = np.zeros((1, CONFIG.data.image_slots), dtype)
    last = len(elements.images) - 1
    t_bn[0, max(last, 0)] = t
    given = tiny.put((batch, (batch.slots[0].latents,), (t_bn,)))
    logits_blv, (noise_bnhwc,) = compiled(*given)
    length = len(elements.tokens_l)
    return np.asarray(logits_blv)[0, length - 1], np.asarray(noise_bnhwc)[0, last]

  return run


def lay_out(*spans):
  return sequence.lay_out_part(spans, special=SPECIAL, patches_per_image=(PATCHES,))


def fold(key, *data):
  for number in data:
    key = jax.random.fold_in(key, number)
  return key


def draw_slowly(forward, c, spans, key):
  """The reverse process with the whole document in every step, in float64."""
  abar, steps = cosine_abar(c.diffusion.timesteps), c.sample.steps
  first = round(c.sample.start * c.diffusion.timesteps)
  stand = [round(first * (steps - i) / steps) for i in range(steps + 1)]
  normal = lambda n: jax.random.normal(fold(key, n), c.model.image_shape)  # noqa: E731
  x = np.asarray(normal(0), np.float64)
  for number, (t, before) in enumerate(zip(stand[:-1], stand[1:], strict=True)):
    noisy = Image(x.astype(np.float32))
    _, noise = forward(lay_out(BOS, *spans, noisy), t)
    if c.sample.guidance != 1.0:
      # A captioned image that has lost its caption, as training lays it out.
      dropped = sequence.drop_text((Text(np.asarray([9])), noisy))
      laid = sequence.lay_out(dropped, special=SPECIAL, patches_per_image=(PATCHES,))
      _, null = forward(laid, t)
      base, by_images = null, c.sample.guidance_by_images
      if by_images and (shown := [s for s in spans if isinstance(s, Image)]):
        _, base = forward(lay_out(BOS, *shown, noisy), t)
      noise = null + by_images * (base - null) + c.sample.guidance * (noise - base)
    clean = (x - np.sqrt(1 - abar[t]) * noise) / np.sqrt(abar[t])
    clean = np.clip(clean, -c.diffusion.clip, c.diffusion.clip)
    noise = (x - np.sqrt(abar[t]) * clean) / np.sqrt(1 - abar[t])
    if c.sample.sampler == "ddim":
      x = np.sqrt(abar[before]) * clean + np.sqrt(1 - abar[before]) * noise
      continue
    alpha = abar[t] / abar[before]
    x = (
      np.sqrt(abar[before]) * (1 - alpha) / (1 - abar[t]) * clean
      + np.sqrt(alpha) * (1 - abar[before]) / (1 - abar[t]) * x
    )
    variance = (1 - abar[before]) / (1 - abar[t]) * (1 - alpha)
    x = x + np.sqrt(variance) * np.asarray(normal(1 + number))
  return Image(x.astype(np.float32))


def write_slowly(forward, c, spans, key):
  """Samples text; returns it and why it ended: boi, no room, eos or full."""
  ids = []
  while True:
    laid = lay_out(BOS, *spans, Text(np.asarray(ids, np.int32)))
    logits_v, _ = forward(laid)
    logits_v = logits_v.copy()
    logits_v[[SPECIAL.pad, SPECIAL.bos, SPECIAL.eoi]] = -np.inf
    position = len(laid.tokens_l)
    if c.sample.temperature:
      logits_v = logits_v / np.float32(c.sample.temperature)
      token = int(jax.random.categorical(fold(key, TEXT, position), logits_v))
    else:
      token = int(np.argmax(logits_v))
    if token == SPECIAL.eos:
      return ids, "eos"
    if position == c.sample.max_elements:
      return ids, "full"
    if token == SPECIAL.boi:
      fits = position + 1 + PATCHES + 1 <= c.sample.max_elements
      return ids, "boi" if fits else "no room"
    ids.append(token)


def generate_slowly(forward, c, prompt, *, key, draw=draw_slowly):
  """Returns spans, who made them, and why every text of the model ended."""
  spans, made, ends, images = [], [], [], 0
  todo = list(prompt)
  while True:
    if todo and not isinstance(todo[0], Blank):
      spans.append(todo.pop(0))
      made.append(False)
      continue
    if todo:
      todo.pop(0)
    else:
      ids, end = write_slowly(forward, c, spans, key)
      if ids:
        spans.append(Text(np.asarray(ids, np.int32)))
        made.append(True)
      ends.append(end)
      if end != "boi":
        return spans, made, ends
    spans.append(draw(forward, c, spans, fold(key, IMAGE, images)))
    made.append(True)
    images += 1


def assert_same(got, spans, made=None, finished=None, *, atol=1e-4):
  kinds = [type(span).__name__ for span in spans]
  assert [type(span).__name__ for span in got.spans] == kinds
  for a, b in zip(got.spans, spans, strict=True):
    if isinstance(b, Text | Codes):
      np.testing.assert_array_equal(a.ids, b.ids)
    else:
      np.testing.assert_allclose(a.latent, b.latent, atol=atol)
  assert made is None or list(got.made) == list(made)
  assert finished is None or got.finished == finished


def run(c, params, prompts, key=KEY):
  return generate(c, params, prompts, special=SPECIAL, key=key)


def size(spans):
  return sequence.element_count(tuple(spans), patches_per_image=(PATCHES,))


@pytest.mark.slow
@pytest.mark.parametrize(
  "c",
  [
    sampling(sampler="ddpm", guidance=3.0),
    sampling(sampler="ddim", guidance=1.0),
    sampling(sampler="ddim", guidance=2.0, temperature=0.0),
  ],
  ids=lambda c: f"{c.sample.sampler}-{c.sample.guidance}-{c.sample.temperature}",
)
def test_cached_equals_uncached_whatever_the_order(params, forward, c):
  prompts = make_prompts()
  ends = []
  for row, got in enumerate(run(c, params, prompts)):
    expected = generate_slowly(forward, c, prompts[row], key=fold(KEY, row))
    # float32 sums in another order, through 2 layers and 3 denoising steps.
    assert_same(got, expected[0], expected[1], expected[2][-1] == "eos")
    ends += expected[2]
  assert {"boi", "full"} <= set(ends)  # the model switched to an image by itself, too


@pytest.mark.slow
def test_images_guide_apart_from_text_in_three_whole_documents(params, forward):
  c = sampling(sampler="ddim", guidance=2.0, guidance_by_images=1.5, max_elements=24)
  rng = np.random.default_rng(1)
  prompts = [
    (tiny.image(rng), tiny.text(rng, 3), Blank()),
    (tiny.text(rng, 2), Blank()),  # no image stands before: two branches
  ]
  as_one = run(sampling(**SHORT), params, prompts)
  for row, got in enumerate(run(c, params, prompts)):
    want = generate_slowly(forward, c, prompts[row], key=fold(KEY, row))
    assert_same(got, *want[:2])
    apart = len(prompts[row]) == 3
    far = np.abs(got.made_images[0] - as_one[row].made_images[0]).max() > 0.01
    assert far == apart


@pytest.mark.long
@pytest.mark.slow
def test_images_that_guide_as_far_as_text_guide_as_one(params):
  rng = np.random.default_rng(1)
  prompts = [(tiny.image(rng), tiny.text(rng, 3), Blank())]
  one, apart = (
    run(sampling(**SHORT, guidance_by_images=by), params, prompts)[0].made_images[0]
    for by in (0.0, 2.0)
  )
  np.testing.assert_allclose(one, apart, atol=OTHER_ORDER)


SHORT = dict(sampler="ddim", guidance=2.0, max_elements=24)

# What may be changed of the model; each is one of a pair with every other.
CHANGED = dict(
  model__image_attention="causal",
  model__qk_norm="layer",
  model__norms="after",
  model__attention_bias=True,
  model__dropout=0.5,  # in training alone
  sample__max_elements=24,
)


@pytest.mark.slow
@pytest.mark.parametrize(
  "positions, places, untied",
  [
    ("axial", "learned", "all"),
    pytest.param("shared", "sine", "mlp", marks=pytest.mark.long),
    pytest.param("sequence", "none", "all", marks=pytest.mark.long),
  ],
)
def test_cached_equals_uncached_in_a_model_that_is_changed(positions, places, untied):
  values = {k.replace(".", "__"): v for k, v in config_lib.flatten(CONFIG).items()}
  own = dict(model__positions=positions, model__patch_places=places)
  c = tiny.config(**values | CHANGED | own | dict(model__untied=untied))
  params = tiny.params(c.model, seed=3)
  rng = np.random.default_rng(0)
  prompts = [
    (tiny.image(rng), tiny.text(rng, 2), Blank()),
    (Blank(), tiny.text(rng, 1)),
  ]
  forward = make_forward(c, params)
  for row, got in enumerate(run(c, params, prompts)):
    want = generate_slowly(forward, c, prompts[row], key=fold(KEY, row))
    assert_same(got, *want[:2])
    assert want[2] and len(want[0]) > len(prompts[row])  # the model wrote behind both


# Images as codes, in a model without patches.

BOOK = CodeBook(first=20, size=9, per_image=PATCHES)  # three ids above are idle
CODED = tiny.config(
  model__patches="none",
  data__row_length=64,
  data__image_slots=1,
  sample__max_elements=30,
  sample__temperature=0.9,
  sample__guidance=2.0,
  sample__image_guidance=1.5,
  sample__code_top_p=0.8,
)
GREEDY = dataclasses.replace(
  CODED,
  sample=dataclasses.replace(
    CODED.sample, code_temperature=0.0, guidance=1.0, image_guidance=1.0
  ),
)


def draw_codes_slowly(forward, c, spans, key):
  """Three whole documents for every code, as arXiv 2405.09818 and its code say."""
  ids, s, own = [], c.sample, slice(BOOK.first, BOOK.first + BOOK.size)
  images = [span for span in spans if isinstance(span, Codes)]
  for number in range(BOOK.per_image):
    end = (BOI, Text(np.asarray(ids, np.int32)))
    f, i, u = (
      forward.whole(lay_out(BOS, *before, *end))[own] for before in (spans, images, ())
    )
    logits = u + s.image_guidance * (i - u) + s.guidance * (f - i)
    if s.code_temperature == 0:
      ids.append(BOOK.first + int(np.argmax(logits)))
      continue
    logits = logits / s.code_temperature
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), s.code_top_p)) + 1]
    assert len(kept) < BOOK.size
    left = np.full_like(logits, -np.inf)
    left[kept] = logits[kept]
    ids.append(BOOK.first + int(jax.random.categorical(fold(key, number), left)))
  return Codes(np.asarray(ids, np.int32))


def make_reader(config, params):
  """The training forward pass of a document: logits of its last element, without those
  that text may not have; `whole` gives all."""
  compiled = jax.jit(lambda batch: bind(config.model, params)(batch, None, None)[0])

  def whole(elements):
    row = sequence.pack(
      [elements],
      row_length=config.data.row_length,
      kinds=(sequence.KindSizes(1, config.model.image_shape, PATCHES),),
      special=SPECIAL,
    )
    logits_blv = compiled(tiny.put(sequence.stack([row])))
    return np.asarray(logits_blv)[0, len(elements.tokens_l) - 1]

  def of_text(elements):
    logits_v = whole(elements).copy()
    logits_v[BOOK.first :] = -np.inf
    return logits_v, None

  of_text.whole = whole
  return of_text


def coded_prompts():
  """Text and images in every order; ids of text lie below the codes."""
  rng = np.random.default_rng(0)
  text = lambda n: Text(rng.integers(5, BOOK.first, n).astype(np.int32))  # noqa: E731
  codes = Codes(rng.integers(BOOK.first, BOOK.first + BOOK.size, PATCHES))
  return [
    (codes, text(8), Blank(), text(1), Blank()),
    (text(2), Blank()),
  ]


def make_coded_params():
  params = tiny.params(CODED.model, seed=3)
  params["embedding"] = 3 * params["embedding"]
  return params


@pytest.fixture(scope="module")
def coded_params(mesh):
  return make_coded_params()


@pytest.mark.slow
@pytest.mark.parametrize(
  "c",
  [
    pytest.param(CODED, id="guided"),
    pytest.param(GREEDY, id="greedy", marks=pytest.mark.long),
  ],
)
def test_codes_are_drawn_as_whole_documents_in_three_branches_would(coded_params, c):
  prompts, forward = coded_prompts(), make_reader(c, coded_params)
  how = dict(special=SPECIAL, key=KEY, book=BOOK)
  made = generate(c, coded_params, prompts, **how)
  for row, (prompt, got) in enumerate(zip(prompts, made, strict=True)):
    key = fold(KEY, row)
    want = generate_slowly(forward, c, prompt, key=key, draw=draw_codes_slowly)
    assert_same(got, *want[:2])
    for span in got.spans:
      codes = isinstance(span, Codes)
      assert len(span.ids) == PATCHES or not codes
      assert all((BOOK.first <= i < BOOK.first + BOOK.size) == codes for i in span.ids)


def test_guidance_by_text_and_images_is_that_of_chameleons_code():
  f, i, u = np.random.default_rng(0).normal(size=(3, 5))
  mix = coding.guide_codes
  np.testing.assert_allclose(mix(f, i, u, scale=1.0, image_scale=1.0), f)
  np.testing.assert_allclose(mix(f, i, u, scale=0.0, image_scale=1.0), i)
  np.testing.assert_allclose(mix(f, i, u, scale=0.0, image_scale=0.0), u)
  # Without images before it, it is guidance by the text alone.
  np.testing.assert_allclose(mix(f, u, u, scale=3.0, image_scale=1.2), u + 3 * (f - u))


@pytest.mark.parametrize(
  "top_p, kept", [(0.4, 1), (0.5, 1), (0.6, 2), (0.81, 3), (1, 4)]
)
def test_the_nucleus_is_the_fewest_codes_that_have_the_share(top_p, kept):
  p = np.asarray([0.19, 0.5, 0.01, 0.3], np.float32)
  left = np.asarray(choices.nucleus(jnp.log(p), top_p))
  order = np.argsort(-p)
  np.testing.assert_array_equal(left[order[:kept]], np.log(p)[order[:kept]])
  assert np.all(np.isneginf(left[order[kept:]]))


@pytest.mark.long
@pytest.mark.slow
def test_a_model_of_text_alone_never_begins_an_image(coded_params):
  # All tokens are as likely; of about 300, BOI would be one.
  params = coded_params | {"head": 0 * coded_params["head"]}
  made = run(CODED, params, [()] * 16)
  ids = np.concatenate([span.ids for one in made for span in one.spans])
  assert set(ids) == set(range(32)) - set(SPECIAL)
  for asked in ((Blank(),), (tiny.image(np.random.default_rng(0)),)):
    with pytest.raises(ValueError, match="prompt 0: has an image.*patches=none"):
      run(CODED, params, [asked])


STRAIGHT = dict(
  diffusion__schedule="linear",
  diffusion__target="v",
  diffusion__t_shift=2.0,
  sample__sampler="heun",
  sample__start=1.0,
)


@pytest.mark.slow
@pytest.mark.parametrize(
  "how",
  [
    STRAIGHT,
    pytest.param(
      dict(STRAIGHT, model__patches="unet", model__unet_widths=(8, 16)),
      marks=pytest.mark.long,
    ),
    pytest.param(
      dict(diffusion__target="x0", sample__sampler="dpmpp_2m"), marks=pytest.mark.long
    ),
  ],
  ids=["straight lines", "straight lines, U-Net", "x0"],
)
def test_images_of_other_objectives_are_drawn_as_the_whole_document_would(how):
  values = {k.replace(".", "__"): v for k, v in config_lib.flatten(CONFIG).items()}
  c = tiny.config(**values | dict(sample__guidance=2.0) | how)
  params = tiny.params(c.model, seed=3)
  forward, key = make_forward(c, params), fold(KEY, 0)
  text = tiny.text(np.random.default_rng(0), 3)
  got = run(c, params, [(text, Blank())])[0].spans[1].latent
  steps = make_steps(
    c.sample.sampler,
    steps=c.sample.steps,
    timesteps=1000,
    start=c.sample.start,
    schedule=c.diffusion.schedule,
    shift=c.diffusion.t_shift,
  )
  noise = jax.random.normal(fold(key, IMAGE, 0, 0), c.model.image_shape)
  x, before = np.asarray(noise, np.float64), 0.0
  for s in zip(*steps, strict=True):
    s = Steps(*(n.item() for n in s))
    noisy = Image(x.astype(np.float32))
    _, out = forward(lay_out(BOS, text, noisy), s.t)
    dropped = sequence.drop_text((text, noisy))
    laid = sequence.lay_out(dropped, special=SPECIAL, patches_per_image=(PATCHES,))
    _, null = forward(laid, s.t)
    out = null + 2.0 * (out - null)
    clean = out if c.diffusion.target == "x0" else x - s.spread * out
    clean = np.clip(clean, -c.diffusion.clip, c.diffusion.clip)
    noise = (x - s.signal * clean) / s.spread
    x = s.to_clean * clean + s.to_x * x + s.to_noise * noise + s.to_before * before
    before = clean
  # Sums in another order.
  np.testing.assert_allclose(got, x, atol=1e-4)


@pytest.mark.long
@pytest.mark.slow
def test_every_phase_leaves_the_cache_as_if_all_were_given(params, forward):
  """A finished image stands in the cache clean, between its BOI and its EOI."""
  c = sampling(sampler="ddpm", guidance=3.0)
  walk = interleaved.Walk(c, params, make_prompts(), special=SPECIAL, key=KEY)
  sampled_boi = 0

  def check():
    boi = [() if row.at_kind is None else (BOI,) for row in walk.rows]
    laid = [lay_out(BOS, *r.spans, *end) for r, end in zip(walk.rows, boi, strict=True)]
    block = make_block(c.model, laid, at=[0] * len(laid), length=64)
    (party,) = store_lib.parties(range(len(laid)), of=len(laid), most=len(laid))
    given = feeding.feed(
      c.model,
      walk.params,
      length=64,
      store=store_lib.empty_store(c.model, rows=len(laid), length=64, apart=True),
      index_b=party.index_b,
      live_d=party.live_d,
      block=put_rows(block),
    )
    for number, row in enumerate(walk.rows):
      pairs = zip(*map(jax.tree.leaves, (walk.store.cache, given.cache)), strict=True)
      for got, expected in pairs:
        own = slice(0, 0 if row.done else row.at)
        # float32 sums in another order, through 2 layers.
        np.testing.assert_allclose(
          got[:, number, :, own], expected[:, number, :, own], atol=2e-5
        )
    return laid

  for _ in range(3):
    walk.feed()
    laid = check()
    for number, row in enumerate(walk.rows):
      if not row.done:
        assert row.at == len(laid[number].tokens_l)
        logits_v, _ = forward(laid[number])
        np.testing.assert_allclose(walk.store.logits_rv[number], logits_v, atol=1e-4)
    before = sum(row.at_kind is not None for row in walk.rows)
    list(walk.write())
    sampled_boi += sum(row.at_kind is not None for row in walk.rows) - before
    check()
    list(walk.draw())
    check()
  assert sampled_boi > 0


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.long), 1.5])
def test_denoising_computes_the_patches_alone_behind_prefixes_that_stay(
  params, monkeypatch, guidance
):
  c = sampling(sampler="ddim", guidance=guidance, steps=5)
  model = dataclasses.replace(c.model, rope_theta=8_000.0 + guidance)
  c = dataclasses.replace(c, model=model)  # compiled nowhere else
  prompt = (tiny.text(np.random.default_rng(0), 3), Blank())
  walk = interleaved.Walk(c, params, [prompt], special=SPECIAL, key=KEY)
  walk.feed()
  lengths, extend = [], Transfusion.extend

  def counted(self, x_bld, *args):
    jax.debug.callback(lambda: lengths.append(x_bld.shape[1]))  # whenever it runs
    return extend(self, x_bld, *args)

  monkeypatch.setattr(Transfusion, "extend", counted)
  list(walk.draw())
  jax.effects_barrier()
  (party,) = walk._parties([0])
  unconditional = walk._unconditional(0, party).tokens_bl.shape[1]
  assert unconditional > PATCHES
  # Five steps and the clean image; with guidance its prefix, once.
  want = [PATCHES] * 6 + [unconditional] * (guidance != 1.0)
  assert sorted(lengths) == want


@pytest.mark.long
@pytest.mark.slow
def test_the_tiles_of_an_image_are_found_once_and_not_in_every_step(
  params, monkeypatch
):
  c = sampling(sampler="ddim", guidance=1.0, steps=6)
  model = dataclasses.replace(c.model, rope_theta=9_000.0)  # compiled nowhere else
  c = dataclasses.replace(c, model=model)
  walk = interleaved.Walk(c, params, [(Blank(),)], special=SPECIAL, key=KEY)
  walk.feed()
  found, prepare = [], transfusion.prepare

  def counted(*args, **options):
    jax.debug.callback(lambda: found.append(1))  # whenever it runs
    return prepare(*args, **options)

  monkeypatch.setattr(transfusion, "prepare", counted)
  list(walk.draw())
  jax.effects_barrier()
  assert len(found) == 2  # for the loop, and for the clean image


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [pytest.param(1, marks=pytest.mark.long), 8])
def test_programs_work_where_the_store_lies_beside_a_copy_of_their_own_rows(unroll):
  """Given the store's memory to keep, no program makes room for a second one."""
  model = dataclasses.replace(tiny.config().model, layers=8, unroll=unroll)
  c = sampling(sampler="ddim", guidance=1.0, steps=2)
  params = jax.eval_shape(lambda: tiny.params(model))
  kind = model.every_kind[0]
  rows, length, part = 8, 4096, 2048
  store = store_lib.empty_store(model, rows=rows, length=length)
  (party,) = store_lib.parties([0, 1], of=rows, most=2)
  at_b = put_rows(np.zeros(2, np.int32))
  block = put_rows(make_block(model, [lay_out(BOS)] * 2, at=[0, 0], length=4))
  keys_b = jax.sharding.reshard(jax.random.split(KEY, 2), spec("batch"))
  where = dict(store=store, index_b=party.index_b)
  live = dict(where, live_d=party.live_d)
  write = writing.write.lower(
    model,
    params,
    special=SPECIAL,
    choice=TextChoice(temperature=1.0),
    length=part,
    at_b=at_b,
    writing_b=at_b > 0,
    keys_b=keys_b,
    limit=np.int32(9),
    most=np.int32(9),
    least=np.int32(0),
    **live,
  )
  feed = feeding.feed.lower(model, params, length=part, block=block, **live)
  who = dict(keys_b=keys_b, image_b=at_b)
  begin = dict(kind=kind, length=part, others=(), at_b=at_b, **who, **where)
  drawn = jax.eval_shape(lambda p: drawing.begin(model, p, **begin), params)
  number = jax.ShapeDtypeStruct((), jnp.int32)
  how = dict(kind=kind, diffusion=c.diffusion, sample=c.sample, **who)
  steps = dict(drawing=drawn, first=number, last=number)
  advance = drawing.advance.lower(model, params, **how, **steps)
  finish = drawing.finish.lower(model, params, kind=kind, drawing=drawn, **live)
  size = sum(x.nbytes for x in jax.tree.leaves(store.cache))
  copy = size * 2 // rows * part // length
  # A copy of two rows, and of one layer of eight what attention reads, in a few forms.
  for program, kept, room in (
    (feed, size, 1.6 * copy),
    (write, size, 1.6 * copy),
    (advance, copy, 0.6 * copy),
    (finish, size, 1.6 * copy),
  ):
    memory = program.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= kept
    assert memory.temp_size_in_bytes < room


def assert_equal(got, want):
  """The same to the last bit."""
  assert (got.made, got.finished) == (want.made, want.finished)
  for a, b in zip(got.spans, want.spans, strict=True):
    assert type(a) is type(b)
    for name in ("ids",) if not isinstance(a, Image) else ("latent",):
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def keys_of(rows):
  return jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(rows))


def assert_alone_is_as_beside_others(c, params, prompts, *, special=SPECIAL, **how):
  """Beside all, beside others in another order, and alone a row is the same."""
  keys = keys_of(len(prompts))

  def made(numbers):
    asked = [prompts[n] for n in numbers]
    own = dict(how, special=special, key=keys[np.asarray(numbers)])
    return dict(zip(numbers, generate(c, params, asked, **own), strict=True))

  everything = list(range(len(prompts)))
  whole = made(everything)
  for numbers in (everything[::-1], everything[1::2], [0], [1]):
    for number, got in made(numbers).items():
      assert_equal(got, whole[number])
  assert any(own for row in whole.values() for own in row.made)


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {},
    pytest.param(
      dict(model__untied="all", model__positions="axial"), marks=pytest.mark.long
    ),
    pytest.param(
      dict(model__patches="unet", model__unet_widths=(8, 16)), marks=pytest.mark.long
    ),
  ],
  ids=["plain", "untied", "unet"],
)
def test_a_row_depends_neither_on_the_others_nor_on_their_number(changes):
  values = {k.replace(".", "__"): v for k, v in config_lib.flatten(CONFIG).items()}
  c = tiny.config(**values | dict(sample__guidance=3.0) | changes)
  params = tiny.params(c.model, seed=3)
  params["embedding"] = 3 * params["embedding"]
  assert_alone_is_as_beside_others(c, params, make_prompts())


@pytest.mark.long
@pytest.mark.slow
def test_a_row_of_codes_depends_neither_on_the_others_nor_on_their_number(coded_params):
  rng = np.random.default_rng(1)
  text = lambda n: Text(rng.integers(5, BOOK.first, n).astype(np.int32))  # noqa: E731
  prompts = [*coded_prompts(), (text(9),), (Blank(), text(3)), (text(4), Blank())]
  assert_alone_is_as_beside_others(CODED, coded_params, prompts, book=BOOK)


@pytest.mark.long
@pytest.mark.slow
def test_a_row_of_several_kinds_depends_neither_on_the_others_nor_on_their_number():
  c = tiny.config(
    model__kinds=("tone:6x1,patch=2",),
    model__vocab_size=33,
    sample__max_elements=40,
    sample__steps=2,
    sample__temperature=0.9,
    diffusion__clip=3.0,
  )
  rng = np.random.default_rng(0)
  prompts = [
    (tiny.text(rng, 3), Blank(1)),
    (Blank(0), Blank(1)),
    (tiny.image_of(rng, c, 1), tiny.text(rng, 2), Blank(0)),
    (tiny.text(rng, 7),),
  ]
  params = tiny.params(c.model, seed=3)
  assert_alone_is_as_beside_others(c, params, prompts, special=tiny.special_of(c))


def test_a_row_takes_part_in_no_program_that_it_does_not_need(params, monkeypatch):
  c = sampling(sampler="ddim", guidance=2.0, max_elements=30)
  rng = np.random.default_rng(0)
  prompts = [(tiny.text(rng, 20),), (Blank(), Blank()), (tiny.text(rng, 2), Blank())]
  took = []

  def watch(name):
    program = getattr(interleaved.Walk, name)

    def watched(self, party, *args, **how):
      took.append((name, len(party.places), [n for n in party.places if n is not None]))
      return program(self, party, *args, **how)

    monkeypatch.setattr(interleaved.Walk, name, watched)

  for name in ("_feed", "_write", "_denoise"):
    watch(name)
  walk = interleaved.Walk(c, params, prompts, special=SPECIAL, key=KEY)
  walk.feed()
  list(walk.write())
  assert took == [("_feed", 1, [n]) for n in (0, 1, 2)] + [("_write", 1, [0])]
  at_boi = [n for n, row in enumerate(walk.rows) if row.at_kind is not None]
  assert {1, 2} <= set(at_boi)
  took.clear()
  list(walk.draw())
  assert sorted(took) == [("_denoise", 1, [n]) for n in at_boi]
  took.clear()
  walk.feed()
  list(walk.write())  # the second waits for another image, the third goes on with text
  (wrote,) = (rows for name, _, rows in took if name == "_write")
  assert 2 in wrote and 1 not in wrote
  took.clear()
  list(walk.draw())
  assert ("_denoise", 1, [1]) in took


@pytest.mark.slow
def test_a_prompt_of_another_length_compiles_nothing_new(params):
  c = sampling(sampler="ddim", guidance=2.0, max_elements=40, temperature=0.0)
  params = params | {"head": params["head"].at[:, SPECIAL.boi].set(0)}  # not sampled
  rng = np.random.default_rng(0)

  def compiled():
    programs = (feeding.feed, writing.write, drawing.begin, drawing.advance)
    return [program._cache_size() for program in (*programs, drawing.finish)]

  run(c, params, [(tiny.text(rng, 3), Blank())])
  before = compiled()
  for length in (1, 5, 8):
    run(c, params, [(tiny.text(rng, length), Blank())])
  assert compiled() == before


@pytest.mark.long
@pytest.mark.slow
def test_rows_with_the_same_prompt_differ_by_their_place(params):
  c = sampling(sampler="ddpm", guidance=3.0)
  made = run(c, params, [(Blank(),)] * 3)
  for a, b in ((0, 1), (1, 2)):
    assert np.abs(made[a].spans[0].latent - made[b].spans[0].latent).max() > 0.1


def test_given_spans_come_back_as_they_were_and_are_marked_as_given(params):
  prompts = make_prompts()
  for got, prompt in zip(run(CONFIG, params, prompts), prompts, strict=True):
    assert len(got.spans) == len(got.made)
    for span, made, asked in zip(got.spans, got.made, prompt, strict=False):
      assert made == isinstance(asked, Blank)
      assert isinstance(span, Image) if made else span is asked
    assert all(got.made[len(prompt) :])


@pytest.mark.long
@pytest.mark.slow
def test_at_temperature_zero_text_is_the_same_under_every_key(params):
  c = sampling(sampler="ddim", guidance=1.0, temperature=0.0)
  rng = np.random.default_rng(2)
  # An image that is given is read clean: no noise, no key.
  prompts = [
    (tiny.image(rng),),
    (tiny.text(rng, 3), tiny.image(rng), tiny.text(rng, 2)),
  ]

  def texts(key):
    made = run(c, params, prompts, key)
    firsts = [next(s.ids for s, m in zip(g.spans, g.made) if m) for g in made]
    return [list(ids) for ids in firsts]

  first = texts(jax.random.key(0))
  assert all(first)
  assert texts(jax.random.key(1)) == first


def test_above_temperature_zero_the_key_decides_and_decides_again_the_same(params):
  def texts(key):
    made = run(CONFIG, params, make_prompts(), key)
    return [list(s.ids) for g in made for s in g.spans if isinstance(s, Text)]

  first = texts(jax.random.key(0))
  assert texts(jax.random.key(0)) == first
  assert texts(jax.random.key(1)) != first


@pytest.mark.long
@pytest.mark.slow
def test_special_tokens_that_cannot_follow_are_never_sampled(params):
  # Whatever the direction, one of them has by far the largest logit.
  head = np.array(params["head"])
  head[:, SPECIAL.pad], head[:, SPECIAL.eoi] = 100 * head[:, 9], 100 * head[:, 10]
  head[:, SPECIAL.bos] = -head[:, SPECIAL.pad]
  c = sampling(sampler="ddim", guidance=1.0)
  made = run(c, params | {"head": jnp.asarray(head)}, [()] * 8)
  ids = np.concatenate([s.ids for g in made for s in g.spans if isinstance(s, Text)])
  assert not np.isin(ids, SPECIAL.ids).any()


@pytest.mark.slow
def test_a_full_row_stops_at_the_limit_and_an_image_without_room_is_not_begun(
  params, forward
):
  limit = 9
  c = sampling(sampler="ddim", guidance=1.0, max_elements=limit)
  ends = []
  for row, got in enumerate(run(c, params, [()] * 16)):
    spans, made, end = generate_slowly(forward, c, (), key=fold(KEY, row))
    assert_same(got, spans, made, end[-1] == "eos")
    assert size(got.spans) <= limit
    assert size(got.spans) == limit or end[-1] != "full"
    ends.append(end[-1])
  assert {"eos", "full", "no room"} == set(ends)


def with_limit(params, max_elements):
  """Eight rows from nothing."""
  c = sampling(sampler="ddim", guidance=1.0, max_elements=max_elements)
  return run(c, params, [()] * 8)


@pytest.mark.long
@pytest.mark.slow
def test_a_row_may_end_exactly_at_the_limit(params):
  rows = with_limit(params, LIMIT)
  row = next(i for i, g in enumerate(rows) if g.finished and len(g.spans[-1].ids) > 1)
  whole = size(rows[row].spans)
  for limit, finished in ((whole, True), (whole - 1, False)):
    got = with_limit(params, limit)[row]
    assert (got.finished, size(got.spans)) == (finished, limit)


@pytest.mark.long
@pytest.mark.slow
def test_an_image_may_end_exactly_at_the_limit(params):
  rows = with_limit(params, LIMIT)
  row = next(i for i, g in enumerate(rows) if isinstance(g.spans[1], Image))
  text, image = rows[row].spans[:2]
  whole = size((text, image))
  got = with_limit(params, whole)[row]
  assert_same(got, (text, image), finished=False)
  assert_same(with_limit(params, whole - 1)[row], (text,), finished=False)


def test_nothing_asked_is_nothing_made(params):
  assert run(CONFIG, params, []) == []


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(monkeypatch):
  monkeypatch.setattr(interleaved, "Walk", None)
  fits = 1 + (PATCHES + 2) * 7  # 43 of 44
  with pytest.raises(ValueError, match="prompt 1: 49 elements.*sample.max_elements=44"):
    run(
      CONFIG, None, [(), (Blank(),) * 4 + (tiny.image(np.random.default_rng(0)),) * 4]
    )
  with pytest.raises(ValueError, match=f"{fits + 2} elements"):
    run(CONFIG, None, [(Blank(),) * 7 + (Text(np.asarray([9, 9])),)])
  with pytest.raises(TypeError):  # it fits, and goes on to work
    run(CONFIG, None, [(Blank(),) * 7 + (Text(np.asarray([9])),)])


def test_an_image_of_another_shape_is_refused_with_both_shapes():
  image = Image(np.zeros((8, 8, 2), np.float32))
  with pytest.raises(ValueError, match=r"prompt 0:.*\(8, 8, 2\).*\(4, 4, 2\)"):
    run(CONFIG, None, [(image,)])


ON_A_MESH = """
import jax
import numpy as np
import test_interleaved as here
from tfusion.config import MeshConfig
from tfusion.model.transfusion import axis_names
from tfusion.sharding import make_mesh, state_shardings

def made_on(c, params, prompts, devices, axes, **how):
  names = axis_names(c.model)
  mesh = make_mesh(MeshConfig(**axes), devices=devices)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, state_shardings(params, names=names, mesh=mesh))
    return here.generate(c, placed, prompts, special=here.SPECIAL, key=here.KEY, **how)

assert len(jax.devices()) == 8
for c, params, prompts, how in (
  # Five rows, but the batch is spread over four groups of devices.
  (here.sampling(sampler="ddpm", guidance=3.0), here.make_params(),
   here.make_prompts()[:5], {}),
  (here.CODED, here.make_coded_params(), here.coded_prompts(), dict(book=here.BOOK)),
):
  given = c, jax.tree.map(np.asarray, params), prompts
  one = made_on(*given, jax.devices()[:1], {}, **how)
  eight = made_on(*given, jax.devices(), dict(data=2, fsdp=2, tensor=2), **how)
  for got, expected in zip(eight, one, strict=True):
    # Sums over the tensor axis in another order.
    here.assert_same(got, *expected, atol=here.OTHER_ORDER)
print("done")
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_mesh_of_eight_devices_generates_what_one_does():
  tests = pathlib.Path(__file__).parents[1]
  paths = [str(p) for p in (tests.parent, tests, tests / "generate")]
  done = subprocess.run(
    [sys.executable, "-c", ON_A_MESH],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    },
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.stdout.strip() == "done", done.stderr[-3000:]


@pytest.mark.slow
def test_what_stands_in_the_prompt_or_was_written_is_avoided(params):
  """Greedy, by hand: the likeliest token of those that were not seen yet."""
  c = sampling(sampler="ddim", guidance=1.0, temperature=0.0, repetition=1e6)
  prompts = [(tiny.text(np.random.default_rng(n), 4),) for n in range(2)]
  forward = make_forward(CONFIG, params)
  written = 0
  for (given,), got in zip(prompts, run(c, params, prompts), strict=True):
    seen, spans = set(given.ids.tolist()), [given]
    for span in got.spans[1:]:
      if not isinstance(span, Text):
        spans.append(span)
        continue
      for token in span.ids:
        logits_v, _ = forward(lay_out(BOS, *spans))
        own = np.asarray(logits_v).copy()
        own[[SPECIAL.pad, SPECIAL.bos, SPECIAL.eoi]] = -np.inf
        for other in seen:
          own[other] *= 1e-6 if own[other] > 0 else 1e6
        assert token == np.argmax(own)
        seen.add(int(token))
        spans.append(Text(np.asarray([token])))
        written += 1
  assert written > 4


@pytest.mark.long
@pytest.mark.slow
def test_guidance_acts_within_its_interval_alone(params):
  prompts = make_prompts()[:3]
  how = dict(sampler="ddim", steps=4, temperature=0.0)
  plain = run(sampling(**how, guidance=1.0), params, prompts)
  guided = run(sampling(**how, guidance=3.0), params, prompts)
  # Steps stand at t = 970, 728, 485 and 242; above 0.98 T there is none.
  never = run(sampling(**how, guidance=3.0, guidance_from=0.98), params, prompts)
  always = run(sampling(**how, guidance=3.0, guidance_from=0.01), params, prompts)
  part = run(sampling(**how, guidance=3.0, guidance_to=0.5), params, prompts)
  images = lambda made: [i for one in made for i in one.made_images]  # noqa: E731
  for a, b in ((never, plain), (always, guided)):
    for x, y in zip(images(a), images(b), strict=True):
      np.testing.assert_allclose(x, y, atol=OTHER_ORDER)
  for other in (plain, guided):
    assert np.abs(images(part)[0] - images(other)[0]).max() > 0.01
