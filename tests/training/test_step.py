"""Promises of training/step.py: what a step computes, on one device and many."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import SPECIAL

from tfusion import sequence
from tfusion.data.branches import branch
from tfusion.diffusion.process import cosine_abar
from tfusion.model import layers
from tfusion.model.transfusion import bind
from tfusion.sharding import AXES
from tfusion.training import step as step_lib
from tfusion.training.losses import Sum, text_loss
from tfusion.training.optim import tower_of
from tfusion.training.step import (
  Losses,
  draw_noise,
  gradients,
  init_state,
  shardings,
  train_step,
)

pytestmark = pytest.mark.usefixtures("mesh")

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = tiny.config(optim__ema_decay=0.9)
PATCHES = CONFIG.model.patches_per_image
ROOT_KEY = 0


@pytest.fixture(scope="module")
def params(mesh):
  return tiny.params(CONFIG.model)


@pytest.fixture(scope="module")
def forward(params):
  """Compiled logits and predicted noise of numpy rows; f(batch, noisy, t)."""
  compiled = jax.jit(lambda *args: bind(CONFIG.model, params)(*args))

  def run(batch, noisy, t):
    logits, (images,) = compiled(*tiny.put((batch, (noisy,), (t,))))
    return np.asarray(logits), np.asarray(images)

  return run


def rows(*documents_by_row) -> sequence.Batch:
  """Four rows, which keeps to one compiled program; the rest is padding."""
  packed = [tiny.pack(list(documents), CONFIG) for documents in documents_by_row]
  return sequence.stack(packed + [tiny.pack([], CONFIG)] * (4 - len(packed)))


def documents(seed: int = 0) -> tuple[sequence.Document, ...]:
  """9, 10 and 5 elements: together a full row."""
  rng = np.random.default_rng(seed)
  return (
    (tiny.text(rng, 2), tiny.image(rng)),
    (tiny.image(rng), tiny.text(rng, 3)),
    (tiny.text(rng, 4),),
  )


def spans(batch: sequence.Batch, row: int) -> list[slice]:
  """The documents of a row."""
  starts = np.flatnonzero(batch.positions_bl[row] == 0)
  live = int(np.sum(batch.hi_bl[row] >= batch.lo_bl[row]))
  ends = [*starts[1:], live]
  return [slice(int(a), int(min(b, live))) for a, b in zip(starts, ends) if a < live]


# What sees what.


def test_documents_packed_in_a_row_give_what_they_give_alone(forward):
  packed, alone = rows(documents()), rows(*((d,) for d in documents()))
  assert len(spans(packed, 0)) == 3
  t = np.asarray([[100, 900, 1]] + [[1, 1, 1]] * 3, np.int32)
  t_alone = np.asarray([[100, 1, 1], [900, 1, 1], [1, 1, 1], [1, 1, 1]], np.int32)
  logits, noise = forward(packed, packed.slots[0].latents, t)
  logits_alone, noise_alone = forward(alone, alone.slots[0].latents, t_alone)
  for i, own in enumerate(spans(packed, 0)):
    # The softmax sums over other zeros in another order.
    np.testing.assert_allclose(
      logits[0, own], logits_alone[i, : own.stop - own.start], atol=1e-5
    )
  np.testing.assert_allclose(noise[0, 0], noise_alone[0, 0], atol=1e-5)
  np.testing.assert_allclose(noise[0, 1], noise_alone[1, 0], atol=1e-5)


def noise_of_the_image_itself(config, key, batch):
  """In place of draw_noise: the same for an image wherever it stands."""
  del config, key
  latents = batch.slots[0].latents
  t_bn = 1 + jnp.floor(jnp.abs(latents[..., 0, 0, 0]) * 300).astype(int)
  return (jnp.roll(latents, 1, axis=-2),), (t_bn,)


@pytest.mark.slow
def test_the_gradient_of_packed_documents_is_that_of_the_same_documents_alone(
  params, monkeypatch
):
  monkeypatch.setattr(step_lib, "draw_noise", noise_of_the_image_itself)
  compute = jax.jit(functools.partial(gradients, CONFIG))
  packed, alone = rows(documents()), rows(*((d,) for d in documents()))
  got = compute(params, tiny.put(packed), jax.random.key(0))
  want = compute(params, tiny.put(alone), jax.random.key(0))
  assert_close(got, want)


def assert_close(got, want):
  """Equal to 1e-5 of the largest number of each leaf: sums run in another order."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = max(np.abs(b).max(), 1e-6)
    np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-5)


@pytest.mark.parametrize("changed", [0, 1])
def test_another_document_in_the_row_changes_no_bit(forward, changed):
  first, second, _ = documents()
  other = documents(seed=1)[changed]
  one = rows((first, second))
  two = rows((other, second) if changed == 0 else (first, other))
  t = np.full((4, 3), 500, np.int32)
  t_two = t.copy()
  t_two[0, changed] = 3
  (logits, noise), (logits2, noise2) = (
    forward(one, one.slots[0].latents, t),
    forward(two, two.slots[0].latents, t_two),
  )
  same, moved = spans(one, 0)[1 - changed], spans(one, 0)[changed]
  np.testing.assert_array_equal(logits[0, same], logits2[0, same])
  np.testing.assert_array_equal(noise[0, 1 - changed], noise2[0, 1 - changed])
  assert (logits[0, moved] != logits2[0, moved]).any()
  assert (noise[0, changed] != noise2[0, changed]).all()


