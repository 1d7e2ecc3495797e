"""Promises of tfusion/training/loop.py, on real runs on the digits, killed and all."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tiny
import tiny_loggers
import tiny_shards
from tiny import lines

from tfusion import report
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.sharding import make_mesh
from tfusion.training import executable, log, loop
from tfusion.training.lowered import lower_step
from tfusion.training.optim import make_schedule

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(loop.__file__).parents[2]
WRITE_REPORT = report.write_report
STEPS, SAVES, EVALS = 12, 2, 6
FILES = ("metrics.jsonl", "validation.jsonl")
# The real thing, with updates slow enough that a signal finds every part of them.
SLOWLY = """
import json, os, pathlib, signal, sys, threading, time
from tfusion import cli
from tfusion import config as config_lib
from tfusion.data.pipeline import HostBatches
from tfusion.training import loop

give, given = HostBatches.__next__, []

def slowly(self):
  given.append(0)
  if len(given) == int(os.environ.get("KILL_AT_STEP", -1)):
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    threading.Timer(float(os.environ["KILL_AFTER"]), kill).start()
  time.sleep(float(os.environ["PAUSE"]))
  return give(self)

HostBatches.__next__ = slowly
"""
RUN = (
  SLOWLY
  + """
values = json.loads(pathlib.Path(sys.argv[1]).read_text())
loop.train(config_lib.from_dict(values), sys.argv[2])
"""
)
# One run after the other, each killed at its moment; all imports are done once.
KILLED_RUNS = (
  SLOWLY
  + """
values = json.loads(pathlib.Path(sys.argv[1]).read_text())
for os.environ["KILL_AFTER"] in os.environ["KILLS_AFTER"].split():
  if not (child := os.fork()):
    loop.train(config_lib.from_dict(values), sys.argv[2])
    os._exit(0)
  assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""
)
COMMAND = (
  SLOWLY
  + """
sys.exit(cli.main(["train", "--config", sys.argv[1], "--workdir", sys.argv[2]]))
"""
)


def make_config(**changes) -> Config:
  """A run of 12 updates of a model that knows nothing afterwards."""
  values = dict(
    model__layers=1,
    model__width=32,
    model__heads=2,
    model__kv_heads=2,
    model__mlp=32,
    model__vocab_size=320,
    data__sources=("digits",),
    data__row_length=64,
    data__lanes=2,
    data__packing_rows=1,
    data__workers=0,
    optim__warmup_steps=2,
    optim__peak_lr=1e-2,
    train__steps=STEPS,
    train__batch_rows=4,
    train__log_every_steps=1,
    train__eval_every_steps=EVALS,
    train__eval_rows=4,
    train__save_every_steps=SAVES,
    train__keep_last=3,
  )
  return tiny.build(**(values | changes))


PLAIN = make_config()
# Everything that a state may hold and a worker process as well.
FULL_CHANGES = dict(optim__ema_decay=0.9, train__accumulate=2, data__workers=1)
FULL = make_config(**FULL_CHANGES)


