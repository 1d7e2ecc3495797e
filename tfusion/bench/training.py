"""How fast the training step is on this machine: `tfusion bench step`.

Owns: the measurement. Not: what is measured, which is the loop's own step and data.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from types import ModuleType
from typing import Any, NamedTuple

import jax

from tfusion.bench import llama
from tfusion.config import Config, validate_devices
from tfusion.data.pipeline import HostBatches, open_corpus
from tfusion.model.transfusion import axis_names
from tfusion.sequence import live_elements
from tfusion.sharding import global_batch, make_mesh, state_shardings
from tfusion.training import machine
from tfusion.training import step as step_lib
from tfusion.training.clock import Clock
from tfusion.training.flops import batch_flops

WARMUP = 3
ROUNDS = 3  # in which steps are timed in turns, as a machine's speed changes


class Program(NamedTuple):
  """A compiled training step."""

  init: Callable[[], Any]  # the state of step 0
  step: Callable[[Any, Any], tuple[Any, Any]]  # (state, batch) -> state, metrics


def compile_step(config: Config, batch: Any, of: ModuleType = step_lib) -> Program:
  """Compiles a step for batches like this one; call it inside jax.set_mesh.

  Args:
    config: of the run.
    batch: on the mesh.
    of: has init_state and train_step: our own model's, or `tfusion.bench.llama`.
  """
  root = jax.random.key(config.seed)
  start = functools.partial(of.init_state, config)
  sharding = state_shardings(
    jax.eval_shape(start, root),
    names=axis_names(config.model),
    mesh=jax.sharding.get_mesh(),
  )
  init = jax.jit(start, out_shardings=sharding)
  step = jax.jit(
    functools.partial(of.train_step, config),
    donate_argnums=0,
    out_shardings=(sharding, None),
  )
  compiled = step.lower(init(root), batch, root).compile()
  return Program(lambda: init(root), lambda state, batch: compiled(state, batch, root))


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


def time_in_turns(
  programs: dict[str, tuple[Program, Any]], *, steps: int
) -> dict[str, list[float]]:
  """Median seconds of a step in every round, of programs with their batches.

  Each has the memory to itself: its state is made anew for every round.
  """
  medians: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(ROUNDS):
    for name, (program, batch) in programs.items():
      seconds, _ = time_steps(program.step, program.init(), batch, steps=steps)
      medians[name].append(statistics.median(seconds))
  return medians


def over(ours: list[float], others: list[float]) -> float:
  """By which share ours is above others that were measured beside it: the median."""
  return statistics.median(own / other - 1 for own, other in zip(ours, others))


def bench_step(config: Config, *, steps: int) -> dict[str, Any]:
  """Times the step alone, then the loop with its data, beside the matmul rate.

  Returns:
    step_ms: of the step alone on one batch, waited for: the median of ROUNDS medians.
    llama_ms: the same of a plain Llama on as many elements (llama.py).
    over_llama: by which share step_ms is above llama_ms, the median of ROUNDS.
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
    tokens = global_batch(llama.make_rows(config), mesh=mesh)
    program = compile_step(config, batch)
    programs = {
      "step": (program, batch),
      "llama": (compile_step(config, tokens, llama), tokens),
    }
    alone = time_in_turns(programs, steps=-(-steps // ROUNDS))
    clock, elements, flops, late = Clock(), 0, 0.0, None
    state = program.init()
    for _ in range(steps):
      rows = clock.wait_for(data, device=late)
      state, values = program.step(state, global_batch(rows, mesh=mesh))
      if late is not None:
        jax.device_get(late)
      late = values
      elements += live_elements(rows)
      flops += batch_flops(config.model, rows)
    jax.block_until_ready(state)
    loop = clock.elapsed
  matmul = max(matmul, machine.measure_matmul(seconds=1.0))
  step_ms, llama_ms = (1e3 * statistics.median(alone[name]) for name in programs)
  return machine.environment() | {
    "step_ms": step_ms,
    "llama_ms": llama_ms,
    "over_llama": over(alone["step"], alone["llama"]),
    "loop_ms": 1e3 * loop / steps,
    "elements_per_s": elements / loop,
    "gflops": flops / loop / 1e9,
    "matmul_gflops": matmul / 1e9,
    "share": flops / loop / matmul,
    "data_wait": clock.seconds["data"] / loop,
    "host_overhead": 1 - step_ms * steps / (1e3 * loop),
  }
