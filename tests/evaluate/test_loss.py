"""Promises of tfusion/evaluate/loss.py."""

import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.data.digits import Digits
from tfusion.data.pipeline import Corpus
from tfusion.data.prose import Prose
from tfusion.diffusion import process
from tfusion.evaluate import loss
from tfusion.evaluate.evaluation import Asked
from tfusion.generate.trained import Trained
from tfusion.model.transfusion import bind

CONFIG = tiny.config()


@pytest.fixture(scope="module")
def params(mesh):
  return tiny.params(CONFIG.model)


def split(batch: sequence.Batch, rows: int) -> list[sequence.Batch]:
  """The same rows, so many in each batch."""
  each = [sequence.row_of(batch, n) for n in range(len(batch.tokens_bl))]
  return [sequence.stack(each[n : n + rows]) for n in range(0, len(each), rows)]


@pytest.mark.slow
def test_a_number_of_the_grid_is_the_error_at_that_time_with_that_noise(mesh, params):
  rows = tiny.batch(CONFIG)
  found = loss.measure_rows(CONFIG, params, [rows], mesh=mesh)["image"]
  number, shape = 6, CONFIG.model.image_shape
  noise = loss.draw_noise(0, number, rows=4, slots=CONFIG.data.image_slots, shape=shape)
  batch = tiny.put(rows)
  caps_bn, live_bn = rows.slots[0].noise_caps, rows.slots[0].weights > 0
  t_bn = np.where(live_bn, np.where(caps_bn == 1, 650, 500), 0)
  t_bn = tiny.put(t_bn.astype(np.int32))
  noisy = process.add_noise(batch.slots[0].latents, noise, t_bn, timesteps=1000)
  (predicted,) = bind(CONFIG.model, params)(batch, (noisy,), (t_bn,))[1]
  want_bn = np.mean(np.square(np.asarray(predicted - noise)), axis=(2, 3, 4))
  whole = (caps_bn == 1)[live_bn]
  got = found.errors[whole, number]
  np.testing.assert_allclose(got, want_bn[live_bn][whole], rtol=1e-5)


@pytest.mark.slow
def test_the_batch_changes_nothing(mesh, params):
  rows = tiny.batch(CONFIG)
  one, other = (
    loss.measure_rows(CONFIG, params, split(rows, size), mesh=mesh)["image"]
    for size in (4, 2)
  )
  np.testing.assert_array_equal(one.weights, other.weights)
  # Matrices of other sizes are multiplied in another order.
  np.testing.assert_allclose(one.errors, other.errors, rtol=1e-5)


@pytest.mark.usefixtures("mesh")
def test_noise_follows_from_row_slot_and_tenth_alone():
  def draw(first, number, rows, slots):
    return np.asarray(
      loss.draw_noise(first, number, rows=rows, slots=slots, shape=(2, 2, 1))
    )

  whole = draw(0, 3, 4, 3)
  np.testing.assert_array_equal(draw(2, 3, 1, 2)[0], whole[2, :2])
  assert (
    len({whole[row, slot].tobytes() for row in range(4) for slot in range(3)}) == 12
  )
  assert np.all(draw(0, 4, 4, 3) != whole)


@pytest.mark.slow
def test_an_image_is_measured_where_its_noise_cap_lets_it_be(mesh, params):
  rows = tiny.batch(CONFIG)
  found = loss.measure_rows(CONFIG, params, [rows], mesh=mesh)["image"]
  caps = rows.slots[0].noise_caps[rows.slots[0].weights > 0]
  assert set(caps) == {0.5, 1.0}
  np.testing.assert_array_equal(np.sum(~np.isnan(found.errors), 1), 10 * caps)


def test_a_tenth_is_a_mean_by_weight_over_the_images_that_reach_it():
  errors = np.asarray([[1.0, 2.0, 3.0], [5.0, np.nan, np.nan]])
  got = loss.mean_bins(loss.Errors(errors, np.asarray([3.0, 1.0])))
  assert got == [2.0, 2.0, 3.0]
  none = loss.mean_bins(loss.Errors(errors * np.nan, np.ones(2)))
  assert np.all(np.isnan(none))


def asked(mesh, sources, **changes):
  config = tiny.config(**changes)
  corpus = Corpus((), sources, None)
  return Asked(Trained(config, 1, None, None, mesh), corpus, None)


def test_models_and_data_without_images_have_no_such_loss():
  prose = Prose("prose", ("text",))
  digits = Digits("digits", np.zeros((2, 8, 8, 1), np.uint8), np.asarray([3, 7]))
  assert "holds no images" in loss.unfit(asked(None, (prose,)))
  assert "model.patches=none" in loss.unfit(
    asked(None, (digits,), model__patches="none")
  )
  assert loss.unfit(asked(None, (prose, digits))) == ""


def test_every_source_with_images_has_its_own_numbers(monkeypatch):
  measured = {
    "a": loss.Errors(np.asarray([[1.0, 3.0]]), np.ones(1)),
    "b": loss.Errors(np.asarray([[2.0, 8.0], [4.0, np.nan]]), np.ones(2)),
  }

  def measure(trained, own):
    return {"image": measured[own[0].name]} | more

  more = {}
  monkeypatch.setattr(loss, "measure", measure)
  scans = np.zeros((2, 8, 8, 1), np.uint8), np.asarray([3, 7])
  one, two = (Digits(name, *scans) for name in "ab")
  found = loss.evaluate_loss(asked(None, (one, two, Prose("prose", ("text",)))))
  assert found["loss_grid:a"] == 2.0 and found["loss_grid:b"] == (3.0 + 8.0) / 2
  assert found["loss_grid"] == (2.0 + 5.5) / 2
  assert found["loss_grid_images"] == 3
  assert found["loss_grid_bins"]["b"] == {"0": 3.0, "0.1": 8.0}
  # Of b, the images' own means are 5 and 4; of one image there is no error.
  assert found["loss_grid_error"] == pytest.approx(np.std([5, 4], ddof=1) / 2**0.5 / 2)
  alone = loss.evaluate_loss(asked(None, (one,)))
  assert alone["loss_grid"] == 2.0 and "loss_grid:a" not in alone
  more["wide"] = measured["b"]
  kinds = loss.evaluate_loss(asked(None, (one,)))
  assert kinds["loss_grid:a"] == 2.0 and kinds["loss_grid:a wide"] == 5.5


@pytest.mark.slow
def test_every_kind_is_measured_at_its_own_shape(mesh):
  config = tiny.config(model__kinds=("wide:4x8x2,like=image,slots=1",))
  rng = np.random.default_rng(0)
  wide = rng.normal(size=(4, 8, 2)).astype(np.float32)
  documents = [(tiny.text(rng, 2), tiny.image(rng)), (sequence.Image(wide, kind=1),)]
  rows = sequence.stack([tiny.pack(documents, config)] * 2)
  found = loss.measure_rows(config, tiny.params(config.model), [rows], mesh=mesh)
  assert {kind: own.errors.shape for kind, own in found.items()} == {
    "image": (2, 10),
    "wide": (2, 10),
  }
  assert not np.isnan(found["wide"].errors).any()
  alone = sequence.stack([tiny.pack(documents[:1], config)] * 2)
  params = tiny.params(config.model)
  assert set(loss.measure_rows(config, params, [alone], mesh=mesh)) == {"image"}
  # Of the same image in two rows, the noise is another.
  assert np.all(found["wide"].errors[0] != found["wide"].errors[1])
