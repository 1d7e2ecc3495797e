"""Promises of tfusion/train/validate.py."""

import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.train import validate as validate_lib
from tfusion.train.validate import BINS, validate

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
  # Slots take the parts in turn: 4 rows of 3 slots, of which some are empty.
  weights = np.concatenate([np.asarray(b.image_weight_bn).ravel() for b in batches()])
  used = {i % BINS for i in np.flatnonzero(weights)}
  assert {i for i, x in enumerate(bins) if x is not None} == used


def test_rows_of_padding_weigh_nothing(params):
  padding = [tiny.pack([], CONFIG)] * 4
  empty = tiny.put(sequence.stack(padding))
  line = validate(CONFIG, params, batches())
  assert validate(CONFIG, params, [*batches(), empty]) == line
  nothing = validate(CONFIG, params, [empty])
  assert nothing["loss_text"] == 0.0 and nothing["loss_image"] is None


def test_every_timestep_is_the_middle_of_its_part(params, monkeypatch):
  seen = []
  real = validate_lib.predict

  def look(config, params, batch, noise, t):
    seen.append(t)
    return real(config, params, batch, noise, t)

  monkeypatch.setattr(validate_lib, "predict", look)
  validate_lib.eval_step.__wrapped__(CONFIG, params, batches()[0], 0)
  t = np.asarray(seen[0])
  assert t.ravel()[:BINS].tolist() == [50 + 100 * i for i in range(BINS)]


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
