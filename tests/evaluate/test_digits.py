"""Promises of tfusion/evaluate/digits.py that need no model."""

import numpy as np

from tfusion.data.sources import load_digits
from tfusion.evaluate.digits import fit_judge, nearness


def test_judge_reads_unseen_scans_and_none_of_them_is_a_training_scan():
  (train, _), (unseen, labels) = load_digits("train"), load_digits("test")
  seen = {scan.tobytes() for scan in train}
  assert not any(scan.tobytes() in seen for scan in unseen)
  right = fit_judge().predict(unseen.reshape(len(unseen), -1)) == labels
  assert len(right) == 297 and np.mean(right) > 0.98


def test_copied_training_scans_are_counted_as_copies():
  train = load_digits("train")[0][:20]
  found = nearness(train)
  assert found["copies"] == 20 and found["nearest_distance_drawn"] < 1e-3


def test_unseen_scans_are_no_copies_and_as_near_as_unseen_scans_are():
  found = nearness(load_digits("test")[0])
  assert found["copies"] == 0
  assert found["nearest_distance_drawn"] == found["nearest_distance_unseen"] > 0.1


def test_nearest_distance_is_the_root_mean_square_over_pixels():
  train = load_digits("train")[0].reshape(1500, -1)
  image = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 1)).astype(np.float32)
  slow = min(np.sqrt(np.mean((image.ravel() - scan) ** 2)) for scan in train)
  np.testing.assert_allclose(
    nearness(image)["nearest_distance_drawn"], slow, rtol=1e-4
  )  # float32, expanded square
