"""Two processes of `tfusion train --distributed`, two devices each, as two hosts."""

import json
import pathlib
import signal
import socket
import statistics
import time

import numpy as np
import pytest
import tiny_shards
from tiny_hosts import ends, run_two_hosts, serving, two_hosts

from tfusion import cli, report
from tfusion.checkpoint import Checkpoints
from tfusion.config_file import read_config
from tfusion.data.mixture import Mixture
from tfusion.data.sources import open_sources
from tfusion.training import loop

pytestmark = pytest.mark.slow

# Starting is all that takes time: nothing is sampled; launch/test_local.py does that on
# two hosts. A rate that does not fall is the same in runs of any length.
TRAINING = """
from tfusion import config as config_lib

def get_config(arg):
  c = config_lib.defaults()
  c.model.update(layers=1, unroll=1, width=32, heads=2, kv_heads=2, mlp=32)
  c.model.update(vocab_size=320, image_shape=(4, 4, 2))
  c.data.update(sources=(f"shards:{arg}",), row_length=32, lanes=8, workers=0)
  c.data.max_damaged = 0
  c.optim.update(warmup_steps=1, peak_lr=1e-4, end_lr=1e-4)
  c.train.update(steps=100_000, batch_rows=8, eval_rows=8, log_every_steps=1)
  c.train.update(save_every_steps=4, keep_last=4, eval_every_steps=100_000)
  return c
"""
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
# The second host cannot open its data.
POOR_SECOND = """
import jax
from tfusion.training import loop

open_here = loop.open_corpus

def open_corpus(config, workdir):
  if jax.process_index():
    raise ValueError("--config.data.workers=0: cannot be opened")
  return open_here(config, workdir)

loop.open_corpus = open_corpus
"""
DOCUMENTS = 800  # one in each shard
SOON = 30  # documents of a lane: it takes two or three a step, and reads 8 ahead


@pytest.fixture(scope="module")
def server():
  """Starts hosts."""
  with serving({}) as found:
    yield found


@pytest.fixture
def experiment(tmp_path):
  return furnish(tmp_path)


def furnish(folder: pathlib.Path) -> str:
  """Makes shards and an experiment on them, as an argument of the command."""
  tiny_shards.make(folder / "shards", train=DOCUMENTS, test=8, per_shard=1)
  (folder / "training.py").write_text(TRAINING)
  return f"{folder / 'training.py'}:{folder / 'shards'}"


def train(experiment: str, workdir: pathlib.Path | str, *knobs: str) -> list[str]:
  return ["train", "--config", experiment, "--workdir", str(workdir), *knobs]


def values(workdir: pathlib.Path, name: str) -> list[dict]:
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def saved(workdir: pathlib.Path) -> list[int]:
  names = [x.name for x in (workdir / "checkpoints").iterdir()]
  return sorted(int(x) for x in names if x.isdecimal() and f"{x}.partial" not in names)


@pytest.mark.long
def test_a_run_goes_on_with_other_hosts_and_another_mesh_as_the_run_it_was(
  server, experiment, tmp_path, capfd, monkeypatch
):
  def knobs(steps):
    every = [f"--config.train.{name}_every_steps=2" for name in ("save", "eval")]
    return [*every, f"--config.train.steps={steps}"]

  def on_one(workdir, steps):
    loop.train(read_config(experiment, knobs(steps)), workdir)

  monkeypatch.setattr(report, "write_report", lambda workdir: None)  # takes seconds
  moved, stayed = tmp_path / "moved", tmp_path / "stayed"
  on_one(moved, 2)
  mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")
  first, second = run_two_hosts(server, *train(experiment, moved, *knobs(4), *mesh))
  assert "goes on after step 2 of" in first and "mesh.fsdp: 1 -> 2" in first
  assert "step 4/4" in first and "held out" not in second  # one host speaks
  assert json.loads((moved / "run.json").read_text())["hosts"] == 2
  counted = json.loads((moved / "data.json").read_text())  # of both hosts
  on_one(stayed, 4)
  assert json.loads((stayed / "data.json").read_text()) == counted
  capfd.readouterr()
  on_one(moved, 6)
  assert "goes on after step 4 of" in capfd.readouterr().out
  on_one(stayed, 6)
  for name, count in (("metrics.jsonl", 6), ("validation.jsonl", 3)):
    got, want = values(moved, name), values(stayed, name)
    assert [x["step"] for x in got] == [x["step"] for x in want]
    assert len(want) == count
    for a, b in zip(got, want):
      for key in ("loss", "loss_text", "loss_image", "grad_norm", "elements"):
        if key in b:
          # Sums over devices are in another order.
          np.testing.assert_allclose(a[key], b[key], rtol=2e-5, err_msg=key)


