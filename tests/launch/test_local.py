"""launch/local.sh: several processes of this machine as hosts."""

import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_experiments

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = str(ROOT / "launch" / "local.sh")


def run(*args: str, **more) -> subprocess.CompletedProcess:
  return subprocess.run(
    [LOCAL, *args], capture_output=True, text=True, timeout=1200, **more
  )


def test_without_run_it_prints_one_command_a_host_and_starts_none(tmp_path):
  out = run("2", "--devices", "3", "--", "touch", str(tmp_path / "a file"))
  assert out.returncode == 0 and not list(tmp_path.iterdir())
  for host, line in enumerate(out.stdout.splitlines()):
    words = shlex.split(line)
    assert words[:3] == [
      "JAX_PLATFORMS=cpu",
      "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
      "JAX_NUM_CPU_DEVICES=3",
    ]
    assert words[3:6] == ["touch", str(tmp_path / "a file"), "--distributed"]
    address, index, count = words[6].split(",")
    assert (index, count) == (str(host), "2")
    assert address.startswith("localhost:") and host < 2
  assert len(out.stdout.splitlines()) == 2


@pytest.mark.parametrize(
  ("args", "says"),
  [
    ([], "N is missing"),
    (["--run", "--", "true"], "N is missing"),
    (["two", "--", "true"], "N=two: give a number from 1"),
    (["2"], "COMMAND is missing"),
    (["2", "true"], "true: the command stands after --"),
    (["2", "--devices", "0", "--", "true"], "--devices 0: give a number from 1"),
    (["2", "--host", "--", "true"], "--host: no such option"),
  ],
)
def test_a_wrong_argument_is_named(args, says):
  out = run(*args)
  assert out.returncode == 2 and says in out.stderr and not out.stdout


@pytest.mark.slow
def test_every_line_says_its_host_and_the_first_failure_is_the_status():
  # Host 1 fails first, with 7; host 0 later, with 3.
  code = """
    case "$2" in
      *,0,2) printf 'a\\nlast'; sleep 1; exit 3 ;;
      *,1,2) echo "$JAX_NUM_CPU_DEVICES devices" >&2; exit 7 ;;
    esac
  """
  out = run("2", "--run", "--", "bash", "-c", code, "host")
  assert out.returncode == 7, out.stderr
  lines = ["[host 0] a", "[host 0] last", "[host 1] 4 devices"]
  assert sorted(out.stdout.splitlines()) == lines


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_on_to_every_host_once(number):
  # A second one, as Ctrl-C gives to a whole terminal, would be counted.
  code = f"""
    told=0
    trap 'told=$((told + 1))' {number.name.removeprefix("SIG")}
    echo up
    while [ $told = 0 ]; do sleep 0.1; done
    sleep 0.5
    echo told $told
    exit {128 + number}
  """
  started = subprocess.Popen(
    [LOCAL, "2", "--run", "--", "bash", "-c", code, "host"],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  lines = [started.stdout.readline() for _ in range(2)]
  assert sorted(lines) == ["[host 0] up\n", "[host 1] up\n"]
  time.sleep(0.2)
  started.send_signal(number)
  rest, _ = started.communicate(timeout=180)
  assert started.returncode == 128 + number
  assert sorted(rest.splitlines()) == ["[host 0] told 1", "[host 1] told 1"]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_the_smallest_config_as_one(tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  experiment = tiny_experiments.write(tmp_path, tiny_experiments.MODEL)
  more = ["--config.data.lanes=8"]
  more += ["--config.train.batch_rows=8", "--config.train.eval_rows=8"]

  def train(workdir: str) -> list[str]:
    command = [sys.executable, "-m", "tfusion", "train", "--config", str(experiment)]
    return [*command, "--workdir", str(tmp_path / workdir), *more]

  def losses(workdir: str) -> list[float]:
    lines = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]

  out = run("2", "--devices", "1", "--run", "--", *train("two"))
  assert out.returncode == 0, out.stdout + out.stderr
  assert "[host 0] " in out.stdout and "step 4/4" in out.stdout
  # They sample and judge together, too; one of them speaks.
  assert out.stdout.count("text_perplexity_per_byte") == 1
  assert list((tmp_path / "two" / "samples").iterdir())
  shown = json.loads((tmp_path / "two" / "run.json").read_text())
  assert shown["hosts"] == 2
  one = subprocess.run(train("one"), capture_output=True, text=True, timeout=1200)
  assert one.returncode == 0, one.stdout + one.stderr
  assert len(losses("two")) == 4
  np.testing.assert_allclose(losses("two"), losses("one"), rtol=2e-5)
