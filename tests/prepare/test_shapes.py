"""Images that keep their aspects: chosen, encoded, kept in records, trained on."""

import dataclasses
import re

import numpy as np
import pytest
import tiny
import tiny_codec
from tiny_photos import add

from tfusion import cli
from tfusion.data import images, pipeline
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records
from tfusion.data.shards import source as shards
from tfusion.prepare import encoder, job

pytest.importorskip("apache_beam")

SIZES = {"square": (40, 40), "tall": (30, 60), "wide": (60, 30)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  root = tmp_path_factory.mktemp("aspects") / "photos"
  for i in range(30):
    for split in ("train", "test") if i < 9 else ("train",):
      name = list(SIZES)[i % 3 if i < 24 else 0]
      color = (8 * i, 255 - 8 * i, 9)
      add(root, f"{split}/{i:02d}.png", f"{name} {i}", color=color, size=SIZES[name])
  add(root, "train/strip.png", "a strip", size=(400, 20))
  return root


def prepared(photos, out, **more):
  sizes = dict(image_px=16, aspects=3, shard_documents=8) | more
  return job.prepare(job.Request(f"folder:{photos}", str(out), **sizes))


def all_records(made, out):
  return [r for s in made.shards for r in shards.read_shard(out / s.name)]


@pytest.mark.slow
def test_shapes_are_chosen_from_the_data_said_and_kept(photos, tmp_path, capsys):
  out = tmp_path / "shards"
  made = prepared(photos, out)
  said = capsys.readouterr().out
  assert "aspects of 40 images, height x width in pixels: 16x16 " in said
  assert "and of none 2.5%, which are left out" in said
  assert made.images.shape == (16, 16, 3)
  shapes = made.images.shapes
  assert len(shapes) == 3 and all(h * w <= 256 for h, w, _ in shapes)
  tall, wide = (
    next(s for s in shapes if (s[0] > s[1]) == up and s[0] != s[1])
    for up in (True, False)
  )
  assert [spec.partition(":")[2] for spec in made.images.kinds] == [
    f"{h}x{w}x3,like=image" for h, w, _ in shapes[1:]
  ]
  assert made.counts.rejected == {"image has none of the aspects": 1}
  of_letter = {}
  for record in all_records(made, out):
    (letter,) = record.spans.replace("t", "")
    (field,) = record.images
    number = records.IMAGES.index(letter)
    assert field == records.field_of("pixels", number)
    assert record.images[field].shape == (1, *shapes[number])
    name = re.search(r"(\d+)\.png", record.id)
    kind = list(SIZES)[int(name[1]) % 3 if int(name[1]) < 24 else 0]
    of_letter.setdefault(kind, set()).add(shapes[number])
  assert of_letter == {"square": {(16, 16, 3)}, "tall": {tall}, "wide": {wide}}
  # Again, it is the same and nothing is done twice.
  assert prepared(photos, out) == made
  with pytest.raises(ValueError, match="holds shards of another job .*aspects"):
    prepared(photos, out, aspects=2)


def config_of(made, out, **more):
  vocab = -(-(made.vocabulary + 4) // 8) * 8
  return tiny.config(
    model__image_shape=made.images.shape,
    model__kinds=made.images.kinds,
    model__patch=2,
    model__vocab_size=vocab,
    data__sources=(f"shards:{out}",),
    data__row_length=256,
    data__workers=0,
    **more,
  )


@pytest.mark.slow
def test_a_run_reads_every_shape_as_its_kind(photos, tmp_path):
  made = prepared(photos, out := tmp_path / "shards")
  config = config_of(made, out)
  corpus = pipeline.open_corpus(config, tmp_path)
  batches = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  seen = [0, 0, 0]
  for _ in range(6):
    for number, slots in enumerate(next(batches).slots):
      used = slots.weights > 0
      seen[number] += used.sum()
      # Of one colour each, as they were drawn.
      flat = slots.latents[used]
      assert np.all(np.ptp(flat, axis=(1, 2)) < 0.02)
  assert min(seen) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "kinds, says",
  [
    ((), "hold images of"),
    (("a:16x24x3,like=image",), "which no kind with the layers"),
  ],
)
def test_a_run_that_lacks_a_kind_of_its_shards_is_refused(
  photos, tmp_path, kinds, says
):
  made = prepared(photos, out := tmp_path / "shards")
  config = config_of(made, out)
  model = dataclasses.replace(config.model, kinds=kinds)
  with pytest.raises(ValueError, match=says):
    pipeline.open_corpus(dataclasses.replace(config, model=model), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["mean", "mean_logvar"])
def test_latents_of_every_shape_are_those_of_the_autoencoder(photos, tmp_path, latents):
  path, out = tmp_path / "autoencoder.safetensors", tmp_path / "shards"
  coder = tiny_codec.make()
  coder.save(path)
  made = prepared(photos, out, autoencoder=str(path), latents=latents, batch=4)
  assert made.images.shape == (8, 8, 3) and len(made.images.shapes) == 3
  names = [spec.partition(":")[0] for spec in made.images.kinds]
  assert all("x" in name for name in names)  # of pixels: twice the latent's sides
  everything, numbers = all_records(made, out), []
  for record in everything:
    (letter,) = record.spans.replace("t", "")
    number = records.IMAGES.index(letter)
    h, w, c = made.images.shapes[number]
    pixels = images.decode(photos / record.id, (2 * h, 2 * w, 3))
    want = coder.encode(pixels[None])
    for name in records.KINDS[latents]:
      found = record.images[records.field_of(name, number)].astype(float)
      np.testing.assert_allclose(found, want[name], rtol=2**-7, atol=1e-3)
    if record.id.startswith("train"):
      mean = record.images[records.field_of("mean", number)].astype(float)
      numbers.append(mean.reshape(-1, c))
  mean_c = np.concatenate(numbers).mean(0)
  np.testing.assert_allclose(made.images.shift, mean_c, rtol=1e-6)


class Coder:
  """An autoencoder of means alone, whose batches are counted."""

  def __init__(self):
    self.batches = []

  def encode(self, pixels):
    self.batches.append(pixels.shape)
    return {"mean": pixels.astype(np.float32) + 1}


def test_images_of_a_rare_shape_keep_no_others_waiting_for_ever(monkeypatch):
  coder = Coder()
  monkeypatch.setattr(encoder, "open_codec", lambda *_: coder)
  shapes = ((4, 4, 3), (2, 8, 3))
  settings = encoder.Settings(shapes, "mean", "autoencoder", batch=8)
  read = 0

  def documents():
    nonlocal read
    for n in range(400):
      read += 1
      yield n, [np.full(shapes[n in (3, 300)], n % 200, np.uint8)]

  for number, (name, fields) in enumerate(encoder.encode(documents(), settings)):
    assert name == number
    field = records.field_of("mean", int(name in (3, 300)))
    assert list(fields) == [field] and np.all(fields[field] == name % 200 + 1)
    # The first rare one is encoded after so many documents, and not at the end.
    assert read <= number + (encoder.WAITING + encoder.PENDING + 2) * settings.batch
  assert coder.batches.count((8, 2, 8, 3)) == 2  # one image each, filled up


def test_inspect_shows_images_of_every_shape(photos, tmp_path, capsys):
  made = prepared(photos, out := tmp_path / "shards")
  capsys.readouterr()
  assert cli.main(["inspect", "shards", str(out)]) == 0
  assert all(
    f"and of      {spec}" in capsys.readouterr().out for spec in made.images.kinds[:1]
  )
  manifest_lib.check_files(made, out, shards=made.shards)
