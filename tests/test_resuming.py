"""Promises of docs/resuming.md, on whole commands: a run goes on as what it was.

The parts have tests of their own: test_lock.py, data/test_identity.py, train/.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import pytest
from PIL import Image

from tfusion import checkpoint, cli, report
from tfusion import lock as lock_lib
from tfusion.autoencoder.images import ImageBatches
from tfusion.data.pipeline import HostBatches
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import suite

pytestmark = pytest.mark.slow

EXPERIMENTS = {
  "train": """
from tfusion import config as config_lib

def get_config(arg="photos"):
  c = config_lib.defaults()
  c.model.update(layers=1, width=16, heads=1, kv_heads=1, mlp=16, vocab_size=320)
  c.data.update(sources=(f"folder:{arg}",), row_length=64, lanes=1, workers=0)
  c.train.update(steps=4, batch_rows=2, eval_rows=2, log_every_steps=1)
  c.train.update(save_every_steps=2, eval_every_steps=4)
  return c
""",
  "autoencoder": """
from tfusion import autoencoder_config

def get_config(arg="photos"):
  c = autoencoder_config.defaults()
  c.model.update(widths=(4,), groups=2, blocks=1)
  c.loss.update(features="none", adversary_start=9)
  c.data.update(sources=(f"folder:{arg}",), image_shape=(8, 8, 3), threads=1)
  c.train.update(steps=4, batch_images=2, eval_images=1, log_every_steps=1)
  c.train.update(save_every_steps=2, eval_every_steps=4)
  return c
""",
}


@pytest.fixture(scope="module", autouse=True)
def no_report():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, "write_report", lambda workdir: None)  # takes seconds
    yield


def make_photos(root: pathlib.Path) -> None:
  for i in range(4):
    for split, shade in (("train", 20 * i), ("test", 100 + 20 * i)):
      (root / split).mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (8, 8), (shade, 9, 9)).save(root / split / f"{i}.png")
      (root / split / f"{i}.txt").write_text(f"{split} picture {i}")


def furnish(folder: pathlib.Path) -> pathlib.Path:
  """Makes photos/ and an experiment of each command."""
  make_photos(folder / "photos")
  for command, text in EXPERIMENTS.items():
    (folder / f"{command}.py").write_text(text)
  return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory, no_report):
  """The folder of a command, with a run that was never stopped in run/."""

  @functools.cache
  def folder_of(command: str) -> pathlib.Path:
    folder = furnish(tmp_path_factory.mktemp(command))
    with pytest.MonkeyPatch.context() as patch:
      patch.chdir(folder)
      assert run(command) == 0
    return folder

  return folder_of


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A furnished folder to be in."""
  monkeypatch.chdir(tmp_path)
  return furnish(tmp_path)


def run(command: str, data: str = "photos") -> int:
  return cli.main([command, "--config", f"{command}.py:{data}", "--workdir", "run"])


def written(folder: pathlib.Path) -> dict[str, str]:
  names = ("metrics.jsonl", "validation.jsonl")
  return {name: (folder / "run" / name).read_text() for name in names}


@contextlib.contextmanager
def before_batch(number: int, act):
  """Does something while a run waits for its batch of this number."""
  with pytest.MonkeyPatch.context() as patch:
    for kind in (HostBatches, ImageBatches):
      given, give = [], kind.__next__

      def acting(self, given=given, give=give):
        given.append(0)
        if len(given) == number:
          act()
        return give(self)

      patch.setattr(kind, "__next__", acting)
    yield


def told(number: int):
  return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
  "command, number, status",
  [
    ("train", signal.SIGTERM, 143),
    pytest.param("autoencoder", signal.SIGINT, 130, marks=pytest.mark.long),
  ],
)
def test_a_run_stopped_and_its_photos_moved_goes_on_as_the_run_it_was(
  here, capfd, straight, command, number, status
):
  with before_batch(3, told(number)):
    assert run(command) == status
  assert written(here) != written(straight(command))
  shutil.move("photos", "elsewhere")
  capfd.readouterr()
  assert run(command, data="elsewhere") == 0
  said = capfd.readouterr().out
  assert f"folder:photos: is read from {here / 'elsewhere'} now" in said
  assert written(here) == written(straight(command))
  assert not pathlib.Path("run", "lock.json").exists()


@pytest.mark.parametrize(
  "command", ["train", pytest.param("autoencoder", marks=pytest.mark.long)]
)
def test_photos_replaced_between_two_starts_are_refused(here, capfd, straight, command):
  shutil.copytree(straight(command) / "run", "run")
  checkpoints = sorted(p.name for p in pathlib.Path("run/checkpoints").iterdir())
  path = pathlib.Path("photos/train/1.png")
  stat = path.stat()
  Image.new("RGB", (8, 8), (21, 9, 9)).save(path)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  capfd.readouterr()
  assert run(command) == 2
  out, err = capfd.readouterr()
  assert "folder:photos: 1 image differs (train/1.png)" in err
  assert sorted(p.name for p in pathlib.Path("run/checkpoints").iterdir()) == (
    checkpoints
  )
  assert not pathlib.Path("run", "lock.json").exists()


