"""Two processes of `tfusion train --distributed`, four devices each, as two hosts."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import tiny

from tfusion import cli
from tfusion.training import loop

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
# A whole run: updates on a mesh over both hosts, a checkpoint, pictures, judging.
SMALLEST = [
  "--config.model.layers=1",
  "--config.model.unroll=1",
  "--config.model.width=32",
  "--config.model.mlp=32",
  "--config.data.row_length=64",
  "--config.data.lanes=8",
  "--config.data.workers=0",
  "--config.train.batch_rows=8",
  "--config.train.eval_rows=8",
  "--config.train.save_every_steps=2",
  "--config.train.eval_every_steps=2",
  "--config.train.log_every_steps=1",
  "--config.sample.sampler=ddim",
  "--config.sample.steps=2",
  "--config.eval.samples_per_class=1",
  "--config.eval.text_rows=8",
]
CONFIG = str(ROOT / "experiments" / "digits.py:smoke")


COMMAND = "import sys; from tfusion import cli; sys.exit(cli.main(sys.argv[1:]))"
# The second host reads its data slowly.
SLOW_SECOND = """
import time
import jax
from tfusion.data.pipeline import HostBatches

give = HostBatches.__next__

def slowly(self):
  time.sleep(1.0 * jax.process_index())
  return give(self)

HostBatches.__next__ = slowly
"""

# Evaluates and samples nothing on the way.
TRAINING = [*SMALLEST, "--config.train.eval_every_steps=100000"]
TRAINING += ["--config.train.save_every_steps=4"]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
  """Of a process that is a host; programs are compiled once."""
  with tiny.compiled_once(tmp_path_factory.mktemp("compiled")) as where:
    yield (
      os.environ
      | where
      | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_NUM_CPU_DEVICES": "4",
        "PYTHONPATH": str(ROOT),
        **tiny.QUICK,
      }
    )


class Host:
  """A process of a run; what it prints goes to a file."""

  def __init__(self, command: list[str], env: dict[str, str], printed: pathlib.Path):
    self.printed = printed
    with printed.open("w") as file:
      self.process = subprocess.Popen(command, env=env, stdout=file, stderr=file)

  @property
  def said(self) -> str:
    return self.printed.read_text(errors="replace")

  def wait_for(self, text: str) -> None:
    end = time.monotonic() + 300
    while text not in self.said:
      alive = self.process.poll() is None and time.monotonic() < end
      assert alive or text in self.said, f"waits for {text!r}:\n{self.said}"
      time.sleep(0.05)


@contextlib.contextmanager
def two_hosts(
  env, workdir: pathlib.Path, *more: str, config=CONFIG, knobs=TRAINING, code=COMMAND
):
  """Two processes of the command, which do not outlive the `with`."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-c", code, "train", "--config", config]
  command += ["--workdir", str(workdir), *knobs, *more, "--distributed"]
  folder = pathlib.Path(tempfile.mkdtemp())
  files = [folder / f"{i}.txt" for i in range(2)]
  hosts = [
    Host([*command, f"{address},{i},2"], env, path) for i, path in enumerate(files)
  ]
  try:
    yield hosts
  finally:
    for host in hosts:
      host.process.kill()
      host.process.wait()


def ends(hosts: list[Host], *statuses: int, within: float = 600) -> list[str]:
  """What hosts have printed that end with these statuses."""
  end = time.monotonic() + within
  for host in hosts:
    host.process.wait(timeout=max(end - time.monotonic(), 0.1))
  said = [host.said for host in hosts]
  assert [host.process.returncode for host in hosts] == list(statuses), "\n".join(said)
  return said


def run_two_hosts(env, workdir: pathlib.Path, *more: str, **how) -> list[str]:
  """Runs the command in two processes; returns what they printed."""
  with two_hosts(env, workdir, *more, **how) as hosts:
    return ends(hosts, 0, 0)


