"""The commands as a user types them, one after the other, at their smallest size."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tfusion import cli

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
SMALLER = [  # than smoke: what is left is compiling
  "--config.train.steps=4",
  "--config.train.eval_every_steps=2",
  "--config.train.save_every_steps=2",
  "--config.train.log_every_steps=2",
  "--config.train.eval_rows=16",
  "--config.sample.steps=2",
  "--config.eval.samples_per_class=1",
  "--config.eval.batch=99",
  "--config.eval.text_rows=16",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir of a digits run of four updates."""
  workdir = tmp_path_factory.mktemp("walk") / "digits"
  config = str(ROOT / "experiments" / "digits.py:smoke")
  assert (
    cli.main(["train", "--config", config, "--workdir", str(workdir), *SMALLER]) == 0
  )
  return workdir


def test_train_leaves_the_files_that_the_readme_names(run):
  for name in (
    "config.json run.json data.json tokenizer.model metrics.jsonl speed.jsonl"
    " validation.jsonl eval.json report.html eval/digits.png"
    " samples/step_00000002.png samples/step_00000004.png"  # of both evaluations
  ).split():
    assert (run / name).stat().st_size > 0, name
  lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [2, 4]
  for line in lines:
    for key in ("loss", "loss_text", "loss_image", "grad_norm", "elements"):
      assert np.isfinite(line[key]), key


def test_eval_json_holds_accuracies_with_their_counts(run):
  values = json.loads((run / "eval.json").read_text())
  assert values["step"] == 4
  assert (
    values["captions"] == values["classifier_scans"] == 297 and values["images"] == 10
  )
  for name, right, count in (
    ("caption_accuracy", "captions_right", "captions"),
    ("image_accuracy", "images_right", "images"),
    ("classifier_accuracy", "classifier_right", "classifier_scans"),
  ):
    assert values[name] == values[right] / values[count]
  assert (
    values["classifier_accuracy"] > 0.98
  )  # it knows real scans whatever the model does
  assert 1 < values["text_perplexity"] < 10_000 and values["text_tokens"] > 0


def test_training_a_finished_run_again_changes_nothing(run, capsys):
  before = (run / "metrics.jsonl").read_text()
  config = str(ROOT / "experiments" / "digits.py:smoke")
  assert cli.main(["train", "--config", config, "--workdir", str(run), *SMALLER]) == 0
  assert (run / "metrics.jsonl").read_text() == before
  assert "goes on after step 4" in capsys.readouterr().out


def test_sample_writes_text_and_images_for_prompts_in_any_order(run, tmp_path, capsys):
  Image.new("L", (30, 20), 200).save(tmp_path / "given.png")
  prompts = [
    "a handwritten seven <image>",
    f"<image:{tmp_path / 'given.png'}>",
    "hello",
  ]
  args = [x for p in prompts for x in ("--prompt", p)]
  out = tmp_path / "out"
  assert (
    cli.main(
      ["sample", "--workdir", str(run), "--out", str(out), "--count", "2", *args]
    )
    == 0
  )
  texts = [(out / f"sample_{i:03d}.txt").read_text() for i in range(6)]
  assert texts[0].startswith("a handwritten seven<image:sample_000_image_0.png>")
  assert texts[2].startswith("<image:sample_002_image_0.png>")
  assert texts[4].startswith("hello")
  with Image.open(out / "sample_000_image_0.png") as image:
    assert image.size == (128, 128)  # 8 x 8, every pixel a square
  assert str(out / "sample_005.txt") in capsys.readouterr().out


@pytest.mark.long
def test_an_earlier_checkpoint_is_sampled_and_evaluated_by_its_step(
  run, tmp_path, capsys
):
  args = ["sample", "--workdir", str(run), "--prompt", "a <image>", "--step", "2"]
  assert cli.main([*args, "--out", str(tmp_path)]) == 0
  assert json.loads((tmp_path / "sample_000.json").read_text())["call"]["step"] == 2
  capsys.readouterr()
  before = (run / "eval.json").read_text()
  assert cli.main(["eval", "--workdir", str(run), "--step", "2"]) == 0
  out = capsys.readouterr().out
  assert ["step", "2"] in [line.split() for line in out.splitlines()]
  assert out.splitlines()[-1] == str(run / "report.html")
  assert json.loads((run / "eval.json").read_text())["step"] == 2
  (run / "eval.json").write_text(before)