def test_an_input_reaches_exactly_the_outputs_that_intervals_let_it_reach(forward):
  rng = np.random.default_rng(0)
  batch = rows(
    ((tiny.text(rng, 2), tiny.image(rng), tiny.text(rng, 3)), documents()[2])
  )
  t, length = np.full((4, 3), 500, np.int32), CONFIG.data.row_length
  index = np.arange(length)
  sees = (batch.lo_bl[0][:, None] <= index) & (index <= batch.hi_bl[0][:, None])
  reach = np.linalg.matrix_power(sees.astype(int), CONFIG.model.layers) > 0
  before = forward(batch, batch.slots[0].latents, t)[0][0]
  live = np.flatnonzero(batch.hi_bl[0] >= batch.lo_bl[0])
  assert len(live) == 12 + 5
  for j in live:
    tokens, noisy = batch.tokens_bl.copy(), batch.slots[0].latents.copy()
    if batch.patch_bl[0, j] >= 0:
      r, s = divmod(int(batch.patch_bl[0, j]), 2)
      noisy[0, 0, 2 * r, 2 * s, 0] += 1.0
    else:
      tokens[0, j] = (tokens[0, j] + 1) % CONFIG.model.vocab_size
    after = forward(batch._replace(tokens_bl=tokens), noisy, t)[0][0]
    np.testing.assert_array_equal((before != after).any(-1)[live], reach[live, j])
  # The picture in words: text after the image sees it, text before does not.
  boi, eoi = np.flatnonzero(np.isin(batch.tokens_bl[0, :12], (3, 4)))
  image = slice(boi + 1, eoi)
  assert reach[image, image].all() and reach[eoi:12, image].all()
  assert not reach[: image.start, image].any() and not reach[12:17, :12].any()


@pytest.mark.slow
def test_the_gradient_of_earlier_text_by_later_patches_is_exactly_zero(params):
  rng = np.random.default_rng(0)
  batch = rows(((tiny.text(rng, 4), tiny.image(rng), tiny.text(rng, 3)),))
  t = np.full((4, 3), 500, np.int32)
  first = int(batch.slots[0].starts[0, 0])
  batch, noisy, t = tiny.put((batch, batch.slots[0].latents, t))

  @jax.jit
  def gradient(noisy, weights_bl):
    def loss(noisy):
      logits, _ = bind(CONFIG.model, params)(batch, (noisy,), (t,))
      return text_loss(logits, batch.targets_bl, weights_bl=weights_bl).total

    return jax.grad(loss)(noisy)

  def gradient_of(chosen_l) -> np.ndarray:
    chosen_bl = np.broadcast_to(chosen_l, batch.tokens_bl.shape).astype(np.float32)
    return np.asarray(gradient(noisy, tiny.put(chosen_bl)))

  index = np.arange(CONFIG.data.row_length)
  np.testing.assert_array_equal(gradient_of(index < first), 0)
  later = gradient_of(index >= first + PATCHES)
  assert (later[0, 0] != 0).all()
  np.testing.assert_array_equal(later[0, 1:], 0)  # empty slots
  np.testing.assert_array_equal(later[1:], 0)  # other rows


def test_without_patch_layers_text_learns_what_it_learns_beside_them():
  rng = np.random.default_rng(0)
  shared = dict(model__layers=1, train__batch_rows=1)
  with_patches = tiny.config(**shared)
  alone = tiny.config(**shared, model__patches="none")
  batch = sequence.stack([tiny.pack([(tiny.text(rng, n),) for n in (9, 4)], alone)])
  params = tiny.params(with_patches.model)
  own = {name: leaf for name, leaf in params.items() if name != "patches"}
  results = []
  for config, given in ((with_patches, params), (alone, own)):
    compute = jax.jit(functools.partial(gradients, config))
    arguments = (given, tiny.put(batch), jax.random.key(0))
    results.append(compute(*arguments))
  # Nothing in the program is as large as the image slots, and none of it is given them.
  assert "1x3x4x4x2" not in compute.lower(*arguments).as_text()
  (want, losses), (got, losses_alone) = results
  assert not any(np.any(x) for x in jax.tree.leaves(want.pop("patches")))
  tiny.assert_same_tree(got, want)
  tiny.assert_same_tree(losses_alone, losses)


# Noise.


