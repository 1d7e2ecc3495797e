"""Promises of tfusion/evaluate/pictures.py."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import tiny
import tiny_codec
from PIL import Image as Picture

from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import pictures
from tfusion.generate.canvas import Canvas, Latents
from tfusion.generate.interleaved import Generated
from tfusion.sequence import Image, Text
from tfusion.training.trained import Trained

WORDS = "a handwritten seven and some more text"
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return Tokenizer.train([WORDS], vocab_size=300, path=path)


@pytest.fixture(scope="module")
def trained(tokenizer):
  """A model with random numbers."""
  config = tiny.config(
    model__vocab_size=tokenizer.vocab_size,
    model__image_shape=SHAPE,
    sample__sampler="ddim",
    sample__steps=2,
    sample__guidance=1.0,
    sample__max_elements=32,
    eval__prompts=("seven <image>", "<image> <image>", "text", ""),
  )
  with tiny.one_device() as mesh:
    params = tiny.params(config.model)
    # No EOS: rows go on to the limit.
    params["head"] = params["head"].at[:, tokenizer.special.eos].set(0)
    yield Trained(config, 1, params, tokenizer, mesh)


@pytest.fixture
def scan(tmp_path):
  """A PNG of the model's size, and its path."""
  pixels = np.random.default_rng(0).integers(0, 256, SHAPE[:2]).astype(np.uint8)
  Picture.fromarray(pixels).save(tmp_path / "scan.png")
  return pixels, tmp_path / "scan.png"


def draw(trained, *prompts):
  how = dict(canvas=Canvas(SHAPE), key=jax.random.key(0))
  model = trained.config, trained.params, trained.tokenizer
  return pictures.draw_prompts(*model, prompts, **how)


def sample(trained, prompts, *, out, workdir="no such", count=1, seed=0):
  where = dict(workdir=workdir, out=out)
  return pictures.sample(trained, prompts, **where, count=count, seed=seed)


def test_pixels_span_all_of_black_to_white_and_clip_beyond():
  grey = np.asarray([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 5, 1)
  pixels = pictures.to_pixels(grey)
  assert pixels.shape == (1, 5, 3) and pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 128, 255, 255])
  assert (pixels == pixels[..., :1]).all()
  colour = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3))
  np.testing.assert_allclose(
    pictures.to_pixels(colour) / 127.5 - 1, colour, atol=1 / 255
  )


