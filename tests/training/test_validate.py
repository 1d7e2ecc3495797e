"""Promises of tfusion/training/validate.py."""

import functools

import jax
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.diffusion.process import cosine_abar
from tfusion.model.transfusion import bind
from tfusion.training import validate as validate_lib
from tfusion.training.step import draw_noise
from tfusion.training.validate import BINS, grid, validate

pytestmark = pytest.mark.usefixtures("mesh")

CONFIG = tiny.config()


@pytest.fixture(scope="module")
def params(mesh):
  return tiny.params(CONFIG.model)


def batches(*, seeds=(0, 1)) -> list[sequence.Batch]:
  return [tiny.put(tiny.batch(CONFIG, seed=seed)) for seed in seeds]


@pytest.mark.slow
def test_the_noise_is_the_same_whenever_it_is_measured(params):
  once = validate(CONFIG, params, batches())
  assert validate(CONFIG, params, batches()) == once
  assert once["images"] == sum(b.slots[0].weights.sum() for b in batches()) > 8
  assert once["text_targets"] == sum(b.weights_bl.sum() for b in batches())
  assert once["perplexity"] == pytest.approx(np.exp(once["loss_text"]))


@pytest.mark.slow
def test_losses_are_those_of_images_noised_at_the_middle_of_their_bins(params):
  @jax.jit
  def forward(params, batch, noisy_bnhwc, t_bn):
    logits, (images,) = bind(CONFIG.model, params)(batch, (noisy_bnhwc,), (t_bn,))
    return logits, images

  nats, targets, errors = 0.0, 0.0, [[] for _ in range(BINS)]
  for number in range(2):
    batch, key = tiny.batch(CONFIG, seed=number), jax.random.key(0)
    (noise,), _ = draw_noise(CONFIG, jax.random.fold_in(key, number), tiny.put(batch))
    noise = np.asarray(noise)
    rows, slots = noise.shape[:2]
    turn = 3 * (number * rows + np.arange(rows)[:, None]) + np.arange(slots)
    bins = turn % np.where(batch.slots[0].noise_caps < 1, 5, 10)  # caps are 0.5 and 1
    abar = cosine_abar(1000)[100 * bins + 50][..., None, None, None]
    noisy = np.sqrt(abar) * batch.slots[0].latents + np.sqrt(1 - abar) * noise
    given = tiny.put((batch, noisy.astype(np.float32), np.int32(100 * bins + 50)))
    logits, predicted = (np.asarray(x) for x in forward(params, *given))
    log_z = np.log(np.sum(np.exp(logits.astype(np.float64)), axis=-1))
    for row, place in np.argwhere(batch.weights_bl):
      hit = batch.targets_bl[row, place]
      nats += log_z[row, place] - logits[row, place, hit]
      targets += 1
    for row, slot in np.argwhere(batch.slots[0].weights):
      error = np.mean((predicted[row, slot] - noise[row, slot]) ** 2)
      errors[bins[row, slot]].append(error)
  line = validate(CONFIG, params, batches())
  # Float32 sums in another order.
  assert line["loss_text"] == pytest.approx(nats / targets, rel=1e-5)
  for found, own in zip(line["loss_image_bins"], errors, strict=True):
    assert found == (pytest.approx(np.mean(own), rel=1e-5) if own else None)


@pytest.mark.slow
def test_codes_of_images_are_left_out_of_the_text_and_have_a_loss_of_their_own():
  config = tiny.config(model__patches="none", model__layers=1)
  params, rng = tiny.params(config.model), np.random.default_rng(0)
  codes = sequence.Codes(rng.integers(20, 32, 4).astype(np.int32))
  text = sequence.Text(rng.integers(5, 20, 6).astype(np.int32))
  batch = sequence.stack([tiny.pack([(text, codes)], config)])
  whole, apart = (
    validate(config, params, [tiny.put(batch)], first_code=first)
    for first in (None, 20)
  )
  assert "loss_codes" not in whole and apart["loss_image"] is None
  # Six of text, BOI, EOI and EOS; four codes.
  assert (apart["text_targets"], whole["text_targets"]) == (9, 13)
  both = 9 * apart["loss_text"] + 4 * apart["loss_codes"]
  assert both == pytest.approx(13 * whole["loss_text"], rel=1e-5)
  changed = batch._replace(
    targets_bl=np.where(batch.targets_bl >= 20, 31, batch.targets_bl)
  )
  other = validate(config, params, [tiny.put(changed)], first_code=20)
  assert other["loss_text"] == apart["loss_text"]
  assert other["loss_codes"] != apart["loss_codes"]