@pytest.fixture(scope="module", autouse=True)
def no_report():
  """Writing one takes seconds: `reported` writes those that are looked at."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, "write_report", lambda workdir: None)
    yield


@pytest.fixture
def reported(monkeypatch):
  monkeypatch.setattr(report, "write_report", WRITE_REPORT)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, no_report):
  """The workdirs of undisturbed runs."""
  runs = {}
  for name, config in (("plain", PLAIN), ("full", FULL)):
    runs[name] = tmp_path_factory.mktemp(name) / "run"
    loop.train(config, runs[name])
  return runs


def assert_same_files(got: pathlib.Path, want: pathlib.Path):
  for name in FILES:
    assert (got / name).read_text() == (want / name).read_text(), name


def steps_of(workdir: pathlib.Path) -> list[int]:
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    return checkpoints.steps()


@contextlib.contextmanager
def running(code: str, config: Config, workdir: pathlib.Path, **environment: str):
  """A run in a process group of its own, which is gone at the end."""
  file = workdir.with_suffix(".py" if code == COMMAND else ".json")
  values = dataclasses.asdict(config)
  file.write_text(
    "import ml_collections\n"
    f"def get_config(arg=''):\n  return ml_collections.ConfigDict({values})\n"
    if code == COMMAND
    else json.dumps(values)
  )
  path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(file), str(workdir)],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  watchdog = threading.Timer(900, process.kill)
  watchdog.start()
  try:
    yield process
  finally:
    watchdog.cancel()
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def read_until(process: subprocess.Popen, start: str) -> str:
  """What the run says up to a line that begins so."""
  said = ""
  for line in process.stdout:
    said += line
    if line.startswith(start):
      return said
  raise AssertionError(f"ended without {start!r}:\n{said}")


# What a run leaves behind.


def test_a_run_leaves_its_files_and_every_line_its_keys(never_stopped):
  workdir = never_stopped["plain"]
  for name in ("config.json", "run.json", "data.json", "tokenizer.model"):
    assert (workdir / name).stat().st_size > 0
  assert workdir_lib.load_config(workdir) == PLAIN
  assert [x["step"] for x in lines(workdir)] == list(range(1, STEPS + 1))
  for line in lines(workdir):
    assert {"step", "loss", "loss_text", "loss_image", "grad_norm", "elements"} <= set(
      line
    )
    assert all(math.isfinite(x) for x in line.values())
    assert 0 < line["elements"] <= 4 * 64
  for line in lines(workdir, "speed"):
    assert {"step", "elements_per_s", "step_ms", "mfu", "data_wait_share"} <= set(line)
  assert [x["step"] for x in lines(workdir, "validation")] == [6, 12]
  for line in lines(workdir, "validation"):
    assert line["perplexity"] == pytest.approx(math.exp(line["loss_text"]))
    assert len(line["loss_image_bins"]) == 10
  assert steps_of(workdir) == [8, 10, 12]
  assert not list(workdir.glob("*.tmp"))


def test_training_learns(never_stopped):
  for workdir in never_stopped.values():
    losses = [x["loss"] for x in lines(workdir)]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_accumulation_and_the_average_change_what_they_should(never_stopped):
  plain, full = (lines(never_stopped[name]) for name in ("plain", "full"))
  # The same batches and noise; sums over microbatches run in another order.
  for a, b in zip(plain, full, strict=True):
    assert a["elements"] == b["elements"]
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
  # Validation looks at the average.
  a, b = (lines(never_stopped[n], "validation")[-1] for n in ("plain", "full"))
  assert a["loss_text"] != pytest.approx(b["loss_text"], rel=1e-3)


@pytest.mark.long
def test_a_run_without_images_has_no_image_loss_to_show(tmp_path, capfd, reported):
  prose = dict(data__sources=("pydoc",), model__vocab_size=512)
  steps = dict(train__steps=2, train__eval_every_steps=1, optim__ema_decay=0.9)
  config = make_config(**prose, **steps)
  workdir = tmp_path / "run"
  loop.train(config, workdir)
  said = capfd.readouterr().out
  assert "step 2/2  loss" in said
  assert re.search(
    r"step 2  held out: text [\d.]+ \(perplexity [\d.]+\)  image -", said
  )
  assert [x["images"] for x in lines(workdir)] == [0, 0]
  for line in lines(workdir, "validation"):
    assert line["loss_image"] is None and line["loss_image_bins"] == [None] * 10
    assert line["loss_text"] > 0 and line["text_targets"] > 0 and line["images"] == 0
  page = (workdir / "report.html").read_text()
  assert page.startswith("<!doctype html>") and "Cannot be shown" not in page
  assert "Finished: update 2 of 2" in page
  assert 'alt="Held-out loss: Text loss' in page
  assert 'alt="Held-out loss: Image loss' not in page


def test_the_console_says_what_is_going_on(tmp_path, capfd, never_stopped):
  workdir = shutil.copytree(never_stopped["plain"], tmp_path / "run")
  loop.train(PLAIN, workdir)
  said = capfd.readouterr().out
  assert "parameters on 1 x" in said
  assert f"goes on after step {STEPS} of {workdir}" in said
  assert "s in all" in said and str(workdir) in said
  assert_same_files(workdir, never_stopped["plain"])  # nothing was done again


class Awaited:
  """A metric on the device; notes when the host asks for its value."""

  def __init__(self, value, note):
    self.value, self.note = value, note

  def __array__(self, *args, **kwargs):
    self.note()
    return np.asarray(self.value)

  def __float__(self):
    return float(np.asarray(self))


def test_metrics_of_an_update_are_read_when_the_device_has_the_next(
  tmp_path, monkeypatch
):
  never = dict(train__save_every_steps=1000, train__eval_every_steps=1000)
  order, dispatch = [], jax.stages.Compiled.__call__

  def dispatched(self, *args):
    state, values = dispatch(self, *args)
    number = 1 + sum(event.startswith("update") for event in order)
    order.append(f"update {number}")
    note = lambda: order.append(f"metrics {number}")  # noqa: E731
    return state, {name: Awaited(x, note) for name, x in values.items()}

  monkeypatch.setattr(jax.stages.Compiled, "__call__", dispatched)
  loop.train(
    make_config(train__steps=4, optim__ema_decay=0.9, **never), tmp_path / "run"
  )
  want = "update 1, update 2, metrics 1, update 3, metrics 2, update 4, metrics 3"
  # A step has many metrics; behind the last update nothing follows.
  assert list(dict.fromkeys(order)) == [*want.split(", "), "metrics 4"]


# Stopped and started again.


@pytest.mark.long
def test_loggers_get_every_update_of_a_run_once_whatever_is_done_again(
  tmp_path, never_stopped, monkeypatch
):
  for library in ("tensorboard", "tensorboardX", "wandb"):
    pytest.importorskip(library)
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  loggers = dict(train__loggers=("tensorboard", "wandb"))
  # A run without them, which gets them, loses its newest checkpoints, and is longer.
  workdir = shutil.copytree(never_stopped["plain"], tmp_path / "run")
  loop.train(make_config(**loggers), workdir)
  for step in (STEPS, STEPS - SAVES):
    shutil.rmtree(workdir / "checkpoints" / f"{step}")
  loop.train(make_config(**loggers, train__steps=STEPS + 2), workdir)
  all_steps = list(range(1, STEPS + 3))
  found = tiny_loggers.scalars(workdir)
  for key in ("loss", "grad_norm"):
    shown = [value for _, value in found[f"metrics/{key}"]]
    assert [step for step, _ in found[f"metrics/{key}"]] == all_steps
    assert shown == [np.float32(line[key]) for line in lines(workdir)]
  assert [step for step, _ in found["validation/loss_text"]] == [6, 12, 14]
  (first, rows), (second, more) = tiny_loggers.starts_of(workdir)
  assert first == second and [step for step, _ in rows + more] == all_steps
  assert [step for step, _ in more] == [13, 14]
  # W&B takes nothing back: what was done again, at another rate, is of the first time.
  kept = lines(never_stopped["plain"]) + lines(workdir)[STEPS:]
  losses = [row["metrics/loss"] for _, row in rows + more]
  assert losses == [line["loss"] for line in kept]
  assert [s for s, row in rows + more if "validation/loss_text" in row] == [6, 12, 14]


def test_a_run_killed_at_a_random_moment_goes_on_as_if_it_never_stopped(
  tmp_path, capfd, never_stopped
):
  workdir = tmp_path / "run"
  # An update takes a tenth of a second and more, so that any moment may be hit once
  # there is something to go on from: each save waits for the one before.
  moment = {
    "KILL_AT_STEP": str(random.randint(2 * SAVES + 1, STEPS - 1)),
    "KILL_AFTER": str(random.uniform(0.0, 0.15)),
    "PAUSE": "0.1",
  }
  # Compiled afresh in that process: nothing may depend on the compiler's mood.
  with running(RUN, PLAIN, workdir, **moment) as process:
    said = process.stdout.read()
    assert process.wait() == -signal.SIGKILL, said
  written = log.read_lines(workdir / "metrics.jsonl")
  assert len(written) < STEPS
  loop.train(PLAIN, workdir)
  assert re.search(r"goes on after step [1-9]", capfd.readouterr().out), moment
  try:
    assert_same_files(workdir, never_stopped["plain"])
  except AssertionError as error:
    error.add_note(f"killed at {moment}, with {written[-1:]} written")
    raise
  assert steps_of(workdir)[-1] == STEPS


@pytest.mark.long
def test_a_run_on_shards_killed_ten_times_takes_every_document_once(tmp_path):
  tiny_shards.make(tmp_path / "shards", train=40)
  config = make_config(
    model__image_shape=(4, 4, 2),
    data__sources=(f"shards:{tmp_path / 'shards'}",),
    train__steps=70,
    train__eval_every_steps=70,
    **FULL_CHANGES,
  )
  want, got = tmp_path / "want", tmp_path / "got"
  loop.train(config, want)
  # From the first batch on: while it compiles, in an update, in a save. An update
  # takes a quarter of a second, so that none of the ten comes to the end.
  moments = " ".join(str(random.uniform(0, 2.5)) for _ in range(10))
  kills = {"KILL_AT_STEP": "1", "KILLS_AFTER": moments, "PAUSE": "0.25"}
  with running(KILLED_RUNS, config, got, **kills) as process:
    said = process.stdout.read()
    assert process.wait() == 0, f"{moments}\n{said}"
  loop.train(config, got)
  assert_same_files(got, want)  # every update, of the same rows to the last bit
  for name in ("data.json", "skipped.json"):
    assert (got / name).is_file() == (want / name).is_file()
  assert json.loads((got / "data.json").read_text()) == json.loads(
    (want / "data.json").read_text()
  )
  lanes = restored_lanes(got)
  assert lanes == restored_lanes(want)
  drawn = sum(sum(lane["drawn"].values()) for lane in lanes.values())
  assert drawn > 2 * 40  # epochs


def restored_lanes(workdir: pathlib.Path) -> dict:
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    return checkpoints.describe(checkpoints.latest)["lanes"]


@pytest.mark.parametrize(
  "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_run_told_to_stop_saves_says_so_by_its_status_and_the_next_goes_on(
  tmp_path, capfd, never_stopped, number
):
  workdir = tmp_path / "run"
  rarely_saved = make_config(**FULL_CHANGES, train__save_every_steps=1000)
  with running(COMMAND, rarely_saved, workdir, PAUSE="0.3") as process:
    read_until(process, "step 3/")
    os.killpg(process.pid, number)  # as a terminal does: workers get it too
    said = process.stdout.read()
    # As a scheduler knows it, which starts again what has not ended with 0.
    assert process.wait() == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
  assert f"{number.name}: saving and stopping" in said
  assert f"stopped by {number.name} after step" in said and "Traceback" not in said
  done = lines(workdir)[-1]["step"]
  assert 3 <= done < STEPS and steps_of(workdir)[-1] == done
  loop.train(FULL, workdir)
  assert f"goes on after step {done} of" in capfd.readouterr().out
  assert_same_files(workdir, never_stopped["full"])


@pytest.mark.long
@pytest.mark.parametrize(
  "damage", ["a flipped bit", pytest.param("a missing file", marks=pytest.mark.long)]
)
def test_a_damaged_newest_checkpoint_is_left_for_the_one_before_and_it_is_said(
  tmp_path, capfd, caplog, never_stopped, damage
):
  workdir = shutil.copytree(never_stopped["full"], tmp_path / "run")
  newest = workdir / "checkpoints" / str(STEPS)
  file = max((p for p in newest.rglob("*") if p.is_file()), key=os.path.getsize)
  if damage == "a missing file":
    file.unlink()
  else:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  loop.train(FULL, workdir)
  assert f"goes on after step {STEPS - SAVES} of" in capfd.readouterr().out
  assert f"checkpoints/{STEPS} is skipped" in caplog.text
  assert (workdir / "checkpoints" / f"{STEPS}.corrupt").is_dir()
  assert_same_files(workdir, never_stopped["full"])


@pytest.mark.parametrize(
  "name, config",
  [("plain", PLAIN), pytest.param("full", FULL, marks=pytest.mark.long)],
)
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(
  tmp_path, monkeypatch, never_stopped, name, config
):
  workdir, measure = tmp_path / "run", loop.validate

  def killed(*_, **__):
    raise InterruptedError

  monkeypatch.setattr(loop, "validate", killed)
  with pytest.raises(InterruptedError):
    loop.train(config, workdir)
  assert steps_of(workdir)[-1] == EVALS and lines(workdir, "validation") == []
  monkeypatch.setattr(loop, "validate", measure)
  loop.train(config, workdir)
  assert_same_files(workdir, never_stopped[name])
  # The last one too, when all updates are done.
  file = workdir / "validation.jsonl"
  file.write_text(file.read_text().splitlines(keepends=True)[0])
  loop.train(config, workdir)
  assert_same_files(workdir, never_stopped[name])


def test_a_line_is_on_disk_before_the_checkpoint_that_follows_it(tmp_path, monkeypatch):
  workdir, seen, save = tmp_path / "run", [], Checkpoints.save

  def look(self, step, *args, **options):
    seen.append((step, lines(workdir)[-1]["step"]))
    return save(self, step, *args, **options)

  monkeypatch.setattr(Checkpoints, "save", look)
  loop.train(PLAIN, workdir)
  assert [step for step, _ in seen] == [2, 4, 6, 8, 10, 12, 12]
  assert all(saved == logged for saved, logged in seen)


@pytest.mark.long
def test_a_clock_of_the_system_that_leaps_ends_no_run_and_spoils_no_rate(
  tmp_path, monkeypatch
):
  workdir, true, looks = tmp_path / "run", time.time, itertools.count()

  def leaping():
    """A day forth, and a day back, at every second look of ours. Orbax, which looks
    too, would give up a save that seems to have taken a day."""
    ours = sys._getframe(1).f_globals["__name__"].startswith("tfusion")
    return true() + 86_400 * (next(looks) % 2 if ours else 0)

  monkeypatch.setattr(time, "time", leaping)
  begin = time.monotonic()
  loop.train(make_config(train__steps=6, train__stall_seconds=60), workdir)
  loop.train(make_config(train__stall_seconds=60), workdir)
  spent = time.monotonic() - begin
  assert next(looks) > 10
  assert [x["step"] for x in lines(workdir)] == list(range(1, STEPS + 1))
  for line in lines(workdir, "speed"):
    assert 0 < line["step_ms"] < 1e3 * spent and 0 < line["seconds"] < spent, line
    assert line["elements_per_s"] > 0 and 0 <= line["data_wait_share"] <= 1, line
  account = json.loads((workdir / "goodput.json").read_text())
  assert min(account["seconds"].values()) >= 0 and 0 < account["goodput"] < 1
  if sys.platform == "linux":  # elsewhere, what lies between two starts leaps too
    assert sum(account["seconds"].values()) == pytest.approx(spent, rel=0.1)


@pytest.mark.long
def test_a_longer_run_goes_on_with_the_schedule_of_its_new_length(tmp_path, capfd):
  workdir, short = tmp_path / "run", make_config(train__steps=6)
  loop.train(short, workdir)
  first = lines(workdir)
  assert first[-1]["lr"] < 2e-3  # near the end of its cosine
  capfd.readouterr()
  loop.train(PLAIN, workdir)
  said = capfd.readouterr().out
  rate = float(make_schedule(PLAIN)(6))
  assert f"with train.steps: 6 -> {STEPS}; the learning rate is now {rate:.3g}" in said
  assert lines(workdir)[:6] == first
  assert [x["step"] for x in lines(workdir)] == list(range(1, STEPS + 1))
  rates = [x["lr"] for x in lines(workdir)[6:]]
  # The rate of an update is that after the updates before it.
  want = [float(make_schedule(PLAIN)(i)) for i in range(6, 12)]
  assert rates == pytest.approx(want, rel=1e-4)  # float32 cosines near their end
  assert workdir_lib.load_config(workdir) == PLAIN


def test_a_shorter_run_than_was_done_is_finished(tmp_path, capfd, never_stopped):
  workdir = shutil.copytree(never_stopped["plain"], tmp_path / "run")
  state = loop.train(make_config(train__steps=6), workdir)
  assert int(state.step) == STEPS
  assert_same_files(workdir, never_stopped["plain"])


def test_an_executable_that_is_not_there_is_refused_before_any_work(tmp_path):
  with pytest.raises(ValueError, match="^--executable=.*none: there is no such file"):
    loop.train(PLAIN, tmp_path / "run", executable=tmp_path / "none")
  assert not (tmp_path / "run").exists()


def test_a_stale_executable_is_refused_before_any_work_and_says_what_differs(tmp_path):
  (tmp_path / "step").write_text('{"tfusion": "0.0.1"}\n')
  with pytest.raises(ValueError) as error:
    loop.train(PLAIN, tmp_path / "run", executable=tmp_path / "step")
  said = str(error.value)
  assert said.startswith(f"--executable={tmp_path}/step: its tfusion is 0.0.1, here")
  assert "write it anew with `tfusion compile --save`" in said
  assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_run_takes_the_executable_of_its_config_without_compiling(
  tmp_path, monkeypatch
):
  config = make_config(train__steps=2)
  path, mesh = tmp_path / "step", make_mesh(config.mesh)
  jax.config.update("jax_enable_compilation_cache", False)  # what is found is not kept
  try:
    with jax.set_mesh(mesh):
      lowered = lower_step(config, mesh)
      executable.save(lowered.compile(), lowered, path)
    loaded = []
    load = executable.load
    monkeypatch.setattr(executable, "load", lambda *x: loaded.append(x) or load(*x))
    state = loop.train(config, tmp_path / "run", executable=path)
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert int(state.step) == 2 and loaded


def test_a_workdir_of_another_model_is_left_as_it_is(tmp_path, never_stopped):
  workdir = shutil.copytree(never_stopped["plain"], tmp_path / "run")
  with pytest.raises(ValueError, match="model.width: 32 -> 64"):
    loop.train(make_config(model__width=64), workdir)
  assert workdir_lib.load_config(workdir) == PLAIN
  assert_same_files(workdir, never_stopped["plain"])


# Many devices.

ON_A_MESH = """
import json, pathlib, sys
from tfusion import config as config_lib
from tfusion.data.pipeline import HostBatches
from tfusion.training import loop

