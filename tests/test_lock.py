"""Promises of tfusion/lock.py: one run at a time, whatever ended the one before."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfusion import lock

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import sys, time
from tfusion import lock

with lock.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Hearts beat every 20 ms and are given up after 0.3 s."""
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
  monkeypatch.setattr(lock, "LOOK_SECONDS", 0.02)
  monkeypatch.setattr(lock, "SILENT_SECONDS", 0.3)


@pytest.fixture
def owner(tmp_path):
  """Another process that holds the lock."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path), "--config", "x.py"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def elsewhere(workdir: pathlib.Path) -> dict:
  """Makes the lock that stands there one of another machine; returns its facts."""
  values = json.loads((workdir / "lock.json").read_text())
  values |= {"here": "another boot", "host": "lab2"}
  (workdir / "lock.json").unlink()
  (workdir / "lock.json").write_text(json.dumps(values))
  return values


def is_held(workdir: pathlib.Path) -> bool:
  return (workdir / "lock.json").exists()


def test_a_second_run_is_refused_at_once_and_told_whose_the_workdir_is(tmp_path, owner):
  start = time.monotonic()
  with pytest.raises(ValueError) as error, lock.hold(tmp_path):
    pass
  assert time.monotonic() - start < 0.2  # it does not watch a process of this machine
  facts = json.loads((tmp_path / "lock.json").read_text())
  said = str(error.value)
  assert (
    f"--workdir={tmp_path}: is in use by `tfusion {tmp_path} --config x.py`" in said
  )
  assert f"process {owner.pid} on host {facts['host']}, since {facts['since']}" in said
  assert "Wait for its end, stop it" in said
  assert is_held(tmp_path)


def test_the_same_process_cannot_hold_a_workdir_twice(tmp_path):
  with lock.hold(tmp_path), pytest.raises(ValueError, match="is in use by"):
    with lock.hold(tmp_path):
      pass


def test_a_stopped_process_still_holds_its_workdir(tmp_path, owner):
  owner.send_signal(signal.SIGSTOP)
  time.sleep(0.5)  # longer than it would be given from another machine
  with pytest.raises(ValueError, match="is in use by"), lock.hold(tmp_path):
    pass


@pytest.mark.parametrize("reaped", [False, True])
def test_kill_9_of_the_owner_frees_the_workdir_at_once(tmp_path, owner, capfd, reaped):
  owner.kill()
  # Nobody may have asked for its status yet: then its number is still taken.
  os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
  if reaped:
    owner.wait()
  start = time.monotonic()
  with lock.hold(tmp_path) as own:
    assert time.monotonic() - start < 0.2
    own.check()
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
  assert f"process {owner.pid} on host" in capfd.readouterr().out
  assert [p.name for p in tmp_path.iterdir()] == []


def test_a_process_that_has_the_number_of_a_dead_owner_is_not_taken_for_it(
  tmp_path, owner
):
  values = json.loads((tmp_path / "lock.json").read_text())
  values |= {"process": os.getpid()}  # alive, but began at another time
  (tmp_path / "lock.json").write_text(json.dumps(values))
  with lock.hold(tmp_path) as own:
    own.check()


@pytest.mark.slow
def test_another_machines_run_that_lives_is_refused_when_its_heart_beats(
  tmp_path, owner, monkeypatch
):
  monkeypatch.setattr(lock, "_here", lambda: "another boot")
  monkeypatch.setattr(lock, "SILENT_SECONDS", 30.0)
  with pytest.raises(ValueError, match=f"process {owner.pid} on host"):
    with lock.hold(tmp_path):  # the owner beats every BEAT_SECONDS = 5
      pass
  assert is_held(tmp_path)


def test_another_machines_run_that_gives_no_sign_is_taken_over_after_a_while(
  tmp_path, owner, capfd
):
  elsewhere(tmp_path)
  start = time.monotonic()
  with lock.hold(tmp_path) as own:
    assert time.monotonic() - start >= 0.3
    own.check()
  assert "on host lab2" in capfd.readouterr().out


def test_a_disk_that_does_not_answer_for_long_makes_no_owner_dead(
  tmp_path, owner, monkeypatch
):
  facts = elsewhere(tmp_path)
  read, looks = lock._read, []

  def hold_up(path):
    looks.append(1)
    if len(looks) == 2:
      time.sleep(0.5)  # longer than SILENT_SECONDS: the owner cannot write either
    if len(looks) == 5:
      (tmp_path / "lock.json").write_text(json.dumps(facts | {"beats": "000000009"}))
    return read(path)

  monkeypatch.setattr(lock, "_read", hold_up)
  with pytest.raises(ValueError, match="is in use by .* on host lab2"):
    with lock.hold(tmp_path):
      pass


def test_an_owner_killed_before_it_had_written_its_name_is_given_up(tmp_path):
  (tmp_path / "lock.json").touch()
  with lock.hold(tmp_path) as own:
    own.check()


def test_who_lost_the_lock_notices_and_leaves_the_others_alone(tmp_path):
  with lock.hold(tmp_path) as slow:
    slow.check()
    slow._done.set()  # its heart stops, as in a laptop whose lid is closed
    elsewhere(tmp_path)
    with lock.hold(tmp_path) as quick:
      with pytest.raises(lock.Lost, match=rf"in use by .*process {os.getpid()} on"):
        slow.check()
      slow.release()
      quick.check()
    assert not is_held(tmp_path)
  with lock.hold(tmp_path) as own:
    (tmp_path / "lock.json").unlink()
    with pytest.raises(lock.Lost, match="has no lock.json any more"):
      own.check()


def test_beats_of_who_lost_the_lock_do_not_reach_the_new_owners_file(tmp_path):
  with lock.hold(tmp_path) as slow:
    values = elsewhere(tmp_path)
    before = slow._beats
    while slow._beats < before + 5:
      time.sleep(0.02)
    assert json.loads((tmp_path / "lock.json").read_text()) == values


def test_beats_are_counted_in_a_file_that_is_whole_at_every_moment(tmp_path):
  counts = set()
  with lock.hold(tmp_path) as own:
    end = time.monotonic() + 10
    while len(counts) < 5 and time.monotonic() < end:
      counts.add(json.loads((tmp_path / "lock.json").read_text())["beats"])
    own.check()
  assert len(counts) == 5


def test_a_process_killed_while_it_took_over_does_not_keep_the_others_out(
  tmp_path, owner
):
  owner.kill()
  owner.wait()
  dead = json.loads((tmp_path / "lock.json").read_text())
  (tmp_path / f"lock.json.{dead['owner']}.tmp").touch()
  with lock.hold(tmp_path) as own:
    own.check()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [None, ValueError, OSError, KeyboardInterrupt])
def test_the_workdir_is_free_however_the_run_ends(tmp_path, error):
  threads = threading.active_count()
  if error is None:
    with lock.hold(tmp_path):
      assert is_held(tmp_path)
  else:
    with pytest.raises(error), lock.hold(tmp_path):
      raise error
  assert not list(tmp_path.iterdir()) and threading.active_count() == threads


def test_of_many_that_find_a_dead_owner_one_takes_its_place(tmp_path, owner):
  owner.kill()
  owner.wait()
  facts = (tmp_path / "lock.json").read_bytes()

  def run(start, end, held, refused):
    start.wait()
    try:
      with lock.hold(tmp_path) as own:
        held.append(own)
        end.wait()
        own.check()
    except ValueError as error:
      refused.append(type(error))

  for _ in range(20):
    (tmp_path / "lock.json").write_bytes(facts)
    args = start, end, held, refused = threading.Barrier(8), threading.Event(), [], []
    threads = [threading.Thread(target=run, args=args) for _ in range(8)]
    for thread in threads:
      thread.start()
    while len(held) + len(refused) < 8:
      time.sleep(0.01)
    end.set()
    for thread in threads:
      thread.join()
    assert len(held) == 1 and refused == [ValueError] * 7  # none lost it again


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_lock_that_cannot_be_written_names_its_file_and_is_not_left(
  tmp_path, monkeypatch
):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(lock, "_write", full)
  with pytest.raises(OSError, match="No space left.*lock.json"), lock.hold(tmp_path):
    pass
  assert not list(tmp_path.iterdir())
