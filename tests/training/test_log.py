"""Promises of tfusion/training/log.py and of the speeds that the loops write."""

import os
import pathlib
import signal
import types

import jax
import jax.numpy as jnp
import pytest
import tiny

from tfusion.training import log as log_lib
from tfusion.training import loop, machine
from tfusion.training.clock import Clock
from tfusion.training.hold import Hold
from tfusion.training.speed import Speed
from tfusion.training.stop import StopSignals


def metrics(**values: float) -> dict[str, jax.Array]:
  return {name: jnp.float32(x) for name, x in values.items()}


def test_a_run_of_which_nobody_reads_what_it_says_is_told_to_stop(
  tmp_path, monkeypatch
):
  stop, read = StopSignals(), [True, False]
  monkeypatch.setattr(log_lib, "say", lambda text: read.pop(0))
  log = log_lib.Log(tiny.config(), tmp_path, 0, Clock(), Hold(None), stop, None, None)
  log.say("read")
  assert stop.told == 0
  log.say("not read")
  assert stop.told == signal.SIGPIPE
  log.first, stop.told = False, 0
  log.say("by the first host alone")
  assert stop.told == 0 and not read


def test_speed_is_that_since_the_last_line_without_what_is_no_training(
  tmp_path, capsys, monkeypatch
):
  peak = 1e9 / jax.device_count()
  monkeypatch.setattr(machine, "peak_flops", lambda: (peak, "matmul"))
  seconds = {"init": 1.0, "compile": 2.0, "save": 3.0, "evaluate": 4.0, "data": 0.5}
  clock = types.SimpleNamespace(elapsed=20.0, seconds=seconds, computed=0.0)
  log = log_lib.Log(
    tiny.config(train__steps=30, train__log_every_steps=5),
    tmp_path,
    0,
    clock,
    Hold(None),
    StopSignals(),
    Speed(tmp_path).rates,
    loop._progress_line,
  )
  losses = dict(loss=2.0, loss_text=1.5, loss_image=0.125, skipped=0.0)
  for step in range(1, 11):
    log.hand_over(step, metrics(**losses), {"elements": 100, "flops": 5e8})
  log.write()
  clock.elapsed = 50.0
  seconds |= {"save": 10.0, "evaluate": 12.0, "data": 3.5}
  for step in range(11, 16):
    log.hand_over(step, metrics(**losses), {"elements": 900, "flops": 6e8})
  log.write()
  log.write()  # nothing is waiting: no second line
  first, second = log_lib.read_lines(tmp_path / "speed.jsonl")
  assert first == {
    "step": 10,
    "seconds": 20.0,
    "elements_per_s": 100.0,
    "step_ms": 1000.0,
    "mfu": pytest.approx(0.5),
    "flops_per_element": 5e6,
    "data_wait_share": 0.05,
    "eta_seconds": 20.0,
  }
  assert second == {
    "step": 15,
    "seconds": 50.0,
    "elements_per_s": 300.0,
    "step_ms": 3000.0,
    "mfu": pytest.approx(0.2),
    "flops_per_element": pytest.approx(6e8 / 900),
    "data_wait_share": 0.2,
    "eta_seconds": 45.0,
  }
  want = [{"step": step} | losses for step in (10, 15)]
  assert log_lib.read_lines(tmp_path / "metrics.jsonl") == want
  said = capsys.readouterr().out.splitlines()
  assert said[1].startswith("step 15/30  loss 2.000") and said[1].endswith("left 0:45")


def test_the_line_on_the_console_holds_losses_rates_and_the_time_left():
  values = {"step": 20, "loss": 1.23456, "loss_text": 0.5, "loss_image": 0.14691}
  speed = {
    "elements_per_s": 12345.6,
    "step_ms": 130.6,
    "mfu": 0.434,
    "data_wait_share": 0.0123,
    "eta_seconds": 724.9,
  }
  assert loop._progress_line(values, speed, 2000) == (
    "step 20/2000  loss 1.235  text 0.500  image 0.1469  12,346 elements/s  131 ms"
    "  MFU 43%  data wait 1.2%  left 12:04"
  )


# Files.


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_line_that_finds_the_disk_full_names_its_file(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 0}\n')
  file = log_lib.JsonLines(path, last_step=0, writes=True)
  full = pathlib.Path("/dev/full").write_bytes
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "write_bytes", lambda self, data: full(data))
    with pytest.raises(OSError, match="No space left on device") as error:
      log_lib.JsonLines(path, last_step=0, writes=True)
  assert str(path) in str(error.value) and path.read_text() == '{"step": 0}\n'
  path.unlink()
  path.symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left on device") as error:
    file.append({"step": 1})
  assert str(path) in str(error.value)


def test_the_loss_of_a_kind_that_a_batch_lacks_is_left_out_and_no_zero():
  values = {"loss": 2.0, "loss_image": 0.5, "loss_wave": 0.0, "loss_wide": 0.0}
  values |= {"images": 3.0, "images_image": 3.0, "images_wave": 0.0, "images_wide": 1.0}
  kept = log_lib._without_absent(values)
  assert values.keys() - kept.keys() == {"loss_wave"}
  one_kind = {"loss_image": 0.0, "images": 0.0}
  assert log_lib._without_absent(one_kind) == one_kind
