"""Images that are broken, huge or odd: read rightly, or rejected with the reason."""

import collections
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tfusion.data import images
from tfusion.data.balance import Amount
from tfusion.data.shards import manifest, source
from tfusion.data.tokenizer import Tokenizer
from tfusion.prepare import encoder, part, raw

RED = (200, 40, 90)


def saved(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def chunk(name, data):
  check = zlib.crc32(name + data)
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def png_header(width, height):
  """A whole PNG of one bit per pixel, without most of its pixels."""
  ihdr = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
  idat = zlib.compress(bytes(1000))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", ihdr)
    + chunk(b"IDAT", idat)
    + (chunk(b"IEND", b""))
  )


def animated():
  frames = [Image.new("RGB", (20, 20), c) for c in (RED, "blue", "green")]
  return saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


def deep(mode, value):
  return Image.fromarray(np.full((20, 20), value, mode))


RED_IMAGE = Image.new("RGB", (20, 20), RED)
SOUND = {
  "png": (saved(RED_IMAGE, "PNG"), RED),
  "jpeg": (saved(RED_IMAGE, "JPEG", quality=95), RED),
  "cmyk jpeg": (saved(RED_IMAGE.convert("CMYK"), "JPEG", quality=95), RED),
  "cmyk tiff": (saved(RED_IMAGE.convert("CMYK"), "TIFF"), RED),
  "lab tiff": (saved(Image.new("LAB", (20, 20), (255, 128, 128)), "TIFF"), (255,) * 3),
  "16 bits": (saved(deep(np.uint16, 257 * 100), "PNG"), (100,) * 3),
  "32 bits": (saved(deep(np.int32, 257 * 100), "TIFF"), (100,) * 3),
  "floats": (saved(deep(np.float32, 0.5), "TIFF"), (128,) * 3),
  "not a number": (saved(deep(np.float32, np.nan), "TIFF"), (0,) * 3),
  "animated png": (animated(), RED),
  "animated gif": (
    saved(RED_IMAGE, "GIF", save_all=True, append_images=[Image.new("RGB", (20, 20))]),
    RED,
  ),
  "one bit": (saved(Image.new("1", (20, 20), 1), "PNG"), (255,) * 3),
  "palette": (saved(RED_IMAGE.quantize(4), "PNG"), RED),
  "nothing but glass": (saved(Image.new("RGBA", (20, 20), 0), "PNG"), (255,) * 3),
  "one pixel": (saved(Image.new("RGB", (1, 1), RED), "PNG"), RED),
  "a thread": (saved(Image.new("RGB", (20_000, 1), RED), "PNG"), RED),
}
BROKEN = {
  "zero bytes": (b"", raw.BAD_IMAGE),
  "100 megapixels": (png_header(10_000, 10_000), raw.LARGE_IMAGE),
  "2000 megapixels": (png_header(50_000, 40_000), raw.LARGE_IMAGE),
  "cut png": (saved(Image.effect_noise((90, 90), 50), "PNG")[:3000], raw.BAD_IMAGE),
  "cut jpeg": (saved(Image.effect_noise((90, 90), 50), "JPEG")[:900], raw.BAD_IMAGE),
  "html": (b"<html></html>", raw.BAD_IMAGE),
  "noise": (np.random.default_rng(0).bytes(5000), raw.BAD_IMAGE),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_image_of_any_kind_has_its_colour(name):
  data, colour = SOUND[name]
  made = images.decode(data, (8, 8, 3))
  assert made.shape == (8, 8, 3) and made.dtype == np.uint8
  # JPEG and palettes round.
  np.testing.assert_allclose(
    made.astype(int), np.broadcast_to(colour, (8, 8, 3)), atol=4
  )


def test_pixels_that_fit_come_back_as_they_are():
  rng = np.random.default_rng(0)
  for shape in ((8, 8, 3), (8, 8, 1)):
    pixels = rng.integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(images.decode(pixels, shape), pixels)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_refused_before_it_takes_memory(name):
  data, reason = BROKEN[name]
  large = reason == raw.LARGE_IMAGE
  with pytest.raises(images.TooLarge if large else Exception):
    images.decode(data, (8, 8, 3))


class Broken:
  """A part with every image above, sound and broken ones in turn."""

  def read(self):
    both = {
      **{n: d for n, (d, _) in SOUND.items()},
      **{n: d for n, (d, _) in BROKEN.items()},
    }
    for name in sorted(both):
      yield raw.Raw(name, (f"this is {name}", both[name], both["png"]), name == "jpeg")
    yield raw.Raw("png", ("again", both["png"]), False)
    yield raw.Rejected("elsewhere", raw.UNREADABLE, "as the reader said")


@pytest.fixture
def job(tmp_path):
  Tokenizer.train(
    ["this is a cut png of noise"], vocab_size=300, path=tmp_path / manifest.TOKENIZER
  )
  (tmp_path / "parts").mkdir()
  return part.Job(str(tmp_path), 1, encoder.Settings(((8, 8, 3),), "pixels"))


def test_a_part_keeps_the_sound_and_counts_the_broken_with_reasons(job, tmp_path):
  part.write((0, Broken()), job)
  account = part.read_account(tmp_path, 0)
  train, test = (account.balances[split] for split in ("train", "test"))
  assert train.adds_up and test.adds_up
  assert test.used == test.found == Amount(1, 2, 1)
  rest, broken = len(SOUND) - 1, len(BROKEN)
  assert train.used == Amount(rest, 2 * rest, rest)
  # One more is there twice, and of one the reader did not see what it held.
  assert train.found == train.used + Amount(broken + 2, 2 * broken + 1, broken + 1)
  expected = {name: reason for name, (_, reason) in BROKEN.items()}
  expected |= {"png": raw.TWICE, "elsewhere": raw.UNREADABLE}
  assert {one.id: one.reason for one in account.rejected} == expected
  records = {
    split: list(source.read_shard(tmp_path / f"{split}-000000-of-000001.array_record"))
    for split in ("train", "test")
  }
  assert [r.id for r in records["train"]] == sorted(SOUND.keys() - {"jpeg"})
  (record,) = records["test"]
  assert record.id == "jpeg" and record.spans == "tii" and record.weights == (1, 1, 1)
  tokenizer = part.open_tokenizer(str(tmp_path / manifest.TOKENIZER))
  assert tokenizer.decode(record.texts[0]) == "this is jpeg"
  np.testing.assert_allclose(
    record.images["pixels"].astype(int), np.broadcast_to(RED, (2, 8, 8, 3)), atol=4
  )


def test_a_part_is_done_once_and_again_only_when_a_shard_is_not_whole(job, tmp_path):
  read = collections.Counter()

  class Counted(Broken):
    """As above, and counts."""

    def read(self):
      read["times"] += 1
      return super().read()

  for times, damage in ((1, None), (1, None), (2, b""), (3, b"short")):
    path = tmp_path / "test-000000-of-000001.array_record"
    if damage is not None:
      path.write_bytes(damage)
    part.write((0, Counted()), job)
    assert read["times"] == times
    account = json.loads(part.account_path(tmp_path, 0).read_text())
    assert account["shards"][1]["sha256"] == manifest.sha256(path)


class Eight:
  """An autoencoder that adds one, and takes batches of eight and nothing else."""

  def __init__(self):
    self.batches = []

  def encode(self, pixels):
    assert pixels.shape == (8, 4, 4, 3)
    self.batches.append(pixels)
    mean = pixels.astype(np.float32) + 1
    return {"mean": mean, "logvar": np.zeros_like(mean)}


@pytest.mark.parametrize("kind", ["mean", "mean_logvar"])
def test_images_of_many_documents_share_batches_and_come_back_to_their_own(
  monkeypatch, kind
):
  codec = Eight()
  monkeypatch.setattr(encoder, "open_codec", lambda *_: codec)
  settings = encoder.Settings(((4, 4, 3),), kind, "autoencoder", batch=8)
  rng = np.random.default_rng(0)
  documents, sums, number = [], encoder.Sums(), 0
  for name in range(40):
    count = int(rng.integers(0, 5)) if name != 7 else 100
    some = [np.full((4, 4, 3), (number + i) % 250, np.uint8) for i in range(count)]
    number += count
    documents.append((name, some))
  made = list(encoder.encode(iter(documents), settings))
  assert [name for name, _ in made] == list(range(40))
  for (_, some), (_, fields) in zip(documents, made):
    assert len(fields.get("mean", ())) == len(some)
    if some:
      assert set(fields) == {"mean"} if kind == "mean" else {"mean", "logvar"}
      np.testing.assert_array_equal(fields["mean"].astype(int), np.stack(some) + 1)
    sums.add(fields)
  assert len(codec.batches) == -(-number // 8)
  # The definition, on everything at once.
  values = np.concatenate([np.ravel(i) for _, some in documents for i in some]) + 1.0
  scale, shift = sums.scale_shift(3)
  variance = values.var() + (kind == "mean_logvar")  # exp(0) of noise
  np.testing.assert_allclose(scale, np.sqrt(variance), rtol=1e-12)
  np.testing.assert_allclose(shift, values.mean(), rtol=1e-12)


def test_an_image_whose_latent_is_no_number_is_rejected_and_spoils_no_scale(
  job, tmp_path, monkeypatch
):
  class Overflows(Eight):
    def encode(self, pixels):
      encoded = super().encode(pixels)
      encoded["mean"][pixels == 7] = np.finfo(
        np.float32
      ).max  # more than bfloat16 holds
      encoded["logvar"][pixels == 8] = np.nan
      return encoded

  class Images:
    def read(self):
      for n in range(12):
        yield raw.Raw(str(n), ("a", np.full((4, 4, 3), n, np.uint8)), False)

  monkeypatch.setattr(encoder, "open_codec", lambda *_: Overflows())
  settings = encoder.Settings(((4, 4, 3),), "mean_logvar", "autoencoder", batch=8)
  part.write((0, Images()), part.Job(str(tmp_path), 1, settings))
  account = part.read_account(tmp_path, 0)
  reasons = {one.id: one.reason for one in account.rejected}
  assert reasons == {"7": raw.NOT_FINITE, "8": raw.NOT_FINITE}
  balance = account.balances["train"]
  assert balance.adds_up and balance.used == Amount(10, 10, 10)
  assert balance.found == Amount(12, 12, 12)
  assert np.isfinite(account.sums.scale_shift(3)).all()


def test_an_encoder_that_fails_stops_the_part(monkeypatch):
  def fail(*_):
    raise OSError("no device")

  monkeypatch.setattr(encoder, "open_codec", fail)
  settings = encoder.Settings(((4, 4, 3),), "mean", "autoencoder", batch=8)
  documents = [(i, [np.zeros((4, 4, 3), np.uint8)]) for i in range(100)]
  with pytest.raises(OSError, match="no device"):
    list(encoder.encode(documents, settings))
