"""Promises of tfusion/generate/samples.py."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import tiny_codec
import tiny_trained
from PIL import Image as Pillow
from tiny_trained import SHAPE

from tfusion.data.shards.manifest import ImageFormat
from tfusion.generate import samples
from tfusion.generate.canvas import Canvas
from tfusion.generate.rows import Generated
from tfusion.sequence import Codes, Image, Text

CANVAS = Canvas(SHAPE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("run")) as trained:
    yield trained


@pytest.fixture
def scan(tmp_path):
  """A PNG of the model's size, and its path."""
  pixels = np.random.default_rng(0).integers(0, 256, SHAPE[:2]).astype(np.uint8)
  Pillow.fromarray(pixels).save(tmp_path / "scan.png")
  return pixels, tmp_path / "scan.png"


def continued(trained, *prompts):
  how = dict(canvas=CANVAS, key=jax.random.key(0))
  model = trained.config, trained.params, trained.tokenizer
  return samples.continue_prompts(*model, prompts, **how)


def sample(trained, prompts, *, canvas=CANVAS, count=1, seed=0):
  return samples.sample(trained, prompts, canvas=canvas, count=count, seed=seed)


def answering(monkeypatch, *made):
  """Lets every prompt be answered with these spans, of which the model made some."""
  spans, flags = zip(*made, strict=True)
  one = Generated(spans, flags, finished=True)
  monkeypatch.setattr(
    samples, "generate", lambda config, params, read, **more: [one for _ in read]
  )


@pytest.mark.slow
def test_an_image_file_in_a_prompt_reaches_the_model_in_minus_one_to_one(trained, scan):
  pixels, path = scan
  made = continued(trained, f"seven <image:{path}> and")[0]
  assert made.made[:3] == (False, False, False)
  np.testing.assert_allclose(
    made.spans[1].latent[..., 0], pixels / 127.5 - 1, atol=1e-6
  )
  assert trained.tokenizer.decode(made.spans[0].ids) == "seven"


@pytest.mark.slow
def test_images_of_a_run_on_codes_are_codes_behind_the_text_and_seen_as_pixels(
  trained, scan, monkeypatch
):
  codec = tiny_codec.make(tiny_codec.VQ)
  canvas = Canvas(SHAPE, ImageFormat("codes", (4,), codebook=11), codec)
  asked, first = {}, trained.tokenizer.vocab_size
  drawn = Codes(np.arange(4) % 11 + first)

  def generate(config, params, read, **how):
    asked.update(how, read=read)
    return [
      Generated((*prompt[:2], drawn), (False, False, True), True) for prompt in read
    ]

  monkeypatch.setattr(samples, "generate", generate)
  prompt = f"seven <image:{scan[1]}> <image>"
  (made,) = sample(trained, [prompt], canvas=canvas)
  assert asked["book"] == (first, 11, 4)
  text, given, _ = asked["read"][0]
  codes = canvas.read(scan[1])
  assert isinstance(text, Text) and isinstance(given, Codes)
  np.testing.assert_array_equal(given.ids, codes + first)
  want = codec.decode(np.stack([codes, np.arange(4) % 11]))
  for shown, pixels in zip(made.parts[1:], want, strict=True):
    # Another batch size may round to the byte beside.
    assert np.abs(shown.astype(int) - pixels).max() <= 1
  assert made.text == "<image>" and len(made.images) == 1


@pytest.mark.parametrize("kind", ["missing", "cut", "text", "folder", "empty"])
def test_an_image_that_cannot_be_read_is_named(trained, scan, tmp_path, kind):
  path = tmp_path / f"{kind}.png"
  if kind == "folder":
    path.mkdir()
  elif kind != "missing":
    whole = scan[1].read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "text": b"a cat", "empty": b""}
    path.write_bytes(contents[kind])
  with pytest.raises(ValueError, match=re.escape(f"<image:{path}>: not an image")) as e:
    continued(trained, f"seven <image:{path}>")
  assert "Errno" not in str(e.value)


