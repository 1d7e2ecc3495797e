"""A config on a topology: does it fit, what does a step take, for how many days?

Owns: the question and its answer. Not: the compiling (worker.py), how the answer is
shown (pages.py), trying several (search.py).
"""

import dataclasses
from typing import Any, NamedTuple

from tfusion.config import Config, mesh_sizes, validate_devices
from tfusion.model.transfusion import parameter_count
from tfusion.pods import counts as counts_lib
from tfusion.pods import kernels, worker
from tfusion.pods.chips import GPUS, Topology
from tfusion.pods.worker import Compiled

DAY = 86_400.0
RUNS = {"0.5T": 0.5e12, "2T": 2e12}  # elements of the paper's runs (section 4.1)


class Study(NamedTuple):
  """The answer. Bytes are of one device, seconds of a step of all."""

  topology: Topology
  mesh: dict[str, int]
  program: str
  config: Config  # as compiled: nothing in it is auto
  parameters: int
  counts: counts_lib.Counts
  compiled: Compiled
  note: str = ""  # of the attention kernels' time

  @property
  def needs(self) -> dict[str, int]:
    """Bytes by part, and in all: what the compiler plans at its fullest moment.

    On a GPU there is only the compiler for CPUs, which holds much in float32 that a GPU
    holds in bfloat16: the sum of parameters, optimizer and activations.
    """
    parts = self.compiled.arguments | {"activations": self.compiled.activations}
    if self.topology.generation in GPUS:
      return parts | {"all": sum(parts.values())}
    parts["temporaries"] = self.compiled.temporaries
    return parts | {"all": self.compiled.peak}

  @property
  def fits(self) -> bool:
    """Whether a device has room for it."""
    return not self.compiled.error and self.needs["all"] <= self.topology.chip.hbm_bytes

  @property
  def seconds(self) -> float:
    """Of a step, predicted; 0 where there is no program of the machine's own."""
    if self.topology.generation in GPUS or self.compiled.error:
      return 0.0
    return self.compiled.cost["seconds"]

  @property
  def exposed(self) -> dict[str, float]:
    """Seconds in which nothing but a collective runs, by its kind and mesh axis."""
    return {k: s for k, s in self.compiled.cost.get("exposed", {}).items() if s}

  def mfu(self, flops: float) -> float:
    """The share of the peak that so many operations in a step are."""
    peak = self.topology.chip.flops * self.topology.devices
    return flops / self.seconds / peak if self.seconds else 0.0

  @property
  def elements(self) -> int:
    """Of a step."""
    return self.config.train.batch_rows * self.config.data.row_length

  @property
  def elements_per_day(self) -> float:
    """At the predicted speed, without pauses."""
    return self.elements / self.seconds * DAY if self.seconds else 0.0

  def as_json(self) -> dict[str, Any]:
    """Everything, for a file."""
    return {
      "topology": str(self.topology),
      "devices": self.topology.devices,
      "mesh": self.mesh,
      "program": self.program,
      "parameters": self.parameters,
      "fits": self.fits,
      "bytes": self.needs,
      "limit_bytes": self.topology.chip.hbm_bytes,
      "flops": self.counts._asdict()
      | {"compiled": self.compiled.cost.get("flops", 0.0) * self.topology.devices},
      "step_seconds": self.seconds,
      "mfu": self.mfu(self.counts.exact),
      "mfu_square": self.mfu(self.counts.square),
      "exposed_seconds": self.exposed,
      "elements_per_day": self.elements_per_day,
      "cost": self.compiled.cost,
      "layer": self.compiled.layer,
      "compile_seconds": self.compiled.compile_seconds,
      "error": self.compiled.error,
    }


def study(
  config: Config, topology: Topology, *, program: str = "step", save: str = ""
) -> Study:
  """Compiles a config for a topology and reads what came out.

  Args:
    config: of an experiment; `auto` becomes what it is on the machine.
    topology: that need not be here.
    program: step, or sampler: the denoising of an image in `eval.batch` rows.
    save: a file for the executable; none if empty.

  Raises:
    ValueError: the config does not fit the mesh or the mesh the topology, or libtpu is
      missing.
  """
  config = resolved(config, topology)
  validate_devices(config, devices=topology.devices, hosts=1)
  if mesh_sizes(config.mesh, devices=topology.devices)["data"] % topology.slices:
    raise ValueError(
      f"mesh.data={config.mesh.data}: must divide by the {topology.slices} slices, as"
      " all other axes lie within one"
    )
  counted = counts_lib.count(config)
  times = kernels.Times({})
  if program == "step":
    times = kernels.times(config, topology, counted)
  # A ring of four has a loop up to the farthest shard that it meets but one.
  ring = config.mesh.context > 3
  open_trips = counts_lib.farthest(config) - 1 if ring else None
  request = worker.Request(
    dataclasses.asdict(config), topology, program, times.seconds, open_trips, save
  )
  compiled = worker.compile_for(request)
  return Study(
    topology,
    mesh_sizes(config.mesh, devices=topology.devices),
    program,
    config,
    parameter_count(config.model),
    counted,
    compiled,
    times.note,
  )


def resolved(config: Config, topology: Topology) -> Config:
  """The config with what `auto` is on the machine."""
  model = config.model
  gpu = topology.generation in GPUS
  dtype = "bfloat16" if model.dtype == "auto" else model.dtype
  attention = model.attention
  if gpu:
    attention = "chunked"  # what the compiler for CPUs can take; it saves as much
  elif attention == "auto":
    attention = "tpu"
  return dataclasses.replace(
    config, model=dataclasses.replace(model, dtype=dtype, attention=attention)
  )