@pytest.mark.parametrize(
  "prompt, message",
  [
    ("<image>" * 40, "sample.max_elements"),
    ("<picture>", "'<picture>' is an unknown mark"),
    ("<image:nowhere.png>", "nowhere.png"),
  ],
)
def test_a_prompt_that_cannot_be_is_one_clear_error(run, capsys, prompt, message):
  assert cli.main(["sample", "--workdir", str(run), "--prompt", prompt]) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


def test_inspect_shows_config_and_checkpoints(run, capsys):
  assert cli.main(["inspect", "run", "--workdir", str(run)]) == 0
  out = capsys.readouterr().out
  assert "model.width = 64" in out and "checkpoints: [2, 4]" in out


@pytest.mark.long
def test_eval_takes_other_sampling_without_touching_the_run(run, capsys):
  before = (run / "config.json").read_text()
  args = ["--config.sample.sampler=ddim", "--config.sample.guidance=1.0"]
  assert cli.main(["eval", "--workdir", str(run), *args]) == 0
  assert "ddim 2 steps, guidance 1" in capsys.readouterr().out
  assert (run / "config.json").read_text() == before


@pytest.mark.long
def test_a_folder_of_ones_own_pictures_trains(tmp_path, capsys):
  photos = tmp_path / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for i in range(24):
    size = 20 + i, 40 - i
    colour = tuple(int(x) for x in rng.integers(0, 255, 3))
    Image.new("RGB", size, colour).save(photos / f"{i}.png")
    (photos / f"{i}.txt").write_text(f"a plain picture, number {i}")
  (photos / "broken.png").write_bytes(b"\x89PNG no more")
  (photos / "broken.txt").write_text("this one is broken")
  config = f"{ROOT / 'experiments' / 'folder.py'}:data={photos},smoke"
  workdir = tmp_path / "run"
  args = ["train", "--config", config, "--workdir", str(workdir), *SMALLER]
  assert cli.main(args) == 0
  assert "broken.png" in (workdir / "skipped.json").read_text()
  said = capsys.readouterr().out
  assert "skipped, cannot be decoded: 1 document, 1 image, 1 text" in said
  found = json.loads((workdir / "data.json").read_text())["found"][f"folder:{photos}"]
  assert sum(split["found"]["images"] for split in found.values()) == 25
  for split, name in (("train", "train:   "), ("test", "held out:")):
    count = found[split]["found"]["documents"]
    assert f"{name} {count} document" in said
  assert json.loads((workdir / "eval.json").read_text())["text_perplexity"] > 1
  assert (workdir / "report.html").is_file()


@pytest.mark.long
def test_bench_step_prints_the_share_of_the_matmul_rate(capsys):
  config = str(ROOT / "experiments" / "digits.py:smoke")
  assert cli.main(["bench", "step", "--config", config, "--steps", "1"]) == 0
  out = capsys.readouterr().out
  for name in ("step_ms", "elements_per_s", "matmul_gflops", "share", "data_wait"):
    assert name in out


@pytest.mark.long
def test_the_benchmark_of_bounds_draws_with_every_setting(run, capsys, monkeypatch):
  spec = importlib.util.spec_from_file_location(
    "sampling_bounds", ROOT / "tests" / "bench" / "sampling_bounds.py"
  )
  bounds = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(bounds)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(500, 4, 4, 2))
  assert bounds.distance(x, x) == pytest.approx(0, abs=1e-6)
  # Two channels moved by 3: 9 each; deviations stay.
  assert bounds.distance(x + 3, x) == pytest.approx(18, rel=1e-6)
  few = "--images=4 --samplers=ddim --steps=2 --guidance=1 --start=1,0.5 --clip=0,1"
  argv = ["sampling_bounds.py", "--workdir", str(run), *few.split()]
  monkeypatch.setattr("sys.argv", argv)
  bounds.main()
  lines = capsys.readouterr().out.splitlines()
  assert "true, 4 of 256" in lines[-5]
  rows = [line.split() for line in lines[-4:]]
  assert [row[3:5] for row in rows] == [[s, c] for s in ("1", "0.5") for c in "01"]
  farthest = [float(row[-1]) for row in rows]
  assert farthest[1] == farthest[3] == 1.0 and farthest[0] > 100
