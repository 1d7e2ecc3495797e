"""Photographs of two aspects and waveforms: trained, sampled, looked at."""

import json

import numpy as np
import pytest
import tiny
from tiny_photos import add

from tfusion import cli
from tfusion import workdir as workdir_lib
from tfusion.data import pipeline

CONFIG = """
from tfusion import config as config_lib

def get_config(photos):
  c = config_lib.defaults()
  c.model.update(layers=1, width=32, heads=2, kv_heads=2, mlp=32, vocab_size=352)
  c.model.update(image_shape=(8, 8, 3), patch=4)
  c.model.kinds = ("wide:4x12x3,like=image", "tone:16x1,patch=4,weight=1")
  c.data.update(sources=(f"folder:{photos}",), row_length=64, lanes=2, workers=0)
  c.train.update(steps=6, batch_rows=4, eval_rows=4, log_every_steps=1)
  c.train.update(save_every_steps=6, eval_every_steps=3)
  c.optim.update(warmup_steps=0, peak_lr=1e-3)
  c.sample.update(sampler="ddim", steps=2, max_elements=60)
  c.eval.prompts = ("a wide one <image:wide>", "<tone>", "a square <image>")
  return c
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp("kinds")
  photos, config = root / "photos", root / "config.py"
  config.write_text(CONFIG)
  for i in range(6):
    for split in ("train", "test"):
      add(photos, f"{split}/s{i}.png", f"square {i}", color=(40 * i, 9, 9))
      add(photos, f"{split}/w{i}.png", f"wide {i}", color=(9, 40 * i, 9), size=(60, 20))
      np.save(photos / split / f"t{i}.npy", np.sin(np.arange(16.0) * i)[:, None])
      (photos / split / f"t{i}.txt").write_text(f"tone {i}")
  workdir = root / "run"
  cli.main(["train", "--config", f"{config}:{photos}", "--workdir", str(workdir)])
  return workdir


@pytest.mark.slow
def test_a_run_logs_the_loss_of_every_kind(run):
  lines, (_, last) = tiny.lines(run), tiny.lines(run, "validation")
  assert len(lines) == 6
  for line in (*lines, last):
    assert all(line[f"loss_{name}"] > 0 for name in ("image", "wide", "tone"))


@pytest.mark.slow
def test_every_kind_is_asked_for_by_its_name_and_shown(run, tmp_path, capsys):
  tone = tmp_path / "given.npy"
  np.save(tone, np.zeros((16, 1)))
  prompt = f"a <image:wide> and <tone> like <tone:{tone}>"
  cli.main(
    ["sample", "--workdir", str(run), "--prompt", prompt, "--out", str(tmp_path)]
  )
  asked = json.loads((tmp_path / "sample_000.json").read_text())
  names = asked["files"]
  assert names[:3] == [
    "sample_000_image_0.png",
    "sample_000_tone_1.png",
    "sample_000_tone_1.npy",
  ]
  drawn = np.load(tmp_path / "sample_000_tone_1.npy")
  assert drawn.shape == (16, 1) and np.all(np.isfinite(drawn))
  assert np.all(np.load(tmp_path / "sample_000_tone_2.npy") == 0)
  text = (tmp_path / "sample_000.txt").read_text()
  assert "<image:sample_000_image_0.png>" in text and "<tone:sample_000_tone_1" in text


@pytest.mark.slow
def test_a_kind_that_is_not_of_the_run_and_a_wrong_array_are_refused(
  run, tmp_path, capsys
):
  wrong = tmp_path / "wrong.npy"
  np.save(wrong, np.zeros((15, 1)))
  for prompt, says in (
    ("<video>", "kinds of this run: image, wide, tone"),
    (f"<tone:{wrong}>", "it is (15, 1), and tone is (16, 1)"),
  ):
    assert cli.main(["sample", "--workdir", str(run), "--prompt", prompt]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_of_a_row_shows_all_its_kinds(run, tmp_path):
  cli.main(["inspect", "data", f"--workdir={run}", "--step=2", "--out", str(tmp_path)])
  pages = " ".join(path.read_text() for path in tmp_path.glob("*.html"))
  assert "3 patches of wide" in pages and "4 patches of tone" in pages


@pytest.mark.slow
def test_the_report_plots_the_loss_of_every_kind(run):
  cli.main(["report", str(run)])
  text = (run / "report.html").read_text()
  for name in ("wide", "tone"):
    assert text.count(f"Loss of {name}") >= 2  # in training, and held out


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_rows(run):
  config = workdir_lib.load_config(run)
  corpus = pipeline.open_corpus(config, run)
  rows = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  first = [next(rows) for _ in range(3)]
  states = json.loads(json.dumps(rows.lane_states()))
  following = next(rows)
  again = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  again.restore(states)
  tiny.assert_same_batch(next(again), following)
  kinds = [sum(int((b.slots[n].weights > 0).sum()) for b in first) for n in range(3)]
  assert all(count > 0 for count in kinds)
