"""launch/slurm.sbatch on a real Slurm: two tasks train, are lost, and go on."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import tiny_photos
import tiny_slurm

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
STEPS = 100  # some seconds, in which a task can be killed
CONFIG = f"""
from tfusion import config as config_lib

def get_config(photos):
  c = config_lib.defaults()
  c.model.update(layers=1, width=16, heads=1, kv_heads=1, mlp=16, vocab_size=320)
  c.data.update(sources=(f"folder:{{photos}}",), row_length=64, lanes=2, workers=0)
  c.train.update(steps={STEPS}, batch_rows=4, eval_rows=4, log_every_steps=1)
  c.train.update(save_every_steps=10, eval_every_steps={STEPS})
  c.sample.update(sampler="ddim", steps=2)
  return c
"""


@pytest.fixture(scope="module")
def slurm():
  """The environment of a Slurm's commands, and of one device in each process."""
  if why := tiny_slurm.missing():
    pytest.skip(f"no Slurm is tried: {why}")
  # Sockets lie in it, whose paths may not be long.
  with (
    tempfile.TemporaryDirectory() as folder,
    tiny_slurm.started(pathlib.Path(folder)) as env,
  ):
    yield (
      env
      | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": str(ROOT),
      }
    )


class Job:
  """A job that launch/slurm.sbatch submitted for two tasks."""

  def __init__(self, env: dict[str, str], folder: pathlib.Path, *args: str):
    self.env, self.folder = env, folder
    submit = [str(LAUNCH / "slurm.sbatch"), "--nodes", "1", "--tasks", "2", "--run"]
    submit += args
    out = subprocess.run(
      submit, cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    self.number = re.fullmatch(r"Submitted batch job (\d+)\n", out.stdout)[1]

  @property
  def said(self) -> str:
    path = self.folder / f"tfusion-{self.number}.log"
    return path.read_text(errors="replace") if path.exists() else ""

  @property
  def state(self) -> str:
    show = ["scontrol", "show", "job", self.number]
    out = subprocess.run(show, env=self.env, capture_output=True, text=True).stdout
    return re.search(r"JobState=(\w+)", out)[1]

  def call(self, *command: str) -> None:
    subprocess.run([*command, self.number], env=self.env, check=True)

  def task(self, index: int) -> int:
    """The process of a task that is running."""
    wanted = {f"SLURM_PROCID={index}", f"SLURM_JOB_ID={self.number}"}
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
      with contextlib.suppress(OSError):
        if wanted <= set(path.read_bytes().decode(errors="replace").split("\0")):
          return int(path.parent.name)
    raise AssertionError(f"task {index} does not run:\n{self.said}")

  def wait(self, until, *, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not until(self):
      assert time.monotonic() < end, f"{self.state}:\n{self.said}"
      time.sleep(0.05)

  def ends(self, state: str) -> str:
    """What it has said when it ends so."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    self.wait(lambda job: job.state in over)
    assert self.state == state, self.said
    return self.said


def steps(workdir: pathlib.Path) -> list[dict]:
  path = workdir / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_tasks_train_as_one_and_go_on_bit_for_bit_when_they_are_put_back(
  slurm, tmp_path
):
  photos, config = tmp_path / "photos", tmp_path / "config.py"
  config.write_text(CONFIG)
  for i in range(4):
    for split in ("train", "test"):
      tiny_photos.add(photos, f"{split}/{i}.png", f"{split} {i}", color=(20 * i, 9, 9))
  train = [sys.executable, "-m", "tfusion", "train", "--config", f"{config}:{photos}"]
  job = Job(slurm, tmp_path, "--", *train, "--workdir", str(tmp_path / "run"))
  reached = lambda step: lambda job: f"step {step}/" in job.said  # noqa: E731
  # One task is killed: the other ends with 75, srun with 137.
  job.wait(reached(12))
  os.kill(job.task(1), signal.SIGKILL)
  job.wait(lambda job: "status 137; back into the queue" in job.said)
  assert "tfusion: host 0 ends: host 1 (" in job.said
  # Told to stop, as when its time is over: both save, and it is put back again.
  job.wait(reached(40))
  job.call("scancel", "--signal=TERM", "--batch")
  job.wait(lambda job: "status 143; back into the queue" in job.said)
  said = job.ends("COMPLETED")
  assert said.count("back into the queue") == 2 and "slurm.sbatch: status 0" in said
  stopped = re.search(r"stopped by SIGTERM after step (\d+), saved", said)[1]
  assert f"goes on after step {stopped} of" in said
  shown = json.loads((tmp_path / "run" / "run.json").read_text())
  assert shown["hosts"] == 2
  # Beside one that nobody disturbed.
  local = [str(LAUNCH / "local.sh"), "2", "--devices", "1", "--run", "--"]
  undisturbed = [*local, *train, "--workdir", str(tmp_path / "undisturbed")]
  out = subprocess.run(undisturbed, env=slurm, capture_output=True, text=True)
  assert out.returncode == 0, out.stdout + out.stderr
  got, want = steps(tmp_path / "run"), steps(tmp_path / "undisturbed")
  assert len(got) == STEPS and got == want


def test_a_mistake_and_a_cancelled_job_are_not_put_back(slurm, tmp_path):
  job = Job(slurm, tmp_path, "--", "bash", "-c", "exit 2")
  assert "slurm.sbatch: status 2" in job.ends("FAILED")
  # As tfusion does: it is told to stop, saves, and ends with 143. A program that saved
  # for it would be told to stop as well. The first to end takes the other with it, so
  # each waits until both have saved, as hosts that save together do. (`sleep` is told
  # to stop too, perhaps before its shell, and must not end the loop.)
  saved = "until [ -e saved-0 ] && [ -e saved-1 ]; do :; done"
  code = f"trap ': >saved-$SLURM_PROCID; {saved}; exit 143' TERM; echo up"
  code += "; while :; do sleep 0.1; done"
  job = Job(slurm, tmp_path, "--", "bash", "-c", code)
  job.wait(lambda job: job.said.count("up\n") == 2)
  job.call("scancel")
  job.ends("CANCELLED")
  job.wait(lambda job: len([*tmp_path.glob("saved-*")]) == 2)
  time.sleep(2.0)  # longer than the script takes to put one back
  assert job.state == "CANCELLED" and "back into the queue" not in job.said


def test_a_job_is_put_back_only_as_often_as_it_may_be(slurm, tmp_path):
  args = ("--restarts", "1", "--", "bash", "-c", "exit 75")
  said = Job(slurm, tmp_path, *args).ends("FAILED")
  assert said.count("status 75; back into the queue") == 1
  assert "status 75; put back 1 times before" in said
