"""Promises of tfusion/generate/canvas.py."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import tiny_codec
import tiny_shards
from PIL import Image as Pillow

from tfusion.data import pipeline
from tfusion.data.images import decode
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards.manifest import ImageFormat
from tfusion.generate.canvas import Canvas, false_colours, open_canvas

pytestmark = pytest.mark.usefixtures("mesh")

SHAPE = (4, 4, 3)  # of latents; of pixels 8 x 8


@pytest.fixture(scope="module")
def codec():
  return tiny_codec.make()


@pytest.fixture
def run(codec, tmp_path):
  """A config on shards of latents, and its workdir as a start leaves it."""
  folder, workdir = tmp_path / "shards", tmp_path / "run"
  made = tiny_shards.make(folder, shape=SHAPE)
  codec.save(folder / manifest_lib.AUTOENCODER)
  sha256 = manifest_lib.sha256(folder / manifest_lib.AUTOENCODER)
  manifest_lib.save(dataclasses.replace(made, autoencoder_sha256=sha256), folder)
  config = tiny.config(
    model__image_shape=SHAPE,
    model__vocab_size=512,
    data__sources=(f"shards:{folder}",),
  )
  workdir.mkdir()
  pipeline.open_corpus(config, workdir)
  return config, workdir


@pytest.fixture
def photo(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
  Pillow.fromarray(pixels).save(tmp_path / "photo.png")
  return tmp_path / "photo.png"


def test_a_run_on_pixels_reads_and_shows_them_as_they_are(tmp_path, photo):
  config = tiny.config(model__image_shape=(4, 4, 1))
  canvas = open_canvas(config, tmp_path)
  read = canvas.read(photo)
  assert read.shape == (4, 4, 1) and read.dtype == np.float32
  np.testing.assert_array_equal(
    read, decode(photo, (4, 4, 1)).astype(np.float32) / 127.5 - 1
  )
  (shown,) = canvas.show([read])
  np.testing.assert_array_equal(shown, decode(photo, (4, 4, 1)))


@pytest.mark.slow
def test_an_image_is_given_to_the_model_as_the_shards_give_theirs(run, codec, photo):
  canvas = open_canvas(*run)
  read = canvas.read(photo)
  mean = codec.encode(decode(photo, (8, 8, 3))[None])["mean"][0]
  scale, shift = [2, 3, 4], [1, 0, -1]  # of tiny_shards
  np.testing.assert_allclose(read, (mean - shift) / scale, atol=1e-6)  # float32
  assert read.shape == SHAPE and read.dtype == np.float32


@pytest.mark.slow
def test_an_image_file_is_read_as_codes_of_the_book_behind_the_text(photo):
  codec = tiny_codec.make(tiny_codec.VQ)
  canvas = Canvas((8, 8, 1), ImageFormat("codes", (16,), codebook=11), codec)
  read = canvas.read(photo)
  want = codec.encode(decode(photo, (8, 8, 3))[None])["codes"][0]
  np.testing.assert_array_equal(read, want)
  assert canvas.book(300) == (300, 11, 16)
  assert (
    Canvas(SHAPE).book(300)
    is Canvas(SHAPE, ImageFormat("mean", SHAPE)).book(300)
    is None
  )
  (shown,) = canvas.show([read])
  np.testing.assert_array_equal(shown, codec.decode(want[None])[0])


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 8, 11])
def test_what_the_model_makes_is_shown_by_the_autoencoder(run, codec, count):
  images = np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)
  shown = open_canvas(*run).show(list(images))
  assert len(shown) == count
  latents = images * np.float32([2, 3, 4]) + np.float32([1, 0, -1])
  want = codec.decode(latents) if count else np.zeros((0, 8, 8, 3))
  for image, pixels in zip(shown, want, strict=True):
    # Another batch size may round to the byte beside.
    assert np.abs(image.astype(int) - pixels).max() <= 1
    assert image.shape == (8, 8, 3) and image.std() > 10


@pytest.mark.slow
def test_latents_without_their_autoencoder_are_refused(run, tmp_path):
  config, workdir = run
  path, latents = workdir / "autoencoder.safetensors", workdir / "latents.json"

  def refused(config=config) -> str:
    with pytest.raises(ValueError) as error:
      open_canvas(config, workdir)
    return str(error.value)

  whole = path.read_bytes()
  path.unlink()
  assert f"{path}: is missing" in refused()
  tiny_codec.make(seed=1).save(path)
  assert f"{path}: is another file" in refused()
  path.write_bytes(whole)
  open_canvas(config, workdir)
  assert "latents.json beside it says (4, 4, 3)" in refused(
    tiny.config(model__image_shape=(8, 4, 3))
  )
  values = json.loads(latents.read_text())
  codes = values | {"kind": "codes", "shape": [16], "codebook": 11}
  latents.write_text(json.dumps(codes))
  assert "gives latents of 3 numbers, latents.json beside it says (16,)" in refused()
  latents.write_text(json.dumps(codes | {"autoencoder_sha256": None}))
  assert "images of this run are codes: without their autoencoder" in refused()
  latents.write_text(json.dumps(values | {"autoencoder_sha256": None}))
  assert "without their autoencoder none can be sampled" in refused()
  for text in ("{", "[]", json.dumps({"kind": "mean"})):
    latents.write_text(text)
    assert f"{latents}: damaged" in refused()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "codes"])
def test_what_shards_store_is_shown_as_what_the_model_is_given(kind):
  codes = kind == "codes"
  codec = tiny_codec.make(tiny_codec.VQ if codes else tiny_codec.VAE)
  shape = (16,) if codes else SHAPE
  stored = tiny_shards.record(2, kind=kind, shape=shape).images[kind]
  stored = stored % codec.config.codes if codes else stored.astype(np.float32)
  numbers = {} if codes else dict(scale=(2.0, 3.0, 4.0), shift=(1.0, 0.0, -1.0))
  images = ImageFormat(kind, shape, codebook=11 if codes else 0, **numbers)
  canvas = Canvas(shape, images, codec)
  given = stored if codes else (stored - [1, 0, -1]) / [2, 3, 4]
  ways = canvas.show_stored(stored), canvas.show(given.astype(stored.dtype))
  for one, other, pixels in zip(*ways, codec.decode(stored), strict=True):
    # Another batch size, or another order of sums, may round to the byte beside.
    assert np.abs(one.astype(int) - pixels).max() <= 1
    assert np.abs(other.astype(int) - pixels).max() <= 1


def test_images_without_their_autoencoder_can_be_looked_at_all_the_same(run):
  config, workdir = run
  (workdir / "autoencoder.safetensors").unlink()
  canvas = open_canvas(config, workdir, look_only=True)
  x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  (seen,) = canvas.show([x])
  assert seen.shape == (32, 32, 3) and seen.dtype == np.uint8
  shades = np.clip(np.round(127.5 + 63.75 * x), 0, 255)
  np.testing.assert_array_equal(seen[::8, ::8], shades)
  (stored,) = canvas.show_stored((x * [2, 3, 4] + [1, 0, -1])[None])
  assert np.abs(stored.astype(int) - seen).max() <= 1  # float32 there and back
  two = false_colours(x[..., :2])
  np.testing.assert_array_equal(two[..., 2], two[..., 0])  # of fewer channels again
  codes = Canvas(SHAPE, ImageFormat("codes", (3,), codebook=9))
  (pattern,) = codes.show([np.array([1, 2, 1])])
  assert pattern.shape == (2, 2, 1)
  assert pattern[0, 0] == pattern[1, 0] != pattern[0, 1]
