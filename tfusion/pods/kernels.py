"""How long the attention kernels take on a TPU that is not here.

Owns: from the instructions of a tile to the seconds of a call. Not: counting the
instructions (bench/tpu), which tiles are live (counts.py).
"""

import functools
import math
from typing import NamedTuple

from tfusion.bench.tpu import static
from tfusion.config import Config
from tfusion.pods.chips import GPUS, Topology
from tfusion.pods.counts import TILE, Counts, farthest

NAMES = {"forward": "attend_forward", "backward": "attend_backward"}


class Times(NamedTuple):
  """Seconds of one call of each kernel on a device, by the start of its name."""

  seconds: dict[str, float]
  note: str = ""  # why they are less sure than usual


def times(config: Config, topology: Topology, counts: Counts) -> Times:
  """The least time that the scheduled instructions allow, with both cores of a chip
  that has two at work. Nothing for GPUs, whose kernels are not counted.

  Raises:
    ValueError: libtpu is not installed.
  """
  if topology.generation in GPUS:
    return Times({})
  model, mesh, train = config.model, config.mesh, config.train
  heads, length = model.heads // mesh.tensor, config.data.row_length // mesh.context
  group = model.heads // model.kv_heads
  # A step of the kernels takes up to four heads of keys: more change nothing.
  few = math.gcd(max(model.kv_heads // mesh.tensor, 1), 4)
  sizes = (length, few * group, few, model.head_dim)
  share, note = _shares(topology.generation, *sizes)
  shards = topology.devices // (mesh.context * mesh.tensor)
  rows = max(train.batch_rows // train.accumulate // shards, 1)
  side = min(TILE, config.data.row_length)
  found = {}
  for direction, name in NAMES.items():
    matmuls = static.MATMULS[direction]
    flops = 2.0 * matmuls * side**2 * model.head_dim * heads * rows
    tiles = counts.full_tiles / share[direction]["full"]
    tiles += counts.masked_tiles / share[direction]["masked"]
    # On a ring a device has calls of their own for its keys, those ahead, those behind.
    calls = min(mesh.context, 2 + farthest(config))
    found[name] = flops * tiles / topology.chip.flops / mesh.context / calls
  return Times(found, note)


@functools.cache
def _shares(
  generation: str, length: int, heads: int, kv_heads: int, head_dim: int
) -> tuple[dict[str, dict[str, float]], str]:
  """The share of a core's peak that a full and a masked tile reach; in rows too short
  to tell, all of it, and a note."""
  passes = static.measure(generation, "tfusion", [length, heads, kv_heads, head_dim])
  if errors := [found.error for found in passes.values() if found.error]:
    whole = {"full": 1.0, "masked": 1.0}
    note = f"attention is taken at the peak: its tiles cannot be counted ({errors[0]})"
    return dict.fromkeys(passes, whole), note
  return {
    direction: {
      kind: found.peak.get(kind) or next(iter(found.peak.values()))
      for kind in ("full", "masked")
    }
    for direction, found in passes.items()
  }, ""
