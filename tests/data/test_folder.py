"""Folders of images as people have them: every format, broken files, odd captions."""

import functools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_photos import add, squares

from tfusion.data import folder, images, pairs

SHAPE = (8, 8, 3)


@pytest.fixture
def photos(tmp_path) -> Path:
  return squares(tmp_path / "photos")


def open_both(root, workdir, shape=SHAPE):
  return [
    folder.open_folder(str(root), test=test, image_shape=shape, workdir=workdir)
    for test in (False, True)
  ]


def all_documents(root, workdir, shape=SHAPE):
  return {
    pair.file: source[i]
    for source in open_both(root, workdir, shape)
    for i, pair in enumerate(source._own)
  }


def flat(image: np.ndarray) -> np.ndarray:
  """The colour 0..255 of an image that has only one."""
  np.testing.assert_allclose(
    image, np.broadcast_to(image[0, 0], image.shape), atol=0.02
  )
  return (image[0, 0] + 1) * 127.5


def save_16_bit(path):
  Image.fromarray(np.full((20, 20), 0x80FF, np.uint16)).save(path)


def save_palette(path):
  Image.new("RGB", (20, 20), (255, 0, 0)).convert("P").save(path)


def save_cmyk(path):
  Image.new("CMYK", (20, 20), (255, 0, 255, 0)).save(path, quality=100)


def save_alpha(path):
  Image.new("RGBA", (20, 20), (0, 0, 0, 127)).save(path)


def save_transparent_palette(path):
  image = Image.new("P", (20, 20), 3)
  image.putpalette([9] * 768)
  image.save(path, transparency=3)


def save_float(path):
  Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(path)


@pytest.mark.parametrize(
  "name, save, color",
  [
    ("deep.png", save_16_bit, (128, 128, 128)),
    ("palette.gif", save_palette, (255, 0, 0)),
    ("print.jpg", save_cmyk, (0, 255, 0)),
    ("alpha.png", save_alpha, (128, 128, 128)),
    ("clear.png", save_transparent_palette, (255, 255, 255)),
    ("float.tiff", save_float, (128, 128, 128)),
    ("UPPER.PNG", save_16_bit, (128, 128, 128)),
  ],
)
def test_formats_keep_their_colour(photos, tmp_path, name, save, color):
  save(photos / name)
  (photos / name).with_suffix(".txt").write_text("odd")
  caption, image = all_documents(photos, tmp_path)[name]
  assert caption == "odd" and image.shape == SHAPE and image.dtype == np.float32
  # Colour conversion of CMYK and the JPEG itself round by a few steps of 255.
  np.testing.assert_allclose(flat(image), color, atol=4)


def test_an_image_is_turned_upright_as_its_exif_says(photos, tmp_path):
  pixels = np.zeros((20, 20, 3), np.uint8)
  pixels[:10] = 255  # white above
  exif = Image.Exif()
  exif[0x0112] = 3  # stored upside down
  Image.fromarray(pixels[::-1, ::-1]).save(photos / "phone.png", exif=exif)
  (photos / "phone.txt").write_text("half")
  image = all_documents(photos, tmp_path)["phone.png"][1]
  assert np.all(image[:3] > 0.9) and np.all(image[5:] < -0.9)


def test_an_image_is_cropped_about_its_centre(photos, tmp_path):
  pixels = np.zeros((20, 60, 3), np.uint8)
  pixels[:, 20:40] = 255
  Image.fromarray(pixels).save(photos / "wide.png")
  (photos / "wide.txt").write_text("wide")
  image = all_documents(photos, tmp_path)["wide.png"][1]
  # The resampling filter sees a little of what lies beside the crop.
  np.testing.assert_allclose(image, 1, atol=0.15)


def test_a_jpeg_keeps_the_detail_that_its_size_can_show(photos, tmp_path):
  pixels = np.zeros((104, 104, 3), np.uint8)
  pixels[:, 52:] = 255
  Image.fromarray(pixels).save(photos / "big.jpg", quality=95)
  (photos / "big.txt").write_text("big")
  image = all_documents(photos, tmp_path, (64, 64, 3))["big.jpg"][1]
  assert np.all(image[:, :30] < -0.9) and np.all(image[:, 34:] > 0.9)


def test_gray_is_read_into_one_channel(photos, tmp_path):
  image = all_documents(photos, tmp_path, (4, 4, 1))["good0.png"][1]
  assert image.shape == (4, 4, 1)
  # ITU-R 601 luma of (200, 40, 90), as Pillow's mode L has it.
  np.testing.assert_allclose(flat(image), 0.299 * 200 + 0.587 * 40 + 0.114 * 90, atol=1)


