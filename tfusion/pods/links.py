"""How long devices of a topology take to exchange bytes.

Owns: which links a collective has, the time on them. Not: when it may run
(timeline.py).

A collective runs in groups of devices that differ in their place along one or more axes
of the mesh. On a torus a group uses the links of the dimensions along which its members
differ; a dimension that is a ring of its own can be gone around both ways. Bandwidth
alone decides, with a microsecond for each hop: what other collectives or the compiler's
own reordering do to each other is not in it.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfusion.pods.chips import Topology

HOP_SECONDS = 1e-6
KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


class Place(NamedTuple):
  """Where a device is."""

  coordinates: tuple[int, ...]  # in its slice, in chips
  slice: int
  mesh: tuple[int, ...]  # along the axes of the mesh


class Group(NamedTuple):
  """The devices that exchange with each other; all groups of a collective are alike."""

  members: tuple[int, ...]  # counted along the mesh
  axis: str  # of the mesh; several are joined by +


class Links:
  """The places of all devices of a mesh, in its order."""

  def __init__(self, topology: Topology, places: Sequence[Place], axes: Sequence[str]):
    """Takes what `places` gives; axes are the names of those of the mesh."""
    self.topology, self.places, self.axes = topology, list(places), tuple(axes)

  def group(self, attributes: str) -> Group:
    """The first group of a collective, from what its operation says."""
    members = _members(attributes, len(self.places))
    mesh = np.array([self.places[m].mesh for m in members])
    differ = [a for a, x in zip(self.axes, mesh.T) if len(set(x.tolist())) > 1]
    return Group(tuple(members), "+".join(differ) or "none")

  def seconds(self, kind: str, size: int, group: Group) -> float:
    """The time of a collective.

    Args:
      kind: of KINDS.
      size: bytes on one device: of the whole for all-gather (its result), all-reduce
        and reduce-scatter (its input), of what is sent for the others.
      group: the devices.
    """
    count = len(group.members)
    if count < 2 or not size:
      return 0.0
    own = [self.places[m] for m in group.members]
    chip = self.topology.chip
    slices = len({place.slice for place in own})
    inside = count // slices
    turns = 2 if kind == "all-reduce" else 1
    seconds = 0.0
    if inside > 1:
      rate, hops = self._rate(own, kind)
      moved = size if kind == "collective-permute" else size * (inside - 1) / inside
      seconds += turns * (moved / rate + hops * HOP_SECONDS)
    if slices > 1:  # of what a slice has reduced or is to gather, each device its share
      share = size / inside * (slices - 1) / slices
      seconds += turns * (share / chip.network_rate + slices * HOP_SECONDS)
    return seconds

  def _rate(self, own: list[Place], kind: str) -> tuple[float, int]:
    """Bytes/s into each device of a group, and hops to the farthest."""
    chip, shape = self.topology.chip, self.topology.shape
    if not chip.axes:  # GPUs: all of a host see each other
      hosts = len({place.coordinates[0] // chip.wraps for place in own})
      return (chip.network_rate if hosts > 1 else chip.link_rate), hosts
    rate, hops = 0.0, 0
    for n, side in enumerate(shape):
      extent = len({place.coordinates[n] for place in own})
      if extent > 1:
        ring = extent == side and side % chip.wraps == 0
        rate += chip.link_rate * (2 if ring else 1)
        hops += extent // 2 if ring else extent - 1
    # Two devices of one chip, or a permutation, which goes one way.
    if not rate or kind == "collective-permute":
      return chip.link_rate, 1
    return rate, hops


def places(topology: Topology, mesh) -> list[Place]:
  """The places of a mesh's devices, in its order."""
  found = []
  for index, device in np.ndenumerate(mesh.devices):
    chip = tuple(getattr(device, "coords", (device.id,)))[: len(topology.shape)]
    found.append(Place(chip, getattr(device, "slice_index", 0) or 0, index))
  return found


def _members(attributes: str, count: int) -> list[int]:
  """Of the first group: written out, or as an array that is turned around."""
  if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
    return [int(match[1]), int(match[2])]
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return [int(n) for n in match[1].split(",")]
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
    axes = {n: int(size) for n, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    over = re.findall(r"'(\w+)'", match[2])
    turned = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    return turned[tuple(slice(None) if n in over else 0 for n in axes)].ravel().tolist()
  match = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if not match:
    return list(range(count))  # all of them
  shape, sizes = ([int(n) for n in match[part].split(",")] for part in (1, 2))
  order: np.ndarray = np.arange(math.prod(sizes)).reshape(tuple(sizes))
  if match[3]:
    order = order.transpose(tuple(map(int, match[3].split(","))))
  return order.reshape(shape[0], -1)[0].tolist()
