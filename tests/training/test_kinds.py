"""Rows of several kinds of images: packed, trained, spread over devices, sampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.diffusion.samplers import make_steps
from tfusion.generate.interleaved import generate
from tfusion.generate.prompt import Blank
from tfusion.model.transfusion import bind
from tfusion.sequence import Image, Text
from tfusion.training import step as step_lib
from tfusion.training.flops import batch_flops
from tfusion.training.step import gradients, init_state, train_step
from tfusion.training.validate import validate

pytestmark = pytest.mark.usefixtures("mesh")

# 4, 4, 3, 4 and 1 patches.
KINDS = (
  "wide:2x8x2,like=image",
  "tone:6x1,patch=2,weight=1,target=v",
  "clip:2x2x2x3,patch=2x1x1,schedule=linear,target=v",
  "pose:5",
)
CONFIG = tiny.config(
  model__kinds=KINDS,
  data__row_length=64,
  data__image_slots=2,
  sample__sampler="dpmpp_2m",
  sample__steps=3,
  sample__max_elements=60,
  diffusion__clip=3.0,
)
SPECIAL = tiny.special_of(CONFIG)


def documents(seed: int = 0) -> list[sequence.Document]:
  """41 elements: every kind behind a text, one document with three."""
  rng = np.random.default_rng(seed)
  made = [(tiny.text(rng, 2), tiny.image_of(rng, CONFIG, kind)) for kind in (4, 1, 2)]
  mixed = (
    tiny.image_of(rng, CONFIG, 3),
    tiny.text(rng, 1),
    tiny.image_of(rng, CONFIG, 2),
    tiny.image_of(rng, CONFIG, 0),
  )
  return [*made, mixed]


def batch_of(rows) -> sequence.Batch:
  return sequence.stack([tiny.pack(row, CONFIG) for row in rows])


@pytest.fixture(scope="module")
def params(mesh):
  return tiny.params(CONFIG.model)


def noise_by_image(config, key, batch):
  """In place of draw_noise: the same for an image wherever it stands."""
  del config, key
  noise = tuple(jnp.roll(s.latents, 1, axis=-1) * 0.7 + 0.1 for s in batch.slots)
  t = [jnp.full(s.starts.shape, 400, jnp.int32) for s in batch.slots]
  return noise, tuple(x.astype(jnp.float32) if n == 3 else x for n, x in enumerate(t))


def test_a_patch_says_of_which_slot_of_which_kind_it_is():
  row = tiny.pack(documents(), CONFIG)
  sizes = tiny.kind_sizes(CONFIG)
  kind_l, place_l = sequence.locate(row.patch_l, sizes)
  assert [int(np.sum(kind_l == k)) for k in range(5)] == [4, 4, 6, 4, 1]
  for number, (slots, size) in enumerate(zip(row.slots, sizes, strict=True)):
    used = np.flatnonzero(slots.weights)
    assert len(used) == {2: 2}.get(number, 1)
    for slot in used:
      own = slice(slots.starts[slot], slots.starts[slot] + size.patches)
      assert np.all(kind_l[own] == number)
      np.testing.assert_array_equal(place_l[own], range(size.patches))
      assert row.tokens_l[own.start - 1] == SPECIAL.bois[number]
      assert row.tokens_l[own.stop] == SPECIAL.eoi
      assert np.all(row.hi_l[own] == own.stop - 1)


def test_kinds_that_share_have_one_set_of_layers_and_the_others_their_own(params):
  own = {name for name in params if name.startswith("patch")}
  assert own == {"patches", "patches_tone", "patches_clip", "patches_pose"}
  assert params["patches_tone"]["w_in"].shape == (2, 32)
  assert params["patches_clip"]["w_in"].shape == (6, 32)
  assert params["patches_pose"]["w_in"].shape == (5, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
  "how",
  [
    {},
    dict(model__positions="shared", model__patch_places="learned"),
    pytest.param(
      dict(model__untied="all", train__accumulate=2), marks=pytest.mark.long
    ),
  ],
  ids=["plain", "shared", "untied"],
)
def test_documents_of_any_kind_learn_packed_what_they_learn_alone(monkeypatch, how):
  monkeypatch.setattr(step_lib, "draw_noise", noise_by_image)
  config = changed(**how)
  params = tiny.params(config.model)
  packed = sequence.stack(
    [tiny.pack(documents(), config), *[tiny.pack([], config)] * 3]
  )
  alone = sequence.stack([tiny.pack([own], config) for own in documents()])
  compute = jax.jit(functools.partial(gradients, config))
  got = compute(params, tiny.put(packed), jax.random.key(0))
  want = compute(params, tiny.put(alone), jax.random.key(0))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    # Sums in another order.
    scale = max(np.abs(b).max(), 1e-6)
    np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-5)
  assert all(np.any(x) for x in jax.tree.leaves(got[0]["patches_clip"]))


def changed(**how):
  values = dict(
    model__kinds=KINDS,
    data__row_length=64,
    data__image_slots=2,
    sample__sampler="dpmpp_2m",
    sample__steps=3,
    sample__max_elements=60,
    diffusion__clip=3.0,
  )
  return tiny.config(**values | how)


@pytest.mark.slow
def test_the_axial_place_of_a_patch_is_that_in_its_own_grid():
  kinds = ("wide:2x8x2,like=image", "tone:6x1,patch=2")
  config = changed(model__kinds=kinds, model__positions="axial")
  rng, params = np.random.default_rng(0), tiny.params(config.model)

  def turned(batch):
    """By what the first pair of rows and the first of columns is turned."""
    slots = tuple(kind.starts.shape[1] for kind in batch.slots)
    given = (batch.positions_bl, batch.lo_bl, batch.hi_bl)
    model = bind(config.model, params)
    view = model._view(*given, patch_bl=batch.patch_bl, slots=slots)
    angle_blk = jnp.arctan2(view.sin_blk, view.cos_blk)
    return angle_blk[0, :, 0], angle_blk[0, :, 1]

  document = [tiny.image_of(rng, config, kind) for kind in (2, 0, 1)]
  row = tiny.pack([(*document, tiny.text(rng, 1))], config)
  row_l, column_l = jax.jit(turned)(tiny.put(sequence.stack([row])))
  first_l = row.positions_l.astype(float)
  kind_l, _ = sequence.locate(row.patch_l, tiny.kind_sizes(config))
  for number, grid in enumerate([(2, 2), (1, 4), (1, 3)]):
    own = np.flatnonzero(kind_l == number)
    rows, columns = np.indices(grid).reshape(2, -1)
    want = first_l[own] + rows, 0.1 * (first_l[own] + columns)
    for got_l, angle in zip((row_l, column_l), want, strict=True):
      angle = np.angle(np.exp(1j * angle))
      np.testing.assert_allclose(np.asarray(got_l)[own], angle, atol=1e-5)


@pytest.mark.slow
def test_the_loss_is_that_of_each_kind_by_its_weight_and_shared_layers_share_a_mean(
  params, monkeypatch
):
  monkeypatch.setattr(step_lib, "draw_noise", noise_by_image)
  batch = tiny.put(batch_of([documents(s) for s in range(4)]))
  noise, t = noise_by_image(CONFIG, None, batch)
  found = step_lib.losses(
    CONFIG, params, step_lib.predict(CONFIG, params, batch, noise, t), batch, noise, t
  )
  image, wide, tone, clip, pose = (
    (float(x.total), float(x.count)) for x in found.images
  )
  assert [x[1] for x in (image, wide, tone, clip, pose)] == [4, 4, 8, 4, 4]
  want = float(found.text.mean())
  want += 5.0 * (image[0] + wide[0]) / 8  # one mean over both: they share layers
  want += 1.0 * tone[0] / 8 + 5.0 * clip[0] / 4 + 5.0 * pose[0] / 4
  state = init_state(CONFIG, jax.random.key(0))._replace(params=params)
  _, metrics = jax.jit(functools.partial(train_step, CONFIG))(
    state, batch, jax.random.key(0)
  )
  assert float(metrics["loss"]) == pytest.approx(want, rel=1e-5)
  assert float(metrics["loss_tone"]) == pytest.approx(tone[0] / 8, rel=1e-5)
  assert float(metrics["images"]) == 24
  names = {"loss_image", "loss_wide", "loss_tone", "loss_clip", "loss_pose"}
  assert names <= metrics.keys()


@pytest.mark.slow
def test_an_empty_kind_has_a_loss_of_zero_and_gives_no_gradient(params):
  rng = np.random.default_rng(0)
  batch = tiny.put(batch_of([[(tiny.text(rng, 2), tiny.image_of(rng, CONFIG, 1))]] * 4))
  grads, found = jax.jit(functools.partial(gradients, CONFIG))(
    params, batch, jax.random.key(0)
  )
  assert [float(x.count) for x in found.images] == [0, 4, 0, 0, 0]
  for name in ("patches_tone", "patches_clip", "patches_pose"):
    assert not any(np.any(x) for x in jax.tree.leaves(grads[name]))
  assert any(np.any(x) for x in jax.tree.leaves(grads["patches"]))  # of wide


def test_operations_are_counted_by_kind():
  rng = np.random.default_rng(0)
  d, counts = CONFIG.model.width, []
  for kind in range(5):
    rows = batch_of([[(tiny.text(rng, 1), tiny.image_of(rng, CONFIG, kind))]])
    live = sequence.live_elements(rows)
    patches = CONFIG.model.patches_by_kind[kind]
    own = CONFIG.model.every_kind[kind].patch_numbers * 2 * d * patches
    text = (live - patches) * d * CONFIG.model.vocab_size
    block = d * 8 * (2 * 4 + 2 * 2) + 3 * d * 48
    pairs = int(np.sum(rows.hi_bl - rows.lo_bl + 1))
    want = 6 * (2 * live * block + own + text) + 12 * 2 * 4 * 8 * pairs
    counts.append((batch_flops(CONFIG.model, rows), want))
  assert [a for a, _ in counts] == [b for _, b in counts]


@pytest.mark.slow
def test_validation_has_a_loss_for_every_kind(params):
  batches = [tiny.put(batch_of([documents(s) for s in range(4)])) for _ in range(3)]
  line = validate(CONFIG, params, batches)
  for name in ("image", "wide", "tone", "clip", "pose"):
    assert 0.1 < line[f"loss_{name}"] < 100
  assert line["images"] == 3 * 24 and len(line["loss_image_bins"]) == 10


# Sampling.


def generate_whole(params, prompt, row):
  """The images of a prompt's blanks, by the training forward pass of the whole document
  at every denoising step: DPM-Solver++(2M) in float64."""
  forward = jax.jit(lambda *args: bind(CONFIG.model, params)(*args)[1])
  spans, images = [], 0

  def predicted(document, at, t):
    laid = sequence.lay_out_part(
      (Text(np.asarray([SPECIAL.bos])), *document),
      special=SPECIAL,
      patches_per_image=CONFIG.model.patches_by_kind,
    )
    packed = sequence.pack(
      [laid], row_length=64, kinds=tiny.kind_sizes(CONFIG), special=SPECIAL
    )
    batch = sequence.stack([packed])
    slot = sum(
      s.kind == document[at].kind for s in document[:at] if isinstance(s, Image)
    )
    ts = [np.zeros((1, 2), np.float32 if k == 3 else np.int32) for k in range(5)]
    ts[document[at].kind][0, slot] = t
    clean = tuple(s.latents for s in batch.slots)
    out = forward(*tiny.put((batch, clean, tuple(ts))))
    return np.asarray(out[document[at].kind][0, slot], np.float64)

  for span in prompt:
    if not isinstance(span, Blank):
      spans.append(span)
      continue
    kind = CONFIG.model.every_kind[span.kind]
    noise = step_lib.diffusions(CONFIG)[span.kind]
    key = jax.random.fold_in(jax.random.key(7), row)
    for data in (1, images, 0):
      key = jax.random.fold_in(key, data)
    x, before = np.asarray(jax.random.normal(key, kind.shape), np.float64), 0.0
    steps = make_steps(
      "dpmpp_2m", steps=3, timesteps=1000, start=0.97, schedule=noise.schedule
    )
    for s in zip(*steps, strict=True):
      t, signal, spread, to_clean, to_x, to_noise, to_before, _ = s
      own = Image(x.astype(np.float32), kind=span.kind)
      out = predicted([*spans, own], len(spans), t)
      null = predicted([own], 0, t)
      out = null + 3.0 * (out - null)
      if noise.target == "eps":
        clean = (x - spread * out) / signal
      elif noise.schedule == "linear":
        clean = x - spread * out
      else:
        clean = signal * x - spread * out
      clean = np.clip(clean, -3, 3)
      eps = (x - signal * clean) / spread
      x, before = (
        to_clean * clean + to_x * x + to_noise * eps + to_before * before,
        clean,
      )
    spans.append(Image(x.astype(np.float32), kind=span.kind))
    images += 1
  return spans


@pytest.mark.slow
def test_every_kind_is_sampled_on_the_cache_as_without_one(params):
  rng = np.random.default_rng(3)
  prompts = [
    (tiny.text(rng, 2), Blank(1), tiny.text(rng, 1), Blank(2)),
    (tiny.image_of(rng, CONFIG, 2), Blank(3)),
    (Blank(4), tiny.image_of(rng, CONFIG, 1), Blank(0)),
  ]
  made = generate(CONFIG, params, prompts, special=SPECIAL, key=jax.random.key(7))
  for row, (prompt, got) in enumerate(zip(prompts, made, strict=True)):
    want = generate_whole(params, prompt, row)
    for a, b in zip(got.spans, want, strict=False):
      if isinstance(b, Image):
        assert a.kind == b.kind
        np.testing.assert_allclose(a.latent, b.latent, atol=1e-3)


@pytest.mark.long
@pytest.mark.slow
def test_a_row_with_several_kinds_is_the_same_beside_rows_that_wait_for_them(params):
  rng = np.random.default_rng(5)
  text = tiny.text(rng, 2)
  prompt = (Blank(0), text, Blank(2), Blank(4))
  beside = [prompt, (Blank(2),), (Blank(4), text), (Blank(1), Blank(2))]
  key = jax.random.key(7)
  (alone,) = generate(CONFIG, params, [prompt], special=SPECIAL, key=key)
  together = generate(CONFIG, params, beside, special=SPECIAL, key=key)[0]
  for a, b in zip(alone.spans[:4], together.spans[:4], strict=True):
    if isinstance(b, Image):
      np.testing.assert_allclose(a.latent, b.latent, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind", [3, *(pytest.param(kind, marks=pytest.mark.long) for kind in (0, 1, 2, 4))]
)
def test_the_model_chooses_a_kind_by_the_mark_that_it_writes(params, kind):
  # Of two marks one has the larger logit, whatever stands before.
  head = np.zeros_like(params["head"])
  head[:, SPECIAL.bois[kind]] = 100 * params["head"][:, 9]
  head[:, SPECIAL.eos] = -head[:, SPECIAL.bois[kind]]
  chosen = params | {"head": jnp.asarray(head)}
  prompts = [(tiny.text(np.random.default_rng(n), 3),) for n in range(6)]
  made = generate(CONFIG, chosen, prompts, special=SPECIAL, key=jax.random.key(0))
  found = [s for one in made for s in one.spans if isinstance(s, Image)]
  assert found and {image.kind for image in found} == {kind}
  assert found[0].latent.shape == CONFIG.model.every_kind[kind].shape
