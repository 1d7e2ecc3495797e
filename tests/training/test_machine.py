"""Promises of tfusion/training/machine.py."""

import types

import jax
import pytest
import tiny

from tfusion.training import machine


def test_the_matmul_rate_is_that_of_the_best_run(monkeypatch):
  # Begin; look, start and end of runs of 2 s, 0.5 s and 1 s; a last look.
  readings = 0.0, 0.1, 1.0, 3.0, 3.1, 4.0, 4.5, 4.6, 5.0, 6.0, 10.0
  monkeypatch.setattr(machine, "time", tiny.clock_that_reads(*readings))
  assert machine.measure_matmul(size=16, seconds=9.0) == 2 * 16**3 / 0.5


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v4", 275e12),
    ("TPU v4 lite", 138e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
  ],
)
def test_the_peak_of_an_accelerator_is_its_own_whatever_name_jax_gives_it(
  monkeypatch, kind, peak
):
  device = types.SimpleNamespace(device_kind=kind)
  monkeypatch.setattr(jax, "devices", lambda: [device])
  found, source = machine.peak_flops()
  assert found == peak and "data sheet" in source


def test_the_peak_of_a_cpu_is_measured_and_shared_by_its_devices(monkeypatch):
  monkeypatch.setattr(machine, "measure_matmul", lambda: 12e9)
  monkeypatch.setattr(jax, "local_device_count", lambda: 4)
  assert machine.peak_flops() == (3e9, "matmul measured at the start")
  # Accelerators that no data sheet is known of have their own units each.
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert machine.peak_flops() == (12e9, "matmul measured at the start")