@pytest.mark.slow
def test_noise_comes_before_patches_with_one_t_for_an_image(monkeypatch):
  seen = {}

  def fake_bind(model, params):
    def run(batch, noisy, t):
      seen.update(noisy=noisy[0], t=t[0])
      return jnp.zeros((*batch.tokens_bl.shape, model.width)), noisy

    return types.SimpleNamespace(outputs=run)

  monkeypatch.setattr(step_lib, "bind", fake_bind)
  batch = tiny.batch(CONFIG)
  noise, t = draw_noise(CONFIG, jax.random.key(1), tiny.put(batch))
  step_lib.predict(CONFIG, {}, tiny.put(batch), noise, t)
  (noise,), (t,) = noise, t
  abar = cosine_abar(1000)[np.asarray(t)][..., None, None, None]
  want = np.sqrt(abar) * batch.slots[0].latents + np.sqrt(1 - abar) * np.asarray(noise)
  assert t.shape == (4, 3) and noise.shape == batch.slots[0].latents.shape
  np.testing.assert_allclose(seen["noisy"], want, atol=1e-6)
  np.testing.assert_array_equal(seen["t"], t)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_the_image_loss_is_the_error_of_the_target_times_the_weight_of_t(
  schedule, target
):
  how = dict(diffusion__schedule=schedule, diffusion__target=target)
  how |= dict(sample__sampler="dpmpp_2m", diffusion__min_snr_gamma=2.0)
  config, batch = tiny.config(**how), tiny.batch(CONFIG)
  noise, t = draw_noise(config, jax.random.key(1), tiny.put(batch))
  guess = np.full_like(batch.slots[0].latents, 0.25)
  predicted = step_lib.Prediction(
    jnp.zeros((*batch.tokens_bl.shape, config.model.width)), (tiny.put(guess),)
  )
  head = {"head": jnp.zeros((config.model.width, config.model.vocab_size))}
  got = step_lib.losses(config, head, predicted, tiny.put(batch), noise, t).images[0]
  t, noise = np.asarray(t[0], np.float64), np.asarray(noise[0], np.float64)
  if schedule == "linear":
    signal, spread = 1 - t / 1000, t / 1000
  else:
    abar = cosine_abar(1000)[t.astype(int)]
    signal, spread = np.sqrt(abar), np.sqrt(1 - abar)
  a, s = (x[..., None, None, None] for x in (signal, spread))
  clean = batch.slots[0].latents
  v = noise - clean if schedule == "linear" else a * noise - s * clean
  want = {"eps": noise, "x0": clean, "v": v}[target]
  error = np.mean((guess - want) ** 2, axis=(2, 3, 4))
  used = batch.slots[0].weights > 0
  snr = np.square(signal[used] / spread[used])
  clean_error = {"eps": 1 / snr, "x0": 1.0, "v": spread[used] ** 2}[target]
  weight = np.minimum(snr, 2.0) * clean_error
  assert float(got.total) == pytest.approx(np.sum(error[used] * weight), rel=1e-4)
  assert float(got.count) == used.sum() > 0


def test_noise_does_not_depend_on_the_size_of_patches():
  batch = tiny.put(tiny.batch(CONFIG))
  one, four = (
    draw_noise(tiny.config(model__patch=p), jax.random.key(1), batch) for p in (1, 4)
  )
  tiny.assert_same_tree(one, four)


@pytest.mark.slow
def test_timesteps_stay_under_the_cap_of_their_image():
  batch = tiny.batch(CONFIG, rows=4)
  batch = sequence.concatenate([batch] * 64)
  (noise,), (t,) = draw_noise(CONFIG, jax.random.key(1), tiny.put(batch))
  t, capped = np.asarray(t), batch.slots[0].noise_caps == 0.5
  assert 1 <= t.min() and t[capped].max() <= 500 < t[~capped].max() <= 1000
  # Uniform: the mean of hundreds of draws is within a few percent of the middle.
  assert abs(t[~capped].mean() - 500.5) < 50 and abs(t[capped].mean() - 250.5) < 30
  noise = np.asarray(noise)
  assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
  assert len(np.unique(noise)) > 0.99 * noise.size  # no number serves twice


def test_every_image_of_a_document_has_a_timestep_of_its_own():
  rng = np.random.default_rng(0)
  one = sequence.stack([tiny.pack([tuple(tiny.image(rng) for _ in range(3))], CONFIG)])
  batch = sequence.concatenate([one] * 2000)
  _, (t,) = draw_noise(CONFIG, jax.random.key(2), tiny.put(batch))
  apart = np.corrcoef(np.asarray(t).T)[~np.eye(3, dtype=bool)]
  assert np.abs(apart).max() < 0.1  # four standard deviations


# Images that stand twice, against one sequence with a mask that has holes.


def pictures(c):
  """Text and images by turns: the first two images are followed, the last is not."""
  rng = np.random.default_rng(5)
  spans = [f(rng) for f in (lambda r: tiny.text(r, 2), tiny.image) * 3]
  return sequence.lay_out(
    tuple(spans), special=SPECIAL, patches_per_image=(c.model.patches_per_image,)
  )


def pack_laid(laid, c):
  return sequence.pack_rows(
    [laid],
    row_length=c.data.row_length,
    kinds=tiny.kind_sizes(c),
    special=SPECIAL,
    causal=c.model.image_attention == "causal",
  )


