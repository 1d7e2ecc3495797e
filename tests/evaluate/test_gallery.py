"""Promises of tfusion/evaluate/gallery.py."""

import dataclasses
import json

import pytest
import tiny_trained

from tfusion.evaluate import gallery
from tfusion.evaluate.gallery import Wanted
from tfusion.generate import interleaved
from tfusion.generate.canvas import open_canvas
from tfusion.generate.prompt import split

pytestmark = pytest.mark.slow  # a model samples

WANTED = [
  Wanted(f"{i:02d}/{i}.png", gallery.asked_for(text))
  # The first and the last stand at the same place of their batches.
  for i, text in enumerate(["seven", "a <text> seven", "and", "more", "seven"])
]
NAMES = [one.name for one in WANTED]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("trained")) as trained:
    config = trained.config
    own = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch=2))
    yield trained._replace(config=own)


def make(trained, folder, wanted=WANTED):
  canvas = open_canvas(trained.config, folder)
  gallery.make(trained, canvas, wanted, folder, what="images")


def images(folder):
  return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("made")
  make(trained, folder)
  return folder


class Counted:
  """`generate`, which counts its calls and may stop the work at one of them."""

  def __init__(self, monkeypatch, stop=99):
    self.calls, self.stop = 0, stop
    monkeypatch.setattr(gallery, "generate", self)

  def __call__(self, *args, **kwargs):
    self.calls += 1
    if self.calls == self.stop:
      raise KeyboardInterrupt
    return interleaved.generate(*args, **kwargs)


def test_every_prompt_has_its_image_at_its_own_size(trained, made):
  found = list(gallery.read(made, NAMES, part=2))
  assert [len(part) for part in found] == [2, 2, 1]
  assert {x.shape for part in found for x in part} == {(4, 4, 3)}
  assert len({x.tobytes() for part in found for x in part}) == 5
  canvas = open_canvas(trained.config, made)
  assert gallery.side_of(trained.config, canvas) == (4, 4)


def test_what_was_interrupted_goes_on_to_the_same_images(
  trained, made, tmp_path, monkeypatch
):
  counted = Counted(monkeypatch, stop=2)
  with pytest.raises(KeyboardInterrupt):
    make(trained, tmp_path)
  counted = Counted(monkeypatch)
  make(trained, tmp_path)
  assert counted.calls == 2  # of three batches
  assert images(tmp_path) == images(made)
  make(trained, tmp_path)
  assert counted.calls == 2
  (tmp_path / NAMES[3]).unlink()
  make(trained, tmp_path)
  assert counted.calls == 3 and images(tmp_path) == images(made)


def test_images_of_another_model_or_of_other_prompts_are_made_anew(
  trained, made, tmp_path, monkeypatch
):
  make(trained, tmp_path)
  counted = Counted(monkeypatch)
  make(trained._replace(step=2), tmp_path)
  assert counted.calls == 3
  make(trained._replace(step=2), tmp_path, WANTED[:2])
  assert counted.calls == 4
  assert not (tmp_path / NAMES[4]).exists()
  assert json.loads((tmp_path / "manifest.json").read_text())["done"] == NAMES[:2]


def test_an_image_that_nobody_asked_for_is_no_part_of_a_score(trained, made):
  other = made / "00" / "mine.png"
  other.write_bytes(b"")
  try:
    with pytest.raises(ValueError, match="mine.png: nobody asked for it"):
      make(trained, made)
    assert other.exists()
  finally:
    other.unlink()
  with pytest.raises(ValueError, match="99.png: is missing, and so are 0 more of 6"):
    gallery.count(made, [*NAMES, "99.png"])


def test_a_prompt_that_does_not_fit_is_found_before_the_work(trained, tmp_path):
  canvas = open_canvas(trained.config, tmp_path)
  gallery.check(trained, canvas, WANTED)
  long = Wanted("a.png", gallery.asked_for("seven " * 40))
  with pytest.raises(ValueError, match="prompt 1: .* sample.max_elements=32"):
    gallery.check(trained, canvas, [WANTED[0], long])
  with pytest.raises(ValueError, match="1 file names stand twice"):
    gallery.check(trained, canvas, [WANTED[0], WANTED[0]])


def test_a_damaged_image_is_named(tmp_path):
  (tmp_path / "a.png").write_bytes(b"no png")
  with pytest.raises(ValueError, match=r"a\.png: is no whole PNG"):
    list(gallery.read(tmp_path, ["a.png"], part=1))


def test_signs_of_a_caption_are_text_and_no_marks():
  for text in ("a <image> of 3 < 4", "seven", "[image]"):
    first, mark = split(gallery.asked_for(text))
    assert first == text and not isinstance(mark, str)
