"""Promises of tfusion/training/watch.py and peers.py that need no second process."""

import collections
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types

import jax
import pytest
import tiny

from tfusion import checkpoint, progress
from tfusion.training import events
from tfusion.training import log as log_lib
from tfusion.training import peers as peers_lib
from tfusion.training import watch as watch_lib
from tfusion.training.clock import Clock
from tfusion.training.hold import Hold
from tfusion.training.peers import Peers, Word
from tfusion.training.stop import StopSignals

ROOT = pathlib.Path(__file__).parents[2]


class Ended(Exception):
  """Stands for the end of the process."""


@pytest.fixture
def watch(tmp_path, monkeypatch):
  def end(status):
    raise Ended(status)

  monkeypatch.setattr(os, "_exit", end)
  return watch_lib.Watch(tmp_path, 1.0, Clock())


@pytest.mark.slow
def test_a_run_that_stands_still_writes_where_and_ends(tmp_path):
  code = f"""
    import pathlib, time
    from tfusion.training.clock import Clock
    from tfusion.training.watch import watching

    def stand_still():
      time.sleep(60)

    clock = Clock()
    with watching(pathlib.Path({str(tmp_path)!r}), 1, clock) as watch:
      time.sleep(2.5)  # it has not begun
      watch.beat()
      with clock.measure("evaluate"):
        time.sleep(2.5)
      print("evaluated", flush=True)
      stand_still()
  """
  begin = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )
  assert time.monotonic() - begin < 50
  assert done.stdout == "evaluated\n" and done.returncode == 75
  assert "tfusion: host 0 ends: no update for train.stall_seconds=1" in done.stderr
  for text in (done.stderr, (tmp_path / "stacks_host_0.txt").read_text()):
    assert "in stand_still" in text


SECONDS = 10.0  # of train.stall_seconds, by the clock of a test


@pytest.fixture
def stalled(tmp_path):
  """What stands still after so many seconds, by a watch that knows no other time."""
  made = watch_lib.Watch(tmp_path, SECONDS, Clock())
  made.beat()
  made._stalled(0.0, False)
  made.after = lambda now, **how: made._stalled(now, how.get("asleep", False))
  return made


@pytest.mark.parametrize(
  "phase, says",
  [
    ("save", "saving a checkpoint has shown no progress for 60 s, 6 times"),
    ("evaluate", "an evaluation has shown no progress for 60 s, 6 times"),
    ("init", "opening the data or restoring a checkpoint has shown no progress"),
    ("compile", "compiling the step has shown no progress"),
  ],
)
def test_what_is_no_update_may_take_six_times_as_long(stalled, phase, says):
  with stalled._clock.measure(phase):
    assert not stalled.after(1.0) and not stalled.after(60.0)
    assert stalled.after(62.0).startswith(says)
    assert stalled.after(62.0).endswith("train.stall_seconds=10,")
  assert not stalled.after(63.0)
  assert stalled.after(74.0) == "no update for train.stall_seconds=10"


def test_a_restore_is_watched_before_the_first_update_and_the_lock_is_not(tmp_path):
  made = watch_lib.Watch(tmp_path, SECONDS, Clock())
  assert not made._stalled(0.0, False) and not made._stalled(9_000.0, False)
  with made._clock.measure("init"):
    assert not made._stalled(9_001.0, False) and made._stalled(9_062.0, False)


def test_an_evaluation_that_shows_progress_takes_as_long_as_it_takes(stalled):
  with stalled._clock.measure("evaluate"):
    work = progress.Progress("images", 1_000)
    for number in range(1, 100):
      work.show(number)
      assert not stalled.after(50.0 * number)
    assert stalled.after(50.0 * 99 + 61)


def test_a_save_beside_updates_is_watched_by_itself(stalled):
  stalled.under_way = lambda: 40
  for now in range(70):
    stalled.beat()
    said = stalled.after(float(now))
    assert bool(said) == (now > 60), now
  assert said.startswith(
    "the save of step 40 has not come to its end for 60 s, 6 times"
  )
  stalled.under_way = lambda: 80  # the next one
  stalled.beat()
  assert not stalled.after(71.0) and not stalled.after(80.0)


def test_a_process_that_was_stopped_itself_has_all_its_time_again(stalled):
  stalled.under_way = lambda: 40
  assert not stalled.after(1.0)
  assert not stalled.after(3_600.0, asleep=True) and not stalled.after(3_609.0)


def test_without_a_limit_nothing_stands_still(tmp_path):
  made = watch_lib.Watch(tmp_path, 0, Clock())
  made.under_way = lambda: 40
  made.beat()
  assert not made._stalled(0.0, False) and not made._stalled(1e6, False)


