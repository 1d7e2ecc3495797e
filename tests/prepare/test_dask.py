"""Preparing on a Dask cluster: a scheduler and workers, processes of this machine."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import tiny_photos

from tfusion import cli
from tfusion.prepare import dask_cluster, job, runner

pytest.importorskip("apache_beam", reason="pip install '.[prepare]'")
pytest.importorskip(
  "distributed", reason="no Dask cluster is tried: pip install '.[dask]'"
)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTS = 24
DASK = [sys.executable, "-m", "dask"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Captioned images."""
  folder = tmp_path_factory.mktemp("photos")
  for i in range(PARTS):
    tiny_photos.add(folder, f"{i:02d}.png", f"square {i}", color=(i, 9, 9))
  return folder


@contextlib.contextmanager
def running(command, said: Path, says: str, **how):
  """A process that does not outlive the block; begins when it has said something."""
  env = os.environ | {"PYTHONPATH": str(ROOT)} | how.pop("env", {})
  with said.open("w") as file:
    process = subprocess.Popen(command, env=env, stdout=file, stderr=file, **how)
  try:
    end = time.monotonic() + 60
    while says not in said.read_text():
      assert process.poll() is None and time.monotonic() < end, said.read_text()
      time.sleep(0.05)
    yield process
  finally:
    process.kill()
    process.wait()