def test_an_image_that_is_no_file_is_told_what_to_do(trained, scan, monkeypatch):
  with pytest.raises(ValueError, match="it is an address; download the image and name"):
    continued(trained, "seven <image:https://x.org/a.png>")
  with pytest.raises(ValueError, match="there is no such file"):
    continued(trained, "seven <image:~/scan.png>")
  monkeypatch.setenv("HOME", str(scan[1].parent))
  assert len(continued(trained, "seven <image:~/scan.png>")) == 1


def test_prompts_that_cannot_be_are_refused(trained):
  with pytest.raises(ValueError, match="'<boi>' is an unknown mark"):
    continued(trained, "seven <boi>")
  with pytest.raises(ValueError, match="37 elements.*sample.max_elements=32; shorten"):
    continued(trained, "<image>" * 6)


def test_a_sample_holds_what_the_model_made_and_all_of_it_in_order(
  trained, monkeypatch
):
  encode = trained.tokenizer.encode
  black, white = (Image(np.full(SHAPE, x, np.float32)) for x in (-1, 1))
  answering(
    monkeypatch,
    (Text(encode("seven")), False),
    (black, False),
    (Text(encode("more")), True),
    (white, True),
    (Text(encode("text")), True),
  )
  (one,) = sample(trained, ["seven <image:black.png>".partition("<")[0]])
  assert one.text == "more<image>text" and str(one) == "seven<image>more<image>text"
  assert repr(one) == "Sample('seven ' -> 'more<image>text')"
  (made,) = one.images
  assert (made.mode, made.size) == ("RGB", (4, 4))
  assert made.getextrema() == ((255, 255),) * 3
  assert one.finished and one.made == (False, False, True, True, True)


def test_a_sample_shows_itself_in_a_notebook_with_its_images_in_place(
  trained, monkeypatch
):
  encode = trained.tokenizer.encode
  image = Image(np.zeros(SHAPE, np.float32))
  given = Text(encode("a"))
  answering(monkeypatch, (given, False), (image, True), (Text(encode("<b>")), True))
  made = sample(trained, ["a <image>", "a"])
  page = made[0]._repr_html_()
  shown = re.sub(r"<img [^>]*base64,[^>]*>", "IMG", page)
  assert 'gray">a</span>IMG<span' in shown
  assert "&lt;b&gt;" in shown and "<b>" not in shown
  assert 'width="128"' in page and "pixelated" in page  # 4 pixels would not be seen
  assert made._repr_html_() == page + made[1]._repr_html_()


def test_samples_are_written_as_text_with_their_images_beside_it(trained, tmp_path):
  out = tmp_path / "new" / "sampled"
  paths = sample(trained, ["seven <image> and", ""], count=2).save(out)
  assert sorted(out.iterdir()) == sorted(paths)
  texts = [p.read_text() for p in paths if p.suffix == ".txt"]
  assert [p.name for p in paths if p.suffix == ".txt"] == [
    f"sample_{number:03d}.txt" for number in range(4)
  ]
  for number, text in enumerate(texts):
    named = re.findall("<image:(.*?)>", text)
    assert named == [
      p.name for p in paths if p.name.startswith(f"sample_{number:03d}_")
    ]
    assert text.endswith(" [stopped at sample.max_elements=32]\n")
  for number in (0, 1):
    assert texts[number].startswith(f"seven<image:sample_{number:03d}_image_0.png>and")
  first, second = (Pillow.open(out / f"sample_00{n}_image_0.png") for n in (0, 1))
  assert first.size == (128, 128)
  assert np.asarray(first).tobytes() != np.asarray(second).tobytes()


