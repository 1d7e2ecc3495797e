"""Promises of tfusion/training/goodput.py."""

import json
import sys
import types

import pytest

from tfusion.training import goodput as goodput_lib
from tfusion.training.goodput import Goodput


@pytest.fixture
def now(monkeypatch):
  clock = types.SimpleNamespace(seconds=0.0, of_boot={})
  monkeypatch.setattr(
    goodput_lib, "_clocks", lambda: {"system": clock.seconds, **clock.of_boot}
  )
  return clock


def clock(elapsed: float, **seconds: float) -> types.SimpleNamespace:
  return types.SimpleNamespace(elapsed=elapsed, seconds=seconds)


def account(workdir) -> dict:
  return json.loads((workdir / "goodput.json").read_text())


def test_what_is_done_again_is_lost_and_the_time_between_starts_is_down(tmp_path, now):
  own = clock(0.0)
  first = Goodput(tmp_path, 0, own, writes=True)
  own.elapsed, own.seconds = 50.0, {"init": 10.0, "save": 1.0, "data": 4.0}
  first.mark(100)
  now.seconds = own.elapsed = 90.0
  first.write(180)
  assert account(tmp_path)["seconds"]["step"] == 75.0
  # 30 seconds later it goes on from step 100.
  now.seconds = 120.0
  own = clock(0.0)
  second = Goodput(tmp_path, 100, own, writes=True)
  now.seconds, own.elapsed, own.seconds = 180.0, 60.0, {"init": 5.0}
  second.write(200)
  seconds = {"step": 35.0 + 55.0, "data": 4.0, "save": 1.0, "init": 15.0}
  assert account(tmp_path)["seconds"] == seconds | {"lost": 40.0, "down": 30.0}
  assert account(tmp_path)["goodput"] == pytest.approx(90 / 180)


def test_a_clock_that_was_set_back_takes_no_time_away(tmp_path, now):
  now.seconds = 1000.0
  Goodput(tmp_path, 0, clock(10.0), writes=True).write(5)
  now.seconds = 0.0
  Goodput(tmp_path, 5, clock(2.0), writes=True).write(6)
  assert account(tmp_path)["seconds"] == {"step": 12.0, "down": 0.0}


def test_a_clock_that_leaps_between_two_starts_counts_only_where_the_boot_differs(
  tmp_path, now
):
  now.of_boot = {"boot 1": 50.0}
  Goodput(tmp_path, 0, clock(0.0), writes=True).write(5)
  now.seconds, now.of_boot = 86_400.0, {"boot 1": 53.0}
  Goodput(tmp_path, 5, clock(0.0), writes=True).write(6)
  assert account(tmp_path)["seconds"]["down"] == 3.0
  now.seconds, now.of_boot = 86_407.0, {"boot 2": 1.0}
  Goodput(tmp_path, 6, clock(0.0), writes=True).write(7)
  assert account(tmp_path)["seconds"]["down"] == 3.0 + 7.0


def test_this_machine_has_a_clock_that_goes_on_whatever_the_system_s_says(monkeypatch):
  monkeypatch.setattr(goodput_lib.time, "time", lambda: 0.0)
  (one, *more), (other, *later) = (goodput_lib._clocks().items() for _ in range(2))
  assert one == other == ("system", 0.0)
  if sys.platform == "linux":
    assert more[0][0] == later[0][0] and 0 < more[0][1] <= later[0][1]


def test_a_damaged_account_is_begun_anew_and_another_host_writes_none(tmp_path, now):
  (tmp_path / "goodput.json").write_text('{"starts": [7]}')
  Goodput(tmp_path, 0, clock(3.0), writes=False).write(1)
  assert account(tmp_path) == {"starts": [7]}
  Goodput(tmp_path, 0, clock(3.0), writes=True).write(1)
  assert account(tmp_path)["seconds"] == {"step": 3.0}