def test_small_images_are_written_with_every_pixel_as_a_square(tmp_path):
  image = np.random.default_rng(0).uniform(-1, 1, (4, 6, 1))
  pictures.write_png(image, tmp_path / "new" / "a.png")
  read = np.asarray(Picture.open(tmp_path / "new" / "a.png"))
  assert read.shape == (128, 192, 3)
  pixels = pictures.to_pixels(image)
  for y, x in np.ndindex(128, 192):
    assert (read[y, x] == pixels[y // 32, x // 32]).all()
  pictures.write_png(image, tmp_path / "b.png", enlarge=False)
  np.testing.assert_array_equal(np.asarray(Picture.open(tmp_path / "b.png")), pixels)


def test_a_grid_lays_images_out_by_rows_on_white():
  images = list(np.random.default_rng(0).uniform(-1, 0, (5, 2, 3, 1)))
  sheet = pictures.grid(images, columns=2)
  assert sheet.shape == (1 + 3 * 3, 1 + 2 * 4, 1)
  for number, image in enumerate(images):
    y, x = 1 + number // 2 * 3, 1 + number % 2 * 4
    np.testing.assert_array_equal(sheet[y : y + 2, x : x + 3], image.astype(np.float32))
    sheet[y : y + 2, x : x + 3] = 1
  assert (sheet == 1).all()


def test_an_image_file_in_a_prompt_reaches_the_model_in_minus_one_to_one(trained, scan):
  pixels, path = scan
  made = draw(trained, f"seven <image:{path}> and")[0]
  assert made.made[:3] == (False, False, False)
  np.testing.assert_allclose(
    made.spans[1].latent[..., 0], pixels / 127.5 - 1, atol=1e-6
  )
  assert trained.tokenizer.decode(made.spans[0].ids) == "seven"


@pytest.mark.parametrize("kind", ["missing", "cut", "text", "folder", "empty"])
def test_an_image_that_cannot_be_read_is_named(trained, scan, tmp_path, kind):
  path = tmp_path / f"{kind}.png"
  if kind == "folder":
    path.mkdir()
  elif kind != "missing":
    whole = scan[1].read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "text": b"a cat", "empty": b""}
    path.write_bytes(contents[kind])
  with pytest.raises(ValueError, match=re.escape(f"<image:{path}>: not an image")):
    draw(trained, f"seven <image:{path}>")


def test_prompts_that_cannot_be_are_refused(trained):
  with pytest.raises(ValueError, match="'<boi>' is an unknown mark"):
    draw(trained, "seven <boi>")
  with pytest.raises(ValueError, match="37 elements.*sample.max_elements=32"):
    draw(trained, "<image>" * 6)


def test_samples_are_written_as_text_with_their_images_beside_it(trained, tmp_path):
  out = tmp_path / "new" / "sampled"
  prompts = ["seven <image> and", ""]
  paths = sample(trained, prompts, out=out, count=2)
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
  first, second = (Picture.open(out / f"sample_00{n}_image_0.png") for n in (0, 1))
  assert first.size == (128, 128)
  assert np.asarray(first).tobytes() != np.asarray(second).tobytes()


def test_a_finished_sample_is_its_spans_and_nothing_more(
  trained, tmp_path, monkeypatch
):
  encode = trained.tokenizer.encode
  image = Image(np.zeros(SHAPE, np.float32))
  spans = (Text(encode("a seven")), image, image, Text(encode(" more")))
  made = Generated(spans, (False, True, True, True), finished=True)
  monkeypatch.setattr(pictures, "generate", lambda *args, **more: [made])
  *images, text, _ = sample(trained, ["x"], out=tmp_path)
  names = [path.name for path in images]
  assert names == ["sample_000_image_0.png", "sample_000_image_1.png"]
  assert text.read_text() == f"a seven<image:{names[0]}><image:{names[1]}> more\n"


def test_sampling_nothing_or_into_a_file_is_refused_before_any_work(trained, tmp_path):
  without = trained._replace(params=None)
  with pytest.raises(ValueError, match="--count=0"):
    sample(without, ["x"], out=tmp_path, count=0)
  for seed in (-1, 2**32, 10**30):
    with pytest.raises(ValueError, match=f"--seed={seed}: must be at least 0"):
      sample(without, ["x"], out=tmp_path, seed=seed)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="--out=.*file: cannot be written"):
    sample(without, ["x"], out=tmp_path / "file")


def test_samples_number_on_beside_those_of_other_prompts_and_say_what_was_asked(
  trained, tmp_path, monkeypatch
):
  image = Image(np.zeros(SHAPE, np.float32))
  made = Generated((image,), (True,), finished=True)
  monkeypatch.setattr(
    pictures, "generate", lambda config, params, parsed, **more: [made for _ in parsed]
  )
  first = sample(trained, ["seven <image>", "a"], out=tmp_path, count=2, seed=5)
  kept = {path: path.read_bytes() for path in first}
  (tmp_path / "sample_007_image_0.png").write_bytes(b"")  # its text was thrown away
  second = sample(trained, ["a <image>"], out=tmp_path)
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


def test_two_that_sample_at_once_take_different_numbers(tmp_path, monkeypatch):
  monkeypatch.setattr(type(tmp_path), "iterdir", lambda self: iter(()))  # a late look
  names = [pictures._claim(tmp_path).name for _ in range(3)]
  assert names == [f"sample_{number:03d}.json" for number in range(3)]


