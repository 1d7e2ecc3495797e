"""Promises of buckets, against stores on loopback: writes, locks, logs, copies."""

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import pickle
import shutil
import socket
import time
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_shards
import tiny_stores

from tfusion import buckets, files, lock
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.data import prepared
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards.source import open_shards
from tfusion.data.tokenizer import Tokenizer
from tfusion.training import log as log_lib

pytestmark = pytest.mark.buckets


@pytest.fixture(scope="module")
def stores():
  with tiny_stores.running() as found, tiny_stores.spoken_to(found):
    yield found


@pytest.fixture(params=["gs", "s3"])
def here(request, stores, tmp_path, monkeypatch):
  """A place of its own in a bucket; what is copied from there lies in tmp_path."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return files.to_path(f"{request.param}://{tiny_stores.BUCKET}/{uuid.uuid4().hex}")


# Paths.


def test_what_is_written_is_found_by_every_way_of_looking(here):
  assert not here.exists() and list(here.iterdir()) == []
  (here / "a.txt").write_text("one")
  (here / "sub" / "b.png").write_bytes(b"1234")
  assert here.is_dir() and not here.is_file() and (here / "a.txt").is_file()
  assert [p.name for p in here.iterdir()] == ["a.txt", "sub"]
  assert list(here.glob("*.txt")) == [here / "a.txt"]
  assert list(here.glob("sub/*")) == [here / "sub" / "b.png"]
  assert [p.relative_to(here) for p in here.files()] == ["a.txt", "sub/b.png"]
  assert (here / "sub/b.png").stat().st_size == 4
  assert (here / "a.txt").read_text() == "one"
  assert (here / "a.txt").open().read() == b"one"


def test_what_is_deleted_is_gone_and_its_neighbour_stays(here):
  for name in ("1/x", "1/y/z", "10/x"):
    (here / name).write_text(name)
  (here / "1").rmtree()
  assert [p.relative_to(here) for p in here.files()] == ["10/x"]
  (here / "1").rmtree(missing_ok=True)
  (here / "10/x").unlink()
  (here / "10/x").unlink(missing_ok=True)
  assert not here.exists()


def test_an_object_that_is_not_there_is_named(here):
  with pytest.raises(FileNotFoundError) as error:
    (here / "none").read_bytes()
  assert error.value.filename == str(here / "none")


def test_of_several_that_make_an_object_one_succeeds(here):
  def make(number: int) -> bool:
    try:
      buckets.of(here / "one").create(b"%d" % number)
      return True
    except FileExistsError:
      return False

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = list(pool.map(make, range(16)))
  assert made.count(True) == 1
  assert (here / "one").read_bytes() == b"%d" % made.index(True)


def test_a_write_that_fails_leaves_what_was_there(here):
  files.write_whole(here / "a", "before")
  with pytest.raises(KeyError), files.whole(here / "a") as aside:
    aside.write_text("half")
    raise KeyError
  assert (here / "a").read_text() == "before"
  with files.whole(here / "a") as aside:
    aside.write_text("after")
  assert (here / "a").read_text() == "after"
  assert [p.name for p in here.iterdir()] == ["a"]


def test_a_path_in_a_bucket_is_none_of_this_machine(here):
  with pytest.raises(TypeError):
    pathlib.Path(here)
  with pytest.raises(ValueError, match="no address of a bucket"):
    files.to_path("gs://")
  assert isinstance(files.to_path("runs/gs"), pathlib.Path)


# What a person can mend.


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_is_not_there_is_named_with_how_to_make_it(stores, scheme):
  place = f"{scheme}://no-such-bucket/run"
  make = f"`{buckets.MAKES[scheme]}no-such-bucket`"
  for refuses in (
    lambda: workdir_lib.check_writable(place),
    lambda: workdir_lib.load_config(place),
    lambda: manifest_lib.load(place),
    lambda: Tokenizer.load(f"{place}/tokenizer.model"),
  ):
    with pytest.raises(ValueError) as error:
      refuses()
    assert "there is no bucket 'no-such-bucket'" in str(error.value)
    assert make in str(error.value) and place in str(error.value)


def test_a_workdir_in_a_bucket_that_holds_no_run_is_told_as_anywhere(here):
  with pytest.raises(ValueError, match="holds no config.json; train there first"):
    workdir_lib.load_config(here)


def test_a_bucket_without_credentials_is_told_before_any_work(here, monkeypatch):
  if str(here).startswith("gs"):
    pytest.skip("the emulator asks for none")
  for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    monkeypatch.delenv(name)
  tiny_stores.forget()
  with pytest.raises(ValueError) as error:
    workdir_lib.check_writable(here)
  monkeypatch.undo()
  tiny_stores.forget()
  assert f"--workdir={here}: cannot be written: no credentials" in str(error.value)
  assert "`aws configure`" in str(error.value)


@pytest.mark.parametrize(
  "error",
  [
    PermissionError("RequestTimeTooSkewed: The difference between ... is too large"),
    type("RefreshError", (Exception,), {})(
      "invalid_grant: Invalid JWT: Token must be a short-lived token (60 minutes)"
    ),
    OSError("certificate verify failed: certificate is not yet valid"),
  ],
)
def test_a_store_that_refuses_a_wrong_clock_is_no_question_of_rights(
  monkeypatch, error
):
  monkeypatch.setattr(buckets, "store", lambda scheme: raises(error))
  with pytest.raises(ValueError) as found:
    workdir_lib.check_writable("s3://bucket/run")
  said = str(found.value)
  assert said.startswith("--workdir=s3://bucket/run: cannot be written: the clock of")
  assert "timedatectl" in said and "sign in" not in said


def raises(error):
  raise error


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_that_gives_no_answer_is_told_in_time_with_what_to_look_at(
  scheme, monkeypatch
):
  for name, value in tiny_stores.SIGNED_IN.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(buckets, "ANSWER_SECONDS", 1.0)
  with socket.create_server(("127.0.0.1", 0)) as silent:
    address = f"http://127.0.0.1:{silent.getsockname()[1]}"
    monkeypatch.setenv(buckets.STORES[scheme][1], address)
    tiny_stores.forget()
    begin = time.monotonic()
    with pytest.raises(ValueError) as error:
      workdir_lib.check_writable(f"{scheme}://bucket/run")
    assert time.monotonic() - begin < 10
  monkeypatch.undo()
  tiny_stores.forget()
  said = str(error.value)
  assert said.startswith(f"--workdir={scheme}://bucket/run: cannot be written: no answ")
  assert "within 1 s" in said and address in said


def test_a_bucket_is_asked_once_whether_it_answers(here, monkeypatch):
  assert not here.exists()
  monkeypatch.setattr(buckets, "ANSWER_SECONDS", 0.0)
  (here / "a.txt").write_text("one")


@pytest.mark.slow
def test_a_bucket_that_denies_access_is_told_with_what_to_ask_for():
  with (
    tiny_stores.running(INITIAL_NO_AUTH_ACTION_COUNT="1") as found,
    tiny_stores.spoken_to(found),
    pytest.raises(ValueError) as error,
  ):
    workdir_lib.check_writable("s3://bucket/run")
  assert "--workdir=s3://bucket/run: cannot be written: the store denies" in str(
    error.value
  )
  assert "ask for the right to read and write objects" in str(error.value)


@pytest.mark.parametrize("scheme, library", buckets.LIBRARIES.items())
def test_a_library_that_is_not_installed_is_named(stores, monkeypatch, scheme, library):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == library else find(name)
  )
  buckets.store.cache_clear()
  with pytest.raises(ValueError, match=rf"needs {library}.*tfusion\[buckets\]"):
    workdir_lib.check_writable(f"{scheme}://bucket/run")
  buckets.store.cache_clear()


# The lock.


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
  monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
  monkeypatch.setattr(lock, "SILENT_SECONDS", 1.0)


def alter_lock(workdir, **facts) -> None:
  found = json.loads((workdir / lock.FILE).read_text())
  (workdir / lock.FILE).write_text(json.dumps(found | facts))


@pytest.mark.slow
def test_a_second_run_in_a_bucket_is_refused_and_the_next_is_not(here, quick):
  with lock.hold(here) as own:
    own.check()
    with pytest.raises(ValueError, match=rf"--workdir={here}: is in use by"):
      with lock.hold(here):
        pass
    own.check()
  assert list(here.iterdir()) == []
  with lock.hold(here):
    pass


def test_a_run_of_another_machine_is_refused_while_its_heart_beats(here, quick):
  with lock.hold(here):
    alter_lock(here, here="another boot", host="lab2")
    with pytest.raises(ValueError, match="on host lab2"), lock.hold(here):
      pass
    assert (here / lock.FILE).exists()


@pytest.mark.slow
def test_a_dead_run_of_another_machine_gives_way_and_notices_if_it_was_asleep(
  here, quick, monkeypatch
):
  asleep = lock.hold(here)
  own = asleep.__enter__()
  own._done.set()  # its heart stands still
  own._thread.join()
  alter_lock(here, here="another boot", host="lab2")
  with lock.hold(here) as other:
    other.check()
    with pytest.raises(lock.Lost, match="it was taken from this run"):
      own.check()
    own.release()
    other.check()  # the other's lock is not taken away
  assert list(here.iterdir()) == []


@pytest.mark.slow
def test_of_several_that_find_an_owner_dead_one_takes_over(here, quick):
  (here / lock.FILE).write_text(
    json.dumps({"owner": "dead", "here": lock._here(), "process": 1, "started": "?"})
  )
  held, refused = [], []

  def take(_):
    try:
      taken = lock._take(here)
      held.append(taken)
    except ValueError:
      refused.append(1)

  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    list(pool.map(take, range(6)))
  assert len(held) == 1 and len(refused) == 5
  held[0].check()
  held[0].release()


# The log.


def test_lines_of_a_log_are_in_the_bucket_when_it_is_flushed(here):
  lines = log_lib.JsonLines(here / "metrics.jsonl", last_step=0, writes=True)
  for step in (1, 2):
    lines.append({"step": step, "loss": float("nan")})
  assert (here / "metrics.jsonl").read_text() == ""
  lines.flush()
  text = '{"step": 1, "loss": null}\n{"step": 2, "loss": null}\n'
  assert (here / "metrics.jsonl").read_text() == text
  again = log_lib.JsonLines(here / "metrics.jsonl", last_step=1, writes=True)
  assert again.last_step == 1
  assert (here / "metrics.jsonl").read_text() == text.splitlines(keepends=True)[0]


def test_a_line_is_in_the_bucket_after_so_many_seconds(here, monkeypatch):
  monkeypatch.setattr(log_lib, "REWRITE_SECONDS", 0.0)
  lines = log_lib.JsonLines(here / "metrics.jsonl", last_step=0, writes=True)
  lines.append({"step": 1})
  assert (here / "metrics.jsonl").read_text() == '{"step": 1}\n'


# Checkpoints.


@pytest.fixture(scope="module")
def state():
  return {"a": jnp.arange(1000.0), "b": {"c": jnp.ones((64, 64))}}


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@pytest.mark.slow
def test_checkpoints_in_a_bucket_are_saved_pruned_and_restored(here, state):
  with Checkpoints(here / "checkpoints", keep_last=2) as checkpoints:
    assert checkpoints.restore(abstract(state)) is None
    for step in (1, 2, 3):
      assert checkpoints.save(step, state, {0: {"at": step}})
  with Checkpoints(here / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 3]
    restored = checkpoints.restore(abstract(state))
    assert checkpoints.describe(2)["lanes"] == {0: {"at": 2}}
  assert (restored.step, restored.lanes) == (3, {0: {"at": 3}})
  jax.tree.map(np.testing.assert_array_equal, restored.state, state)
  left = [*pathlib.Path(os.environ["XDG_CACHE_HOME"]).glob("**/staging*")]
  assert left == []  # nothing stays on this machine


@pytest.mark.slow
def test_a_damaged_or_unfinished_checkpoint_in_a_bucket_is_passed_over(here, state):
  with Checkpoints(here / "checkpoints") as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.save(step, state, {}, wait=True)
    (here / "checkpoints" / "4.partial").touch()  # killed in a save
    torn = next(f for f in (here / "checkpoints" / "3").files() if "/d/" in str(f))
    torn.write_bytes(torn.read_bytes()[:-1])
    lost = next(f for f in (here / "checkpoints" / "2").files() if "/d/" in str(f))
    lost.unlink()
    with pytest.raises(ValueError, match="no checkpoint in"):
      checkpoints.restore(abstract(state))
    checkpoints.save(5, state, {}, wait=True)
    assert checkpoints.restore(abstract(state)).step == 5
    names = {p.name for p in (here / "checkpoints").iterdir()}
  assert "4" not in names and "4.partial" not in names


def test_several_hosts_cannot_keep_checkpoints_on_s3(stores, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="use gs://, or a disk that all hosts share"):
    Checkpoints("s3://bucket/run/checkpoints")


# Shards.


@pytest.fixture
def shards(here, tmp_path):
  """A folder of shards, in a bucket and on this machine."""
  manifest = tiny_shards.make(tmp_path / "shards")
  for path in (tmp_path / "shards").iterdir():
    buckets.of(here / path.name).upload(path)
  return str(here), tmp_path / "shards", manifest


def opened(place):
  return open_shards(str(place), split="train", image_shape=(4, 4, 2))


def test_shards_of_a_bucket_are_those_of_this_machine(shards):
  there, local, _ = shards
  ours, theirs = opened(there), opened(local)
  assert ours.name == f"shards:{there}" and ours.contents() == theirs.contents()
  assert [*map(pickle.dumps, ours)] == [*map(pickle.dumps, theirs)]


def test_shards_are_copied_once_and_others_at_the_same_address_again(
  shards, monkeypatch
):
  there, local, _ = shards
  copied = []
  download = buckets.BucketPath.download

  def counted(self, file):
    copied.append(self.name)
    download(self, file)

  monkeypatch.setattr(buckets.BucketPath, "download", counted)
  before = opened(there).folder
  assert len(copied) == 3 + 2  # the shards of the split, tokenizer and autoencoder
  assert opened(there).folder == before and len(copied) == 5
  tiny_shards.make(local, train=11)
  for path in local.iterdir():
    buckets.of(files.to_path(there) / path.name).upload(path)
  again = opened(there)
  assert again.folder != before and len(again) == 11


def test_a_shard_that_is_not_what_its_manifest_says_is_refused(shards):
  there, _, manifest = shards
  name = manifest.of("train")[0].name
  shard = files.to_path(there) / name
  shard.write_bytes(shard.read_bytes()[:-1] + b"?")
  with pytest.raises(ValueError, match=rf"{there}/{name}: is another file"):
    opened(there)


def test_shards_that_this_machine_has_no_room_for_are_refused(shards, monkeypatch):
  there = shards[0]
  usage = shutil.disk_usage("/")._replace(free=10)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(ValueError, match="or mount the bucket"):
    opened(there)


def test_a_workdir_in_a_bucket_keeps_the_autoencoder_of_shards(shards, here):
  there, _, manifest = shards
  run = here / "run"
  prepared.keep([opened(there)], run, begun=False)
  kept = run / manifest_lib.AUTOENCODER
  assert manifest_lib.sha256(kept) == manifest.autoencoder_sha256
  assert prepared.kept(run) == (manifest.images, manifest.autoencoder_sha256)
  with files.local(kept) as copy:
    assert copy.read_bytes() == tiny_shards.AUTOENCODER
  assert not copy.exists()


def test_a_tokenizer_of_a_bucket_is_the_same(shards):
  there, local, manifest = shards
  found = Tokenizer.load(f"{there}/{manifest_lib.TOKENIZER}")
  assert found.sha256 == manifest.tokenizer_sha256
