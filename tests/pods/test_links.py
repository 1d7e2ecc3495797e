"""Promises of tfusion/pods/links.py: which links a collective has."""

import itertools

import pytest

from tfusion.pods import chips
from tfusion.pods.links import HOP_SECONDS, Links, Place

MB = 1_000_000


def torus(name: str, mesh: dict[str, int], *, slices: int = 1) -> Links:
  """A mesh whose axes follow the sides of the torus, the slices first."""
  topology = chips.parse(name, slices=slices)
  places = []
  coordinates = itertools.product(*map(range, topology.shape))
  everywhere = [(s, c) for s in range(slices) for c in coordinates]
  if slices > 1:
    one = list(itertools.product(*map(range, topology.shape)))
    everywhere = [(s, c) for s in range(slices) for c in one]
  indices = itertools.product(*map(range, mesh.values()))
  for (where, chip), index in zip(everywhere, indices, strict=True):
    places.append(Place(chip, where, index))
  return Links(topology, places, mesh)


def test_groups_are_named_by_the_axes_along_which_their_members_differ():
  links = torus("v5e:4x4", {"data": 4, "fsdp": 4})
  rows = links.group("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}")
  assert rows.members == (0, 1, 2, 3) and rows.axis == "fsdp"
  columns = links.group("replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}")
  assert columns.members == (0, 4, 8, 12) and columns.axis == "data"
  both = links.group("replica_groups=[1,16]<=[16], dimensions={0}")
  assert both.axis == "data+fsdp" and len(both.members) == 16
  mesh = links.group("replica_groups=mesh['a'=4,'b'=4] {'a'}, dimensions={0}")
  assert mesh.members == (0, 4, 8, 12)
  assert links.group("dimensions={0}").members == tuple(range(16))
  ring = links.group("source_target_pairs={{0,1},{1,2}}")
  assert ring.members == (0, 1) and ring.axis == "fsdp"


def test_a_ring_is_gone_around_both_ways_and_a_line_one_way():
  ring = torus("v5p:4x4x4", {"x": 4, "y": 4, "z": 4})
  line = torus("v5e:4x4", {"x": 4, "y": 4})
  for links, rate, hops in ((ring, 2 * 9e10, 2), (line, 4.5e10, 3)):
    group = links.group("replica_groups={{0,1,2,3}}")
    seconds = links.seconds("all-gather", 8 * MB, group)
    assert seconds == pytest.approx(6 * MB / rate + hops * HOP_SECONDS)


def test_more_dimensions_are_more_links_and_a_sum_goes_twice():
  links = torus("v5p:4x4x4", {"x": 4, "y": 4, "z": 4})
  plane = links.group("replica_groups=[4,16]<=[64]")
  assert plane.axis == "y+z"
  scatter = links.seconds("reduce-scatter", 16 * MB, plane)
  assert scatter == pytest.approx(15 * MB / (4 * 9e10) + 4 * HOP_SECONDS)
  assert links.seconds("all-reduce", 16 * MB, plane) == pytest.approx(2 * scatter)
  one = links.group("replica_groups={{5}}")
  assert links.seconds("all-reduce", 16 * MB, one) == 0


def test_between_slices_a_device_sends_its_share_over_the_network():
  links = torus("v5p:2x2x1", {"data": 2, "x": 2, "y": 2, "z": 1}, slices=2)
  across = links.group("replica_groups={{0,4}}")
  assert across.axis == "data"
  assert links.seconds("all-gather", 8 * MB, across) == pytest.approx(
    4 * MB / 6.25e9 + 2 * HOP_SECONDS
  )


def test_gpus_of_a_host_see_each_other_and_hosts_share_a_network():
  topology = chips.parse("h100:16")
  links = Links(topology, [Place((n,), 0, (n,)) for n in range(16)], ["fsdp"])
  host = links.group("replica_groups={{0,1,2,3,4,5,6,7}}")
  everyone = links.group("replica_groups={}")
  chip = topology.chip
  assert links.seconds("all-gather", 8 * MB, host) == pytest.approx(
    7 * MB / chip.link_rate + HOP_SECONDS
  )
  assert links.seconds("all-gather", 16 * MB, everyone) == pytest.approx(
    15 * MB / chip.network_rate + 2 * HOP_SECONDS
  )