def as_bagel_lays_it(laid, c):
  """One sequence with every followed image noised and then clean; and its mask.

  Written from the rules: text sees what stands before it, an image all of itself too;
  a noised copy is seen by itself alone, and has the positions of the clean one.
  """
  usual = pack_laid([laid], c)
  order, copies, image = [], [], []  # elements of `laid`; whether noised; which image
  starts = [int(s) for s in usual.slots[0].starts[0, : len(laid.images)]]
  for i in range(len(laid.tokens_l)):
    of = int(laid.patch_l[i]) // PATCHES if laid.patch_l[i] >= 0 else -1
    if i in starts and starts.index(i) < len(starts) - 1:
      order += range(i, i + PATCHES)
      copies += [True] * PATCHES
      image += [of] * PATCHES
    order.append(i)
    copies.append(of == len(starts) - 1)  # the last image is noised where it stands
    image.append(of)
  order, copies, image = map(np.asarray, (order, copies, image))
  length, n = c.data.row_length, len(order)
  sees = np.zeros((length, length), bool)
  for q in range(n):
    for k in range(n):
      own = image[q] >= 0 and (image[q], copies[q]) == (image[k], copies[k])
      hidden = copies[k] and image[k] < len(starts) - 1
      sees[q, k] = own or (k <= q and not hidden)
  fields = {}
  for name in ("tokens_bl", "targets_bl", "weights_bl", "positions_bl"):
    whole = getattr(usual, name).copy()
    whole[0, :n] = whole[0, order]
    whole[0, n:] = 0
    fields[name] = whole
  patch, slots = np.full((1, length), -1, np.int32), []
  for q in range(n):
    if image[q] >= 0:
      key = (int(image[q]), bool(copies[q]))
      if key not in slots:
        slots.append(key)
      patch[0, q] = slots.index(key) * PATCHES + laid.patch_l[order[q]] % PATCHES
  weight = np.zeros((1, c.data.image_slots), np.float32)
  weight[0, : len(slots)] = [noised for _, noised in slots]
  latents = np.zeros_like(usual.slots[0].latents)
  first = np.zeros((1, c.data.image_slots), np.int32)
  for slot, (of, _) in enumerate(slots):
    latents[0, slot] = laid.images[of].latent
    first[0, slot] = np.flatnonzero(patch[0] == slot * PATCHES)[0]
  here = np.arange(length, dtype=np.int32)[None]
  batch = usual._replace(
    **fields,
    lo_bl=np.where(here < n, 0, length).astype(np.int32),
    hi_bl=np.where(here < n, here, length - 1).astype(np.int32),
    patch_bl=patch,
    slots=(sequence.Slots(latents, first, weight, weight),),
  )
  return batch, sees


def attend_by(sees):
  """In place of `attend`: any mask, with no interval in it."""

  def attend(q_blhk, k_bsgk, v_bsgk, lo_bl, hi_bl, work=None):
    whole = lambda x: jax.sharding.reshard(x, jax.P())  # noqa: E731
    q, k, v = map(whole, (q_blhk, k_bsgk, v_bsgk))  # as many heads of each
    scores = jnp.einsum("blhk,bshk->bhls", q, k) / q.shape[3] ** 0.5
    p = jax.nn.softmax(jnp.where(sees[None, None], scores, -1e30), axis=-1)
    out = jnp.einsum("bhls,bshk->blhk", p, v)
    return jax.sharding.reshard(out, jax.typeof(q_blhk).sharding.spec)

  return attend


def noise_of_copies(config, key, batch):
  """In place of draw_noise: a followed image has the same in both layouts."""
  noise, (t_bn,) = noise_of_the_image_itself(config, key, batch)
  return noise, (jnp.where(batch.slots[0].noise_caps > 0, t_bn, 0),)


TWICE = {
  "plain": dict(),
  "shared": dict(model__positions="shared", model__patch_places="sine"),
  "axial": dict(model__positions="axial"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", TWICE)
def test_branches_give_the_losses_and_gradients_of_one_mask_with_holes(
  monkeypatch, how
):
  c = tiny.config(
    data__row_length=64,
    data__image_slots=6,
    train__batch_rows=1,
    model__kv_heads=4,
    diffusion__context="both",
    **TWICE[how],
  )
  monkeypatch.setattr(step_lib, "draw_noise", noise_of_copies)
  params, laid = tiny.params(c.model), pictures(c)
  parts = branch(laid, special=SPECIAL, patches_per_image=(PATCHES,))
  assert len(parts) == 3
  got = jax.jit(lambda *args: gradients(c, *args))(
    params, tiny.put(pack_laid(parts, c)), jax.random.key(0)
  )
  batch, sees = as_bagel_lays_it(laid, c)
  monkeypatch.setattr(layers, "attend", attend_by(sees))
  want = jax.jit(lambda *args: gradients(c, *args))(
    params, tiny.put(batch), jax.random.key(0)
  )
  assert_close(got, want)
  assert float(got[1].images[0].count) == 3 and float(got[1].text.count) > 8


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_what_follows_an_image_has_no_gradient_through_its_noised_copy(attention):
  c = tiny.config(
    data__row_length=64, data__image_slots=6, model__image_attention=attention
  )
  params = tiny.params(c.model)
  parts = branch(pictures(c), special=SPECIAL, patches_per_image=(PATCHES,))
  batch = pack_laid(parts, c)
  # Slots: three of the document, the last noised; of the first branch one, of the
  # second two. What is learned of each reaches these, and by no bit another.
  document, branches = [0, 1, 2], {3: [3], 5: [4, 5]}
  assert batch.slots[0].weights[0].tolist() == [0, 0, 1, 1, 0, 1]
  noise = np.random.default_rng(0).normal(size=batch.slots[0].latents.shape)
  t = np.where(batch.slots[0].noise_caps > 0, 400, 0).astype(np.int32)
  batch, noise, t = tiny.put((batch, (noise.astype(np.float32),), (t,)))

  @jax.jit
  def by_slot(weights_n, text):
    def total(latents):
      own = tiny.with_slots(batch, latents=latents)
      predicted = step_lib.predict(c, params, own, noise, t)
      drawn = jnp.square(predicted.images[0]).mean((2, 3, 4)) * weights_n[None]
      return drawn.sum() + text * step_lib.text_loss(c, params, predicted, own).total

    gradient = jax.grad(total)(batch.slots[0].latents)
    return jnp.abs(gradient).max((0, 2, 3, 4))

  def reached(*slots, text=0.0):
    weights = np.isin(np.arange(6), slots).astype(np.float32)
    return np.flatnonzero(np.asarray(by_slot(weights, text))).tolist()

  assert reached(text=1.0) == document
  assert reached(2) == document
  for slot, own in branches.items():
    assert reached(slot) == own


# The step.


class Stepper:
  """train_step compiled once, with a count of its traces."""

  def __init__(self):
    self.traces = 0

    def counted(state, batch, root):
      self.traces += 1
      return train_step(CONFIG, state, batch, root)

    self.run = jax.jit(counted)

  def __call__(self, state, batch, seed: int = ROOT_KEY):
    return self.run(state, tiny.put(batch), jax.random.key(seed))


@pytest.fixture(scope="module")
def stepper(mesh):
  return Stepper()


@pytest.fixture(scope="module")
def start(mesh):
  return jax.jit(functools.partial(init_state, CONFIG))(jax.random.key(ROOT_KEY))


def leaves(tree) -> dict[str, np.ndarray]:
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v) for k, v in flat
  }


