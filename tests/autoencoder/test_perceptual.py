"""Promises of tfusion/autoencoder/perceptual.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tfusion.autoencoder import perceptual
from tfusion.autoencoder.perceptual import EPS, VGG16_STAGES, VGG16_WIDTHS, Features

pytestmark = pytest.mark.usefixtures("mesh")

SHAPE = (32, 32, 3)


def images(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def plain_distance(features, weights, x, y) -> np.ndarray:
  """The distance in float64 numpy, by the words of arXiv 1801.03924."""
  total = 0
  x, y = ((p - np.array(features.shift)) / np.array(features.scale) for p in (x, y))
  for number, stage in enumerate(features.stages):
    maps = []
    for p in (x, y):
      if number:
        h, w = p.shape[1] // 2, p.shape[2] // 2
        windows = [p[:, i : 2 * h : 2, j : 2 * w : 2] for i in (0, 1) for j in (0, 1)]
        p = np.max(windows, axis=0)
      for name in stage:
        padded = np.pad(p, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = np.float64(weights[f"{name}.kernel"])
        h, w = p.shape[1:3]
        p = sum(
          padded[:, i : i + h, j : j + w] @ kernel[i, j]
          for i in range(3)
          for j in range(3)
        )
        p = np.maximum(p + weights[f"{name}.bias"], 0)
      maps.append(p)
    x, y = maps
    unit = [p / np.sqrt((p**2).sum(axis=-1, keepdims=True) + EPS) for p in maps]
    error = np.square(unit[0] - unit[1]) * weights.get(f"{number}.lin", 1.0)
    total = total + error.sum(axis=-1).mean(axis=(1, 2))
  return total


def test_the_distance_is_that_of_the_paper_odd_sides_and_linear_weights_included():
  rng = np.random.default_rng(1)
  features = Features((("a", "b"), ("c",)), (0.1, 0.0, -0.1), (0.5, 0.6, 0.7))
  weights = {"0.lin": np.float32([0.5, 0.0, 2.0, 1.0])}
  for name, inputs, outputs in (("a", 3, 5), ("b", 5, 4), ("c", 4, 6)):
    kernel = rng.normal(size=(3, 3, inputs, outputs), scale=0.3)
    weights[f"{name}.kernel"] = kernel.astype(np.float32)
    weights[f"{name}.bias"] = np.full(outputs, 0.2, np.float32)
  x, y = images(2, 7, 6, 3), images(2, 7, 6, 3, seed=1)

  def distance(x, y):
    return perceptual.distance(features, weights, x, y, dtype=jnp.float32)

  got = jax.jit(distance)(x, y)
  # float32 sums of a hundred products beside float64, twice.
  np.testing.assert_allclose(got, plain_distance(features, weights, x, y), rtol=1e-5)


@pytest.mark.slow
def test_equal_images_are_at_zero_and_others_are_not_with_finite_gradients():
  features, weights = perceptual.open_features("random", image_shape=SHAPE)

  def total(x, y):
    d_b = perceptual.distance(features, weights, x, y, dtype=jnp.float32)
    return jnp.sum(d_b), d_b

  x = np.zeros((2, 8, 8, 3), np.float32)  # black: every feature is 0 everywhere
  y = x.copy()
  y[1] = images(8, 8, 3)
  gradient, d_b = jax.jit(jax.grad(total, has_aux=True))(y, x)
  assert d_b[0] == 0 and d_b[1] > 0.1 and np.all(np.isfinite(gradient))
  assert np.any(gradient[1])


def test_random_features_are_always_the_same():
  one, other = (perceptual.open_features("random", image_shape=SHAPE)[1] for _ in "ab")
  assert all(np.array_equal(one[name], other[name]) for name in one)
  # On every machine, to the last bits: a run goes on with the network it began with.
  assert float(one["0.kernel"].ravel()[0]) == pytest.approx(0.27325809, rel=1e-6)


def test_no_features_are_no_distance():
  features, weights = perceptual.open_features("none", image_shape=SHAPE)
  x = images(1, 8, 8, 3)
  assert perceptual.distance(features, weights, x, -x, dtype=jnp.float32) == 0


def vgg16(*, lin: bool = False) -> dict[str, np.ndarray]:
  """Arrays as torchvision has them, classifier included, and as LPIPS has them."""
  arrays, inputs = {"classifier.0.weight": np.zeros((2, 2), np.float16)}, 3
  for stage, outputs in zip(VGG16_STAGES, VGG16_WIDTHS):
    for i in stage:
      shape = (outputs, inputs, 3, 3)
      arrays[f"features.{i}.weight"] = np.zeros(shape, np.float16)
      arrays[f"features.{i}.bias"] = np.zeros(outputs, np.float16)
      inputs = outputs
  if lin:
    for i, width in enumerate(VGG16_WIDTHS):
      arrays[f"lin{i}.model.1.weight"] = np.full((1, width, 1, 1), i, np.float16)
  return arrays


def opened(tmp_path, arrays):
  path = tmp_path / "vgg16.safetensors"
  safetensors.numpy.save_file(arrays, path)
  return perceptual.open_features(f"vgg16:{path}", image_shape=SHAPE)


@pytest.mark.parametrize("lin", [False, True])
def test_a_vgg16_is_read_from_torchvisions_keys(tmp_path, lin):
  arrays = vgg16(lin=lin)
  arrays["features.2.weight"][7, 5, 0, 2] = 3
  features, weights = opened(tmp_path, arrays)
  assert weights["2.kernel"][0, 2, 5, 7] == 3
  assert all(x.dtype == np.float32 for x in weights.values())
  assert ("3.lin" in weights) == lin and (not lin or np.all(weights["3.lin"] == 3))
  x = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
  maps = jax.eval_shape(lambda x: perceptual._maps(features, weights, x, x.dtype), x)
  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
  sides = (32, 16, 8, 4, 2)
  assert [m.shape[1:] for m in maps] == [(s, s, w) for s, w in zip(sides, VGG16_WIDTHS)]


def test_a_file_that_is_no_vgg16_is_refused_with_what_is_wrong(tmp_path):
  missing = vgg16()
  del missing["features.28.bias"]
  with pytest.raises(ValueError, match=r"features.28.bias is missing, not \(512,\)"):
    opened(tmp_path, missing)
  shaped = vgg16() | {"features.0.weight": np.zeros((64, 1, 3, 3), np.float32)}
  with pytest.raises(ValueError, match=r"features.0.weight is \(64, 1, 3, 3\), not"):
    opened(tmp_path, shaped)
  some = vgg16(lin=True)
  del some["lin2.model.1.weight"]
  with pytest.raises(ValueError, match="lin2.model.1.weight is missing"):
    opened(tmp_path, some)
  below = vgg16(lin=True)
  below["lin1.model.1.weight"][0, 0] = -1
  with pytest.raises(ValueError, match="lin1.model.1.weight has numbers below 0"):
    opened(tmp_path, below)
  (tmp_path / "text").write_text("no weights")
  for path in (tmp_path / "text", tmp_path / "absent"):
    with pytest.raises(ValueError, match="not a safetensors file that can be read"):
      perceptual.open_features(f"vgg16:{path}", image_shape=SHAPE)


@pytest.mark.parametrize("name", ["vgg", "random:3", "vgg16", ""])
def test_an_unknown_network_lists_those_there_are(name):
  with pytest.raises(ValueError, match="choose none, random, or vgg16:PATH"):
    perceptual.open_features(name, image_shape=SHAPE)


def test_pictures_too_small_for_a_network_are_refused():
  with pytest.raises(ValueError, match="needs sides of at least 4 pixels"):
    perceptual.open_features("random", image_shape=(3, 8, 3))
