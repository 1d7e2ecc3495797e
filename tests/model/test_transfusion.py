"""Promises of tfusion/model/transfusion.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tfusion import sequence
from tfusion.model import transfusion
from tfusion.model.transfusion import (
  Transfusion,
  axis_names,
  bind,
  build,
  dtype_of,
  parameter_count,
)
from tfusion.sharding import RULES

pytestmark = pytest.mark.usefixtures("mesh")

CONFIG = tiny.config()
# Table 2: layers, width, heads, numbers of a head; Llama's SwiGLU width; parameters
# with a vocabulary of 32,000 and without the patch layers, in millions; what linear
# patch layers of side 2 add, in percent (Table 7 prints 0.5, 0.4, 0.4, 0.4, 0.3).
SIZES = {
  "0.16b": (16, 768, 12, 64, 2048, 162.4, 0.516),
  "0.37b": (24, 1024, 16, 64, 2816, 373.9, 0.369),
  "0.76b": (24, 1536, 24, 64, 4096, 777.9, 0.367),
  "1.4b": (24, 2048, 16, 128, 5632, 1364.3, 0.356),
  "7b": (32, 4096, 32, 128, 11_008, 6738.4, 0.269),
}


@pytest.fixture(scope="module")
def params(mesh):
  return tiny.params(CONFIG.model)


@pytest.fixture(scope="module")
def forward(params):
  """A compiled forward pass of numpy rows."""
  compiled = jax.jit(lambda *args: bind(CONFIG.model, params)(*args))

  def run(batch, noisy=None, t=None):
    b, n = batch.slots[0].starts.shape
    noisy = batch.slots[0].latents if noisy is None else noisy
    t = np.full((b, n), 500, np.int32) if t is None else t
    logits, (images,) = compiled(*tiny.put((batch, (noisy,), (t,))))
    return np.asarray(logits), np.asarray(images)

  return run


# Sizes.


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_sizes_are_those_of_its_table_and_have_its_parameters(size):
  model = dataclasses.replace(tiny.paper(f"size={size}").model, vocab_size=32_000)
  *shape, millions, added_percent = SIZES[size]
  head_dim = model.width // model.heads
  assert shape == [model.layers, model.width, model.heads, head_dim, model.mlp]
  assert model.kv_heads == model.heads and model.head_dim == head_dim
  total = parameter_count(model)
  patches = sum(x.size for x in jax.tree.leaves(nnx.state(build(model).patches)))
  assert round((total - patches) / 1e6, 1) == millions
  assert round(100 * patches / (total - patches), 3) == added_percent


def test_only_the_vocabulary_separates_the_experiment_from_table_2():
  model = tiny.paper("size=0.16b").model
  rows = model.vocab_size - 32_000
  assert 2 <= rows < 258 and model.vocab_size % 256 == 0
  plain = dataclasses.replace(model, vocab_size=32_000)
  assert parameter_count(model) - parameter_count(plain) == 2 * rows * model.width


@pytest.mark.parametrize("patch, added", [(1, 16), (2, 64), (4, 256), (8, 1024)])
def test_larger_patches_add_two_larger_matrices(patch, added):
  numbers = patch**2 * 8
  model = tiny.paper(f"patch={patch}").model
  time = (256 + 1) * 768 + (768 + 1) * 768
  want = numbers * 768 + 768 + time + 768 * numbers + numbers
  patches = sum(x.size for x in jax.tree.leaves(nnx.state(build(model).patches)))
  assert patches == want and 2 * numbers == added
  assert model.patches_per_image == (32 // patch) ** 2


def test_parameter_count_counts_every_number(params):
  assert parameter_count(CONFIG.model) == sum(x.size for x in jax.tree.leaves(params))


def test_every_parameter_is_float32_and_names_each_of_its_axes():
  names = axis_names(CONFIG.model)
  shapes = nnx.to_pure_dict(nnx.state(build(CONFIG.model), nnx.Param))
  flat = {
    tuple(k.key for k in path): x
    for path, x in jax.tree_util.tree_flatten_with_path(shapes)[0]
  }
  assert flat.keys() == names.keys()
  for path, x in flat.items():
    assert x.dtype == jnp.float32
    assert len(names[path]) == x.ndim, path
    assert set(names[path]) <= set(RULES), path


# Forward.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_answers_in_float32_with_tokens_and_noise(params, dtype):
  model, batch = dataclasses.replace(CONFIG.model, dtype=dtype), tiny.batch(CONFIG)
  inputs = tiny.put((batch, (batch.slots[0].latents,), (np.zeros((4, 3), np.int32),)))
  logits, (noise,) = jax.eval_shape(lambda *args: bind(model, params)(*args), *inputs)
  assert (logits.shape, logits.dtype) == ((4, 24, 32), jnp.float32)
  assert (noise.shape, noise.dtype) == ((4, 3, 4, 4, 2), jnp.float32)


@pytest.mark.slow
def test_bfloat16_answers_nearly_what_float32_does(params, forward):
  model, batch = dataclasses.replace(CONFIG.model, dtype="bfloat16"), tiny.batch(CONFIG)
  t = np.full((4, 3), 500, np.int32)
  inputs = tiny.put((batch, (batch.slots[0].latents,), (t,)))
  logits, (images,) = jax.jit(lambda *args: bind(model, params)(*args))(*inputs)
  for got, want in zip((logits, images), forward(batch, t=t), strict=True):
    # 8 bits of mantissa, so no less than 1e-3 either, through two layers.
    assert 1e-3 < np.linalg.norm(got - want) / np.linalg.norm(want) < 5e-2


def test_auto_is_float32_on_a_cpu_and_bfloat16_elsewhere(monkeypatch):
  auto = dataclasses.replace(CONFIG.model, dtype="auto")
  for backend, name in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
    assert dtype_of(auto).name == name
    assert dtype_of(dataclasses.replace(auto, dtype="float32")).name == "float32"


@pytest.mark.slow
def test_a_patch_enters_where_the_batch_says_and_leaves_from_there(forward):
  # Two captioned images in one row; nudging one patch of the noisy latent moves the
  # prediction of its own image, and of the later one only if it is the same document.
  rng = np.random.default_rng(0)
  first, second = (tiny.text(rng, 2), tiny.image(rng)), (tiny.image(rng),)
  for documents, reaches in (([first, second], False), ([first + second], True)):
    batch = sequence.stack([tiny.pack(documents, CONFIG)])
    noisy = batch.slots[0].latents.copy()
    before = forward(batch)[1]
    noisy[0, 0, 0, 0, 0] += 1.0  # upper left number of the first image
    after = forward(batch, noisy)[1]
    moved = (before != after).reshape(1, 3, -1).any(-1)[0]
    assert moved[:2].tolist() == [True, reaches]
    assert (before != after)[0, 0].all()  # patches of one image see each other


def test_tokens_under_patches_and_padding_are_never_read(forward):
  batch = tiny.batch(CONFIG)
  free = (batch.patch_bl >= 0) | (batch.hi_bl < batch.lo_bl)
  assert free.sum() > 8
  other = batch._replace(tokens_bl=np.where(free, 31, batch.tokens_bl))
  (logits, noise), (logits2, noise2) = forward(batch), forward(other)
  # Padding's own logits follow its token, as it attends to nothing.
  live = batch.hi_bl >= batch.lo_bl
  np.testing.assert_array_equal(logits[live], logits2[live])
  used = batch.slots[0].weights > 0
  np.testing.assert_array_equal(noise[used], noise2[used])


def test_nothing_behind_an_image_reaches_its_noise(forward):
  rng = np.random.default_rng(0)
  image = tiny.image(rng)
  rows = [
    sequence.stack([tiny.pack([(image, text)], CONFIG)])
    for text in (tiny.text(rng, 3), tiny.text(rng, 6))
  ]
  rows[1].tokens_bl[0, rows[1].slots[0].starts[0, 0] + 4] = 9  # in place of EOI
  before, after = (forward(row)[1][0, 0] for row in rows)
  np.testing.assert_array_equal(before, after)


# Where patches stand.


def run_changed(documents, params=None, order=None, **changes):
  """Logits behind text and images of a row of documents, in a changed model.

  Args:
    documents: of the row.
    params: None: random ones.
    order: of the patches of every image, from left to right and then down.
    changes: of the config.
  """
  config = tiny.config(**changes)
  params = tiny.params(config.model) if params is None else params
  batch = sequence.stack([tiny.pack(list(documents), config)])
  b, n = batch.slots[0].starts.shape
  t = np.full((b, n), 500, np.int32)
  run = jax.jit(lambda *args: bind(config.model, params)(*args))
  noisy = batch.slots[0].latents
  if order is not None:
    noisy = in_order(noisy, order)
  ran = run(*tiny.put((batch, (noisy,), (t,))))
  logits, (images,) = jax.tree.map(np.asarray, ran)
  text = (batch.hi_bl[0] >= batch.lo_bl[0]) & (batch.patch_bl[0] < 0)
  return logits[0, text], images[0, batch.slots[0].weights[0] > 0]


def in_order(images, order):
  """Images of two by two patches of side 2, with these in another order."""
  lead, (h, w, c) = images.shape[:-3], images.shape[-3:]
  cut = images.reshape(-1, 2, 2, 2, 2, c).swapaxes(2, 3).reshape(-1, 4, 2, 2, c)
  again = cut[:, order].reshape(-1, 2, 2, 2, 2, c).swapaxes(2, 3)
  return again.reshape(*lead, h, w, c)


def two_images():
  rng = np.random.default_rng(0)
  return tiny.text(rng, 2), tiny.image(rng), tiny.text(rng, 2), tiny.image(rng)


ORDER = [2, 0, 3, 1]
PLACES = {
  "sequence": dict(),
  "shared": dict(model__positions="shared"),
  "axial": dict(model__positions="axial"),
  "learned": dict(model__positions="shared", model__patch_places="learned"),
  "sine": dict(model__positions="shared", model__patch_places="sine"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", PLACES)
def test_patches_at_one_position_are_told_apart_by_what_is_added_and_else_not(how):
  given = two_images()
  logits, images = run_changed([given], **PLACES[how])
  moved = run_changed([given], order=ORDER, **PLACES[how])
  # Sums over keys in another order.
  alike = [
    np.abs(a - b).max() < 1e-4
    for a, b in zip(moved, (logits, in_order(images, ORDER)), strict=True)
  ]
  assert alike == ([True] * 2 if how == "shared" else [False] * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("how", "patches"),
  [
    *((how, "linear") for how in ("shared", "axial", "learned", "sine")),
    ("axial", "unet"),
    *(
      pytest.param(how, "unet", marks=pytest.mark.long)
      for how in ("shared", "learned", "sine")
    ),
  ],
)
def test_documents_packed_give_what_they_give_alone_wherever_patches_stand(
  how, patches
):
  changes = PLACES[how] | dict(model__patches=patches)
  if patches == "unet":
    changes |= dict(model__unet_widths=(8, 8))
  rng = np.random.default_rng(1)
  others = (tiny.image(rng),), (tiny.text(rng, 3),)
  changes |= dict(data__row_length=36)
  logits, images = run_changed([others[0], two_images(), others[1]], **changes)
  alone, images_alone = run_changed([two_images()], **changes)
  first = len(run_changed(others[:1], **changes)[0])
  # The softmax sums over other zeros in another order.
  np.testing.assert_allclose(logits[first : first + len(alone)], alone, atol=1e-5)
  np.testing.assert_allclose(images[1:], images_alone, atol=1e-5)
  # And where an image stands does matter: else nothing here would.
  usual = dict(model__positions="sequence", model__patch_places="none")
  other, _ = run_changed([two_images()], **(changes | usual))
  assert np.abs(other - alone).max() > 1e-4


def test_patches_turn_by_row_and_column_as_the_table_in_the_docs_has_it(monkeypatch):
  turned, angles = [], transfusion.rope_angles

  def record(rows_bl, columns_bl, **how):
    turned.append((np.asarray(rows_bl)[0], np.asarray(columns_bl)[0]))
    return angles(rows_bl, columns_bl, **how)

  monkeypatch.setattr(transfusion, "rope_angles", record)
  config = tiny.config(model__positions="axial", model__image_shape=(4, 6, 2))
  rng = np.random.default_rng(0)
  image = sequence.Image(np.zeros((4, 6, 2), np.float32))
  row = tiny.pack([(tiny.text(rng, 2), image, tiny.text(rng, 1))], config)
  positions, patches, lo, hi = tiny.put(
    [x[None] for x in (row.positions_l, row.patch_l, row.lo_l, row.hi_l)]
  )
  bind(config.model, tiny.params(config.model))._view(
    positions, lo, hi, patch_bl=patches
  )
  ((rows, columns),) = turned
  assert rows[:12].tolist() == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8]
  assert columns[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_a_learned_table_begins_as_none_and_is_learned():
  config = tiny.config(model__patch_places="learned")
  rngs = nnx.Rngs(params=jax.random.key(0))
  params = nnx.to_pure_dict(nnx.state(Transfusion(config.model, rngs=rngs), nnx.Param))
  shape = (config.model.patches_per_image, config.model.width)
  assert params["patch_places"].shape == shape
  without = {name: x for name, x in params.items() if name != "patch_places"}
  plain = nnx.Rngs(params=jax.random.key(0))
  usual = nnx.to_pure_dict(nnx.state(Transfusion(CONFIG.model, rngs=plain), nnx.Param))
  tiny.assert_same_tree(without, usual)  # every other number is what it was
  got = run_changed([two_images()], params, model__patch_places="learned")
  for a, b in zip(got, run_changed([two_images()], without), strict=True):
    np.testing.assert_array_equal(a, b)

  inputs = tiny.put((np.ones((1, 2, 4, 4, 2), np.float32), np.zeros((1, 2), np.int32)))

  def total(table):
    model = bind(config.model, params | {"patch_places": table})
    return jnp.sum(model.embed_images(*inputs, config.model.every_kind[0])[0])

  gradient = jax.grad(total)(params["patch_places"])
  np.testing.assert_array_equal(gradient, np.full(shape, 2.0))  # of two images


def test_every_images_own_timestep_reaches_its_patches(forward):
  batch = tiny.batch(CONFIG)
  t = np.full((4, 3), 500, np.int32)
  other = t.copy()
  other[3, 1] = 501  # row 3 holds two documents with an image each
  before, after = forward(batch, t=t)[1], forward(batch, t=other)[1]
  moved = (before != after).reshape(4, 3, -1).all(-1)
  assert np.argwhere(moved).tolist() == [[3, 1]]
  assert np.argwhere((before != after).reshape(4, 3, -1).any(-1)).tolist() == [[3, 1]]


def equations(jaxpr, inside=()):
  """Every equation of a jaxpr, with the names of those it is inside of."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name, inside
    within = (*inside, equation.primitive.name)
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner, within)


@pytest.mark.slow
def test_work_lists_are_made_once_for_all_layers():
  config = tiny.config(model__width=128, model__heads=2, model__attention="tpu")
  batch = tiny.batch(config)
  inputs = tiny.put((batch, (batch.slots[0].latents,), (np.zeros((4, 3), np.int32),)))
  params = tiny.params(config.model)
  traced = jax.jit(lambda *args: bind(config.model, params)(*args)).trace(*inputs)
  found = list(equations(traced.jaxpr.jaxpr))
  assert [inside for name, inside in found if name == "pallas_call"]
  assert all("scan" in inside for name, inside in found if name == "pallas_call")
  sorts = [inside for name, inside in found if name == "sort"]
  assert len(sorts) == 2  # of the forward and of the backward list
  assert not any("scan" in inside for inside in sorts)
