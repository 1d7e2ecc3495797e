"""Promises of tfusion/autoencoder/codec.py."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file
from tiny_codec import VAE, VQ, make

from tfusion.autoencoder import codec, network
from tfusion.autoencoder.codec import Codec

pytestmark = pytest.mark.usefixtures("mesh")


@pytest.fixture(scope="module")
def vae() -> Codec:
  return make()


@pytest.fixture(scope="module")
def vq() -> Codec:
  return make(VQ)


def images(count: int = 2, *, height: int = 8, width: int = 8) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def model_of(opened: Codec):
  return network.bind(
    opened.config, {n: jnp.asarray(np.asarray(x)) for n, x in opened.params.items()}
  )


@pytest.mark.slow
def test_latents_are_the_models_moments_of_pixels_from_minus_one_to_one(vae):
  pixels = images()
  got = vae.encode(pixels)
  want = jax.jit(model_of(vae).encode)(pixels.astype(np.float32) / 127.5 - 1)
  # Two programs of the same float32 sums.
  np.testing.assert_allclose(got["mean"], want.mean_bhwc, atol=1e-5)
  np.testing.assert_allclose(got["logvar"], want.logvar_bhwc, atol=1e-5)
  assert sorted(got) == ["logvar", "mean"]
  assert got["mean"].shape == (2, *vae.latent_shape(8)) == (2, 4, 4, 3)
  assert {x.dtype for x in got.values()} == {np.dtype(np.float32)}
  assert (vae.kind, vae.downsampling) == ("latents", 2)


@pytest.mark.slow
def test_codes_are_the_models_in_raster_order_and_decode_as_their_vectors(vq):
  pixels = images()
  got = vq.encode(pixels)
  model = model_of(vq)

  def both(x):
    quantised = model.quantise(model.encode_vectors(x))
    return quantised.codes_bn, model.decode(quantised.latents_bhwc)

  codes, x = jax.jit(both)(pixels.astype(np.float32) / 127.5 - 1)
  assert list(got) == ["codes"] and got["codes"].dtype == np.int32
  assert (got["codes"] == codes).all() and got["codes"].shape == (2, 16)
  assert vq.latent_shape(8) == (16,) and vq.kind == "codes"
  decoded = vq.decode(got["codes"])
  assert decoded.dtype == np.uint8 and decoded.shape == pixels.shape
  want = np.round((np.clip(np.asarray(x), -1, 1) + 1) * 127.5)
  # A number in the middle of two bytes may fall to either.
  assert np.abs(decoded - want).max() <= 1 and decoded.std() > 1


@pytest.mark.slow
def test_a_image_need_not_be_square_for_latents(vae):
  got = vae.encode(images(height=4, width=10))
  assert got["mean"].shape == (2, 2, 5, 3)
  assert vae.decode(got["mean"]).shape == (2, 4, 10, 3)


@pytest.mark.slow
def test_the_same_batch_gives_the_same_bits_from_the_file_too(vae, tmp_path):
  pixels = images(3)
  first = vae.encode(pixels)
  vae.save(tmp_path / "a")
  for other in (vae, codec.load(tmp_path / "a")):
    again = other.encode(pixels)
    assert all((again[name] == first[name]).all() for name in first)


@pytest.mark.parametrize("config", [VAE, VQ], ids=["vae", "vq"])
def test_a_file_keeps_everything_in_the_same_bytes_each_time(config, tmp_path):
  made = make(config)
  made.save(tmp_path / "a.safetensors")
  opened = codec.load(tmp_path / "a.safetensors")
  assert (opened.config, opened.sha256) == (made.config, made.sha256)
  for name, x in made.params.items():
    assert (np.asarray(opened.params[name]) == np.asarray(x)).all()
  opened.save(tmp_path / "b.safetensors")
  files = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
  assert len(files) == 2 and files[0] == files[1]  # and nothing left aside


@pytest.mark.slow
def test_the_hash_tells_numbers_and_configs_apart(vae):
  assert vae.sha256 == make().sha256 and len(vae.sha256) == 64
  others = [
    make(seed=1),
    make(dataclasses.replace(VAE, groups=2)),
    Codec(VAE, vae.params | {"decoder.conv_out.bias": np.zeros(3, np.float32)}),
  ]
  assert len({c.sha256 for c in [vae, *others]}) == 4


def rewrite(path: pathlib.Path, *, about=None, params=None) -> None:
  """Changes what a file says of itself, and its tensors."""
  with safetensors.safe_open(path, framework="numpy") as file:
    said = json.loads(file.metadata()[codec.METADATA])
  tensors = load_file(path)
  save_file(
    tensors | (params or {}), path, {codec.METADATA: json.dumps(said | (about or {}))}
  )


def test_a_file_that_is_not_whole_or_not_ours_is_refused_with_the_reason(vae, tmp_path):
  path = tmp_path / "autoencoder.safetensors"

  def refused() -> str:
    with pytest.raises(ValueError) as error:
      codec.load(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)

  assert "there is no such file" in refused()
  path.write_bytes(b"no header at all, and long enough")
  assert "not an autoencoder file, or cut short" in refused()
  vae.save(path)
  path.write_bytes(path.read_bytes()[:-1])
  assert "not an autoencoder file, or cut short" in refused()
  save_file({"x": np.zeros(3)}, path)
  assert "not an autoencoder of tfusion" in refused()

  vae.save(path)
  rewrite(path, about={"version": 3})
  assert "has version 3, this tfusion reads version 2" in refused()
  vae.save(path)
  rewrite(path, params={"decoder.conv_in.bias": np.zeros(9, np.float32)})
  assert "1 of another shape: decoder.conv_in.bias (9,) for (8,)" in refused()
  vae.save(path)
  rewrite(path, params={"more": np.zeros(9, np.float32)})
  assert "1 unknown: more" in refused()
  vae.save(path)
  config = dataclasses.asdict(VAE)
  rewrite(path, about={"config": config | {"depth": 3}})
  assert "depth" in refused()
  rewrite(path, about={"config": config | {"blocks": 0}})
  assert "blocks=0: must be above 0" in refused()
  vae.save(path)
  rewrite(path, params={"decoder.conv_in.bias": np.zeros(8, np.float32)})
  assert "damaged: its numbers have sha256" in refused()


def test_parameters_that_are_missing_are_named():
  params = dict(make().params)
  del params["quant_conv.kernel"]
  with pytest.raises(ValueError, match="1 missing: quant_conv.kernel"):
    Codec(VAE, params)


def test_what_cannot_be_encoded_or_decoded_is_refused(vae, vq):
  with pytest.raises(ValueError, match="images of 8x7 pixels: the sides must be"):
    vae.encode(images(height=8, width=7))
  with pytest.raises(ValueError, match="images of 9x9 pixels.*downsampling=2"):
    vae.latent_shape(9)
  with pytest.raises(ValueError, match=r"float32\[2, 8, 8, 3\]: expected uint8\[b"):
    vae.encode(images().astype(np.float32))
  with pytest.raises(ValueError, match=r"uint8\[8, 8, 3\]: expected uint8\[b"):
    vae.encode(images()[0])
  with pytest.raises(ValueError, match=r"images of 4x8 pixels: codes are of a square"):
    vq.encode(images(height=4))
  with pytest.raises(ValueError, match=r"latents .*\[1, 4, 4, 2\]: expected float32"):
    vae.decode(np.zeros((1, 4, 4, 2), np.float32))
  with pytest.raises(ValueError, match=r"codes int64\[1, 5\]: expected integers"):
    vq.decode(np.zeros((1, 5), np.int64))
  with pytest.raises(ValueError, match="codes 0 to 11: the book has 0 to 10"):
    vq.decode(np.asarray([[0, 1, 2, 11]]))


@pytest.mark.slow
def test_numbers_go_to_the_nearest_byte_and_stop_at_black_and_white(vae):
  params = dict(vae.params)
  params["decoder.conv_out.kernel"] = np.zeros((3, 3, 4, 3), np.float32)
  for bias, byte in ((-9, 0), (-1, 0), (200.6 / 127.5 - 1, 201), (1, 255), (9, 255)):
    params["decoder.conv_out.bias"] = np.full(3, bias, np.float32)
    decoded = Codec(VAE, params).decode(np.zeros((1, 2, 2, 3), np.float32))
    assert (decoded == byte).all(), bias
