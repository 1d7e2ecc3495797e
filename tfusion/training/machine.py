"""The machine that a run is on: its devices, its versions, its peak rate.

Owns: PEAK_FLOPS, the measured rate of matmuls, what run.json says of the machine. Not:
the operations of a step (flops.py).
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from tfusion.version import __version__

# Dense bfloat16 peak, FLOP/s per jax device, by device_kind; public data sheets.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v4 lite": 138e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,  # jax knows both names
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}

# As /proc/cpuinfo names them, on x86 and on Arm.
VECTORS = ("amx_tile", "avx512f", "avx2", "fma", "sve", "asimd")


def peak_flops() -> tuple[float, str]:
  """FLOP/s of one device and where the figure is from.

  Accelerators: the data sheet. Others, and a CPU, whose devices share its cores:
  measured here, float32, 1024 x 1024 matmuls, the best of a few.
  """
  kind = jax.devices()[0].device_kind
  for name, peak in sorted(PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
    if kind.startswith(name):
      return peak, f"data sheet of {name}, bfloat16"
  sharing = jax.local_device_count() if jax.default_backend() == "cpu" else 1
  return measure_matmul() / sharing, "matmul measured at the start"


def measure_matmul(*, size: int = 1024, seconds: float = 0.3) -> float:
  """FLOP/s of float32 matmuls of this size on one local device, the best run.

  On a CPU one device already uses all cores.
  """
  device = jax.local_devices()[0]
  mesh = jax.make_mesh((1,), ("x",), devices=[device], axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
      start = time.perf_counter()
      matmul(x, x).block_until_ready()
      best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
  return best


def cpu_info() -> dict[str, str]:
  """What Linux says of the first processor; nothing elsewhere."""
  path = Path("/proc/cpuinfo")
  text = path.read_text() if path.is_file() else ""
  lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
  return {key.strip(): value.strip() for key, _, value in lines}


def vectors(info: dict[str, str]) -> str:
  """The instructions on vectors and matrices that a processor has, the widest first:
  they decide how fast its matmuls can be."""
  has = info.get("flags", info.get("Features", "")).split()
  return " ".join(name for name in VECTORS if name in has) or "unknown"


def environment() -> dict[str, Any]:
  """Hardware and versions of this process, for run.json and printed figures."""
  device = jax.devices()[0]
  info = cpu_info()
  return {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "hosts": jax.process_count(),
    "cpu": info.get("model name", platform.processor() or platform.machine()),
    "vectors": vectors(info),
    "cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "tfusion": __version__,
  }