def test_a_finished_sample_is_its_spans_and_nothing_more(
  trained, tmp_path, monkeypatch
):
  encode = trained.tokenizer.encode
  image = Image(np.zeros(SHAPE, np.float32))
  given, made = Text(encode("a seven")), Text(encode(" more"))
  answering(monkeypatch, (given, False), (image, True), (image, True), (made, True))
  (one,) = sample(trained, ["x"])
  *images, text, _ = one.save(tmp_path)
  names = [path.name for path in images]
  assert names == ["sample_000_image_0.png", "sample_000_image_1.png"]
  assert text.read_text() == f"a seven<image:{names[0]}><image:{names[1]}> more\n"


def test_no_sample_and_a_seed_that_is_none_are_refused_before_any_work(trained):
  without = trained._replace(params=None)
  with pytest.raises(ValueError, match="count=0: must be at least 1"):
    sample(without, ["x"], count=0)
  for seed in (-1, 2**32, 10**30):
    with pytest.raises(ValueError, match=f"seed={seed}: must be at least 0"):
      sample(without, ["x"], seed=seed)


def test_samples_number_on_beside_those_of_other_prompts_and_say_what_was_asked(
  trained, tmp_path, monkeypatch
):
  answering(monkeypatch, (Image(np.zeros(SHAPE, np.float32)), True))
  first = sample(trained, ["seven <image>", "a"], count=2, seed=5).save(tmp_path)
  kept = {path: path.read_bytes() for path in first}
  (tmp_path / "sample_007_image_0.png").write_bytes(b"")  # its text was thrown away
  second = sample(trained, ["a <image>"]).save(tmp_path)
  assert [p.name for p in second] == [
    "sample_008_image_0.png",
    "sample_008.txt",
    "sample_008.json",
  ]
  assert not set(first) & set(second)
  assert all(path.read_bytes() == data for path, data in kept.items())
  about = json.loads((tmp_path / "sample_003.json").read_text())
  assert (about["prompt"], about["number_of_the_prompt"]) == ("a", 1)
  assert about["files"] == ["sample_003_image_0.png", "sample_003.txt"]
  call = about["call"]
  assert call["prompts"] == ["seven <image>", "a"] and call["sample"]["steps"] == 2
  assert (call["count"], call["seed"], call["step"]) == (2, 5, 1)
  assert call["diffusion"] == {"clip": trained.config.diffusion.clip}


def test_two_that_sample_at_once_take_different_numbers(tmp_path, monkeypatch):
  monkeypatch.setattr(type(tmp_path), "iterdir", lambda self: iter(()))  # a late look
  names = [samples._claim(tmp_path).name for _ in range(3)]
  assert names == [f"sample_{number:03d}.json" for number in range(3)]


def test_a_model_of_latents_shows_images_of_its_autoencoder(
  trained, tmp_path, monkeypatch
):
  latent = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
  codec = tiny_codec.make()
  images = ImageFormat("mean", (4, 4, 3), scale=(2.0,) * 3, shift=(1.0,) * 3)
  want = codec.decode(latent[None] * 2 + 1)[0]
  answering(monkeypatch, (Image(latent), True), (Image(latent), True))
  canvas = Canvas((4, 4, 3), images, codec)
  (one,) = sample(trained, ["<image>"], canvas=canvas)
  assert [image.size for image in one.images] == [(8, 8)] * 2
  *files, _, _ = one.save(tmp_path)
  for file in files:
    pixels = np.asarray(Pillow.open(file))
    assert pixels.shape == (128, 128, 3)  # 8 x 8, enlarged
    # Another batch size may round to the byte beside.
    assert np.abs(pixels[::16, ::16].astype(int) - want).max() <= 1


def test_images_far_from_those_trained_on_are_warned_of(trained, monkeypatch, caplog):
  far = Image(np.full(SHAPE, 9, np.float32))
  answering(monkeypatch, (far, True))
  known = dataclasses.make_dataclass("Numbers", ["least", "most"])(-1.0, 1.0)
  with caplog.at_level("WARNING", logger="absl"):
    sample(trained._replace(numbers=known), ["<image>"])
  assert "1 of 1 sampled images have numbers that no training image" in caplog.text
