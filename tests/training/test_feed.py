"""Promises of tfusion/training/feed.py: what hosts do where the data of one fail."""

import re
import signal
import types

import jax
import numpy as np
import pytest

from tfusion.training import events, feed, stop
from tfusion.training.feed import Feed
from tfusion.training.stop import StopSignals

DEAD = ChildProcessError("a data worker process died (killed by SIGKILL)")


class Clock:
  """Waits for nothing."""

  elapsed, seconds = 1.0, {"data": 1.0}

  def wait_for(self, batches, *, device):
    batch = next(batches)
    if isinstance(batch, Exception):
      raise batch
    return batch


@pytest.fixture
def two_hosts(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(feed, "gather_json", lambda own: [None, own])


def agree(monkeypatch, *feeds: Feed) -> None:
  """The hosts of these feeds ask each other."""
  said = [own._failed and str(own._failed) for own in feeds]
  monkeypatch.setattr(feed, "gather_json", lambda own: said)
  told = np.asarray([one._stop.told for one in feeds])
  monkeypatch.setattr(stop.multihost_utils, "process_allgather", lambda own: told)
  for own in feeds:
    assert own._stop.agreed(10, due=False)


def test_all_hosts_stop_alike_where_a_data_worker_of_one_has_died(
  two_hosts, monkeypatch
):
  well = Feed(iter(["a", "b"]), Clock(), StopSignals())
  ill = Feed(iter(["a", DEAD, "b"]), Clock(), StopSignals())
  assert [well.next(device=None) for _ in range(2)] == ["a", "b"]
  assert [ill.next(device=None) for _ in range(2)] == ["a", "b"]  # from new workers
  agree(monkeypatch, well, ill)
  for host in (well, ill):
    with pytest.raises(ChildProcessError, match="^host 1: a data worker process died"):
      host.raise_failure()


def test_a_run_that_ended_all_the_same_is_complete_on_all_hosts(two_hosts):
  ill = Feed(iter([DEAD, "b"]), Clock(), StopSignals())
  assert ill.next(device=None) == "b"
  ill.raise_failure()  # no host has asked the others since


BROKEN = ValueError("data.max_damaged=16: met 17 damaged records")


@pytest.mark.parametrize("faults", [[BROKEN], [DEAD, DEAD], [DEAD, "b", BROKEN]])
def test_what_one_host_cannot_read_stops_all_before_they_save(
  two_hosts, monkeypatch, faults
):
  well = Feed(iter("abcd"), Clock(), StopSignals())
  ill = Feed(iter(["a", *faults]), Clock(), StopSignals())
  steps = 1 + faults.count("b")
  assert [ill.next(device=None) for _ in range(steps)] == ["a", "b"][:steps]
  assert ill.next(device=None) == ["a", "b"][steps - 1]  # again, for the others wait
  ill._stop._remember(signal.SIGTERM, None)  # saves nothing either
  agree(monkeypatch, well, ill)
  for host in (well, ill):
    host.raise_failure()
    with pytest.raises(
      ValueError, match=f"^host 1: {re.escape(str(faults[-1]))}; the run"
    ):
      host.raise_spoiled()


def test_what_one_host_cannot_read_at_the_start_ends_all_at_once(two_hosts):
  with pytest.raises(ValueError, match="^host 1: data.max_damaged=16"):
    Feed(iter([BROKEN]), Clock(), StopSignals()).next(device=None)


def test_one_host_alone_raises_what_its_data_raised():
  for error in (DEAD, ValueError("damaged")):
    with pytest.raises(type(error), match=str(error).split()[0]):
      Feed(iter([error]), Clock(), StopSignals()).next(device=None)


def test_what_stopped_a_run_is_said_in_words(tmp_path):
  said, told = [], StopSignals()
  log = types.SimpleNamespace(say=said.append, clock=Clock())
  told.agreed_on = signal.SIGCHLD
  events.say_finished(7, tmp_path, told, log)
  assert said[0].startswith("stopped by a data worker that died after step 7, saved")
  told.agreed_on = signal.SIGTERM
  events.say_finished(7, tmp_path, told, log)
  assert "stopped by SIGTERM after step 7, saved; the same" in said
