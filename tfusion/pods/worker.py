"""The process that compiles for a machine that is not here.

Owns: the process, since the compiler for TPUs and the number of a CPU's devices are set
when it starts. Not: what is compiled (program.py), what is made of it (study.py).

A request goes in by stdin and what was found comes back in a file, both as JSON.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tfusion import config as config_lib
from tfusion.bench.tpu import aot
from tfusion.config import Config
from tfusion.pods import links as links_lib
from tfusion.pods import program
from tfusion.pods.chips import GPUS, Topology
from tfusion.pods.hlo import Program
from tfusion.pods.timeline import Cost, Timeline
from tfusion.training.lowered import lower_step


class Request(NamedTuple):
  """What to compile."""

  config: dict[str, Any]  # as JSON
  topology: Topology
  program: str  # step or sampler
  kernel_seconds: dict[str, float]
  open_trips: int | None  # of Timeline
  save: str = ""  # a file for the executable


class Compiled(NamedTuple):
  """What the compiler made of it; sizes are bytes on a device."""

  error: str  # what it said where it refused: out of memory, most often
  compile_seconds: float
  arguments: dict[str, int]  # parameters, optimizer, average, batch
  activations: int
  temporaries: int  # beside activations
  peak: int
  cost: dict[str, Any]  # of timeline.Cost; keys "kind axis"
  layer: dict[str, Any]  # of one layer, forward and backward, its collectives


def compile_for(request: Request) -> Compiled:
  """Compiles in a new process, as long as that takes: minutes for a large model.

  Raises:
    ValueError: libtpu is missing, the topology is unknown to it, or the process broke
      down.
  """
  if request.topology.generation not in GPUS and not aot.available():
    raise ValueError("libtpu is not installed: pip install 'jax[tpu]'")
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  if request.topology.generation in GPUS:
    environment["JAX_NUM_CPU_DEVICES"] = str(request.topology.devices)
  else:
    environment |= aot.ENVIRONMENT
  environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "compiled.json"
    done = subprocess.run(
      [sys.executable, "-P", "-m", "tfusion.pods.worker", str(out)],
      input=json.dumps(request),
      capture_output=True,
      text=True,
      check=False,
      env=environment,
    )
    if not out.is_file():
      said = done.stderr.strip().splitlines()[-8:]
      raise ValueError(
        f"compiling for {request.topology} broke down:\n" + "\n".join(said)
      )
    found = json.loads(out.read_text())
  if "refused" in found:
    raise ValueError(found["refused"])
  return Compiled(**found)


def _main(out: str) -> None:
  """The new process."""
  config, (generation, shape, slices), *rest = json.load(sys.stdin)
  request = Request(config, Topology(generation, tuple(shape), slices), *rest)
  try:
    found: dict[str, Any] = _compile(request)._asdict()
  except ValueError as error:  # of the request: a mesh that does not fit
    found = {"refused": str(error)}
  Path(out).write_text(json.dumps(found))


def _compile(request: Request) -> Compiled:
  config = config_lib.from_dict(request.config)
  mesh = program.mesh_of(config, request.topology)
  if request.save:  # one that is found in JAX's cache cannot be written once more
    jax.config.update("jax_enable_compilation_cache", False)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    lower = {"step": lower_step, "sampler": program.lower_sampler}
    lowered = lower[request.program](config, mesh)
    trains = request.program == "step"
    arguments = program.arguments(config, mesh, trains=trains)
    kept = program.residual_bytes(config, mesh) if trains else 0
    try:
      compiled = lowered.compile()
    except Exception as error:  # what the compiler has to say is a result
      said, seconds = _refusal(error), time.perf_counter() - start
      return Compiled(said, seconds, _sizes(arguments), kept, 0, 0, {}, {})
  memory = compiled.memory_analysis()
  assert memory is not None  # compilers for TPUs and CPUs tell it
  text = compiled.as_text()
  assert text is not None
  parsed = Program(text)
  timeline = Timeline(
    parsed,
    request.topology.chip,
    links_lib.Links(
      request.topology, links_lib.places(request.topology, mesh), mesh.axis_names
    ),
    lambda name: next(
      (s for start, s in request.kernel_seconds.items() if name.startswith(start)), 0.0
    ),
    request.open_trips,
  )
  if request.save:
    from tfusion.training import executable

    executable.save(compiled, lowered, request.save)
  peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
  peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  peak = getattr(memory, "peak_memory_in_bytes", 0) or peak
  return Compiled(
    error="",
    compile_seconds=time.perf_counter() - start,
    arguments=_sizes(arguments),
    activations=kept,
    temporaries=max(memory.temp_size_in_bytes - kept, 0),
    peak=peak,
    cost=_as_json(timeline.total()),
    layer=_as_json(_layer(parsed, timeline, config)) if trains else {},
  )


def _layer(parsed: Program, timeline: Timeline, config: Config) -> Cost:
  """One layer, forward and backward: the loops over the layers, once around."""
  trips = config.model.layers // config.model.unroll
  found = Cost()
  for operations in parsed.computations.values():
    for operation in operations:
      if operation.kind != "while":
        continue
      body, times = timeline.loop(operation)
      if times == trips and body.flops:
        found.add(body)
  return found


def _sizes(trees: dict[str, Any]) -> dict[str, int]:
  return {
    name: sum(program.shard_bytes(x) for x in jax.tree.leaves(tree))
    for name, tree in trees.items()
  }


def _as_json(cost: Cost) -> dict[str, Any]:
  found = {}
  for field in dataclasses.fields(cost):
    value = getattr(cost, field.name)
    if isinstance(value, Counter):
      value = {" ".join(key): number for key, number in value.items()}
    found[field.name] = value
  return found


def _refusal(error: Exception) -> str:
  """The lines that say why; out of memory, with how much was asked for."""
  said = str(error)
  match = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", said)
  if match:
    return f"out of memory: {match[1]} of {match[2]} of a device's HBM"
  return said[:600]


if __name__ == "__main__":
  _main(sys.argv[1])