def sample_grid(config, trained, folder):
  corpus = Corpus((), (), trained.tokenizer)
  grids = pictures.SampleGrids(config, folder)
  grids.check(corpus)
  grids(7, trained.params, corpus)
  return folder / "samples" / "step_00000007.png"


def test_the_grid_of_a_run_holds_all_images_and_repeats(trained, tmp_path):
  a, b = (sample_grid(trained.config, trained, tmp_path / name) for name in "ab")
  assert a.read_bytes() == b.read_bytes()
  spans = [s for g in draw(trained, *trained.config.eval.prompts) for s in g.spans]
  count = sum(isinstance(s, Image) for s in spans)
  assert count >= 3
  width, height = Picture.open(a).size
  # At this size every image stands in a row of its own height, 5 with the line.
  assert width * 6 == height * (5 * count + 1)
  # What was asked stands beside it, with the place of each image in the sheet.
  asked = json.loads(a.with_suffix(".json").read_text())["prompts"]
  assert tuple(one["prompt"] for one in asked) == trained.config.eval.prompts
  boxes = [box for one in asked for box in one["boxes"]]
  assert [len(one["boxes"]) for one in asked][:2] == [1, 2] and len(boxes) == count
  shown = [span.latent for span in spans if isinstance(span, Image)]
  for box, latent in zip(boxes, shown, strict=True):
    pixels = np.asarray(Picture.open(a).crop(box))
    times = len(pixels) // SHAPE[0]
    np.testing.assert_array_equal(pixels[::times, ::times], pictures.to_pixels(latent))


def test_a_run_without_prompts_draws_no_grid(trained, tmp_path):
  config = dataclasses.replace(
    trained.config, eval=dataclasses.replace(trained.config.eval, prompts=())
  )
  assert not sample_grid(config, trained, tmp_path).exists()


@pytest.mark.parametrize(
  ("prompt", "says"),
  [
    ("<video>", "eval.prompts: .*'<video>' is an unknown mark"),
    ("seven <image", "eval.prompts: .*'<image' is .* write <image> to draw"),
    ("<image>" * 9, "eval.prompts: prompt 0: .* sample.max_elements=32"),
    ("<image:gone.png>", "eval.prompts: .*gone.png"),
  ],
)
def test_prompts_of_the_grid_that_cannot_be_are_refused_before_training(
  trained, tmp_path, prompt, says
):
  config = dataclasses.replace(
    trained.config, eval=dataclasses.replace(trained.config.eval, prompts=(prompt,))
  )
  with pytest.raises(ValueError, match=says):
    sample_grid(config, trained._replace(params=None), tmp_path)


def test_a_model_of_latents_shows_pictures_of_its_autoencoder(
  trained, tmp_path, monkeypatch
):
  latent = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
  codec = tiny_codec.make()
  latents = Latents(codec, np.full(3, 2, np.float32), np.ones(3, np.float32))
  monkeypatch.setattr(
    pictures, "open_canvas", lambda config, workdir: Canvas((4, 4, 3), latents)
  )
  want = codec.decode(latent[None] * 2 + 1)[0]
  made = Generated((Image(latent), Image(latent)), (True, True), finished=True)
  monkeypatch.setattr(pictures, "generate", lambda *args, **more: [made])
  *files, _, _ = sample(trained, ["<image>"], out=tmp_path)
  assert len(files) == 2
  for file in files:
    pixels = np.asarray(Picture.open(file))
    assert pixels.shape == (128, 128, 3)  # 8 x 8, enlarged
    # Another batch size may round to the byte beside.
    assert np.abs(pixels[::16, ::16].astype(int) - want).max() <= 1
  one = dataclasses.replace(trained.config.eval, prompts=("<image>",))
  config = dataclasses.replace(trained.config, eval=one)
  sheet = sample_grid(config, trained, tmp_path)
  # Two of 8 x 8 with lines around them are 19 x 10, enlarged 13 times.
  assert Picture.open(sheet).size == (19 * 13, 10 * 13)
