"""Compiles functions for a TPU on a machine without one, and reads what came out.

Owns: the process that compiles, since libtpu reads its flags once, when it is loaded.
Not: what the instructions mean (bundles.py). Needs the extra `tpu`.
"""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tfusion.bench.tpu import bundles

ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud which machine this is
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes at once
}
_DUMP = (
  "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"
  " --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
)


class Case(NamedTuple):
  """What to compile: `module:function`.

  It is called where it is compiled and returns a jittable function, its abstract
  arguments, and, if it likes, a function without arguments that is called on the mesh
  of the chip and whose JSON comes back as Profile.told.
  """

  make: str
  kwargs: dict[str, Any] = {}  # of JSON, for the function that makes the function


class Profile(NamedTuple):
  """What the compiler made of a case; sizes are zero if it refused."""

  error: str | None  # first lines of what the compiler said
  seconds: float  # that tracing and compiling took
  temp_bytes: int
  argument_bytes: int
  output_bytes: int
  told: Any
  kernels: dict[str, list[list[bundles.Block]]]  # pieces of each Pallas kernel


def available() -> bool:
  """Is libtpu installed?"""
  return importlib.util.find_spec("libtpu") is not None


def check(generation: str) -> None:
  """Raises a ValueError for an unknown generation, and where libtpu is missing."""
  if generation not in bundles.GENERATIONS:
    known = ", ".join(bundles.GENERATIONS)
    raise ValueError(f"{generation!r} is no TPU generation: use one of {known}")
  if not available():
    raise ValueError("libtpu is not installed: pip install 'jax[tpu]'")


def profile(generation: str, cases: list[Case], *, dump: bool = True) -> list[Profile]:
  """Compiles every case for one core of a TPU generation, in one new process.

  Args:
    generation: of `bundles.GENERATIONS`.
    cases: their modules are imported in the new process, from this one's sys.path.
    dump: read instructions too; without, kernels stay empty and compiling is faster.

  Raises:
    ValueError: an unknown generation, libtpu is missing, or the process broke down.
      A case that does not compile is no error here: its Profile says why.
  """
  check(generation)
  with tempfile.TemporaryDirectory() as folder:
    environment = os.environ | ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join(
      path or os.getcwd() for path in sys.path
    )
    if dump:
      environment["LIBTPU_INIT_ARGS"] = _DUMP.format(folder)
    done = subprocess.run(
      [sys.executable, "-P", "-m", "tfusion.bench.tpu.aot", generation, folder],
      input=json.dumps(cases),
      capture_output=True,
      text=True,
      check=False,
      env=environment,
    )
    if done.returncode:
      raise ValueError(f"compiling for {generation} broke down:\n{done.stderr[-2000:]}")
    return [
      Profile(**found | {"kernels": _blocks(found["kernels"])})
      for found in json.loads((Path(folder) / "profiles.json").read_text())
    ]


def _blocks(kernels: dict) -> dict[str, list[list[bundles.Block]]]:
  return {
    name: [[bundles.Block(*block) for block in piece] for piece in pieces]
    for name, pieces in kernels.items()
  }


def _main(generation: str, folder: str) -> None:
  """The new process: reads cases from stdin, leaves profiles.json in the folder."""
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name=bundles.GENERATIONS[generation].topology
  )
  mesh = Mesh(np.array(topology.devices[:1]), ("chip",))
  found = []
  for case in json.load(sys.stdin):
    case = Case(*case)
    found.append(_compile(case, mesh)._asdict() | {"kernels": _kernels(Path(folder))})
  (Path(folder) / "profiles.json").write_text(json.dumps(found))


def _compile(case: Case, mesh: Mesh) -> Profile:
  module, _, name = case.make.partition(":")
  made = getattr(importlib.import_module(module), name)(**case.kwargs)
  function, args, *tell = made
  sharding = NamedSharding(mesh, PartitionSpec())
  args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args
  )
  start = time.perf_counter()
  try:
    with jax.set_mesh(mesh):
      told = tell[0]() if tell else None
      compiled = jax.jit(function).lower(*args).compile()
  except Exception as error:  # whatever the compiler has to say is a result
    said = f"{type(error).__name__}: {error}"[:600]
    return Profile(said, time.perf_counter() - start, 0, 0, 0, None, {})
  memory = compiled.memory_analysis()
  assert memory is not None  # the compilers for TPUs tell it
  return Profile(
    error=None,
    seconds=time.perf_counter() - start,
    temp_bytes=memory.temp_size_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    told=told,
    kernels={},
  )


def _kernels(folder: Path) -> dict[str, list[list[bundles.Block]]]:
  """Parses the kernels that the last compilation left, and removes its files."""
  kernels = {}
  for path in sorted(folder.glob("*-final_bundles.txt")):
    text = path.read_text(errors="replace")
    if entry := re.search(r"/\* entry bundle: %([\w.-]+) = [^*]*custom-call\(", text):
      name = re.sub(r"\.\d+$", "", entry[1])
      while name in kernels:
        name += "'"
      kernels[name] = bundles.read_pieces(text)
    path.unlink()
  return kernels


if __name__ == "__main__":
  _main(*sys.argv[1:])