def test_what_becomes_of_one_host_becomes_of_all_and_the_run_goes_on(
  server, experiment, tmp_path
):
  run = tmp_path / "run"
  command = train(experiment, run, "--config.mesh.fsdp=4")
  # SIGTERM to one: all save the same step. A second run meanwhile is refused.
  with two_hosts(server, *command) as hosts:
    while not (run / "lock.json").exists() and hosts[0].poll() is None:
      time.sleep(0.02)
    with two_hosts(server, *command) as others:
      for said in ends(others, 2, 2):
        assert "is in use by `tfusion" in said
    hosts[0].wait_for("step 1/")
    hosts[1].send(signal.SIGTERM)
    said = ends(hosts, 143, 143)
  stopped = saved(run)[-1]
  assert f"stopped by SIGTERM after step {stopped}, saved" in said[0]
  folder = run / "checkpoints"
  records = {x.name for x in (folder / f"{stopped}").glob("record.*")}
  assert records == {"record.0-of-2", "record.1-of-2"}
  # kill -9: the other ends soon, and says who was lost.
  with two_hosts(server, *command) as hosts:
    hosts[0].wait_for(f"step {stopped + 13}/")  # two saves have ended
    hosts[1].send(signal.SIGKILL)
    said = ends(hosts, 75, -9, within=30)
    assert "tfusion: host 0 ends: host 1 (" in said[0]
    assert "has ended without a word" in said[0]
  # A torn checkpoint, and one that lacks a file: the newest whole one. After what is
  # done again, a record that only the second host reads is damaged: all end.
  before, lacking, torn = saved(run)[-3:]
  lines = values(run, "metrics.jsonl")
  damaged = damage_a_record(experiment, run, torn)
  of_second = "state/**/ocdbt.process_1/d/*"
  next((folder / f"{torn}").glob(of_second)).write_bytes(b"torn")
  gone = next((folder / f"{lacking}").glob(of_second))
  gone.unlink()
  with two_hosts(server, *command) as hosts:
    hosts[0].wait_for(f"goes on after step {before} of")
    for host in hosts:
      assert f"checkpoint {folder / str(torn)} is skipped: " in host.said
      missing = f"checkpoint {folder / str(lacking)} is skipped: {gone} is missing"
      assert missing in host.said
    hosts[0].wait_for(f"step {before + 1}/")
    for said in ends(hosts, 2, 2, within=60):
      told = said.splitlines()[-1]
      assert told.startswith("tfusion train: host 1: data.max_damaged=0: ")
      assert f"{damaged}: record 0 is damaged" in told and "Traceback" not in said
      assert "the run goes on from its last checkpoint" in told
  assert saved(run)[-1] > torn
  # What was done again is the same to the last bit.
  assert values(run, "metrics.jsonl")[: len(lines)] == lines
  assert lines[-1]["step"] >= torn > lacking > before


def test_a_fault_of_one_host_at_its_start_ends_both_with_its_message(
  server, experiment, tmp_path
):
  end_with(server, experiment, tmp_path, "--workdir=/dev/null/run")


@pytest.mark.long
def test_data_that_one_host_cannot_open_end_both_with_its_message(experiment, tmp_path):
  with serving({}, prelude=POOR_SECOND) as server:
    end_with(server, experiment, tmp_path, "--config.data.workers=0")


def end_with(server, experiment: str, folder: pathlib.Path, of_second: str):
  """Two hosts end at their start with the fault of the second, which it has by this
  argument or anyway."""
  command = train(experiment, folder / "run", "--config.mesh.fsdp=4")
  with two_hosts(server, *command, second=[of_second]) as hosts:
    first, second = ends(hosts, 2, 2, within=60)
  says = f"{of_second}: cannot be"
  assert says in second.splitlines()[-1] and "Traceback" not in first + second
  told = first.splitlines()[-1]
  assert says in told and f"host 1 ({socket.gethostname()}" in told
  assert not (folder / "run" / "config.json").exists()


def damage_a_record(experiment: str, run: pathlib.Path, step: int) -> pathlib.Path:
  """Alters the shard of a document that a lane of the second host takes soon.

  Args:
    experiment: of the run.
    run: its workdir.
    step: whose checkpoint says how many documents the lane has taken.
  """
  config = read_config(experiment, [])
  (source,) = open_sources(
    config.data.sources, split="train", image_shape=(4, 4, 2), workdir=run
  )
  lane = config.data.lanes - 1
  with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
    (taken,) = checkpoints.describe(step)["lanes"][lane]["drawn"].values()
  mixture = Mixture([source], config, lane=lane, repeat=True)
  number = mixture.index(source.name, taken + SOON)
  path = source.folder / f"train-{number:04d}.array_record"
  data = bytearray(path.read_bytes())
  data[120] ^= 1  # behind the headers: the record
  path.write_bytes(data)
  return path


@pytest.mark.long
def test_a_slow_host_is_named_and_the_first_alone_has_loggers(experiment, tmp_path):
  pytest.importorskip("tensorboardX")
  run = tmp_path / "run"
  knobs = ["--config.train.loggers=('tensorboard',)", "--config.train.steps=7"]
  with serving({}, prelude=SLOW_SECOND) as server:
    first, second = run_two_hosts(server, *train(experiment, run, *knobs))
  name = f"{socket.gethostname()}, process "
  assert f"host 1 ({name}" in first and "is slow: of the" in first
  assert "is slow" not in second
  # The first lines are of compiling too; before the last, no data were read any more.
  between = [line["host_ms"] for line in values(run, "speed.jsonl")][2:-1]
  fast, slow = map(statistics.median, zip(*between))
  assert slow > 1000 and slow > 2 * fast
  names = json.loads((run / "run.json").read_text())["host_names"]
  assert names == [socket.gethostname()] * 2
  page = (run / "report.html").read_text()
  assert f"The slowest of 2 hosts is 1 ({names[1]})" in page
  assert len(list((run / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("how", ["here", "host:1234", "host,0,2", "host:1234,2,2"])
def test_hosts_that_cannot_be_joined_are_refused(how, capsys):
  run = ["sample", "--workdir", "none", "--prompt", "x", "--distributed", how]
  assert cli.main(run) == 2
  assert f"--distributed={how}: give auto, or HOST:PORT,INDEX,COUNT" in (
    capsys.readouterr().err
  )