def test_bad_images_and_captions_are_skipped_with_a_reason(photos, tmp_path):
  whole = add(photos, "truncated.png", size=(90, 90)).read_bytes()
  (photos / "truncated.png").write_bytes(whole[: len(whole) // 2])
  add(photos, "zero.png").write_bytes(b"")
  add(photos, "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"junk" * 30)
  add(photos, "renamed.png").write_bytes(b"<html></html>")
  add(photos, "silent.png", caption=" \n")
  add(photos, "alone.png", caption=None)
  add(photos, "latin.png").with_suffix(".txt").write_bytes(b"caf\xe9")
  train, test = open_both(photos, tmp_path)
  assert len(train) + len(test) == 4
  assert train.skipped == test.skipped
  reasons = {name: reason.split(":")[0] for name, reason in train.skipped.items()}
  assert reasons == {
    "truncated.png": "cannot be decoded",
    "zero.png": "cannot be decoded",
    "corrupt.jpg": "cannot be decoded",
    "renamed.png": "cannot be decoded",
    "silent.png": "empty caption",
    "alone.png": "no caption",
    "latin.png": "caption cannot be read",
  }


def test_a_decompression_bomb_is_skipped(photos, tmp_path, monkeypatch):
  add(photos, "bomb.png", size=(50, 50))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
  train, _ = open_both(photos, tmp_path)
  assert "2500" in train.skipped["bomb.png"] or "50x50" in train.skipped["bomb.png"]
  assert len(train.skipped) == 1


def test_a_caption_longer_than_a_row_is_skipped(photos, tmp_path):
  add(photos, "essay.png", caption="word " * 50)
  train, test = (s.fit(len, room=20) for s in open_both(photos, tmp_path))
  assert len(train) + len(test) == 4
  assert train.skipped == {
    "essay.png": "caption too long: 249 elements, a row has room for 20"
  }


def test_captions_come_from_jsonl_too_even_several(tmp_path):
  root = tmp_path / "photos"
  add(root, "a.png", caption=None)
  add(root, "sub/b.png", caption=None)
  add(root, "sub/c.png", caption="from the txt")
  lines = [
    {"file": "a.png", "caption": "first"},
    {"file_name": "./a.png", "text": "second"},
    {"file": "gone.png", "caption": "lost"},
    {"file": "a.png"},
    ["a.png", "x"],
  ]
  (root / "one.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\nnot json\n")
  (root / "sub" / "two.jsonl").write_text('{"file": "b.png", "caption": " third "}')
  found = pairs.find_pairs(str(root))
  assert [(p.file, p.caption) for p in found.pairs] == [
    ("a.png", "first"),
    ("a.png", "second"),
    ("sub/b.png", "third"),
    ("sub/c.png", "from the txt"),
  ]
  assert {one.id: one.reason for one in found.rejected} == {
    "one.jsonl:3": pairs.NO_IMAGE,
    "one.jsonl:4": pairs.BAD_LINE,
    "one.jsonl:5": pairs.BAD_LINE,
    "one.jsonl:7": pairs.BAD_LINE,
  }


def test_hidden_files_and_circular_links_are_left_alone(photos):
  add(photos, ".thumbnails/a.png")
  add(photos, "._good0.png")
  os.symlink(photos, photos / "loop")
  found = pairs.find_pairs(str(photos))
  assert [p.file for p in found.pairs] == [f"good{i}.png" for i in range(4)]
  assert not found.rejected


def test_train_and_test_folders_are_the_split(tmp_path):
  root = tmp_path / "photos"
  for i in range(3):
    add(root, f"train/{i}.png")
    add(root, f"test/{i}.png")
  train, test = open_both(root, tmp_path)
  assert {p.file for p in train._own} == {f"train/{i}.png" for i in range(3)}
  assert {p.file for p in test._own} == {f"test/{i}.png" for i in range(3)}


def test_a_split_by_hash_is_fixed_disjoint_and_about_a_twentieth():
  files = {f"{i}.png" for i in range(2000)}
  choose = functools.partial(folder.choose_held_out, named=False)
  held_out = choose(files)
  assert 60 < len(held_out) < 140
  assert choose(files | {"new.png"}) - {"new.png"} == held_out
  for count in (2, 3, 10):
    assert 1 <= len(choose({f"{i}.png" for i in range(count)})) < count


def test_folders_that_sound_held_out_and_are_trained_on_are_named(tmp_path, caplog):
  root = tmp_path / "in"
  for i in range(30):
    add(root, f"train/{i}.png")
    add(root, f"holdout/{i}.png")
    add(root, f"latest/{i}.png")
  train, test = open_both(root, tmp_path)
  assert any(p.file.startswith("holdout/") for p in train._own)
  assert "for testing: holdout (" in train.advice() and "latest" not in train.advice()
  assert test.advice() == ""
  add(root, "test/1.png")
  (root / "holdout").rename(root / "val")
  assert [s.advice() for s in open_both(root, tmp_path)] == ["", ""]


def test_images_are_decoded_once_per_state_of_the_folder(photos, tmp_path, monkeypatch):
  decoded = []

  def counted(path, shape, decode=images.decode):
    decoded.append(path.name)
    return decode(path, shape)

  monkeypatch.setattr(images, "decode", counted)
  open_both(photos, tmp_path)
  assert sorted(decoded) == [f"good{i}.png" for i in range(4)]
  open_both(photos, tmp_path)
  assert len(decoded) == 4
  os.utime(photos / "good1.png", (1, 1))
  open_both(photos, tmp_path)
  assert len(decoded) == 8
  open_both(photos, tmp_path, (4, 4, 3))
  assert len(decoded) == 12
  assert not list(tmp_path.glob("cache/*.part"))


def test_a_pickled_source_maps_the_cache_and_carries_no_pixels(photos, tmp_path):
  train, _ = open_both(photos, tmp_path, (64, 64, 3))
  pickled = pickle.dumps(train)
  assert len(pickled) < 4 * 64 * 64 * 3
  copy = pickle.loads(pickled)
  assert isinstance(copy.collection._decoded[0], np.memmap) and len(copy) == len(train)
  np.testing.assert_array_equal(copy[0][1], train[0][1])


@pytest.mark.parametrize(
  "prepare, message",
  [
    (lambda root: None, "no such folder"),
    (lambda root: (root.mkdir(), (root / "a.heic").touch()), r"no images.*\.heic"),
    (
      lambda root: add(root, "a.png", caption=None),
      r"no caption that can be used \(a.png: no caption.*put a .txt",
    ),
    (lambda root: add(root, "a.png"), "fewer than two usable images"),
    (
      lambda root: [add(root, f"{i}.png").write_bytes(b"") for i in range(3)],
      "fewer than two usable.*3 skipped.*cannot be decoded",
    ),
  ],
)
def test_a_folder_that_cannot_serve_is_refused_with_a_remedy(
  tmp_path, prepare, message
):
  prepare(tmp_path / "photos")
  with pytest.raises(ValueError, match=message):
    open_both(tmp_path / "photos", tmp_path)


def test_captions_that_are_all_too_long_are_refused(photos, tmp_path):
  with pytest.raises(ValueError, match="fewer than two.*too long"):
    open_both(photos, tmp_path)[0].fit(len, room=3)


def test_a_workdir_without_room_for_the_cache_is_refused(photos, tmp_path):
  (tmp_path / "cache").write_text("a file where the cache should be")
  with pytest.raises(ValueError, match="cannot be written.*another workdir") as error:
    open_both(photos, tmp_path)
  assert "MiB" not in str(error.value)  # it is not room that lacks


def test_a_disk_without_room_for_the_cache_is_told_how_much_it_needs(
  photos, tmp_path, monkeypatch
):
  def fail(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(images, "_write_images", fail)
  with pytest.raises(ValueError, match="need 1 MiB; make room, or choose another work"):
    open_both(photos, tmp_path)


def test_two_channels_are_refused(photos, tmp_path):
  with pytest.raises(ValueError, match=r"model.image_shape=\(8, 8, 2\)"):
    open_both(photos, tmp_path, (8, 8, 2))


def test_a_survey_sees_sizes_colour_and_captions(photos):
  found = folder.survey(str(photos))
  assert (found.images, found.captions, found.short_side_px) == (4, 4, 20)
  assert not found.gray and found.skipped == 0
  assert found.characters == 4 * len("square number 0")
  assert found.alphabet == len(set("square number 0123"))
  assert found.examples[0] == "square number 0"
  for i in range(4):
    Image.new("L", (9, 30 + i)).save(photos / f"good{i}.png")
  found = folder.survey(str(photos))
  assert found.gray and found.short_side_px == 9