give, given = HostBatches.__next__, []

def interrupted_once(self):
  given.append(0)
  if len(given) == 4:
    raise InterruptedError
  return give(self)

HostBatches.__next__ = interrupted_once
config = config_lib.from_dict(json.loads(pathlib.Path(sys.argv[1]).read_text()))
try:
  loop.train(config, sys.argv[2])
except InterruptedError:
  loop.train(config, sys.argv[2])
"""


@pytest.mark.long
def test_a_run_on_a_mesh_of_eight_interrupted_and_resumed_writes_what_one_device_does(
  tmp_path,
):
  # Adam divides by eps where a gradient is rounding alone.
  gentle = dict(optim__ema_decay=0.9, optim__peak_lr=1e-3, optim__eps=1e-6)
  gentle |= dict(train__steps=6, train__eval_every_steps=3)
  workdir, alone = tmp_path / "mesh", tmp_path / "alone"
  config = make_config(**gentle, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  with running(ON_A_MESH, config, workdir, **eight) as process:
    said = process.stdout.read()
    assert process.wait() == 0, said
  assert "parameters on 8 x" in said and "goes on after step 3 of" in said
  loop.train(make_config(**gentle), alone)
  for name in ("metrics", "validation"):
    assert len(lines(alone, name)) == {"metrics": 6, "validation": 2}[name]
    for got, want in zip(lines(workdir, name), lines(alone, name), strict=True):
      assert got.keys() == want.keys()
      for key in want:
        pair = [np.asarray(x[key], float) for x in (got, want)]  # None, no image: nan
        # Sums over devices run in another order; small numbers relative to 1.
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5, err_msg=key)


# Numbers that are not finite.


def test_updates_that_are_not_finite_stop_the_run_naming_the_step(
  tmp_path, capfd, monkeypatch, never_stopped
):
  config = make_config(train__max_skipped_updates=3)
  workdir, given = tmp_path / "run", []
  give = loop.HostBatches.__next__

  def broken_from_the_fifth(self):
    batch = give(self)
    given.append(batch)
    bad = np.full_like(batch.slots[0].latents, np.nan)
    return tiny.with_slots(batch, latents=bad) if len(given) >= 5 else batch

  monkeypatch.setattr(loop.HostBatches, "__next__", broken_from_the_fifth)
  with pytest.raises(FloatingPointError, match=r"step 7: .* in 3 updates in a row"):
    loop.train(config, workdir)
  said = capfd.readouterr().out
  assert "step 5: not finite, update skipped" in said
  logged = lines(workdir)  # strict JSON, without nan
  assert [x["skipped"] for x in logged] == [0, 0, 0, 0, 1, 2]
  assert logged[4]["loss"] is None and logged[3]["loss"] is not None
  assert steps_of(workdir) == [2, 4, 6]
  # With good data the next start goes on, from the weights before the bad updates.
  monkeypatch.setattr(loop.HostBatches, "__next__", give)
  state = loop.train(config, workdir)
  assert int(state.step) == STEPS and int(state.skipped_total) == 2
  assert [x["skipped_total"] for x in lines(workdir)] == [0] * 4 + [1] + [2] * 7
  want = lines(never_stopped["plain"])
  assert lines(workdir)[:4] == want[:4]
  assert all(math.isfinite(x["loss"]) for x in lines(workdir)[6:])


# Evaluations.


def test_evaluations_are_handed_the_average_at_every_evaluation(
  tmp_path, never_stopped
):
  workdir, calls = shutil.copytree(never_stopped["full"], tmp_path / "run"), []
  for step in steps_of(workdir)[1:]:
    shutil.rmtree(workdir / "checkpoints" / str(step))

  class Look:
    def check(self, corpus):
      assert corpus.test and not calls

    def __call__(self, step, params, corpus):
      calls.append((step, np.asarray(params["head"]).copy(), corpus))

  state = loop.train(FULL, workdir, evaluations=[Look()])  # goes on after step 8
  assert [step for step, *_ in calls] == [STEPS]
  _, head, corpus = calls[0]
  np.testing.assert_array_equal(head, state.ema["head"])
  assert (head != np.asarray(state.params["head"])).any()
  assert [source.name for source in corpus.test] == ["digits"]


def test_an_evaluation_that_was_killed_is_done_again_and_a_whole_one_is_not(
  tmp_path, never_stopped
):
  workdir, steps = shutil.copytree(never_stopped["plain"], tmp_path / "run"), []
  lines = (workdir / "validation.jsonl").read_text()
  (workdir / "validation.jsonl").write_text(lines.splitlines(keepends=True)[0])

  class Killed(Exception):
    pass

  class Judge:
    def check(self, corpus):
      pass

    def __call__(self, step, params, corpus):
      steps.append(step)
      if len(steps) == 1:
        raise Killed

  with pytest.raises(Killed):
    loop.train(PLAIN, workdir, evaluations=[Judge()])
  for _ in range(2):
    loop.train(PLAIN, workdir, evaluations=[Judge()])
  assert steps == [STEPS, STEPS]
  assert (workdir / "validation.jsonl").read_text() == lines


def test_an_evaluation_that_cannot_be_done_is_refused_before_any_work(tmp_path):
  class Refuse:
    def check(self, corpus):
      raise ValueError("eval.prompts: no")

  with pytest.raises(ValueError, match="eval.prompts: no"):
    loop.train(PLAIN, tmp_path / "run", evaluations=[Refuse()])
  assert not (tmp_path / "run" / "metrics.jsonl").exists()
  assert not (tmp_path / "run" / "config.json").exists()


# The files of lines.


def test_a_line_that_a_killed_run_left_unfinished_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
  file = log.JsonLines(path, last_step=2, writes=True)
  assert file.last_step == 2
  file.append({"step": 3, "loss": math.nan, "bins": [1.0, math.inf]})
  assert path.read_text() == (
    '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": null, "bins": [1.0, null]}\n'
  )


def test_a_host_that_does_not_write_leaves_the_file_alone(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n')
  log.JsonLines(path, last_step=1, writes=False).append({"step": 2})
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
