"""Promises of tfusion/training/feed.py: what hosts do where the data of one fail."""

import signal
import types

import jax
import pytest

from tfusion.training import events, feed
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


def agree(monkeypatch, *feeds: Feed) -> None:
  """The hosts of these feeds ask each other."""
  said = [own._failed and str(own._failed) for own in feeds]
  monkeypatch.setattr(feed, "gather_json", lambda own: said)
  for own in feeds:
    own._stop.agreed_on = max(one._stop.told for one in feeds)


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


def test_a_second_death_is_not_taken_for_a_first(two_hosts):
  ill = Feed(iter([DEAD, "b", DEAD]), Clock(), StopSignals())
  assert ill.next(device=None) == "b"
  with pytest.raises(ChildProcessError):
    ill.next(device=None)


def test_one_host_alone_raises_what_its_data_raised():
  for error in (DEAD, ValueError("damaged")):
    with pytest.raises(type(error), match=str(error).split()[0]):
      Feed(iter([error]), Clock(), StopSignals()).next(device=None)


def test_what_stopped_a_run_is_said_in_words(tmp_path):
  said, stop = [], StopSignals()
  log = types.SimpleNamespace(say=said.append, clock=Clock())
  stop.agreed_on = signal.SIGCHLD
  events.say_finished(7, tmp_path, stop, log)
  assert said[0].startswith("stopped by a data worker that died after step 7, saved")
  stop.agreed_on = signal.SIGTERM
  events.say_finished(7, tmp_path, stop, log)
  assert "stopped by SIGTERM after step 7, saved; the same" in said
