"""Promises of tfusion/training/stop.py, and of the lock of several hosts in hold.py."""

import io
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from tfusion import lock
from tfusion.progress import ReaderGone
from tfusion.training import hold as hold_lib
from tfusion.training import stop as stop_lib
from tfusion.training.stop import StopSignals


def test_a_second_ctrl_c_interrupts_at_once_and_handlers_come_back():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.told == signal.SIGINT
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
  with StopSignals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.told == signal.SIGTERM
  assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


class Interrupting(io.RawIOBase):
  """Where a signal comes while a line is being written."""

  def __init__(self):
    self.written = b""

  def writable(self):
    return True

  def write(self, data):
    if not self.written:
      signal.raise_signal(signal.SIGTERM)
    self.written += bytes(data)
    return len(data)


def test_a_signal_that_comes_while_a_line_is_printed_ends_neither(monkeypatch):
  out = Interrupting()
  monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(out)))
  with StopSignals() as stop:
    print("step 3", flush=True)
    assert stop.told == signal.SIGTERM
    end = time.monotonic() + 60
    while b"saving and stopping" not in out.written and time.monotonic() < end:
      time.sleep(0.01)
  assert out.written.startswith(b"step 3\n")
  assert b"\nSIGTERM: saving and stopping\n" in out.written


@pytest.mark.parametrize(
  "told, name, status",
  [((0, 0), None, 0), ((0, 15), "SIGTERM", 143), ((2, 15), "SIGTERM", 143)],
)
def test_all_hosts_stop_by_one_signal_with_one_status(monkeypatch, told, name, status):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    stop_lib.multihost_utils, "process_allgather", lambda own: np.asarray(told)
  )
  for own in told:
    stop = StopSignals()
    stop.told = own
    assert not stop.agreed(7, due=False)  # they ask each other every 10 steps
    assert stop.status == 0
    assert stop.agreed(10, due=False) == bool(status)
    assert (stop.name, stop.status) == (name, status)


def test_hosts_get_the_workdir_together_or_not_at_all(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hold_lib, "TELL_SECONDS", 0.01)
  monkeypatch.setattr(lock, "SILENT_SECONDS", 0.2)
  monkeypatch.setattr(lock, "LOOK_SECONDS", 0.02)
  said = []
  monkeypatch.setattr(hold_lib, "gather_json", lambda own: said.append(own) or [own])
  (tmp_path / "lock.json").write_text('{"owner": "dead", "here": "elsewhere"}')
  with hold_lib.hold(tmp_path) as held:
    held.check()
    held.check_together()
    assert said[0] is None  # the others heard that it takes time
    with pytest.raises(ValueError, match="is in use by"), hold_lib.hold(tmp_path):
      pass
    fault = said[-1]
    monkeypatch.setattr(jax, "process_index", lambda: 1)  # the others hold nothing
    monkeypatch.setattr(hold_lib, "gather_json", lambda own: [fault])
    with pytest.raises(ValueError, match="is in use by"), hold_lib.hold(tmp_path):
      pass
    with pytest.raises(lock.Lost, match="is in use by"):
      hold_lib.Hold(None).check_together()
  assert not (tmp_path / "lock.json").exists()


def test_hosts_with_folders_of_their_own_under_one_name_are_refused(
  tmp_path, monkeypatch
):
  """As of a disk of each machine: a checkpoint would be in parts that never meet."""
  monkeypatch.setattr(hold_lib, "LOOK_SECONDS", 0.01)
  monkeypatch.setattr(hold_lib, "LOOKS", 5)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  looks = []

  def second(workdir):
    """Host 1, where host 0 holds a lock that it calls first's."""
    looks.clear()
    told = iter(["", "first's"])  # that it has it, and what it is called

    def gather(own):
      if own is None:
        return [next(told), None]
      looks.append(own)
      return [True, own]

    monkeypatch.setattr(hold_lib, "gather_json", gather)
    with hold_lib.hold(workdir):
      pass

  says = r"--workdir=.*own: host 1 does not find the lock.json that host 0 has written"
  own = tmp_path / "own"
  with pytest.raises(ValueError, match=says):
    second(own)  # it is not even there
  own.mkdir()
  (own / "lock.json").write_text('{"owner": "of an earlier run"}')
  with pytest.raises(ValueError, match=says):
    second(own)
  assert looks == [False] * 5
  (own / "lock.json").write_text('{"owner": "first\'s"}')
  second(own)
  assert looks == [True]


def test_a_run_that_nobody_reads_ends_as_its_output_did_and_what_came_first_counts():
  for number, gone in ((0, False), (signal.SIGTERM, False), (signal.SIGPIPE, True)):
    stop = StopSignals()
    stop.request(number)
    stop.request(signal.SIGPIPE if number else 0)
    stop.agreed(1, due=False)
    assert stop.told == stop.agreed_on == number
    if gone:
      with pytest.raises(ReaderGone):
        stop.raise_if_reader_gone()
    else:
      stop.raise_if_reader_gone()


def test_a_run_in_another_thread_leaves_signals_alone():
  before = signal.getsignal(signal.SIGINT)

  def enter():
    with StopSignals():
      inside.append(signal.getsignal(signal.SIGINT))

  inside = []
  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert inside == [before] and signal.getsignal(signal.SIGINT) == before
