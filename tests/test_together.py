"""Promises of tfusion/together.py: a fault of one host at its start ends all, named."""

import concurrent.futures
import dataclasses
import threading
import types

import jax
import pytest

from tfusion import config as config_lib
from tfusion import together as together_lib
from tfusion.together import check_hosts, check_same, together

CONFIG = config_lib.from_dict(config_lib.defaults().to_dict())


@pytest.fixture
def hosts(monkeypatch):
  """Runs a function of the number of a host on three, each a thread; returns what each
  returned or raised."""
  count = 3
  said, all_said = [None] * count, threading.Barrier(count)
  own = threading.local()

  def gather(value):
    said[own.host] = value
    all_said.wait(10)
    everyone = list(said)
    all_said.wait(10)
    return everyone

  def one(host, function):
    own.host = host
    try:
      return function(host)
    except Exception as error:
      return error

  def run(function):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
      return list(pool.map(one, range(count), [function] * count))

  monkeypatch.setattr(jax, "process_count", lambda: count)
  monkeypatch.setattr(together_lib, "gather_json", gather)
  have_devices(monkeypatch, 2, 2, 2)
  return run


def have_devices(monkeypatch, *counts):
  devices = [
    types.SimpleNamespace(process_index=host)
    for host, count in enumerate(counts)
    for _ in range(count)
  ]
  monkeypatch.setattr(jax, "devices", lambda: devices)


def raising(error, *, of):
  def start(host):
    with together():
      if host == of:
        raise error
    return "through"

  return start


def test_all_come_through_what_none_fails_at(hosts):
  assert hosts(raising(None, of=None)) == ["through"] * 3


@pytest.mark.parametrize(
  "error, said",
  [
    (ValueError("--workdir=x: choose another"), "--workdir=x: choose another"),
    (FileNotFoundError(2, "none", "x.py"), "x.py: there is no such file or folder"),
  ],
)
def test_what_a_person_can_mend_on_one_host_ends_all_with_its_message(
  hosts, error, said
):
  first, own, last = hosts(raising(error, of=1))
  assert own is error  # it needs not be told where it is
  for other in (first, last):
    assert type(other) is ValueError
    assert str(other).startswith("host 1 (") and said in str(other)


def test_an_error_of_ours_on_one_host_is_none_that_the_others_could_mend(hosts):
  first, own, _ = hosts(raising(KeyError("x"), of=1))
  assert isinstance(own, KeyError) and type(first) is RuntimeError
  assert "KeyError: 'x'" in str(first)


def test_hosts_with_other_numbers_of_devices_are_refused(hosts, monkeypatch):
  have_devices(monkeypatch, 4, 4, 3)
  for error in hosts(raising(None, of=None)):
    assert str(error).startswith("host 2 has 3 devices, host 0 has 4; all hosts")


def test_another_config_or_version_on_one_host_is_named_with_both_values(
  hosts, monkeypatch
):
  optim = dataclasses.replace(CONFIG.optim, peak_lr=0.5)
  other = dataclasses.replace(CONFIG, optim=optim)
  for error in hosts(lambda host: check_hosts(other if host == 2 else CONFIG)):
    assert str(error).startswith("optim.peak_lr: host 0 has 0.0003, host 2 0.5; start")
  host_of = iter(range(3))
  monkeypatch.setattr(
    together_lib, "versions", lambda: {"jax": "0.1" if next(host_of) else "0.2"}
  )
  for error in hosts(lambda host: check_hosts(CONFIG)):
    assert str(error).startswith("version of jax: host 0 has 0.")


def test_the_place_of_a_tokenizer_and_the_number_of_workers_are_a_hosts_own(hosts):
  def start(host):
    data = dataclasses.replace(
      CONFIG.data, workers=host, tokenizer=f"/disk{host}/tokenizer.model"
    )
    check_hosts(dataclasses.replace(CONFIG, data=data))

  assert hosts(start) == [None] * 3


def test_other_data_on_one_host_is_named(hosts):
  def start(host):
    check_same({"train": "a", "test": "b" if host else "c"}, remedy="give all the same")

  for error in hosts(start):
    assert str(error) == "test: host 0 has c, host 1 b; give all the same"