@pytest.mark.slow
def test_a_run_whose_disk_hangs_ends_although_nothing_can_be_written_there(tmp_path):
  code = f"""
    import pathlib, threading, time
    from tfusion import files
    from tfusion.training import watch as watch_lib
    from tfusion.training.clock import Clock

    class Hanging(type(pathlib.Path())):
      def is_file(self):
        threading.Event().wait()

    def hang(*_):
      threading.Event().wait()

    def save_to_a_disk_that_hangs():
      hang()

    files.write_whole = hang
    watch_lib.LONG_TIMES, watch_lib.WRITE_SECONDS = 2.0, 0.5
    clock = Clock()
    with watch_lib.watching(Hanging({str(tmp_path)!r}), 1, clock) as watch:
      watch.beat()
      with clock.measure("save"):
        save_to_a_disk_that_hangs()
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    capture_output=True,
    text=True,
    timeout=100,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 75
  said = (
    "saving a checkpoint has shown no progress for 2 s, 2 times train.stall_seconds"
  )
  assert said in done.stderr and "stand above. Look there for" in done.stderr
  assert "in save_to_a_disk_that_hangs" in done.stderr


@pytest.mark.slow
def test_a_run_ends_where_what_it_says_last_hangs_too(tmp_path):
  code = f"""
    import pathlib, sys, threading, time
    from tfusion.training import watch as watch_lib
    from tfusion.training.clock import Clock

    sys.stdout.flush = lambda: threading.Event().wait()
    watch_lib.LAST_SECONDS = 1.0
    with watch_lib.watching(pathlib.Path({str(tmp_path)!r}), 1, Clock()) as watch:
      watch.beat()
      threading.Event().wait()
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    capture_output=True,
    timeout=100,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 75


def test_a_run_tells_its_watch_what_is_being_saved(tmp_path, watch, monkeypatch):
  go_on, held, clock = threading.Event(), Hold(None), Clock()
  held.watch, held.clock = watch, clock

  def finish(self, written, *_):
    written.result()  # else orbax writes into what the next save clears
    go_on.wait(20)

  monkeypatch.setattr(checkpoint.Checkpoints, "_finish", finish)
  state = {"a": jax.numpy.zeros(2)}
  with events.open_checkpoints(tiny.config(), tmp_path, held) as checkpoints:
    assert watch.under_way() is None
    checkpoints.save(3, state, {})
    assert watch.under_way() == 3
    go_on.set()
    checkpoints.wait()
    assert watch.under_way() is None
    go_on.clear()
    checkpoints.save(4, state, {})
    at_the_end = []
    monkeypatch.setattr(
      checkpoint.Checkpoints,
      "close",
      lambda self: at_the_end.append(clock.phase) or go_on.set() or self.wait(),
    )
  assert at_the_end == ["save"] and clock.phase == ""


@pytest.fixture
def two(monkeypatch):
  """The connections of the first host and of the second."""
  ends = socket.socketpair()
  made = []
  for host, end in enumerate(ends):
    monkeypatch.setattr(jax, "process_index", lambda host=host: host)
    made.append(Peers({1 - host: end}, ["a, process 1", "b, process 2"]))
  yield made
  for one in made:
    one.close()


def test_hosts_hear_each_other_and_a_sign_of_life_is_no_word(two):
  first, second = two
  second.say("pace", 0.25)
  assert first.listen(5.0) == [Word(1, "pace", 0.25)]
  assert second.listen(5.0) == []  # a beat of the first


def test_a_host_whose_connection_ends_is_lost_and_named(two, watch, monkeypatch, capfd):
  first, second = two
  monkeypatch.setattr(watch_lib, "TELL_SECONDS", 0.0)
  watch.peers = first
  second.say("pace", 0.5)
  second.close()
  words = [*first.listen(5.0), *first.listen(5.0)]
  assert [word.kind for word in words] == ["pace", "lost"]
  with pytest.raises(Ended, match="75"):
    for word in words:
      watch._hear(word)
  said = capfd.readouterr().err
  assert "ends: host 1 (b, process 2) has ended without a word: killed" in said
  assert watch.paces == {1: 0.5}


def test_a_host_that_says_nothing_for_long_is_lost(two, monkeypatch):
  first, _ = two
  monkeypatch.setattr(peers_lib, "SILENT_SECONDS", -1.0)
  assert [word.kind for word in first.listen(0.0)] == ["lost"]


