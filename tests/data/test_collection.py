"""A folder of pictures of many aspects and of arrays, each given to its kind."""

import pickle

import numpy as np
import pytest
from PIL import Image as Pillow
from tiny_photos import add

from tfusion import kinds
from tfusion.data import folder
from tfusion.kinds import Kind
from tfusion.sequence import Image

FIRST = Kind("image", (8, 8, 3), (2, 2))
OTHERS = kinds.parse(
  (
    "tall:12x6x3,like=image",
    "wide:6x12x3,like=image",
    "tone:16x1,patch=4",
    "spec:4x4x2",
  ),
  FIRST,
)[1:]


@pytest.fixture
def photos(tmp_path):
  root = tmp_path / "photos"
  for i, (size, name) in enumerate(
    [((40, 40), "square"), ((30, 60), "tall"), ((60, 30), "wide"), ((44, 40), "nearly")]
  ):
    for split in ("train", "test"):
      add(root, f"{split}/{name}.png", f"a {name} one", color=(40 * i, 9, 9), size=size)
  for split in ("train", "test"):
    wave = np.sin(np.arange(16.0)).reshape(16, 1)
    np.save(root / split / "tone.npy", wave)
    (root / split / "tone.txt").write_text("a tone")
    np.save(root / split / "spec.npy", np.ones((4, 4, 2), np.int16))
    (root / split / "spec.txt").write_text("a spectrum")
  return root


def opened(root, tmp_path, others=OTHERS):
  return folder.open_folder(
    str(root), test=False, image_shape=FIRST.shape, workdir=tmp_path, others=others
  )


def test_every_file_comes_as_the_kind_that_suits_it(photos, tmp_path):
  source = opened(photos, tmp_path)
  found = {caption: image for caption, image in (source[i] for i in range(len(source)))}
  assert found["a square one"].shape == found["a nearly one"].shape == (8, 8, 3)
  for caption, kind in (("tall", 1), ("wide", 2)):
    image = found[f"a {caption} one"]
    assert image.kind == kind and image.latent.shape == OTHERS[kind - 1].shape
  tone, spec = found["a tone"], found["a spectrum"]
  assert (tone.kind, spec.kind) == (3, 4) and tone.latent.dtype == np.float32
  np.testing.assert_allclose(tone.latent[:, 0], np.sin(np.arange(16.0)), rtol=1e-6)
  assert np.all(spec.latent == 1)
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[0][1], source[0][1])


def test_a_picture_turned_by_its_exif_goes_where_it_is_seen_to_belong(tmp_path):
  root = tmp_path / "photos"
  for name in ("a", "b"):
    add(root, f"{name}.png", name)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # held upright
    Pillow.new("RGB", (60, 30)).save(root / f"{name}.jpg", exif=exif)
    (root / f"{name}.png").unlink()
  source = opened(root, tmp_path)
  assert isinstance(source[0][1], Image) and source[0][1].kind == 1


def test_what_no_kind_takes_is_skipped_counted_and_named(photos, tmp_path):
  add(photos, "train/strip.png", "a strip", size=(400, 20))
  for name, array in (
    ("long", np.zeros((17, 1))),
    ("nan", np.full((16, 1), np.nan)),
    ("words", np.asarray(["a"])),
    ("things", np.asarray([{}, []], object)),
  ):
    np.save(photos / "train" / f"{name}.npy", array, allow_pickle=True)
    (photos / "train" / f"{name}.txt").write_text(name)
  source = opened(photos, tmp_path)
  assert len(source) == 6
  skipped = source.skipped
  assert skipped["train/strip.png"] == "no kind of a like aspect: 400 x 20 pixels"
  assert skipped["train/long.npy"] == "no kind of its shape: (17, 1)"
  assert "finite" in skipped["train/nan.npy"]
  assert "it holds <U1, not real numbers" in skipped["train/words.npy"]
  assert "cannot be decoded" in skipped["train/things.npy"]
  assert source.balance.adds_up


def test_with_one_kind_all_are_cropped_to_it_and_arrays_are_no_images(photos, tmp_path):
  source = opened(photos, tmp_path, others=())
  shapes = {source[i][1].shape for i in range(len(source))}
  assert len(source) == 4 and shapes == {(8, 8, 3)}


def test_another_array_is_another_folder(photos, tmp_path):
  before = opened(photos, tmp_path).contents().sha256
  np.save(photos / "train" / "tone.npy", np.zeros((16, 1)))
  assert opened(photos, tmp_path).contents().sha256 != before


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no array", b"\x93NUMPY\x01"])
def test_what_is_no_array_is_skipped_whatever_its_bytes(photos, tmp_path, data):
  (photos / "train" / "broken.npy").write_bytes(data)
  (photos / "train" / "broken.txt").write_text("broken")
  source = opened(photos, tmp_path)
  assert len(source) == 6
  said = source.skipped["train/broken.npy"]
  assert said == "cannot be decoded: it is no .npy file of numbers"


def test_several_arrays_in_one_file_are_no_array(photos, tmp_path):
  with open(photos / "train" / "zip.npy", "wb") as file:
    np.savez(file, a=np.zeros((16, 1)))
  (photos / "train" / "zip.txt").write_text("zip")
  skipped = opened(photos, tmp_path).skipped
  assert skipped["train/zip.npy"] == "cannot be decoded: it is no array"