def values(workdir: pathlib.Path, name: str) -> list[dict]:
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def test_two_hosts_train_as_one_and_one_goes_on_from_their_checkpoint(env, tmp_path):
  both, one = tmp_path / "both", tmp_path / "one"
  mesh = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
  first, second = run_two_hosts(
    env, both, *mesh, "--config.train.steps=2", knobs=SMALLEST
  )
  assert "step 2/2" in first and "caption_accuracy" in first
  assert "held out" not in second  # one host speaks
  assert json.loads((both / "run.json").read_text())["hosts"] == 2
  counted = json.loads((both / "data.json").read_text())  # of both hosts
  # One host with one device goes on where they were.
  for workdir, steps in ((both, 4), (one, 2), (one, 4)):
    config = cli.read_config(CONFIG, [*SMALLEST, f"--config.train.steps={steps}"])
    with tiny.quick():
      loop.train(config, workdir)
    if (workdir, steps) == (one, 2):
      assert json.loads((one / "data.json").read_text()) == counted
  for name in ("metrics.jsonl", "validation.jsonl"):
    got, want = values(both, name), values(one, name)
    assert [x["step"] for x in got] == [x["step"] for x in want]
    for a, b in zip(got, want):
      for key in ("loss", "loss_text", "loss_image", "grad_norm", "elements"):
        if key in b:
          # Sums over devices are in another order.
          np.testing.assert_allclose(a[key], b[key], rtol=2e-5, err_msg=key)
  assert (both / "eval" / "digits.png").is_file()


def test_a_slow_host_is_named_and_the_first_alone_has_loggers(env, tmp_path):
  pytest.importorskip("tensorboardX")
  knobs = [*TRAINING, "--config.train.loggers=('tensorboard',)"]
  first, second = run_two_hosts(
    env,
    tmp_path,
    "--config.train.steps=7",
    knobs=knobs,
    code=SLOW_SECOND + COMMAND,
  )
  name = f"{socket.gethostname()}, process "
  assert f"host 1 ({name}" in first and "is slow: of the" in first
  assert "is slow" not in second
  # The first lines are of compiling too; before the last, no data were read any more.
  between = [line["host_ms"] for line in values(tmp_path, "speed.jsonl")][2:-1]
  fast, slow = map(statistics.median, zip(*between))
  assert slow > 1000 and slow > 2 * fast
  names = json.loads((tmp_path / "run.json").read_text())["host_names"]
  assert names == [socket.gethostname()] * 2
  page = (tmp_path / "report.html").read_text()
  assert f"The slowest of 2 hosts is 1 ({names[1]})" in page
  assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def steps(workdir: pathlib.Path) -> list[str]:
  folder = workdir / "checkpoints"
  return sorted((x.name for x in folder.iterdir() if x.name.isdecimal()), key=int)


def test_what_becomes_of_one_host_becomes_of_all_and_the_run_goes_on(env, tmp_path):
  run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
  # A rate that does not fall is the same in runs of any length.
  flat = ("--config.optim.peak_lr=1e-3", "--config.optim.end_lr=1e-3")
  long = (*flat, "--config.train.steps=100000")
  # SIGTERM to one: all save the same step. A second run meanwhile is refused.
  with two_hosts(env, run, *long) as hosts:
    hosts[0].wait_for("step 1/")
    with two_hosts(env, run, *long) as others:
      for said in ends(others, 2, 2):
        assert "is in use by `tfusion" in said
    hosts[1].process.send_signal(signal.SIGTERM)
    said = ends(hosts, 143, 143)
  stopped = int(steps(run)[-1])
  assert f"stopped by SIGTERM after step {stopped}, saved" in said[0]
  folder = run / "checkpoints" / f"{stopped}"
  assert {x.name for x in folder.glob("record.*")} == {"record.0-of-2", "record.1-of-2"}
  # kill -9: the other ends soon, and says who was lost.
  with two_hosts(env, run, *long) as hosts:
    hosts[0].wait_for(f"step {stopped + 6}/")
    hosts[1].process.kill()
    said = ends(hosts, 75, -9, within=30)
    assert "tfusion: host 0 ends: host 1 (" in said[0]
    assert "has ended without a word" in said[0]
  # A torn checkpoint: the newest whole one.
  newest = run / "checkpoints" / steps(run)[-1]
  before = steps(run)[-2]
  next(newest.glob("state/**/ocdbt.process_1/d/*")).write_bytes(b"torn")
  last = (*flat, f"--config.train.steps={int(newest.name) + 4}")
  said = run_two_hosts(env, run, *last)
  assert f"checkpoint {newest} is skipped" in said[0] + said[1]
  assert f"goes on after step {before} of" in said[0]
  run_two_hosts(env, undisturbed, *last)
  assert values(run, "metrics.jsonl") == values(undisturbed, "metrics.jsonl")


@pytest.mark.parametrize("how", ["here", "host:1234", "host,0,2", "host:1234,2,2"])
def test_hosts_that_cannot_be_joined_are_refused(how, capsys):
  run = ["sample", "--workdir", "none", "--prompt", "x", "--distributed", how]
  assert cli.main(run) == 2
  assert f"--distributed={how}: give auto, or HOST:PORT,INDEX,COUNT" in (
    capsys.readouterr().err
  )
