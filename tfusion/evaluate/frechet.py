"""The Frechet distance between two sets of images, as their features are spread.

Owns: mean and covariance of features, adding and keeping them, the distance. Not: the
features (networks/), the images (gallery.py).

For Gaussians of means m and covariances C it is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1
C2)^(1/2)), the FID of arXiv 1706.08500 (equation 6) where features are Inception's.

n images  d numbers of a feature
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfusion import files


class Moments(NamedTuple):
  """Of features: enough for the distance, and to be added to those of other images."""

  network: str  # whose features; those of two networks cannot be compared
  images: int  # how many
  mean_d: np.ndarray  # f64
  scatter_dd: np.ndarray  # f64, the sum of outer products of differences from the mean

  @property
  def covariance_dd(self) -> np.ndarray:
    """The unbiased estimate, as numpy.cov has it.

    Raises:
      ValueError: fewer than two images.
    """
    if self.images < 2:
      raise ValueError(f"{self.images} images have no covariance; give at least 2")
    return self.scatter_dd / (self.images - 1)


def moments_of(features_nd: np.ndarray, *, network: str) -> Moments:
  """Those of some features, f32[n, d]; summed in float64."""
  features_nd = np.asarray(features_nd, np.float64)
  mean_d = features_nd.mean(axis=0)
  centred_nd = features_nd - mean_d
  return Moments(network, len(features_nd), mean_d, centred_nd.T @ centred_nd)


def merge(one: Moments, other: Moments) -> Moments:
  """The moments of both sets together (Chan, Golub and LeVeque 1979, equation 2.1).

  Raises:
    ValueError: they are of different networks.
  """
  _check_same(one, other)
  count = one.images + other.images
  apart_d = other.mean_d - one.mean_d
  mean_d = one.mean_d + apart_d * (other.images / count)
  between_dd = np.outer(apart_d, apart_d) * (one.images * other.images / count)
  return Moments(
    one.network, count, mean_d, one.scatter_dd + other.scatter_dd + between_dd
  )


def stream(parts: Iterable[np.ndarray], *, network: str) -> Moments:
  """The moments of features that come in parts, f32[n, d] each.

  Raises:
    ValueError: there are none.
  """
  found: Moments | None = None
  for features_nd in parts:
    if len(features_nd):
      own = moments_of(features_nd, network=network)
      found = own if found is None else merge(found, own)
  if found is None:
    raise ValueError("no images, so no features to compare")
  return found


def distance(one: Moments, other: Moments) -> float:
  """The Frechet distance; 0 where both are the same.

  The trace of (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of the
  symmetric matrix C1^(1/2) C2 C1^(1/2), which has no complex numbers to be thrown away.

  Raises:
    ValueError: they are of different networks, or one has fewer than two images.
  """
  _check_same(one, other)
  first_dd, second_dd = one.covariance_dd, other.covariance_dd
  values_d, vectors_dd = np.linalg.eigh(first_dd)
  root_dd = (vectors_dd * np.sqrt(np.clip(values_d, 0, None))) @ vectors_dd.T
  both_d = np.linalg.eigvalsh(root_dd @ second_dd @ root_dd)
  shared = np.sum(np.sqrt(np.clip(both_d, 0, None)))
  apart = np.sum(np.square(one.mean_d - other.mean_d))
  return float(apart + np.trace(first_dd) + np.trace(second_dd) - 2 * shared)


def save(moments: Moments, path: Path) -> None:
  """Writes an .npz, whole or not at all; its `mu` and `sigma` are those of pytorch-fid.

  Raises:
    OSError: it cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.whole(path) as aside, aside.open("wb") as file:
    np.savez(
      file,
      mu=moments.mean_d,
      sigma=moments.covariance_dd,
      count=np.int64(moments.images),
      network=np.str_(moments.network),
    )


def load(path: Path) -> Moments:
  """Reads what `save` wrote.

  Raises:
    ValueError: it is no such file, or does not say of how many images and of which
      network it is.
  """
  try:
    with np.load(path, allow_pickle=False) as found:
      values = {name: found[name] for name in found.files}
  except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
    raise ValueError(
      f"{path}: is no .npz of statistics ({error}); delete it, and it is made anew"
    ) from error
  if missing := {"mu", "sigma", "count", "network"} - set(values):
    raise ValueError(
      f"{path}: lacks {sorted(missing)}; of another program, add `count`, the number of"
      " its images, and `network`, as tfusion calls the network of its features"
    )
  mean_d, covariance_dd = values["mu"], values["sigma"]
  if mean_d.ndim != 1 or covariance_dd.shape != (len(mean_d), len(mean_d)):
    raise ValueError(
      f"{path}: mu is {mean_d.shape} and sigma {covariance_dd.shape}; expected [d] and"
      " [d, d]"
    )
  count = int(values["count"])
  scatter_dd = covariance_dd.astype(np.float64) * (count - 1)
  return Moments(str(values["network"]), count, mean_d.astype(np.float64), scatter_dd)


def _check_same(one: Moments, other: Moments) -> None:
  if one.network != other.network:
    raise ValueError(
      f"features of {one.network!r} cannot be compared with those of"
      f" {other.network!r}; make both with one network"
    )
  if len(one.mean_d) != len(other.mean_d):
    raise ValueError(
      f"features of {len(one.mean_d)} and of {len(other.mean_d)} numbers cannot be"
      " compared"
    )