def test_the_image_loss_is_the_mean_of_the_parts_of_the_schedule_that_were_seen(params):
  line = validate(CONFIG, params, batches())
  bins = line["loss_image_bins"]
  seen = [x for x in bins if x is not None]
  assert len(bins) == BINS and 1 < len(seen)
  assert line["loss_image"] == pytest.approx(np.mean(seen))


@pytest.mark.slow
def test_an_image_that_is_trained_clean_is_judged_clean():
  batch = tiny.batch(CONFIG)
  capped = batch.slots[0].noise_caps < 1
  clean = tiny.with_slots(batch, noise_caps=np.where(capped, 0, 1).astype(np.float32))
  (_, before), (_, after) = (
    grid(CONFIG.diffusion, tiny.put(b.slots[0]), 0) for b in (batch, clean)
  )
  assert capped.any() and np.asarray(before).all()
  np.testing.assert_array_equal(after, np.where(capped, 0, before))


def test_no_image_is_judged_with_more_noise_than_it_is_trained_with():
  batch = tiny.batch(CONFIG)
  for cap, bins in ((1.0, 10), (0.5, 5), (0.26, 3), (0.25, 3), (0.24, 2), (0.01, 1)):
    caps = np.full_like(batch.slots[0].noise_caps, cap)
    slots = tiny.put(batch.slots[0]._replace(noise_caps=caps))
    found = [grid(CONFIG.diffusion, slots, i) for i in (0, 1)]
    bin_bn, t_bn = (np.concatenate(x) for x in zip(*found))
    assert set(bin_bn.ravel()) == set(range(bins))
    assert 1 <= t_bn.min() and t_bn.max() <= round(cap * CONFIG.diffusion.timesteps)
    np.testing.assert_array_equal(t_bn, np.minimum(100 * bin_bn + 50, 1000 * cap))


def test_rows_of_padding_weigh_nothing(params):
  padding = [tiny.pack([], CONFIG)] * 4
  empty = tiny.put(sequence.stack(padding))
  line = validate(CONFIG, params, batches())
  assert validate(CONFIG, params, [*batches(), empty]) == line
  nothing = validate(CONFIG, params, [empty])
  assert nothing["loss_text"] == 0.0 and nothing["loss_image"] is None


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3, 10])
def test_every_part_of_the_schedule_is_met_however_few_slots_are_filled(slots):
  starts, caps = np.zeros((4, slots), np.int32), np.ones((4, slots), np.float32)
  given = tiny.put(tiny.batch(CONFIG).slots[0]._replace(starts=starts, noise_caps=caps))
  compute = jax.jit(functools.partial(grid, CONFIG.diffusion))
  bins, t = (np.concatenate(x) for x in zip(*(compute(given, i) for i in range(3))))
  assert set(bins[:, 0].tolist()) == set(range(BINS))  # by the first slot alone
  assert (np.diff(bins, axis=1) % BINS == 1).all()
  np.testing.assert_array_equal(t, 50 + 100 * bins)  # the middle of 0 .. 100, ...


@pytest.mark.slow
def test_all_batches_share_one_trace(params, monkeypatch):
  traces = []
  real = validate_lib.predict

  def counted(config, *args):
    traces.append(config)
    return real(config, *args)

  monkeypatch.setattr(validate_lib, "predict", counted)
  other = tiny.config(sample__guidance=1.5)  # compiled anew, but once
  for _ in range(2):
    validate(other, params, batches())
  assert len(traces) == 1
