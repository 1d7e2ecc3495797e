"""The promises of tfusion/attention/ring.py need several devices: another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROMISES = Path(__file__).with_name("ring_on_eight_devices.py")


@pytest.mark.parametrize(
  "which", ["not long", pytest.param("long", marks=pytest.mark.long)]
)
def test_on_eight_devices(which):
  env = dict(os.environ, JAX_PLATFORMS="cpu")
  env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  env["PYTHONPATH"] = str(Path(__file__).parents[2])
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
    + ["-m", which, PROMISES],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
