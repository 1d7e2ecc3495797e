"""Promises of docs/buckets.md, on whole commands, against stores on loopback."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import test_hosts
import tiny_experiments
import tiny_hosts
import tiny_stores

from tfusion import cli, config_file, files
from tfusion.data.shards import manifest as manifest_lib
from tfusion.training import loop

pytestmark = [pytest.mark.buckets, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parents[1]
KILLED = """
import os, signal, sys, time
from tfusion import cli, files
from tfusion.data.pipeline import HostBatches

asked, give = [], HostBatches.__next__
workdir = files.to_path(sys.argv[sys.argv.index("--workdir") + 1])

def dying(self):
  asked.append(0)
  if len(asked) == 4:
    checkpoints = workdir / "checkpoints"
    while "2" not in (n := {p.name for p in checkpoints.iterdir()}) or "2.partial" in n:
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
  return give(self)

HostBatches.__next__ = dying
cli.main(sys.argv[1:])
"""

HANGS = """
import os, signal, sys
from tfusion import cli
from tfusion.checkpoint import Checkpoints
from tfusion.training import watch

server, save, watch.LONG_TIMES = int(sys.argv.pop(1)), Checkpoints.save, 1.0

def hanging(self, step, *rest, **options):
  begun = save(self, step, *rest, **options)
  if step == 2:
    os.kill(server, signal.SIGSTOP)
  return begun

Checkpoints.save = hanging
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def stores():
  with tiny_stores.running() as found, tiny_stores.spoken_to(found):
    yield found


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  folder = tmp_path_factory.mktemp("experiment")
  return str(tiny_experiments.write(folder, tiny_experiments.MODEL))


@pytest.fixture(scope="module")
def straight(experiment, tmp_path_factory):
  """The workdir of a run that was never stopped, on this machine."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  assert cli.main(["train", "--config", experiment, "--workdir", str(workdir)]) == 0
  return workdir


# What files do in buckets of each kind test_buckets.py tries; here are whole commands.
@pytest.fixture(params=["gs", pytest.param("s3", marks=pytest.mark.long)])
def place(request, stores, tmp_path, monkeypatch):
  """A place in a bucket; what is copied from there lies in tmp_path."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return f"{request.param}://{tiny_stores.BUCKET}/{tmp_path.name}"


def written(workdir) -> dict[str, str]:
  names = ("metrics.jsonl", "validation.jsonl")
  return {name: (files.to_path(workdir) / name).read_text() for name in names}


@pytest.mark.long
def test_a_run_in_a_bucket_is_killed_goes_on_bit_for_bit_and_is_used(
  place, experiment, straight, capfd
):
  run = f"{place}/run"
  train = ["train", "--config", experiment, "--workdir", run]
  env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  killed = subprocess.run([sys.executable, "-c", KILLED, *train], env=env)
  assert killed.returncode == -9
  lines = written(run)["metrics.jsonl"].splitlines()
  assert len(lines) >= 2  # nothing is lost that the checkpoint counts as done
  assert cli.main(train) == 0
  said = capfd.readouterr().out
  assert "was killed; this one takes over" in said
  assert f"goes on after step 2 of {run}/checkpoints" in said
  assert written(run) == written(straight)

  if place.startswith("s3"):  # what reads a run has been tried on gs
    return
  of_run = ["--workdir", run]
  assert cli.main(["sample", *of_run, "--prompt", "an image <image>"]) == 0
  assert cli.main(["eval", *of_run]) == 0
  assert cli.main(["inspect", "run", *of_run]) == 0
  assert cli.main(["inspect", "data", *of_run, "--step", "3"]) == 0
  said = capfd.readouterr().out
  for name in ("sampled/sample_000.txt", "report.html", "rows/step-3-row-0.html"):
    assert f"{run}/{name}" in said
    assert (files.to_path(run) / name).is_file()
  assert "checkpoints: [2, 4]" in said
  page = (files.to_path(run) / "report.html").read_text()
  assert "cannot be read" not in page and "data:image/png" in page
  there = {p.name for p in files.to_path(run).iterdir()}
  here = {p.name for p in straight.iterdir()} - {"cache"}
  assert there == here | {"sampled", "rows"}  # no lock, no probe, no half of a file