@contextlib.contextmanager
def started(folder):
  """A scheduler without workers: its address and its process."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = [*DASK, "scheduler", "--host", "127.0.0.1", "--port", str(port)]
  with running([*command, "--no-dashboard"], folder / "said", "Scheduler at") as one:
    yield f"tcp://127.0.0.1:{port}", one


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
  with started(tmp_path_factory.mktemp("scheduler")) as (address, _):
    yield address


@contextlib.contextmanager
def worker(scheduler, folder, name="worker", **how):
  """A worker process of the cluster."""
  (folder / name).mkdir()
  command = [*DASK, "worker", scheduler, "--name", name, "--nthreads", "1"]
  command += ["--no-nanny", "--no-dashboard", "--local-directory", str(folder / name)]
  with running(command, folder / name / "said", "Registered to", **how) as process:
    yield process


def command(photos, out, *more):
  source = ["prepare", "--source", f"folder:{photos}", "--out", str(out)]
  return [*source, "--image-px=4", "--shard-documents=1", *more]


def on(scheduler):
  return ["--runner=DaskRunner", f"--dask_client_address={scheduler}"]


@contextlib.contextmanager
def killing(process, out, *, after):
  """Kills a process when that many parts are done; all must not be."""
  counts = []

  def watch():
    while len(list(out.glob("parts/*.json"))) < after:
      time.sleep(0.002)
    process.kill()
    counts.append(len(list(out.glob("parts/*.json"))))

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  yield
  thread.join(timeout=10)
  assert counts and after <= counts[0] < PARTS, "it was done before it was killed"


def refused(capsys, *args):
  """What a command says that ends with 2."""
  assert cli.main(list(args)) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1
  return said


def bytes_of(folder):
  return {
    p.relative_to(folder).as_posix(): p.read_bytes()
    for p in sorted(Path(folder).rglob("*"))
    if p.is_file() and p.name != job.LOCK
  }


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
  """The bytes of the local runner."""
  out = tmp_path_factory.mktemp("local") / "shards"
  assert cli.main(command(photos, out)) == 0
  return bytes_of(out)


def test_two_workers_of_which_one_is_killed_write_the_bytes_of_the_local_runner(
  photos, scheduler, undisturbed, tmp_path
):
  out = tmp_path / "shards"
  with (
    worker(scheduler, tmp_path, "first") as first,
    worker(scheduler, tmp_path, "second"),
    killing(first, out, after=4),
  ):
    assert cli.main(command(photos, out, *on(scheduler))) == 0
  assert bytes_of(out) == undisturbed


def test_a_scheduler_that_is_not_there_or_has_no_workers_is_named(
  photos, scheduler, tmp_path, capsys
):
  out = tmp_path / "shards"
  away = [*on("tcp://127.0.0.1:1"), "--dask_connection_timeout=1"]
  said = refused(capsys, *command(photos, out, *away))
  assert "--dask_client_address=tcp://127.0.0.1:1: no scheduler answers there" in said
  said = refused(capsys, *command(photos, out, *on(scheduler)))
  assert f"{scheduler}: the scheduler has no workers" in said
  assert not list(out.rglob("*.array_record"))


def test_workers_that_cannot_do_the_job_are_named_before_any_work(
  photos, scheduler, tmp_path, capsys, monkeypatch
):
  old, empty = tmp_path / "old", tmp_path / "empty"
  info = old / "pillow-1.0.dist-info" / "METADATA"
  info.parent.mkdir(parents=True)
  info.write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.0\n")
  (empty / "tfusion").mkdir(parents=True)
  # An editable installation would find the rest of an empty package.
  absent = "raise ModuleNotFoundError('No module named \\'tfusion\\'')"
  (empty / "tfusion" / "__init__.py").write_text(absent)
  monkeypatch.chdir(tmp_path)
  # A path that leads every process to a folder of its own.
  apart, elsewhere = "/proc/self/cwd/shards", tmp_path / "elsewhere"
  elsewhere.mkdir()
  for name, how, out, says in (
    ("other", {"env": {"PYTHONPATH": f"{old}:{ROOT}"}}, "out", "has pillow 1.0, not "),
    ("none", {"env": {"PYTHONPATH": str(empty)}}, "out", "No module named 'tfusion"),
    (
      "apart",
      {"cwd": elsewhere},
      apart,
      f"does not see the job.json of this job in {apart}",
    ),
  ):
    with worker(scheduler, tmp_path, name, **how):
      said = refused(capsys, *command(photos, out, *on(scheduler)))
    assert "1 of 1 workers cannot do this job: tcp://" in said and says in said
  assert not list(tmp_path.rglob("*.array_record"))


def test_an_error_in_a_part_stops_the_job_in_a_line_and_not_the_next(
  photos, scheduler, undisturbed, tmp_path, capsys, monkeypatch
):
  out, run = tmp_path / "shards", runner.run
  lost, kept = photos / "07.png", tmp_path / "07.png"

  def without(*args):
    shutil.move(lost, kept)
    try:
      run(*args)
    finally:
      shutil.move(kept, lost)

  monkeypatch.setattr(runner, "run", without)
  with worker(scheduler, tmp_path):
    said = refused(capsys, *command(photos, out, *on(scheduler)))
    assert f"{out}: {lost}: is gone or has changed" in said
    assert "done parts are kept; mend that and repeat the command" in said
    monkeypatch.setattr(runner, "run", run)
    assert cli.main(command(photos, out, *on(scheduler))) == 0
  assert bytes_of(out) == undisturbed


@pytest.mark.long
def test_a_job_whose_scheduler_or_last_worker_is_lost_ends_and_goes_on_elsewhere(
  photos, undisturbed, tmp_path, capsys, monkeypatch
):
  out = tmp_path / "shards"
  monkeypatch.setattr(dask_cluster, "WORKERLESS_SECONDS", 1.0)
  with started(tmp_path) as (address, process):
    args = [*on(address), "--dask_connection_timeout=1"]
    with worker(address, tmp_path, "a") as last, killing(last, out, after=3):
      said = refused(capsys, *command(photos, out, *args))
    assert "the cluster had no worker for 1 s; done parts are kept" in said
    monkeypatch.setattr(dask_cluster, "WORKERLESS_SECONDS", 60.0)
    with worker(address, tmp_path, "b"), killing(process, out, after=6):
      said = refused(capsys, *command(photos, out, *args))
    assert "the scheduler of the cluster was lost; done parts are kept" in said
  assert cli.main(command(photos, out)) == 0
  assert bytes_of(out) == undisturbed


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (
      ["--runner=DaskRunner"],
      "name the scheduler too, as in --runner=DaskRunner --dask",
    ),
    (["--runner=dask", "--dask_client_adress=tcp://h:1"], "name the scheduler too"),
    (
      ["--runner=dask", "--dask_scheduler_file=s.json"],
      "s.json: there is no such file",
    ),
    ([*on("tcp://h:1"), "--dask_partitions=3"], "unknown options: dask_partitions"),
  ],
)
def test_options_that_dask_does_not_have_are_refused(
  photos, tmp_path, capsys, args, says
):
  assert says in refused(capsys, *command(photos, tmp_path / "shards", *args))


def test_every_part_is_a_task_of_its_own_unless_it_is_asked_otherwise():
  from apache_beam.runners.dask.dask_runner import DaskOptions

  def own(*more):
    return runner.parse([*on("tcp://h:1"), *more]).view_as(DaskOptions)

  assert own().partition_size == 1  # Beam's 128 would go to one worker
  asked = own("--dask_npartitions=7")
  assert asked.npartitions == 7 and asked.partition_size is None


def test_workers_that_die_over_a_part_are_told_from_errors_of_ours():
  import distributed

  last = types.SimpleNamespace(address="tcp://h:2")
  said = dask_cluster.explain(distributed.KilledWorker("task", last, 3))
  assert "4 workers died over the same part" in said and "tcp://h:2" in said
  assert dask_cluster.explain(RuntimeError("ours")) == ""


def test_a_missing_extra_is_named(photos, tmp_path, capsys, monkeypatch):
  find = dask_cluster.importlib.util.find_spec
  without = lambda name: None if name == "distributed" else find(name)  # noqa: E731
  monkeypatch.setattr(dask_cluster.importlib.util, "find_spec", without)
  said = refused(capsys, *command(photos, tmp_path / "out", *on("tcp://h:1")))
  assert "pip install 'tfusion[dask]'" in said