# The tiny config's first three steps, then the sums of |numbers| after them.
GOLDEN = [
  {"loss_text": 3.9235168, "loss_image": 1.9596431, "grad_norm": 14.8161602},
  {"loss_text": 3.7477332, "loss_image": 1.7222679, "grad_norm": 13.5890746},
  {"loss_text": 3.8142923, "loss_image": 1.7788780, "grad_norm": 14.5576077},
  {"params": 3539.54858, "ema": 3537.69019},
]


@pytest.mark.slow
def test_three_steps_give_the_numbers_of_before(stepper, start):
  state, got = start, []
  for i in range(3):
    state, metrics = stepper(state, tiny.batch(CONFIG, seed=i))
    got.append({k: float(metrics[k]) for k in ("loss_text", "loss_image", "grad_norm")})
  total = lambda tree: float(sum(np.abs(x).sum() for x in jax.tree.leaves(tree)))  # noqa: E731
  got.append({"params": total(state.params), "ema": total(state.ema)})
  for i, (now, before) in enumerate(zip(got, GOLDEN, strict=True)):
    for name in now:
      # Another machine's matmuls round differently; ours differ by 3e-7 already with
      # and without the compiler's optimisations.
      assert now[name] == pytest.approx(before[name], rel=1e-5), (
        f"step {i + 1}: {name} was {before[name]}, is {now[name]}. If the change was"
        f" meant to alter training, put these numbers into GOLDEN and say so in the"
        f" commit; if not, training has changed by accident: {got}"
      )


def test_layers_and_matrices_start_from_their_own_numbers(start):
  stacked = [x.reshape(2, -1) for x in leaves(start.params).values() if len(x) == 2]
  starts = [layer[:16] for x in stacked for layer in x if layer.std() > 0]
  assert len(starts) == 2 * 7  # wq wk wv wo w_gate w_up w_down
  correlations = np.corrcoef(np.stack(starts)) - np.eye(len(starts))
  assert np.abs(correlations).max() < 0.95
  np.testing.assert_array_equal(
    np.concatenate([x.ravel() for x in leaves(start.ema).values()]),
    np.concatenate([x.ravel() for x in leaves(start.params).values()]),
  )


def test_the_step_is_traced_once(stepper, start):
  state = start
  for i in range(3):
    state, _ = stepper(state, tiny.batch(CONFIG, seed=i))
  assert stepper.traces == 1


def test_a_step_is_the_same_for_the_same_key_and_another_for_another(stepper, start):
  batch = tiny.batch(CONFIG)
  (one, metrics), (two, _) = stepper(start, batch), stepper(start, batch)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(a, b)
  _, other_seed = stepper(start, batch, seed=1)
  _, other_step = stepper(start._replace(step=jnp.int32(1)), batch)
  losses = [float(m["loss_image"]) for m in (metrics, other_seed, other_step)]
  assert len(set(losses)) == 3


def test_metrics_count_what_was_in_the_batch(stepper, start):
  batch = tiny.batch(CONFIG)
  _, metrics = stepper(start, batch)
  metrics = {k: float(v) for k, v in metrics.items()}
  assert metrics["elements"] == sequence.live_elements(batch)
  assert metrics["images"] == batch.slots[0].weights.sum() > 0
  assert metrics["loss"] == pytest.approx(
    metrics["loss_text"] + 5 * metrics["loss_image"], rel=1e-6
  )
  assert metrics["lr"] == 0.0 and metrics["skipped"] == metrics["skipped_total"] == 0