@pytest.mark.long
def test_a_run_whose_store_hangs_in_a_save_ends_and_says_so_and_goes_on(
  experiment, straight, tmp_path
):
  with tiny_stores.running() as found:
    server = found[tiny_stores.GOOGLE]
    run = f"gs://{tiny_stores.BUCKET}/run"
    train = ["train", "--config", experiment, "--workdir", run]
    train += ["--config.train.stall_seconds=30", "--config.train.save_every_steps=2"]
    env = (
      os.environ | found | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    )
    command = [sys.executable, "-c", HANGS, server, *train]
    killed = subprocess.run(command, env=env, capture_output=True, text=True)
    os.kill(int(server), signal.SIGCONT)
    assert killed.returncode == 75, killed.stderr
    assert "the save of step 2 has not come to its end for 30 s" in killed.stderr
    again = [sys.executable, "-m", "tfusion", *train]
    assert subprocess.run(again, env=env).returncode == 0
    with tiny_stores.spoken_to(found):
      assert written(run) == written(straight)


@pytest.mark.long
def test_shards_are_prepared_to_a_bucket_and_trained_on_from_there(
  place, experiment, tmp_path, capfd
):
  photos = f"folder:{pathlib.Path(experiment).parent / 'photos'}"
  prepare = ["prepare", "--source", photos, "--image-px", "8", "--shard-documents", "2"]
  assert cli.main([*prepare, "--out", str(tmp_path / "shards")]) == 0
  shards = f"{place}/shards"
  assert cli.main([*prepare, "--out", shards]) == 0
  there = files.to_path(shards)
  manifest = manifest_lib.load(there)
  assert manifest == manifest_lib.load(tmp_path / "shards")
  for shard in manifest.shards:
    data = (there / shard.name).read_bytes()
    assert data == (tmp_path / "shards" / shard.name).read_bytes()
  capfd.readouterr()
  assert cli.main([*prepare, "--out", shards]) == 0
  assert "parts were done before" in capfd.readouterr().out
  again = [*prepare[:-1], "3", "--out", shards]
  assert cli.main(again) == 2
  assert "holds shards of another job" in capfd.readouterr().err

  assert cli.main(["inspect", "shards", shards]) == 0
  assert cli.main(["inspect", "shards", f"{there / manifest.shards[0].name}"]) == 0
  assert "NOT WHOLE" not in (said := capfd.readouterr().out) and " 0 damaged" in said
  knobs = {
    "data.sources": f"('shards:{shards}',)",
    "data.tokenizer": f"{shards}/tokenizer.model",
    "model.image_shape": "(8, 8, 3)",
    "model.vocab_size": "512",
    "train.steps": "2",
    "train.eval_every_steps": "2",
  }
  train = ["train", "--config", experiment, "--workdir", f"{place}/on-shards"]
  train += [f"--config.{key}={value}" for key, value in knobs.items()]
  assert cli.main(train) == 0
  assert cli.main(train) == 0  # its data are known again
  assert written(f"{place}/on-shards")["metrics.jsonl"].count("\n") == 2


@pytest.mark.long
def test_an_autoencoder_is_trained_in_a_bucket(place, tmp_path):
  experiment = tiny_experiments.write(tmp_path, tiny_experiments.AUTOENCODER)
  run = f"{place}/autoencoder"
  train = ["autoencoder", "--config", str(experiment), "--workdir", run]
  assert cli.main(train) == 0
  from tfusion.autoencoder import codec

  path = files.to_path(run) / "autoencoder.safetensors"
  assert codec.load(path).sha256


@pytest.fixture(scope="module")
def server(stores):
  with tiny_hosts.serving({}) as found:
    yield found


@pytest.mark.long
def test_two_hosts_train_in_a_bucket_and_one_goes_on_from_their_checkpoint(
  server, tmp_path, capfd
):
  workdir = f"gs://{tiny_stores.BUCKET}/{tmp_path.name}"
  experiment = test_hosts.furnish(tmp_path)
  more = ["--config.mesh.fsdp=4", "--config.train.steps=2"]
  tiny_hosts.run_two_hosts(server, *test_hosts.train(experiment, workdir, *more))
  saved = files.to_path(workdir) / "checkpoints" / "2"
  records = [f"record.{process}-of-2" for process in range(2)]
  assert all((saved / record).is_file() for record in records)
  loop.train(config_file.read_config(experiment, ["--config.train.steps=4"]), workdir)
  assert "goes on after step 2" in capfd.readouterr().out
  lines = map(json.loads, written(workdir)["metrics.jsonl"].splitlines())
  assert [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.long
def test_two_hosts_are_refused_a_workdir_on_s3_before_any_work(server, tmp_path):
  workdir = f"s3://{tiny_stores.BUCKET}/{tmp_path.name}"
  command = test_hosts.train(test_hosts.furnish(tmp_path), workdir)
  with tiny_hosts.two_hosts(server, *command) as hosts:
    for said in tiny_hosts.ends(hosts, 2, 2):
      assert "cannot be written to s3://" in said and "Traceback" not in said
  assert not (files.to_path(workdir) / "config.json").is_file()