def test_a_workdir_of_before_data_were_remembered_goes_on_and_it_is_said(
  here, capfd, straight
):
  with before_batch(3, told(signal.SIGTERM)):
    assert run("train") == 143
  for name in ("identity.json", "documents.json"):
    pathlib.Path("run", name).unlink()
  shutil.rmtree("run/cache")
  capfd.readouterr()
  assert run("train") == 0
  assert "identity.json: is written now, as this run began" in capfd.readouterr().out
  assert written(here) == written(straight("train"))
  assert pathlib.Path("run", "documents.json").read_bytes() == (
    (straight("train") / "run" / "documents.json").read_bytes()
  )


def test_a_signal_during_the_last_evaluation_leaves_a_run_complete(here, monkeypatch):
  def judge(self, step, params, corpus):
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(suite.FinalEvaluation, "__call__", judge)
  assert run("train") == 0
  assert '"step": 4' in written(here)["validation.jsonl"]


def test_a_signal_before_the_last_evaluation_leaves_it_to_the_next_start(here):
  with before_batch(4, told(signal.SIGTERM)):
    assert run("train") == 143
  assert pathlib.Path("run/metrics.jsonl").read_text().count("\n") == 4
  assert pathlib.Path("run/validation.jsonl").read_text() == ""
  assert run("train") == 0
  assert '"step": 4' in written(here)["validation.jsonl"]


# The tokenizer, for those who use a trained model.


def test_nobody_uses_a_model_with_another_tokenizer(here, capfd, straight):
  shutil.copytree(straight("train") / "run", "run")
  path = pathlib.Path("run/tokenizer.model")
  Tokenizer.train(["other words"], vocab_size=300, path=path)
  prompt = ["sample", "--workdir", "run", "--prompt", "train picture"]
  for command in (prompt, ["eval", "--workdir", "run"]):
    assert cli.main(command) == 2
    assert "run/tokenizer.model: is another file than" in capfd.readouterr().err
  assert cli.main(["inspect", "data", "--workdir", "run", "--step", "1"]) == 2
  path.unlink()
  for start in (lambda: run("train"), lambda: cli.main(prompt)):
    assert start() == 2
    assert "run/tokenizer.model: is missing" in capfd.readouterr().err
  assert not path.exists()


# The lock.


@pytest.mark.parametrize("command", ["train", "autoencoder"])
def test_a_second_run_in_a_workdir_is_refused_and_changes_nothing(
  here, capfd, straight, command
):
  shutil.copytree(straight(command) / "run", "run")
  with lock_lib.hold("run"):
    before = {p: p.read_bytes() for p in pathlib.Path("run").glob("*") if p.is_file()}
    assert run(command) == 2
    del before[pathlib.Path("run/lock.json")]
    for path, data in before.items():
      assert path.read_bytes() == data
  err = capfd.readouterr().err
  assert f"tfusion {command}: --workdir=run: is in use by `" in err
  assert f"process {os.getpid()} on host" in err and "room" not in err


def another_takes_it() -> None:
  path = pathlib.Path("run/lock.json")
  values = json.loads(path.read_text()) | {"owner": "another", "host": "lab2"}
  path.unlink()
  path.write_text(json.dumps(values))


def test_a_run_whose_workdir_was_taken_over_stops_and_writes_no_more(here, capfd):
  def act():
    saved = pathlib.Path("run/checkpoints/2")
    while not saved.exists() or saved.with_suffix(".partial").exists():
      time.sleep(0.01)
    another_takes_it()
    for file in pathlib.Path("run").rglob("*"):
      seen[file] = file.is_file() and file.stat().st_mtime_ns

  seen: dict = {}
  with before_batch(4, act):  # after the checkpoint of step 2, and lines of 2
    assert run("train") == 2
  err = capfd.readouterr().err
  assert "is in use by" in err and "on host lab2" in err
  assert "was taken from this run" in err and "room" not in err
  now = {file: file.is_file() and file.stat().st_mtime_ns for file in seen}
  assert now == seen and not pathlib.Path("run/checkpoints/4").exists()


def test_a_save_that_lost_the_workdir_on_its_way_commits_nothing(tmp_path):
  asked = []

  def check():
    asked.append(0)
    if len(asked) > 1:  # not when it began
      raise lock_lib.Lost("taken")

  state = {"w": jax.numpy.zeros(4)}
  checkpoints = checkpoint.Checkpoints(tmp_path, check_lock=check)
  assert checkpoints.save(1, state, {})
  with pytest.raises(lock_lib.Lost, match="taken"):
    checkpoints.wait()
  checkpoints.close()
  assert checkpoints.steps() == [] and (tmp_path / "1.partial").exists()  # not ours