def test_a_batch_without_images_or_without_text_has_finite_losses(stepper, start):
  batch = tiny.batch(CONFIG)
  for other in (
    rows((documents()[2],)),
    batch._replace(weights_bl=0 * batch.weights_bl),
    rows(),  # padding alone
  ):
    _, metrics = stepper(start, other)
    assert float(metrics["skipped"]) == 0
    assert np.isfinite([float(x) for x in metrics.values()]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(stepper, start, bad):
  good = tiny.batch(CONFIG)
  state, _ = stepper(start, good)
  latents = good.slots[0].latents.copy()
  latents[0, 0, 0, 0, 0] = bad
  broken = tiny.with_slots(good, latents=latents)
  skipped = state
  for count in (1, 2):
    skipped, metrics = stepper(skipped, broken)
    assert float(metrics["skipped"]) == float(metrics["skipped_total"]) == count
    assert int(skipped.skipped) == int(skipped.skipped_total) == count
    assert int(skipped.step) == 1 + count
  counters = {"step", "skipped", "skipped_total"}
  before, after = leaves(state), leaves(skipped)
  for path in before.keys() - counters:
    np.testing.assert_array_equal(before[path], after[path], err_msg=path)
  # The next good update is the one that was due: moments, rate and decay go on.
  resumed, metrics = stepper(skipped, good)
  assert float(metrics["skipped"]) == 0 and float(metrics["skipped_total"]) == 2
  assert int(resumed.opt_state[1][0].count) == 2
  schedule_step = step_lib.make_schedule(CONFIG)(1)
  assert float(metrics["lr"]) == pytest.approx(float(schedule_step))
  assert (leaves(resumed)["params/head"] != after["params/head"]).any()


@pytest.mark.slow
def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too(start, monkeypatch):
  one = Sum(jnp.float32(1), jnp.float32(1))
  grads = jax.tree.map(jnp.zeros_like, start.params)
  grads["head"] = grads["head"].at[3, 4].set(jnp.inf)
  monkeypatch.setattr(step_lib, "gradients", lambda *_: (grads, Losses(one, (one,))))
  state, metrics = jax.jit(functools.partial(train_step, CONFIG))(
    start, tiny.put(tiny.batch(CONFIG)), jax.random.key(0)
  )
  assert float(metrics["skipped"]) == 1 and float(metrics["loss"]) == 6
  np.testing.assert_array_equal(state.params["head"], start.params["head"])


def test_the_text_loss_that_is_logged_is_without_z_loss(start, monkeypatch):
  one = Sum(jnp.float32(1), jnp.float32(1))
  found = Losses(Sum(jnp.float32(6), jnp.float32(2), jnp.float32(2)), (one,))
  grads = jax.tree.map(jnp.zeros_like, start.params)
  monkeypatch.setattr(step_lib, "gradients", lambda *_: (grads, found))
  _, metrics = jax.jit(functools.partial(train_step, CONFIG))(
    start, tiny.put(tiny.batch(CONFIG)), jax.random.key(0)
  )
  assert float(metrics["loss"]) == 8 and float(metrics["loss_text"]) == 2


def test_training_asks_for_z_loss_and_validation_does_not(monkeypatch):
  config, batch = tiny.config(train__z_loss=0.1), tiny.batch(CONFIG)
  monkeypatch.setattr(step_lib, "next_token_loss", lambda *_, **how: how["z_loss"])
  monkeypatch.setattr(step_lib, "image_loss", lambda *_, **how: None)
  monkeypatch.setattr(step_lib, "image_target", lambda *_: None)
  predicted = step_lib.Prediction(None, None)
  how = ({"head": None}, predicted, batch)
  assert step_lib.losses(config, *how, None, None).text == 0.1
  assert step_lib.text_loss(config, *how) == 0.0


@pytest.mark.parametrize("parts", [1, 2])
def test_dropout_is_drawn_in_training_alone(params, parts):
  batch = tiny.put(tiny.batch(CONFIG))
  how = dict(model__dropout=0.5, train__accumulate=parts)
  drawn = {}
  for config in (CONFIG, tiny.config(**how)):
    compute = functools.partial(gradients, config)
    traced = jax.make_jaxpr(compute)(params, batch, jax.random.key(1))
    drawn[config.model.dropout] = str(traced).count("random_bits")
  noise, t = draw_noise(config, jax.random.key(1), batch)
  predict = functools.partial(step_lib.predict, config)
  forward = jax.make_jaxpr(predict)(params, batch, noise, t)
  # Noise and t alone; with dropout once more for attention and for the MLP.
  assert drawn[0.5] > drawn[0.0] > 0 and "random_bits" not in str(forward)


def test_bad_numbers_in_an_empty_slot_or_under_padding_change_no_bit(stepper, start):
  batch = tiny.batch(CONFIG)
  assert (batch.slots[0].weights == 0).any()
  latents = batch.slots[0].latents.copy()
  latents[batch.slots[0].weights == 0] = 7.0
  want, _ = stepper(start, batch)
  got, _ = stepper(start, tiny.with_slots(batch, latents=latents))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.long
@pytest.mark.slow
def test_a_step_in_bfloat16_moves_parameters_that_stay_float32(stepper, start):
  low = dict(model__dtype="bfloat16", optim__warmup_steps=0)
  step = functools.partial(train_step, tiny.config(optim__ema_decay=0.9, **low))
  batch = tiny.batch(CONFIG)
  state, got = jax.jit(step)(start, tiny.put(batch), jax.random.key(ROOT_KEY))
  _, want = stepper(start, batch)
  assert float(got["skipped"]) == 0
  for name in ("loss_text", "loss_image", "grad_norm"):
    # 8 bits of mantissa, in every matmul of two layers, there and back.
    assert 0 < abs(float(got[name]) / float(want[name]) - 1) < 5e-2, name
  before, after = leaves(start), leaves(state)
  for path, x in after.items():
    assert x.dtype == (np.int32 if x.ndim == 0 else np.float32), path
    assert np.isfinite(x).all(), path
    assert (x != before[path]).any() or path.startswith("skipped"), path


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["text", "image"])
def test_a_frozen_tower_stays_to_the_bit_and_is_not_in_the_norm(frozen):
  c = tiny.config(**{"model__untied": "all", f"train__{frozen}_lr_factor": 0.0})
  free = tiny.config(model__untied="all")
  root, batch = jax.random.key(0), tiny.put(tiny.batch(c))
  before = jax.jit(init_state, static_argnums=0)(c, root)
  step, state = jax.jit(train_step, static_argnums=0), before
  for _ in range(3):
    state, metrics = step(c, state, batch, root)

  def changes(path, a, b):
    assert (tower_of(path) == frozen) == bool(jnp.all(a == b)), path

  jax.tree_util.tree_map_with_path(changes, before.params, state.params)
  of = jax.jit(gradients, static_argnums=0)
  got, want = (of(config, state.params, batch, root)[0] for config in (c, free))

  def held(path, a, b):  # sums in another order: it is another program
    np.testing.assert_allclose(a, 0 if tower_of(path) == frozen else b, atol=1e-6)

  jax.tree_util.tree_map_with_path(held, got, want)
  assert float(metrics["grad_norm"]) > 0
  if frozen == "text":  # what it says of text alone is what it said at the start
    rng = np.random.default_rng(0)
    alone = sequence.stack([tiny.pack([(tiny.text(rng, 9),)], c)] * 4)
    noise, t = (jnp.zeros((4, 3, 4, 4, 2)),), (jnp.zeros((4, 3), jnp.int32),)
    said = [
      step_lib.predict(c, params, tiny.put(alone), noise, t).x_bld
      for params in (before.params, state.params)
    ]
    np.testing.assert_array_equal(*said)


