"""What a person is told of the data before training, and of what nothing is said."""

import json

import numpy as np
import pytest
import tiny_sources
from PIL import Image
from tiny_sources import FIRST_CODE, Given, changed, latent

from tfusion import sequence
from tfusion.data import notices
from tfusion.data.folder import open_folder

PROSE = Given("prose", 9, lambda n: (f"page {n}",), has_images=False)


class Skipping(Given):
  """Leaves something out."""

  skipped = {f"{i}.png": f"cannot be decoded: at byte {i}" for i in range(3)}
  skipped |= {"x.png": "no caption"}


CAPPED = changed(diffusion=dict(image_first_noise_cap=0.5))


def warned(caplog, folder, *sources, config=CAPPED) -> str:
  caplog.clear()
  notices.warn(sources, tiny_sources.tokenizer(), config, folder)
  return caplog.text


def test_what_is_skipped_is_counted_by_reason_without_its_detail(tmp_path, caplog):
  said = warned(caplog, tmp_path, Skipping("a", 9, PROSE.make), PROSE)
  assert "a: skipped 4: 3 cannot be decoded, 1 no caption; " in said
  assert f"{tmp_path / 'skipped.json'} lists them" in said and "prose" not in said
  assert json.loads((tmp_path / "skipped.json").read_text()) == {"a": Skipping.skipped}
  assert warned(caplog, tmp_path, PROSE) == ""
  assert not (tmp_path / "skipped.json").exists()  # that of an earlier state


def test_a_folder_that_sounds_held_out_and_is_trained_on_is_named(tmp_path, caplog):
  for i in range(30):
    for part in ("train", "holdout"):
      path = tmp_path / "in" / part / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (4, 4)).save(path)
      path.with_suffix(".txt").write_text(f"number {i}")
  folder = open_folder(
    str(tmp_path / "in"), test=False, image_shape=(8, 8, 1), workdir=tmp_path
  )
  said = warned(caplog, tmp_path, folder, config=tiny_sources.CONFIG)
  assert f"folder:{tmp_path / 'in'}: trained on, though" in said and "holdout (" in said


def test_of_images_that_are_only_read_and_of_texts_no_drawing_is_missed(
  tmp_path, caplog
):
  def read(n):
    return sequence.Image(latent(n), weight=0.0), f"{n}"

  assert "drawing from" not in warned(caplog, tmp_path, Given("read", 9, read), PROSE)
  learned = Given("learned", 9, lambda n: (latent(n), f"{n}", latent(n), "more"))
  said = warned(caplog, tmp_path, Given("read", 9, read), learned)
  assert said.count("sampling from pure noise is not learned") == 1
  assert "learned: learned text follows every image" in said
  assert "image_first_noise_cap=0.5" in said


def of_codes(n):
  return sequence.Codes(np.arange(16) + FIRST_CODE), sequence.Text(np.arange(5)), "123"


def of_pieces(n):
  return sequence.BREAK, "12", latent(n)


@pytest.mark.parametrize(
  ("make", "share"),
  [
    (of_codes, (2 + 5 + 3 + 1) / 16),  # BOI and EOI, the texts, EOS; 16 codes
    (of_pieces, (2 + 2 + 1) / 16),  # 16 patches
  ],
)
def test_text_elements_per_patch_are_those_that_captions_give(
  tmp_path, caplog, make, share
):
  source = Given("captioned", 9, make)  # a digit is an element
  for asked, said in ((share, True), (share + 0.01, False)):
    config = changed(data=dict(text_per_patch=asked))
    found = warned(caplog, tmp_path, source, PROSE, config=config)
    assert (f"captions alone give {share:.2f} text elements" in found) == said
    assert ("so prose will hardly be read" in found) == said
  low = changed(data=dict(text_per_patch=share / 2))
  assert "cannot be reached" not in warned(caplog, tmp_path, source, config=low)
  assert "cannot be reached" not in warned(caplog, tmp_path, PROSE, config=low)


def test_of_a_source_that_leaves_nothing_out_the_splits_are_counted():
  assert list(notices.found_lines([PROSE], [Given("prose", 2, PROSE.make)])) == [
    "prose: 9 documents to train on, 2 held out"
  ]
