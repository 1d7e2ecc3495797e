"""How fast the training step is on this machine: `tfusion bench step`.

Owns: the measurement. Not: what is measured, which is the loop's own step and data.
"""

import functools
import statistics
import tempfile
import time
from contextlib import closing
from typing import Any

import jax

from tfusion.config import Config, validate_devices
from tfusion.data.pipeline import HostBatches, open_corpus
from tfusion.sequence import live_elements
from tfusion.sharding import global_batch, make_mesh
from tfusion.training import machine
from tfusion.training.clock import Clock
from tfusion.training.flops import batch_flops
from tfusion.training.step import init_state, shardings, train_step

WARMUP = 3


def compile_step(config: Config, batch: Any):
  """Returns a fresh state and the compiled train_step for batches like this one; call
  it inside jax.set_mesh."""
  sharding = shardings(config, jax.sharding.get_mesh())
  root = jax.random.key(config.seed)
  init = jax.jit(functools.partial(init_state, config), out_shardings=sharding)
  state = init(root)
  step = jax.jit(
    functools.partial(train_step, config),
    donate_argnums=0,
    out_shardings=(sharding, None),
  )
  compiled = step.lower(state, batch, root).compile()
  return state, lambda state, batch: compiled(state, batch, root)


def time_steps(step, state, batch, *, steps: int) -> tuple[list[float], Any]:
  """Seconds of single steps on one batch, each waited for, and the last state."""
  seconds = []
  for number in range(WARMUP + steps):
    start = time.perf_counter()
    state, values = step(state, batch)
    jax.block_until_ready((state, values))
    if number >= WARMUP:
      seconds.append(time.perf_counter() - start)
  return seconds, state


def bench_step(config: Config, *, steps: int) -> dict[str, Any]:
  """Times the step alone, then the loop with its data, beside the matmul rate.

  Returns:
    step_ms: median of the step alone on one batch, waited for.
    loop_ms: per step of a loop that draws its rows and reads metrics one step late.
    elements_per_s, gflops: live elements and their operations over loop_ms.
    matmul_gflops: float32 matmuls of 1024 x 1024 in this process, best of before and
      after; share is gflops over it.
    data_wait: share of the loop in which the device may have waited for rows.
    host_overhead: share of the loop beyond the step alone, data wait included; noise
      can make it slightly negative.
  """
  validate_devices(config, devices=jax.device_count(), hosts=jax.process_count())
  matmul = machine.measure_matmul(seconds=1.0)
  with (
    tempfile.TemporaryDirectory() as folder,
    jax.set_mesh(make_mesh(config.mesh)),
    closing(HostBatches(open_corpus(config, folder), config, host=0, hosts=1)) as data,
  ):
    mesh = jax.sharding.get_mesh()
    batch = global_batch(next(data), mesh=mesh)
    state, step = compile_step(config, batch)
    alone, state = time_steps(step, state, batch, steps=steps)
    clock, elements, flops, late = Clock(), 0, 0.0, None
    for _ in range(steps):
      rows = clock.wait_for(data, device=late)
      state, values = step(state, global_batch(rows, mesh=mesh))
      if late is not None:
        jax.device_get(late)
      late = values
      elements += live_elements(rows)
      flops += batch_flops(config.model, rows)
    jax.block_until_ready(state)
    loop = clock.elapsed
  matmul = max(matmul, machine.measure_matmul(seconds=1.0))
  step_ms = 1e3 * statistics.median(alone)
  return machine.environment() | {
    "step_ms": step_ms,
    "loop_ms": 1e3 * loop / steps,
    "elements_per_s": elements / loop,
    "gflops": flops / loop / 1e9,
    "matmul_gflops": matmul / 1e9,
    "share": flops / loop / matmul,
    "data_wait": clock.seconds["data"] / loop,
    "host_overhead": 1 - step_ms * steps / (1e3 * loop),
  }