def test_training_on_one_batch_lowers_its_loss(stepper, start):
  batch, state, losses = tiny.batch(CONFIG), start, []
  for _ in range(19):
    state, metrics = stepper(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_accumulating_over_parts_changes_no_gradient(params):
  batch = tiny.put(tiny.batch(CONFIG))
  # Parts hold different counts of tokens and images: a mean of means would differ.
  assert len({tuple(row) for row in np.asarray(batch.slots[0].weights)}) > 1
  results = []
  for parts in (1, 2):
    config = tiny.config(train__accumulate=parts)
    compute = jax.jit(functools.partial(gradients, config))
    results.append(compute(params, batch, jax.random.key(3)))
  assert_close(*results)


@pytest.mark.slow
def test_the_step_traces_under_jaxs_strict_flags(start):
  batch = tiny.put(tiny.batch(CONFIG))
  with (
    jax.numpy_rank_promotion("raise"),
    jax.debug_key_reuse(True),
    jax.legacy_prng_key("error"),
  ):
    out = jax.eval_shape(
      functools.partial(train_step, CONFIG), start, batch, jax.random.key(0)
    )
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
  assert shapes(out[0]) == shapes(start)


# Many devices.


@pytest.mark.parametrize("mesh", [dict(fsdp=64), dict(fsdp=16, tensor=4)])
def test_nothing_large_lies_whole_on_every_device(mesh):
  config = tiny.paper("size=7b")
  values = dict(data=1, context=1, tensor=1) | mesh
  axes = (values["data"], values["fsdp"] // 4, 4, values["context"], values["tensor"])
  abstract = jax.sharding.AbstractMesh(
    axes, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(axes)
  )
  config = dataclasses.replace(
    config, optim=dataclasses.replace(config.optim, ema_decay=0.999)
  )
  state = jax.eval_shape(lambda: init_state(config, jax.random.key(0)))
  for (path, x), own in zip(
    jax.tree_util.tree_leaves_with_path(state),
    jax.tree.leaves(shardings(config, abstract)),
    strict=True,
  ):
    shard = np.prod(own.shard_shape(x.shape)) * 4
    if x.size * 4 > 1 << 20:
      assert shard * 16 <= x.size * 4, (jax.tree_util.keystr(path), own.spec)


MESHES = {
  "data": (dict(data=8), 1),
  "data fsdp": (dict(data=2, fsdp=4), 1),
  "fsdp tensor": (dict(data=1, fsdp=2, tensor=4), 1),
  "data fsdp tensor, in two parts": (dict(data=2, fsdp=2, tensor=2), 2),
  "data context": (dict(data=2, context=4), 1),
  "fsdp context tensor, in two parts": (dict(fsdp=2, context=2, tensor=2), 2),
  # As on a torus, where fsdp goes along two axes.
  "data fsdp, outer and inner": (dict(data=2, fsdp=4, inner=2), 1),
  "fsdp, outer and inner, tensor": (dict(data=1, fsdp=4, inner=2, tensor=2), 2),
  "fsdp context tensor, another model": (
    dict(data=1, fsdp=2, context=2, tensor=2),
    2,
    dict(
      model__image_attention="causal",
      model__qk_norm="layer",
      model__norms="after",
      model__attention_bias=True,
      model__dropout=0.1,
      model__positions="axial",
      model__patch_places="learned",
      model__untied="all",
      train__z_loss=0.01,
    ),
  ),
  "data fsdp context, several kinds": (
    dict(data=2, fsdp=2, context=2),
    2,
    dict(
      model__kinds=["wide:2x8x2,like=image", "clip:2x2x2x3,patch=2x1x1", "pose:5"],
      model__positions="shared",
      model__patch_places="learned",
      data__row_length=48,
    ),
  ),
  "data fsdp tensor, another objective through a U-Net": (
    dict(data=2, fsdp=2, tensor=2),
    1,
    dict(
      model__patches="unet",
      model__unet_widths=[8, 16],
      model__untied="mlp",
      model__positions="shared",
      model__patch_places="sine",
      diffusion__schedule="linear",
      diffusion__target="v",
      diffusion__t_logit_std=1.0,
      diffusion__min_snr_gamma=5.0,
      sample__sampler="heun",
    ),
  ),
}

EIGHT_DEVICES = """
import functools, json, sys
import jax, numpy as np
import tiny
from tfusion import config as config_lib
from tfusion.config import MeshConfig
from tfusion import sharding
from tfusion.sharding import make_mesh
from tfusion.training.step import init_state, shardings, train_step

def make_config(axes, accumulate, changes):
  changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
  return tiny.config(
    **changes,
    model__heads=8, model__kv_heads=4, train__batch_rows=8, optim__ema_decay=0.9,
    optim__peak_lr=1e-3, optim__warmup_steps=0, train__accumulate=accumulate,
    optim__eps=1e-6,  # Adam divides by it where a gradient is rounding alone
    **{f"mesh__{axis}": size for axis, size in axes.items() if axis != "inner"},
  )

def run(config, devices, start, inner=1):
  fsdp = config.mesh.fsdp
  sharding._fsdp_parts = lambda *_: [(fsdp // inner, inner)]
  mesh = make_mesh(config.mesh, devices=devices)
  assert mesh.shape["fsdp_inner"] == inner
  with jax.set_mesh(mesh):
    out = shardings(config, mesh)
    state, root, lines = jax.device_put(start, out), jax.random.key(0), []
    step = jax.jit(
      functools.partial(train_step, config),
      donate_argnums=0,
      out_shardings=(out, None),
    )
    for i in range(3):
      state, metrics = step(state, tiny.put(tiny.batch(config, seed=i)), root)
      lines.append({k: float(v) for k, v in metrics.items()})
    w_up = state.params["transformer"]["blocks"]["mlp"]["w_up"]
    spread = {"shape": w_up.shape, "shard": w_up.addressable_shards[0].data.shape}
    return lines, jax.tree.map(np.asarray, (state.params, state.ema)), spread

@functools.cache
def on_one(changes):
  config = make_config({}, 1, json.loads(changes))
  one = jax.devices()[:1]
  sharding._fsdp_parts = lambda *_: [(1, 1)]
  with jax.set_mesh(make_mesh(MeshConfig(), devices=one)):
    start = jax.jit(functools.partial(init_state, config))(jax.random.key(0))
    start = jax.tree.map(np.asarray, start)
  return start, *run(config, one, start)

report = {"devices": jax.device_count()}
for name, (axes, accumulate, *changes) in json.loads(sys.argv[1]).items():
  changes = changes[0] if changes else {}
  start, lines_of_one, state_of_one, _ = on_one(json.dumps(changes))
  config = make_config(axes, accumulate, changes)
  config_lib.validate_devices(config, devices=8, hosts=1)
  lines, state, spread = run(config, jax.devices(), start, axes.get("inner", 1))
  report[name] = spread | {
    "metrics": max(
      abs(a[k] - b[k]) / max(abs(b[k]), 1.0)
      for a, b in zip(lines, lines_of_one)
      for k in b
    ),
    "state": max(
      float(np.abs(a - b).max())
      for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_of_one))
    ),
  }
print(json.dumps(report))
"""


# Between them they have every axis and both ways to cut rows into parts.
SOON = ("fsdp context tensor, in two parts", "data fsdp, outer and inner")
LATER = tuple(name for name in MESHES if name not in SOON)


@pytest.mark.slow
@pytest.mark.parametrize(
  "names", [SOON, pytest.param(LATER, marks=pytest.mark.long)], ids=["soon", "later"]
)
def test_eight_devices_train_as_one_does_on_every_mesh(names):
  meshes = {name: MESHES[name] for name in names}
  paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES, json.dumps(meshes)],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    },
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["devices"] == 8
  for name, (axes, *_) in meshes.items():
    got = found[name]
    # Sums over devices run in another order; small metrics relative to 1.
    assert got["metrics"] < 1e-5 and got["state"] < 1e-5, (name, got)
    # And they do share the work: [layers, embed, mlp] over fsdp and tensor.
    layers, width, mlp = got["shape"]
    shard = [layers, width // axes.get("fsdp", 1), mlp // axes.get("tensor", 1)]
    assert got["shard"] == shard, name
