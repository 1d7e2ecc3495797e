"""A training step, compiled when it is first called.

Owns: its compilation ahead of time, which the clock counts apart, and what the compiler
is asked for. Not: what it computes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tfusion.training import executable as executable_lib
from tfusion.training.clock import Clock

# Weights come by gathers that run in steps beside the matmuls that they precede.
_GATHER_BESIDE = {
  "xla_tpu_enable_async_collective_fusion": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
  "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
  "xla_tpu_overlap_compute_collective_tc": "true",
  "xla_enable_async_all_gather": "true",
}
# v5e has no sparse cores. There scatters run in steps beside the matmuls as well, where
# these find room: a fusion of both needs more than the 16 MiB of the 128 on the chip
# that one may take by default.
_SCATTER_IN_STEPS = {
  "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "true",
  "xla_enable_async_reduce_scatter_fusion": "true",
  "xla_tpu_scoped_vmem_limit_kib": "65536",
}
# Gradients leave by scatters that the sparse cores run, beside all matmuls.
_SCATTER_BESIDE = {
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true"
}
_ALL_BESIDE = _SCATTER_BESIDE | {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
}
# By the start of device_kind, the longest that fits; docs/pods.md shows what each does.
OPTIONS = {
  "TPU v5 lite": _SCATTER_IN_STEPS | _GATHER_BESIDE,
  "TPU v5": _SCATTER_BESIDE | _GATHER_BESIDE,
  "TPU v6": _ALL_BESIDE,
}


def jit_step(step: Callable[..., tuple[Any, Any]], sharding: Any) -> Any:
  """The step under jit: its state is donated, and keeps its sharding.

  Args:
    step: (state, ...) -> the next state and metrics.
    sharding: of the state, one or a tree like it.
  """
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(sharding, None),
    compiler_options=compiler_options(),
  )


def compiler_options() -> dict[str, str] | None:
  """What the compiler is asked for on the devices of the mesh in use."""
  mesh = jax.sharding.get_mesh()
  devices = mesh.devices
  kind = devices.flat[0].device_kind if devices is not None and devices.size else ""
  fitting = [start for start in OPTIONS if kind.startswith(start)]
  if not fitting:
    return None
  options = dict(OPTIONS[max(fitting, key=len)])
  if mesh.shape.get("context", 1) > 1:  # scatters would displace a ring's exchanges
    options = {k: x for k, x in options.items() if k not in _SCATTER_IN_STEPS}
  return options


class CompiledStep:
  """A step whose state is donated; one shape of arguments, one program."""

  def __init__(
    self,
    step: Callable[..., tuple[Any, Any]],
    sharding: Any,
    clock: Clock,
    executable: Path | None = None,
  ):
    """Compiles nothing yet.

    Args:
      step: (state, ...) -> the next state and metrics.
      sharding: of the state, one or a tree like it.
      clock: counts the seconds of compiling.
      executable: of `tfusion compile --save`; it must be this step's.
    """
    self._step = jit_step(step, sharding)
    self._program: jax.stages.Compiled | None = None
    self._clock, self._executable = clock, executable

  def __call__(self, state: Any, *args: Any) -> tuple[Any, Any]:
    """The next state and metrics, which may still be on the device.

    Raises:
      executable.Unfit: the file is of another step, version or machine.
    """
    if self._program is None:
      with self._clock.measure("compile"):
        self._program = self._load_or_compile(self._step.lower(state, *args))
    begin = time.perf_counter()
    result = self._program(state, *args)
    if jax.default_backend() == "cpu":  # others return at once, and compute then
      self._clock.computed += time.perf_counter() - begin
    return result

  def _load_or_compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    if self._executable:
      return executable_lib.load(self._executable, lowered)
    return lowered.compile()
