"""Two processes of `tfusion train --distributed`, four devices each, as two hosts."""

import json
import os
import pathlib
import socket
import subprocess
import sys

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


def run_two_hosts(workdir: pathlib.Path, *more: str) -> list[str]:
  """Runs the command in two processes; returns what they printed."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  code = "import sys; from tfusion import cli; sys.exit(cli.main(sys.argv[1:]))"
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "JAX_NUM_CPU_DEVICES": "4",
    "PYTHONPATH": str(ROOT),
    **tiny.QUICK,
  }
  hosts = [
    subprocess.Popen(
      [sys.executable, "-c", code, "train", "--config", CONFIG]
      + ["--workdir", str(workdir), *SMALLEST, *more]
      + ["--distributed", f"{address},{index},2"],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  try:
    printed = [host.communicate(timeout=600)[0] for host in hosts]
  finally:
    for host in hosts:
      host.kill()
  assert [host.returncode for host in hosts] == [0, 0], "\n".join(printed)
  return printed


def values(workdir: pathlib.Path, name: str) -> list[dict]:
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def test_two_hosts_train_as_one_and_one_goes_on_from_their_checkpoint(tmp_path):
  both, one = tmp_path / "both", tmp_path / "one"
  mesh = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
  first, second = run_two_hosts(both, *mesh, "--config.train.steps=2")
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


@pytest.mark.parametrize("how", ["here", "host:1234", "host,0,2", "host:1234,2,2"])
def test_hosts_that_cannot_be_joined_are_refused(how, capsys):
  run = ["sample", "--workdir", "none", "--prompt", "x", "--distributed", how]
  assert cli.main(run) == 2
  assert f"--distributed={how}: give auto, or HOST:PORT,INDEX,COUNT" in (
    capsys.readouterr().err
  )
