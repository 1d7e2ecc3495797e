"""Promises of tfusion/training/loggers.py, read back as their own programs do."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib

import pytest
import tiny
from tiny_loggers import scalars, starts_of

from tfusion import cli
from tfusion import workdir as workdir_lib
from tfusion.training import log as log_lib
from tfusion.training import loggers
from tfusion.training.clock import Clock
from tfusion.training.hold import Hold
from tfusion.training.stop import StopSignals

CONFIG = dict(train__steps=40, train__log_every_steps=5, train__eval_every_steps=20)


def line(step: int, *, start: int = 1) -> dict:
  """A line of metrics.jsonl; the same in every start but for `start`."""
  return {"step": step, "loss": 100.0 / step, "start": start, "bins": [1.0], "x": None}


def config(*names: str):
  return tiny.config(**CONFIG, train__loggers=names)


def a_start(workdir, names, *, after: int, to: int, start: int = 1, failed=None):
  """Logs every 5 updates, as a start that goes on after a checkpoint."""
  args = (config(*names), workdir, after, Clock(), Hold(None), StopSignals())
  with pytest.raises(failed) if failed else contextlib.nullcontext():
    with log_lib.Log(*args, lambda since: {}, lambda *_: "") as log:
      for step in range(after + 5, to + 1, 5):
        values = {"loss": 100.0 / step, "start": start, "skipped": 0.0}
        log.hand_over(step, values, {})
        log.write()
        if step % 20 == 0:
          log.write_validation(line(step, start=start))
      if failed:
        raise failed


# What is refused.


@pytest.mark.parametrize("command", ["train", "autoencoder"])
def test_a_logger_without_its_extra_is_refused_before_any_work(
  command, tmp_path, capsys, monkeypatch
):
  found = importlib.util.find_spec
  missing = ("tensorboardX", "wandb")
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda n, *a: None if n in missing else found(n, *a)
  )
  root = pathlib.Path(__file__).parents[2]
  experiment = {"train": "digits.py:smoke", "autoencoder": "autoencoder.py:smoke"}
  for name in ("tensorboard", "wandb"):
    workdir = tmp_path / name
    args = ["--config", str(root / "experiments" / experiment[command])]
    args += ["--workdir", str(workdir), f"--config.train.loggers=('{name}',)"]
    assert cli.main([command, *args]) == 2
    err = capsys.readouterr().err
    assert f"is not installed; run `pip install 'tfusion[{name}]'`, or leave" in err
    assert "train.loggers=" in err and list(workdir.iterdir()) == []


def test_every_logger_is_an_extra_of_its_name_with_its_library():
  root = pathlib.Path(__file__).parents[2]
  setup = (root / "setup.py").read_text()
  for name, library in loggers.LIBRARIES.items():
    (extra,) = [x for x in setup.splitlines() if x.strip().startswith(f'"{name}": [')]
    assert f'"{library}>=' in extra


@pytest.mark.parametrize(
  "names, says",
  [
    (("mlflow",), "'mlflow' is not known; choose from ('tensorboard', 'wandb')"),
    (("wandb", "wandb"), "name each of them once"),
  ],
)
def test_what_is_no_logger_is_refused(names, says):
  with pytest.raises(ValueError) as error:
    config(*names)
  assert f"train.loggers={names}" in str(error.value) and says in str(error.value)


def test_tensorboard_is_refused_in_a_bucket():
  from tfusion import files

  pytest.importorskip("tensorboardX")
  with pytest.raises(ValueError, match="cannot be done in a bucket .gs://b/run."):
    loggers.check(("tensorboard",), files.to_path("gs://b/run"))


def test_a_run_of_before_may_get_loggers_and_says_so(tmp_path):
  values = dataclasses.asdict(tiny.config())
  del values["train"]["loggers"]
  workdir_lib.write_json(tmp_path, "config.json", values)
  (said,) = workdir_lib.check_same_run(tiny.config(train__loggers=("wandb",)), tmp_path)
  assert said == "train.loggers: () -> ('wandb',)"


def test_without_loggers_nothing_is_written_beside_the_runs_files(tmp_path):
  a_start(tmp_path, (), after=0, to=10)
  written = {path.name for path in tmp_path.iterdir()}
  files = ("metrics", "speed", "validation", "spikes")
  assert written == {f"{name}.jsonl" for name in files}


def test_a_host_that_is_not_the_first_has_no_logger(tmp_path, monkeypatch):
  monkeypatch.setattr(log_lib.jax, "process_index", lambda: 1)
  monkeypatch.setattr(loggers, "opened", None)  # not to be called
  a_start(tmp_path, ("tensorboard", "wandb"), after=0, to=5)
  assert list(tmp_path.iterdir()) == []


# TensorBoard.


@pytest.fixture
def seconds(monkeypatch):
  """Every start begins in another second, of which files are named."""
  pytest.importorskip("tensorboardX")
  from tensorboardX import event_file_writer

  now = iter(range(1_700_000_000, 1_800_000_000, 100))
  fake = type("time", (), {"time": staticmethod(lambda: float(next(now)))})
  monkeypatch.setattr(event_file_writer, "time", fake)


def test_tensorboard_reads_every_number_of_a_line_at_its_step(tmp_path, seconds):
  a_start(tmp_path, ("tensorboard",), after=0, to=20)
  found = scalars(tmp_path)
  assert set(found) == {
    *("metrics/loss", "metrics/start", "metrics/skipped"),
    *("speed/seconds", "speed/step_ms", "speed/data_wait_share", "speed/eta_seconds"),
    *("validation/loss", "validation/start"),
  }
  want = [(step, pytest.approx(100.0 / step)) for step in (5, 10, 15, 20)]
  assert found["metrics/loss"] == want and found["validation/loss"] == want[-1:]


def test_updates_that_are_done_again_are_one_point_in_tensorboard(tmp_path, seconds):
  a_start(tmp_path, ("tensorboard",), after=0, to=25)
  a_start(tmp_path, ("tensorboard",), after=10, to=30, start=2)
  found = scalars(tmp_path)
  assert [step for step, _ in found["metrics/loss"]] == [5, 10, 15, 20, 25, 30]
  starts = [1, 1, 2, 2, 2, 2]
  assert [value for _, value in found["metrics/start"]] == starts
  assert found["validation/start"] == [(20, 2.0)]


def test_tensorboard_gets_what_was_logged_before_it_was_asked_for(tmp_path, seconds):
  a_start(tmp_path, (), after=0, to=25)
  a_start(tmp_path, ("tensorboard",), after=20, to=25, start=2)
  found = scalars(tmp_path)
  starts = [(5, 1.0), (10, 1.0), (15, 1.0), (20, 1.0), (25, 2.0)]
  assert found["metrics/start"] == starts


# Weights & Biases.


@pytest.fixture
def offline(monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.slow
def test_starts_of_a_run_are_one_run_of_wandb_without_a_point_twice_or_a_gap(
  tmp_path, offline, monkeypatch
):
  names = ("wandb",)
  loggers.check(names, tmp_path)
  a_start(tmp_path, (), after=0, to=5)  # before it was asked for
  a_start(tmp_path, names, after=5, to=25)
  monkeypatch.setattr(loggers, "EVERY_SECONDS", 0.0)
  a_start(tmp_path, names, after=10, to=40, start=2, failed=ValueError)
  (first, rows), (second, more) = starts_of(tmp_path)
  assert first == second == json.loads((tmp_path / "wandb.json").read_text())["id"]
  assert [step for step, _ in rows + more] == [5, 10, 15, 20, 25, 30, 35, 40]
  assert [row["metrics/start"] for _, row in rows + more] == [1] * 5 + [2] * 3
  assert {group.partition("/")[0] for group in rows[3][1]} == set(loggers.FILES)
  assert rows[3][1]["metrics/loss"] == rows[3][1]["validation/loss"] == 5.0


class Run:
  """Stands for a run of W&B."""

  def __init__(self):
    self.rows, self.ended = [], None

  def log(self, row, *, step, commit):
    assert commit and (not self.rows or step > self.rows[-1][0])
    self.rows.append((step, row))

  def finish(self, exit_code):
    self.ended = exit_code


@pytest.fixture
def run(monkeypatch):
  """The run of W&B that the next logger begins."""
  wandb = pytest.importorskip("wandb")
  made = Run()
  monkeypatch.setattr(wandb, "init", lambda **given: vars(made).update(given) or made)
  return made


def test_a_run_that_stops_before_an_evaluation_gives_it_at_the_next_start(
  tmp_path, run
):
  board = loggers.WeightsAndBiases(config("wandb"), tmp_path, {})
  for step in (15, 20):
    board.write("metrics", line(step))
  board.close(failed=False)
  assert [step for step, _ in run.rows] == [15] and run.ended == 0
  lines = {"metrics": [line(15), line(20)], "validation": []}
  board = loggers.WeightsAndBiases(config("wandb"), tmp_path, lines)
  board.write("validation", line(20))
  board.close(failed=True)
  assert [step for step, _ in run.rows] == [15, 20] and run.ended == 1
  assert set(run.rows[1][1]) >= {"metrics/loss", "validation/loss"}


def test_after_a_kill_wandb_gets_what_it_lacks_and_nothing_twice(
  tmp_path, run, monkeypatch
):
  monkeypatch.setattr(loggers, "EVERY_SECONDS", 0.0)
  board = loggers.WeightsAndBiases(config("wandb"), tmp_path, {})
  for step in (5, 10, 15):
    board.write("metrics", line(step))
  assert [step for step, _ in run.rows] == [5, 10]  # 15 may get more; then: killed
  for checkpoint in (15, 5):
    kept = [line(step) for step in (5, 10, 15) if step <= checkpoint]
    board = loggers.WeightsAndBiases(config("wandb"), tmp_path, {"metrics": kept})
    for step in range(checkpoint + 5, 20, 5):
      board.write("metrics", line(step, start=2))
    board.close(failed=False)
    assert [step for step, _ in run.rows] == [5, 10, 15]


def test_a_run_goes_on_where_the_process_of_wandb_is_gone(
  tmp_path, run, monkeypatch, capsys
):
  monkeypatch.setattr(loggers, "EVERY_SECONDS", 0.0)
  board = loggers.WeightsAndBiases(config("wandb"), tmp_path, {})
  for step in (5, 10):
    board.write("metrics", line(step))

  def refuse(*_, **__):  # as wandb 0.31 does where wandb-core was killed
    raise ConnectionResetError("Connection lost")

  run.log = run.finish = refuse
  for step in (15, 20):
    board.write("metrics", line(step))
  board.close(failed=False)
  assert capsys.readouterr().out.count("takes no more numbers (Connection lost)") == 1
  # What it did not take is given by the next start.
  assert json.loads((tmp_path / "wandb.json").read_text())["step"] == 5


def test_wandb_knows_the_config_and_its_place(tmp_path, run, monkeypatch):
  monkeypatch.delenv("WANDB_PROJECT", raising=False)
  loggers.WeightsAndBiases(config("wandb"), tmp_path / "seven", {})
  assert (run.project, run.name) == ("tfusion", "seven")
  assert run.dir == str(tmp_path / "seven") and run.resume == "allow"
  assert run.config["model"]["width"] == 32


def test_what_wandb_says_is_an_error_that_names_the_remedy(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")

  def refuse(**_):
    raise wandb.errors.UsageError("No API key configured.")

  for name in ("init", "login"):
    monkeypatch.setattr(wandb, name, refuse)
  for begin in (
    lambda: loggers.check(("wandb",), tmp_path),
    lambda: loggers.WeightsAndBiases(config("wandb"), tmp_path, {}),
  ):
    with pytest.raises(ValueError, match="No API key configured.*`wandb login`"):
      begin()


def test_a_damaged_wandb_json_is_named(tmp_path):
  pytest.importorskip("wandb")
  (tmp_path / "wandb.json").write_text('{"id": "a"')
  with pytest.raises(ValueError, match="wandb.json: is damaged"):
    loggers.WeightsAndBiases(config("wandb"), tmp_path, {})
