"""Promises of tfusion/evaluate/frechet.py."""

import numpy as np
import pytest
from scipy import linalg

from tfusion.evaluate import frechet
from tfusion.evaluate.frechet import Moments


def gaussian(mean, covariance, *, network="n", count=101):
  """Moments of a Gaussian that is known exactly."""
  covariance = np.asarray(covariance, np.float64)
  return Moments(network, count, np.asarray(mean, float), covariance * (count - 1))


def features(seed, count, width=6):
  """Correlated numbers, as features are."""
  rng = np.random.default_rng(seed)
  mixed = rng.normal(size=(width, width))
  return (rng.normal(size=(count, width)) @ mixed + rng.normal(size=width)).astype("f")


def test_the_distance_of_known_gaussians_is_exact():
  # One dimension: (m1 - m2)^2 + (s1 - s2)^2.
  one, other = gaussian([1.0], [[4.0]]), gaussian([-2.0], [[9.0]])
  assert frechet.distance(one, other) == pytest.approx(9.0 + 1.0, abs=1e-12)
  # Matrices that commute: the same, axis by axis, in any basis.
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
  a, b = rng.uniform(0.1, 3, (2, 5))
  one = gaussian(np.zeros(5), (basis * a**2) @ basis.T)
  other = gaussian(np.full(5, 0.5), (basis * b**2) @ basis.T)
  want = 5 * 0.25 + np.sum((a - b) ** 2)
  assert frechet.distance(one, other) == pytest.approx(want, abs=1e-9)
  # Matrices that do not: the eigenvalues of a product of 2 x 2 are known.
  p, q = np.asarray([[2.0, 1.0], [1.0, 3.0]]), np.asarray([[1.0, -0.5], [-0.5, 4.0]])
  # tr (PQ)^(1/2) = (tr PQ + 2 det(PQ)^(1/2))^(1/2) for two positive eigenvalues.
  shared = np.sqrt(np.trace(p @ q) + 2 * np.sqrt(np.linalg.det(p @ q)))
  want = np.trace(p) + np.trace(q) - 2 * shared
  found = frechet.distance(gaussian([0, 0], p), gaussian([0, 0], q))
  assert found == pytest.approx(want, abs=1e-6)


def test_the_distance_is_0_to_itself_symmetric_and_never_complex():
  # Fewer images than numbers: the covariance has eigenvalues of 0.
  few = [frechet.moments_of(features(s, 4, 20), network="n") for s in (1, 2)]
  assert frechet.distance(few[0], few[0]) == pytest.approx(0, abs=1e-4)
  there, back = frechet.distance(*few), frechet.distance(*reversed(few))
  assert there == pytest.approx(back, rel=1e-6) and there > 1


def test_it_is_that_of_the_square_root_of_scipy_on_the_same_features():
  one, other = features(1, 300, 32), features(2, 200, 32)
  root = linalg.sqrtm(np.cov(one.T.astype("d")) @ np.cov(other.T.astype("d"))).real
  want = np.sum((one.mean(0, "d") - other.mean(0, "d")) ** 2)
  want += np.trace(np.cov(one.T)) + np.trace(np.cov(other.T)) - 2 * np.trace(root)
  found = frechet.distance(*(frechet.moments_of(x, network="n") for x in (one, other)))
  assert found == pytest.approx(want, rel=1e-6)


def test_it_is_that_of_pytorch_fid_on_the_same_features(tmp_path):
  other_program = pytest.importorskip(
    "pytorch_fid.fid_score", reason="pytorch-fid is in the extra `eval`"
  )
  sets = [features(seed, 400, 64) for seed in (1, 2)]
  gaussians = [(np.mean(x, axis=0), np.cov(x, rowvar=False)) for x in sets]
  want = other_program.calculate_frechet_distance(*gaussians[0], *gaussians[1])
  own = [frechet.moments_of(x, network="n") for x in sets]
  assert frechet.distance(*own) == pytest.approx(want, abs=1e-4)
  frechet.save(own[0], tmp_path / "a.npz")
  frechet.save(own[1], tmp_path / "b.npz")
  read = [np.load(tmp_path / f"{name}.npz") for name in "ab"]
  assert other_program.calculate_frechet_distance(
    read[0]["mu"], read[0]["sigma"], read[1]["mu"], read[1]["sigma"]
  ) == pytest.approx(want, abs=1e-4)


def test_parts_in_any_order_give_what_all_at_once_do():
  whole = features(3, 90) + 100.0  # a mean far from 0 costs nothing
  parts = [whole[:1], whole[1:50], whole[50:50], whole[50:]]
  once = frechet.moments_of(whole, network="n")
  for order in (parts, parts[::-1]):
    found = frechet.stream(order, network="n")
    assert found.images == 90
    np.testing.assert_allclose(found.mean_d, once.mean_d, rtol=1e-12)
    np.testing.assert_allclose(found.scatter_dd, once.scatter_dd, rtol=1e-9, atol=1e-9)
  cov = np.cov(whole.T.astype("d"))
  np.testing.assert_allclose(once.covariance_dd, cov, rtol=1e-9)


def test_statistics_are_saved_and_read_again(tmp_path):
  made = frechet.moments_of(features(4, 30), network="inception (abc)")
  path = tmp_path / "made" / "coco.npz"
  frechet.save(made, path)
  read = frechet.load(path)
  assert (read.network, read.images) == (made.network, 30)
  np.testing.assert_array_equal(read.mean_d, made.mean_d)
  np.testing.assert_allclose(read.scatter_dd, made.scatter_dd, rtol=1e-15)
  assert list(path.parent.iterdir()) == [path]


def test_statistics_that_cannot_serve_are_named(tmp_path):
  path = tmp_path / "a.npz"
  path.write_bytes(b"no npz")
  with pytest.raises(ValueError, match=r"a\.npz: is no \.npz of statistics"):
    frechet.load(path)
  np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
  with pytest.raises(ValueError, match=r"lacks \['count', 'network'\]"):
    frechet.load(path)
  np.savez(path, mu=np.zeros(3), sigma=np.eye(2), count=5, network="n")
  with pytest.raises(ValueError, match=r"mu is \(3,\) and sigma \(2, 2\)"):
    frechet.load(path)


def test_other_networks_and_too_few_images_are_refused():
  one = frechet.moments_of(features(5, 9), network="inception")
  other = frechet.moments_of(features(5, 9), network="clip")
  for function in (frechet.distance, frechet.merge):
    with pytest.raises(
      ValueError, match="'inception' cannot be compared with .*'clip'"
    ):
      function(one, other)
  wide = frechet.moments_of(features(5, 9, 7), network="inception")
  with pytest.raises(ValueError, match="of 6 and of 7 numbers"):
    frechet.distance(one, wide)
  with pytest.raises(ValueError, match="1 images have no covariance"):
    frechet.distance(one, frechet.moments_of(features(5, 1), network="inception"))
  with pytest.raises(ValueError, match="no images"):
    frechet.stream([], network="n")
