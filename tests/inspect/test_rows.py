"""`tfusion inspect data`: from the nearest checkpoint, or before there is a run."""

import base64
import dataclasses
import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_codec
import tiny_shards
from PIL import Image

from tfusion import cli, config_file, sequence
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.data import pipeline
from tfusion.generate.canvas import false_colours
from tfusion.inspect import rows

DIGITS = "experiments/digits.py:smoke"
SMALL = ["--config.data.sources=('digits',)", "--config.train.batch_rows=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with checkpoints of updates 2 and 5, as training leaves them."""
  workdir = tmp_path_factory.mktemp("run")
  config = config_file.read_config(DIGITS, SMALL)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
  corpus = pipeline.open_corpus(config, workdir)
  workdir_lib.save_config(config, workdir)
  data = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  batches = [None]
  with Checkpoints(workdir / "checkpoints") as checkpoints:
    for step in range(1, 6):
      batches.append(next(data))
      if step in (2, 5):
        checkpoints.save(step, {"x": jnp.zeros(2)}, data.lane_states(), wait=True)
  return config, workdir, batches


@pytest.fixture
def taken(monkeypatch):
  """The rows that pages were made of."""
  found, page = [], rows.row_page.page
  monkeypatch.setattr(
    rows.row_page, "page", lambda row, *a, **k: found.append(row) or page(row, *a, **k)
  )
  return found


def assert_shown(found, batch):
  assert len(found) == len(batch.tokens_bl)
  for n, row in enumerate(found):
    tiny.assert_same_batch(row.row, sequence.row_of(batch, n))


@pytest.mark.parametrize("step, begins", [(5, 2), (2, 0)])
def test_a_step_is_shown_from_the_nearest_checkpoint(run, taken, capsys, step, begins):
  _, workdir, batches = run
  assert cli.main(["inspect", "data", f"--workdir={workdir}", f"--step={step}"]) == 0
  said = capsys.readouterr().out
  assert f"replays {step - begins} updates, from update {begins} on" in said
  assert_shown(taken, batches[step])
  pages = sorted((workdir / "rows").glob(f"step-{step}-row-*.html"))
  assert [str(page) for page in pages] == said.splitlines()[1:]
  assert "digits[" in pages[0].read_text() and "<b>BOI</b>" in pages[0].read_text()


def test_a_damaged_checkpoint_is_passed_over(run, taken, capsys, tmp_path):
  config, workdir, batches = run
  record = workdir / "checkpoints" / "2" / "record.0-of-1"
  whole = record.read_bytes()
  record.write_bytes(whole[:-1])
  try:
    rows.write_pages(config, workdir, 3, out=tmp_path)
  finally:
    record.write_bytes(whole)
  said = capsys.readouterr().out
  assert "checkpoint 2 is passed over" in said and "replays 3 updates" in said
  assert_shown(taken, batches[3])


def test_a_run_not_yet_begun_is_shown_from_its_config(run, taken, tmp_path):
  _, _, batches = run
  made = ["--config", DIGITS, *SMALL, "--step=1", f"--out={tmp_path}"]
  assert cli.main(["inspect", "data", *made]) == 0
  assert_shown(taken, batches[1])
  assert len(list(tmp_path.iterdir())) == 4


def test_a_step_before_the_first_is_refused(run, capsys):
  assert cli.main(["inspect", "data", f"--workdir={run[1]}", "--step=0"]) == 2
  assert "--step=0: updates are counted from 1" in capsys.readouterr().err


def images_in(path):
  found = re.findall(r"base64,([^\"]+)", path.read_text())[:-1]  # not the intervals
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "codes"])
@pytest.mark.parametrize("has_autoencoder", [True, False])
def test_latents_and_codes_are_shown_as_well_as_can_be(
  tmp_path, taken, kind, has_autoencoder
):
  latents = kind == "mean"
  codec = tiny_codec.make(
    dataclasses.replace(tiny_codec.VAE, latent_channels=2, codes=0 if latents else 16)
  )
  codec.save(tmp_path / "one")
  own = (tmp_path / "one").read_bytes() if has_autoencoder else None
  shape = (4, 4, 2) if latents else (16,)
  images = tiny_shards.make(
    tmp_path / "a", kind=kind, shape=shape, autoencoder=own
  ).images
  config = tiny.build(
    model__image_shape=(4, 4, 2),
    data__sources=(f"shards:{tmp_path / 'a'}",),
    data__row_length=64,
    data__lanes=1,
    train__batch_rows=1,
  )
  (tmp_path / "run").mkdir()
  (page,) = rows.write_pages(config, tmp_path / "run", 1, out=tmp_path / "out")
  shown = images_in(page)
  assert shown
  if latents:
    (row,) = taken
    made = row.row.slots[0].latents[: len(shown)]
    scaled = made * np.float32(images.scale) + np.float32(images.shift)
    expected = [codec.decode(x[None])[0] for x in scaled]
    if not has_autoencoder:
      expected = [false_colours(x) for x in made]
  else:
    tokens = taken[0].row.tokens_l
    vocabulary = tiny_shards.tokenizer().vocab_size
    codes = tokens[tokens >= vocabulary].reshape(-1, 16) - vocabulary
    expected = [codec.decode(x[None])[0] for x in codes]
    if not has_autoencoder:
      shades = codes.reshape(-1, 4, 4) * 37 % 256
      expected = list(shades)
  for x, y in zip(shown, expected, strict=True):
    # Another batch size may round to the byte beside.
    np.testing.assert_allclose(x.astype(int), y, atol=1 if has_autoencoder else 0)
