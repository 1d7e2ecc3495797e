"""Several ways to lay a config out on a topology, each compiled: which is the fastest?

Owns: which ways are tried. Not: one of them (study.py).
"""

import dataclasses
from collections.abc import Iterator

from tfusion.config import Config, validate_devices
from tfusion.pods.chips import Topology
from tfusion.pods.study import Study, study

REMATS = ("dots", "full")
PARTS = (1, 2, 4)
TENSORS = (1, 2, 4)


def candidates(config: Config, topology: Topology) -> list[Config]:
  """The layouts that fit the devices: parameters over all of a slice or over a part,
  heads over up to four devices, in so many parts, keeping matmuls or nothing."""
  found = []
  per_slice = topology.devices // topology.slices
  for tensor in TENSORS:
    for copies in (1, 4):
      if per_slice % (tensor * copies):
        continue
      mesh = dataclasses.replace(
        config.mesh,
        data=copies * topology.slices,
        fsdp=per_slice // (tensor * copies * config.mesh.context),
        tensor=tensor,
      )
      for parts in PARTS:
        for remat in REMATS:
          made = dataclasses.replace(
            config,
            mesh=mesh,
            model=dataclasses.replace(config.model, remat=remat),
            train=dataclasses.replace(config.train, accumulate=parts),
          )
          if _fits(made, topology):
            found.append(made)
  return found


def search(config: Config, topology: Topology) -> Iterator[Study]:
  """Compiles the candidates, one after the other.

  Raises:
    ValueError: none fits the devices, or what `study` raises.
  """
  tried = candidates(config, topology)
  if not tried:
    raise ValueError(
      f"--search: no mesh of {topology.devices} devices fits the config; its heads,"
      " width and rows must divide"
    )
  for one in tried:
    yield study(one, topology)


def _fits(config: Config, topology: Topology) -> bool:
  try:
    validate_devices(config, devices=topology.devices, hosts=1)
  except ValueError:
    return False
  return config.train.batch_rows % config.train.accumulate == 0
