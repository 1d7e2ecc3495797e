"""Promises of tfusion/train/stop.py."""

import os
import signal
import threading
import time

import pytest

from tfusion.train.stop import StopSignals


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
