"""Promises of tfusion/evaluate/grids.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_codec
import tiny_trained
from PIL import Image as Pillow
from tiny_trained import SHAPE

from tfusion.data.pipeline import Corpus
from tfusion.data.shards.manifest import ImageFormat
from tfusion.evaluate import grids
from tfusion.generate import png, samples
from tfusion.generate.canvas import Canvas
from tfusion.generate.rows import Generated
from tfusion.sequence import Image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("run")) as trained:
    yield trained


def sample_grid(config, trained, folder):
  corpus = Corpus((), (), trained.tokenizer)
  evaluation = grids.SampleGrids(config, folder)
  evaluation.check(corpus)
  evaluation(7, trained.params, corpus)
  return folder / "samples" / "step_00000007.png"


@pytest.mark.slow
def test_the_sheet_of_a_run_holds_all_images_and_repeats(trained, tmp_path):
  a, b = (sample_grid(trained.config, trained, tmp_path / name) for name in "ab")
  assert a.read_bytes() == b.read_bytes()
  made = samples.continue_prompts(
    trained.config,
    trained.params,
    trained.tokenizer,
    trained.config.eval.prompts,
    canvas=Canvas(SHAPE),
    key=jax.random.key(0),
  )
  spans = [span for one in made for span in one.spans]
  count = sum(isinstance(s, Image) for s in spans)
  assert count >= 3
  width, height = Pillow.open(a).size
  # At this size every image stands in a row of its own height, 5 with the line.
  assert width * 6 == height * (5 * count + 1)
  # What was asked stands beside it, with the place of each image in the sheet.
  asked = json.loads(a.with_suffix(".json").read_text())["prompts"]
  assert tuple(one["prompt"] for one in asked) == trained.config.eval.prompts
  boxes = [box for one in asked for box in one["boxes"]]
  assert [len(one["boxes"]) for one in asked][:2] == [1, 2] and len(boxes) == count
  shown = [span.latent for span in spans if isinstance(span, Image)]
  for box, latent in zip(boxes, shown, strict=True):
    pixels = np.asarray(Pillow.open(a).crop(box))
    times = len(pixels) // SHAPE[0]
    image = np.asarray(png.to_rgb(png.to_pixels(latent)))
    np.testing.assert_array_equal(pixels[::times, ::times], image)


def test_a_run_without_prompts_has_no_sheet(trained, tmp_path):
  config = dataclasses.replace(
    trained.config, eval=dataclasses.replace(trained.config.eval, prompts=())
  )
  assert not sample_grid(config, trained, tmp_path).exists()


@pytest.mark.parametrize(
  ("prompt", "says"),
  [
    ("<video>", "eval.prompts: .*'<video>' is an unknown mark"),
    ("seven <image", "eval.prompts: .*'<image' is .* write <image> where the model"),
    ("<image>" * 9, "eval.prompts: prompt 0: .* sample.max_elements=32"),
    ("<image:gone.png>", "eval.prompts: .*gone.png"),
  ],
)
def test_prompts_of_the_sheet_that_cannot_be_are_refused_before_training(
  trained, tmp_path, prompt, says
):
  config = dataclasses.replace(
    trained.config, eval=dataclasses.replace(trained.config.eval, prompts=(prompt,))
  )
  with pytest.raises(ValueError, match=says):
    sample_grid(config, trained._replace(params=None), tmp_path)


@pytest.mark.slow
def test_a_model_of_latents_shows_images_of_its_autoencoder(
  trained, tmp_path, monkeypatch
):
  latent = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
  images = ImageFormat("mean", (4, 4, 3), scale=(2.0,) * 3, shift=(1.0,) * 3)
  canvas = Canvas((4, 4, 3), images, tiny_codec.make())
  monkeypatch.setattr(grids, "open_canvas", lambda config, workdir: canvas)
  made = Generated((Image(latent), Image(latent)), (True, True), finished=True)
  monkeypatch.setattr(samples, "generate", lambda *args, **more: [made])
  one = dataclasses.replace(trained.config.eval, prompts=("<image>",))
  config = dataclasses.replace(trained.config, eval=one)
  with Pillow.open(sample_grid(config, trained, tmp_path)) as sheet:
    # Two of 8 x 8 with lines around them are 19 x 10, enlarged 13 times.
    assert sheet.size == (19 * 13, 10 * 13)
