"""experiments/kinds.py, pictures of two sizes and waves: trained, sampled, shown."""

import json
import pathlib

import numpy as np
import pytest
import tiny

from tfusion import cli
from tfusion import workdir as workdir_lib
from tfusion.data import pipeline

ROOT = pathlib.Path(__file__).parents[1]
KINDS = "image", "wide", "wave"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir of experiments/kinds.py, at its smallest."""
  root = tmp_path_factory.mktemp("kinds")
  config = f"{ROOT / 'experiments' / 'kinds.py'}:smoke"
  assert cli.main(["train", "--config", config, f"--workdir={root / 'run'}"]) == 0
  return root / "run"


@pytest.mark.slow
def test_a_run_logs_the_loss_of_every_kind(run):
  lines, (_, last) = tiny.lines(run), tiny.lines(run, "validation")
  assert len(lines) == 6
  for name in KINDS:  # in six small batches some lack one kind
    assert last[f"loss_{name}"] > 0
    for line in lines:  # what was not there has no loss, which is not one of 0
      assert (line[f"images_{name}"] > 0) == (f"loss_{name}" in line)
      assert line.get(f"loss_{name}", 1.0) > 0
    assert any(f"loss_{name}" in line for line in lines)


@pytest.mark.slow
def test_every_kind_is_asked_for_by_its_name_and_shown(run, tmp_path, capsys):
  wave = tmp_path / "given.npy"
  np.save(wave, np.zeros((64, 1)))
  prompt = f"a <image:wide> and <wave> like <wave:{wave}>"
  cli.main(
    ["sample", "--workdir", str(run), "--prompt", prompt, "--out", str(tmp_path)]
  )
  asked = json.loads((tmp_path / "sample_000.json").read_text())
  names = asked["files"]
  assert names[:3] == [
    "sample_000_image_0.png",
    "sample_000_wave_1.png",
    "sample_000_wave_1.npy",
  ]
  drawn = np.load(tmp_path / "sample_000_wave_1.npy")
  assert drawn.shape == (64, 1) and np.all(np.isfinite(drawn))
  assert np.all(np.load(tmp_path / "sample_000_wave_2.npy") == 0)
  text = (tmp_path / "sample_000.txt").read_text()
  assert "<image:sample_000_image_0.png>" in text and "<wave:sample_000_wave_1" in text


@pytest.mark.slow
def test_a_kind_that_is_not_of_the_run_and_a_wrong_array_are_refused(
  run, tmp_path, capsys
):
  wrong = tmp_path / "wrong.npy"
  np.save(wrong, np.zeros((63, 1)))
  for prompt, says in (
    ("<video>", "kinds of this run: image, wide, wave"),
    (f"<wave:{wrong}>", "it is (63, 1), and wave is (64, 1)"),
  ):
    assert cli.main(["sample", "--workdir", str(run), "--prompt", prompt]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_of_a_row_shows_all_its_kinds(run, tmp_path):
  cli.main(["inspect", "data", f"--workdir={run}", "--step=2", "--out", str(tmp_path)])
  pages = " ".join(path.read_text() for path in tmp_path.glob("*.html"))
  assert "12 patches of wide" in pages and "16 patches of wave" in pages


@pytest.mark.slow
def test_the_report_plots_the_loss_of_every_kind(run):
  cli.main(["report", str(run)])
  text = (run / "report.html").read_text()
  for name in KINDS[1:]:
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


@pytest.mark.slow
def test_a_run_is_judged_by_the_rules_that_read_what_is_drawn(run):
  found = json.loads((run / "eval.json").read_text())
  for name, count in zip(KINDS, (6, 6, 5), strict=True):
    assert found[f"made_{name}"] == count
    assert 0 <= found[f"made_{name}_right"] <= count
