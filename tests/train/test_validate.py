"""Promises of tfusion/train/validate.py."""

import functools

import jax
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.train import validate as validate_lib
from tfusion.train.validate import BINS, grid, validate

CONFIG = tiny.config()


@pytest.fixture(scope="module", autouse=True)
def mesh():
  with tiny.one_device() as mesh:
    yield mesh


@pytest.fixture(scope="module")
def params(mesh):
  return tiny.params(CONFIG.model)


def batches(*, seeds=(0, 1)) -> list[sequence.Batch]:
  return [tiny.put(tiny.batch(CONFIG, seed=seed)) for seed in seeds]


def test_the_noise_is_the_same_whenever_it_is_measured(params):
  once = validate(CONFIG, params, batches())
  assert validate(CONFIG, params, batches()) == once
  assert once["images"] == sum(b.image_weight_bn.sum() for b in batches()) > 8
  assert once["text_targets"] == sum(b.weights_bl.sum() for b in batches())
  assert once["perplexity"] == pytest.approx(np.exp(once["loss_text"]))


def test_the_image_loss_is_the_mean_of_the_parts_of_the_schedule_that_were_seen(params):
  line = validate(CONFIG, params, batches())
  bins = line["loss_image_bins"]
  seen = [x for x in bins if x is not None]
  assert len(bins) == BINS and 1 < len(seen)
  assert line["loss_image"] == pytest.approx(np.mean(seen))


def test_rows_of_padding_weigh_nothing(params):
  padding = [tiny.pack([], CONFIG)] * 4
  empty = tiny.put(sequence.stack(padding))
  line = validate(CONFIG, params, batches())
  assert validate(CONFIG, params, [*batches(), empty]) == line
  nothing = validate(CONFIG, params, [empty])
  assert nothing["loss_text"] == 0.0 and nothing["loss_image"] is None


@pytest.mark.parametrize("slots", [1, 3, 10])
def test_every_part_of_the_schedule_is_met_however_few_slots_are_filled(slots):
  config = tiny.config(data__image_slots=slots)
  rows = tiny.put(np.zeros((4, slots), np.int32))
  batch = tiny.put(tiny.batch(CONFIG))._replace(image_start_bn=rows)
  compute = jax.jit(functools.partial(grid, config))
  bins, t = (np.concatenate(x) for x in zip(*(compute(batch, i) for i in range(3))))
  assert set(bins[:, 0].tolist()) == set(range(BINS))  # by the first slot alone
  assert (np.diff(bins, axis=1) % BINS == 1).all()
  np.testing.assert_array_equal(t, 50 + 100 * bins)  # the middle of 0 .. 100, ...


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
