"""Doing the runs of suites, with a stand-in for `tfusion`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfusion.ablations import assets, board, results, runner
from tfusion.ablations.board import Place
from tfusion.ablations.suites import Arm, Claim, Suite

ROOT = Path(__file__).parents[2]

# What `tfusion train`, `eval` and `export` leave, in no time.
FAKE = """
import json, pathlib, sys, time
from tfusion import config_file, workdir as workdir_lib

arguments = sys.argv[1:]
command, rest = arguments[0], arguments[1:]
options = dict(zip(rest[::2], rest[1::2])) if command == "train" else {}
given = [one for one in arguments if one.startswith("--config.")]
where = pathlib.Path(rest[rest.index("--workdir") + 1]) if "--workdir" in rest else None
log = pathlib.Path(FOLDER) / "calls.jsonl"
with log.open("a") as file:
  file.write(json.dumps(arguments) + "\\n")
if command == "export":
  pathlib.Path(rest[1].partition("=")[2]).mkdir()
if command == "train":
  config = config_file.read_config(rest[rest.index("--config") + 1], given)
  if config.seed == 1 and "FAIL" in FAILS and "causal" in str(given):
    sys.exit("no memory")
  time.sleep(SECONDS)
  where.mkdir(parents=True, exist_ok=True)
  workdir_lib.save_config(config, where)
  steps, rate = config.train.steps, config.optim.peak_lr
  line = {"step": steps, "loss_text": 1 + abs(rate - 3e-3), "loss_image": 0.1}
  line |= {"elements": 100.0}
  (where / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
  (where / "validation.jsonl").write_text(json.dumps(line) + "\\n")
  speed = {"step": steps, "flops_per_element": 7.0}
  (where / "speed.jsonl").write_text(json.dumps(speed) + "\\n")
  (where / "run.json").write_text(json.dumps({"parameters": 1000, "cores": 2}))
if command == "eval":
  values = {"scenes_geneval": 0.5, "scenes_cider": 10.0, "step": 1}
  (where / "eval.json").write_text(json.dumps(values))
"""
SUITE = Suite(
  "two",
  "Two arms.",
  (
    Arm("causal", {"model.image_attention": "causal"}),
    Arm("bidirectional"),
  ),
  (Claim("bidirectional", "causal", "scenes_geneval", "us"),),
  metrics=("scenes_geneval",),
)


@pytest.fixture
def work(tmp_path, monkeypatch):
  """The place of an ablation whose commands are stand-ins; returns it and `calls`."""
  monkeypatch.chdir(ROOT)
  place = Place("smoke", 2, tmp_path / "runs", tmp_path / "out" / results.ROOM)
  monkeypatch.setattr(assets, "commands", lambda *_, **__: [])
  monkeypatch.setattr(assets, "make_tokenizer", lambda _: None)
  use(monkeypatch, tmp_path)

  def calls(command):
    path = tmp_path / "calls.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [json.loads(line) for line in lines]
    return [one for one in found if one[0] == command]

  return place, calls


def use(monkeypatch, folder, *, fails="", seconds=0.0):
  head = f"FOLDER, FAILS, SECONDS = {str(folder)!r}, {fails!r}, {seconds}\n"
  program = folder / "fake.py"
  program.write_text(head + FAKE)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setattr(
    runner, "_on", lambda device, rest: ([sys.executable, str(program), *rest], {})
  )


def run(place, *wanted, **more):
  said = []
  missing = runner.run(place, wanted or [SUITE], say=said.append, **more)
  return missing, said


@pytest.mark.slow
def test_a_suite_searches_rates_trains_every_seed_and_measures_it(work):
  place, calls = work
  missing, _ = run(place)
  assert missing == 0
  # Three tries for each arm, two seeds; only the seeds are measured.
  assert len(calls("train")) == 2 * 3 + 2 * 2
  assert len(calls("eval")) == 2 * 2
  found = board.gather(place, SUITE)
  assert (found.done, found.wanted) == (4, 4)
  assert [one.rate for one in found.standings] == [1.0, 1.0]
  assert found.standing("causal").values("scenes_geneval") == {0: 0.5, 1: 0.5}
  about = found.standings[0].seats[0].result.about
  assert about["flops_6nd"] == 6 * 1000 * 100 * 8  # parameters, elements, updates
  assert about["flops_exact"] == 7 * 100 * 8


@pytest.mark.slow
def test_what_is_done_is_not_done_again_by_any_suite(work):
  place, calls = work
  run(place)
  before = len(calls("train"))
  assert run(place) == (0, [])
  other = SUITE._replace(name="other", arms=SUITE.arms[1:], claims=())
  run(place, other)
  assert len(calls("train")) == before


@pytest.mark.slow
def test_one_model_is_trained_once_and_sampled_in_many_ways(work):
  place, calls = work
  arms = tuple(Arm(f"{s:g}", {"sample.guidance": s}) for s in (2.0, 5.0))
  suite = SUITE._replace(arms=arms, claims=())
  run(place._replace(search=False), suite)
  assert len(calls("train")) == 2 and len(calls("eval")) == 4
  assert {one[-1] for one in calls("eval")} == {
    "--config.sample.guidance=2.0",
    "--config.sample.guidance=5.0",
  }


@pytest.mark.slow
def test_a_run_that_fails_is_said_and_the_rest_goes_on(work, monkeypatch, tmp_path):
  place, calls = work
  place = place._replace(search=False)
  use(monkeypatch, tmp_path, fails="FAIL")
  missing, said = run(place)
  assert missing == 1
  assert any("causal, seed 1: failed" in line and "no memory" in line for line in said)
  found = board.gather(place, SUITE)
  assert found.done == 3 and "no memory" in found.standing("causal").seats[1].failed
  use(monkeypatch, tmp_path)
  assert run(place)[0] == 0
  assert board.gather(place, SUITE).done == 4
  assert len(calls("train")) == 4 + 1


@pytest.mark.slow
def test_a_run_starts_from_the_exported_weights_of_another(work):
  place, calls = work
  text = Arm("text", ground="text")
  suite = SUITE._replace(arms=(Arm("warm", start=text),), claims=())
  assert run(place._replace(search=False), suite)[0] == 0
  (export,) = calls("export")[:1]
  weights = export[2].removeprefix("--to=")
  warm = [one for one in calls("train") if f"--config.train.init_from={weights}" in one]
  assert len(warm) == 1 and len(calls("export")) == 2  # a seed each
  # Before it can begin, the text model of its seed is trained.
  assert calls("train").index(warm[0]) > 0


@pytest.mark.slow
def test_several_runs_are_at_work_at_once_and_never_two_on_one_device(
  work, monkeypatch, tmp_path
):
  place, _ = work
  busy, seen = set(), []
  plain = runner._Work._command

  def command(self, arguments, log, device):
    assert device not in busy
    busy.add(device)
    seen.append(len(busy))
    try:
      plain(self, arguments, log, device)
    finally:
      busy.discard(device)

  use(monkeypatch, tmp_path, seconds=0.3)
  monkeypatch.setattr(runner._Work, "_command", command)
  run(place._replace(search=False), devices=("gpu:0", "gpu:1"))
  assert max(seen) == 2


KILLED = """
import sys, pathlib
sys.path[:0] = [{tests!r}, {own!r}]
import test_runner
from tfusion.ablations import assets, runner

assets.commands = lambda *_, **__: []
assets.make_tokenizer = lambda _: None
runner._on = lambda device, rest: ([sys.executable, {fake!r}, *rest], {{}})
place = runner.Place("smoke", 2, pathlib.Path({runs!r}), pathlib.Path({out!r}))
runner.run(place._replace(search=False), [test_runner.SUITE], say=print)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_suite_that_is_killed_goes_on(work, monkeypatch, tmp_path, number):
  place, calls = work
  place = place._replace(search=False)
  use(monkeypatch, tmp_path, seconds=1.5)
  program = KILLED.format(
    tests=str(ROOT / "tests"),
    own=str(ROOT / "tests" / "ablations"),
    fake=str(tmp_path / "fake.py"),
    runs=str(place.folder),
    out=str(place.results),
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    start_new_session=True,
  )
  deadline = time.monotonic() + 120
  while not list(place.results.glob("*.json")) or len(calls("train")) < 2:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  os.killpg(process.pid, number) if number == signal.SIGKILL else process.terminate()
  status = process.wait(timeout=60)
  assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
  done = {path.name for path in place.results.glob("*.json")}
  assert 1 <= len(done) < 4
  before = len(calls("train"))
  use(monkeypatch, tmp_path)
  assert run(place)[0] == 0
  assert done < {path.name for path in place.results.glob("*.json")}
  assert len(calls("train")) == before + 4 - len(done)


def test_what_an_interrupted_command_left_is_not_taken_for_whole(
  work, monkeypatch, tmp_path
):
  place, calls = work
  made = tmp_path / "autoencoder.safetensors"
  made.write_bytes(b"of an earlier save")
  log = tmp_path / "vae.log"
  command = assets.Command("autoencoder", made, ["autoencoder"], log)
  monkeypatch.setattr(assets, "commands", lambda *_, **__: [command])
  for _ in range(2):
    runner.run(place, [SUITE])
  assert calls("autoencoder") == [["autoencoder"]]


def test_devices_are_taken_apart():
  assert runner.parse_devices("") == ()
  assert runner.parse_devices("gpu:0, gpu:1") == ("gpu:0", "gpu:1")
  assert runner.parse_devices("cpu:0-3,cpu:4") == ("cpu:0-3", "cpu:4")
  for text in ("0", "gpu:a", "cpu:1-2-3", "tpu:0-1"):
    with pytest.raises(ValueError, match="write gpu:0,gpu:1"):
      runner.parse_devices(text)


def test_a_device_is_all_that_a_process_sees():
  argv, environment = runner._on("gpu:2", ["train"])
  assert argv[1:] == ["-m", "tfusion", "train"]
  assert environment == {"CUDA_VISIBLE_DEVICES": "2"}
  code = "import os, sys; print(sorted(os.sched_getaffinity(0)), sys.argv)"
  argv, environment = runner._on("cpu:0", ["--version"])
  assert argv[3:] == ["0", "--version"] and environment == {}
  argv[2] = argv[2].replace("'-m', 'tfusion'", f"'-c', {code!r}")
  done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
  assert done.stdout.startswith("[0]")


def test_a_second_process_in_the_same_folder_is_refused(work):
  from tfusion import lock

  place, _ = work
  place.folder.mkdir(parents=True)
  with lock.hold(place.folder), pytest.raises(ValueError, match="in use"):
    run(place)


def test_an_arm_whose_knobs_do_not_fit_is_refused_before_any_work(work):
  place, calls = work
  suite = SUITE._replace(arms=(Arm("odd", {"model.patch": 3}),), claims=())
  with pytest.raises(ValueError, match="model.patch=3"):
    run(place, suite)
  assert not calls("train") and not place.folder.exists()