def test_a_host_that_was_stopped_itself_gives_the_others_time_to_be_heard(
  two, monkeypatch
):
  first, second = two
  clock = [time.monotonic()]
  monkeypatch.setattr(peers_lib.time, "monotonic", lambda: clock[0])
  assert first.listen(0.0) == []
  clock[0] += 3600.0  # as by Ctrl-Z, which stopped the other too
  assert first.listen(0.0) == []
  for _ in range(7):  # the other stays silent
    clock[0] += 9.0
    words = first.listen(0.0)
  assert [word.kind for word in words] == ["lost"]


def test_a_host_that_has_said_that_it_ends_is_not_lost(two, watch):
  first, second = two
  watch.peers = first
  second.say("end")
  second.close()
  for word in [*first.listen(5.0), *first.listen(5.0)]:
    watch._hear(word)


def test_the_error_of_another_host_ends_this_one_too_unless_it_has_one_itself(watch):
  watch._hear(Word(1, "end", ["the disk is full", 2]))
  by, why, status = watch._left
  assert (why, status) == ("host 1: the disk is full", 2)
  assert by > time.monotonic() + 3  # time to end by itself


def test_a_failed_collective_is_known_from_a_value_that_a_person_can_mend():
  lost = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
  assert watch_lib._is_of_devices(lost)
  assert not watch_lib._is_of_devices(ValueError("train.steps=0: must be above 0"))


# Hosts that the others wait for.


def told(watch, monkeypatch, *paces: float | None) -> None:
  """Every host has told what an update costs it, in seconds, or has not yet."""
  monkeypatch.setattr(jax, "process_count", lambda: len(paces))
  watch.paces |= {host: x for host, x in enumerate(paces) if x is not None}


@pytest.mark.parametrize(
  "paces, step, slow",
  [
    ((0.01, 0.19), 0.2, 1),  # of two hosts as well
    ((0.01, 0.19, 0.02, 0.01), 0.2, 1),
    ((0.19, None, 0.02), 0.2, 0),  # one was not heard of yet
    ((0.01, 0.09, 0.02), 0.2, None),  # shorter than the work of the devices
    ((0.15, 0.19, 0.16), 0.2, None),  # all need as long
    ((0.19,), 0.2, None),
  ],
)
def test_a_host_is_slow_that_needs_most_of_an_update_and_twice_what_others_do(
  watch, monkeypatch, paces, step, slow
):
  told(watch, monkeypatch, *paces)
  said = watch.slow(step)
  assert (
    said.startswith(f"host {slow} is slow: of the 200 ms")
    if slow is not None
    else (said == "")
  )


def test_a_slow_host_is_named_with_what_the_others_need(watch, two, monkeypatch):
  watch.peers = two[0]
  told(watch, monkeypatch, 0.01, 0.19)
  assert watch.slow(0.2) == (
    "host 1 (b, process 2) is slow: of the 200 ms of an update it needs 190 for itself,"
    " the median of the others is 10"
  )


def test_times_of_hosts_stand_in_order_with_gaps_for_those_not_heard_of(
  watch, monkeypatch
):
  told(watch, monkeypatch, None, 0.2, None)
  watch._hear(Word(2, "pace", 0.003))
  assert watch.host_ms() == [None, 200.0, 3.0]


def test_what_a_host_needs_for_itself_is_what_it_does_not_wait_for(
  tmp_path, monkeypatch
):
  seconds = collections.defaultdict(float)
  clock = types.SimpleNamespace(elapsed=0.0, seconds=seconds, computed=0.0)
  held, stop = Hold(None), StopSignals()
  held.watch = watch = watch_lib.Watch(tmp_path, 0, clock)
  config = tiny.config(train__log_every_steps=4)
  log = log_lib.Log(
    config, tmp_path, 0, clock, held, stop, lambda since: {}, lambda *_: "."
  )
  told(watch, monkeypatch, None, 0.01)
  # The device is waited for by 0.5 s in each update, the other hosts by 1 s; the host
  # computes for 2 s itself.
  reads = iter(x for i in range(4) for x in (i, i + 0.5))
  monkeypatch.setattr(log_lib.time, "perf_counter", lambda: next(reads))
  for step in range(1, 5):
    log.hand_over(step, {"loss": 1.0, "skipped": 0.0}, {})
    if step == 4:
      clock.elapsed, clock.seconds["save"] = 30.0, 17.0
      stop.waited, clock.computed = 1.0, 2.0
    log.write()
  (line,) = tiny.lines(tmp_path, "speed")
  assert line["host_ms"] == [1e3 * (30 - 17 - 4 * 0.5 - 1 - 2) / 4, 10.0]
