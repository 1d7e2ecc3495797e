"""Promises of tfusion/training/speed.py."""

import json

import jax

from tfusion.training import machine
from tfusion.training.speed import Speed


def test_no_share_of_the_machines_rate_is_above_all_of_it(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(machine, "peak_flops", lambda: (1e9, "matmul"))
  devices = 4
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  speed = Speed(tmp_path)
  facts = speed.write_facts({"parameters": 7})
  assert facts["peak_flops"] == 1e9 * devices and facts["parameters"] == 7
  monkeypatch.setattr(machine, "peak_flops", lambda: (4e9, "matmul"))  # less busy now

  def mfu(seconds: float, flops: float) -> float:
    return speed.rates(dict(seconds=seconds, elements=100, flops=flops * devices))[
      "mfu"
    ]

  rates = speed.rates(dict(seconds=2.0, elements=100, flops=1e9))
  assert rates == {
    "elements_per_s": 50.0,
    "mfu": 0.5 / devices,
    "flops_per_element": 1e7,
  }
  assert mfu(2.0, 1e9) == 0.5 and not capsys.readouterr().out
  # Six times what was measured at the start; then more than can be measured at all.
  assert mfu(1.0, 6e9) == 1.0 and mfu(1.0, 3e9) == 0.5
  kept = json.loads((tmp_path / "run.json").read_text())
  assert speed.peak == 6e9 and kept["peak_flops"] == 6e9 * devices
  assert kept["peak_flops_source"] == "measured while training"
  assert kept["parameters"] == 7
  assert capsys.readouterr().out.count("MFU is counted from") == 1
  speed.peak = 1e9
  assert mfu(1.0, 2e9) == 0.5  # of the 4e9 of now
