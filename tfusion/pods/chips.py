"""The accelerators of pods, and how they are joined.

Owns: their data sheets, the names of topologies. Not: programs (hlo.py), times
(timeline.py).

A device is what JAX calls one: a chip, or on tpu7x and GPUs half a chip or one GPU.
"""

import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
  """One device of a generation, from public data sheets.

  Sources: the pages of Cloud TPU on each version, and for links "How to Scale Your
  Model" (jax-ml.github.io/scaling-book, chapter on TPUs); NVIDIA's data sheets.
  """

  flops: float  # dense bfloat16 peak, FLOP/s
  hbm_bytes: float  # that a program may use: the compiler keeps some for itself
  hbm_rate: float  # bytes/s
  hertz: float  # of the clock by which the compiler counts cycles; 0: it counts none
  link_rate: float  # bytes/s of one link in one direction
  axes: int  # dimensions of the torus; 0: all devices of a host see each other
  wraps: int  # a dimension of a multiple of so many chips is a ring
  network_rate: float  # bytes/s of a device to other slices or hosts
  megacore: int  # cores that share the operations of a device


GIB = 2**30
CHIPS = {
  "v5e": Chip(197e12, 15.75 * GIB, 8.1e11, 1.5e9, 4.5e10, 2, 16, 3.1e9, 1),
  "v5p": Chip(459e12, 95.74 * GIB, 2.77e12, 1.75e9, 9.0e10, 3, 4, 6.25e9, 2),
  "v6e": Chip(918e12, 31.25 * GIB, 1.6e12, 1.75e9, 9.0e10, 2, 16, 6.25e9, 1),
  "h100": Chip(989e12, 80e9, 3.35e12, 0, 4.5e11, 0, 8, 5.0e10, 1),
  "h200": Chip(989e12, 141e9, 4.8e12, 0, 4.5e11, 0, 8, 5.0e10, 1),
}
GPUS = ("h100", "h200")  # by formula and the compiler for CPUs alone: an estimate

# Names that people rent by: cores of v5p, chips of the others.
RENTED = {
  **{
    f"{name}-{2 * math.prod(shape)}": f"{name}:{'x'.join(map(str, shape))}"
    for name in ("v5p",)
    for shape in (
      (2, 2, 1),
      (2, 2, 2),
      (2, 2, 4),
      (2, 4, 4),
      (4, 4, 4),
      (4, 4, 8),
      (4, 8, 8),
      (8, 8, 8),
      (8, 8, 16),
      (8, 16, 16),
    )
  },
  **{
    f"{name}-{math.prod(shape)}": f"{name}:{'x'.join(map(str, shape))}"
    for name in ("v5e", "v6e")
    for shape in ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
  },
}
EXAMPLES = "v5p:4x4x4 (or v5p-128), v5e:16x16 (v5e-256), v6e:8x8, h100:64"


class Topology(NamedTuple):
  """Devices of one kind, in slices that a slower network joins."""

  generation: str  # of CHIPS
  shape: tuple[int, ...]  # of one slice
  slices: int = 1

  @property
  def chip(self) -> Chip:
    """The data sheet."""
    return CHIPS[self.generation]

  @property
  def devices(self) -> int:
    """In all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def slice_name(self) -> str:
    """As JAX and `parse` take it: v5p:4x4x4."""
    return f"{self.generation}:{'x'.join(map(str, self.shape))}"

  def __str__(self) -> str:
    return f"{self.slices} x {self.slice_name}" if self.slices > 1 else self.slice_name


def parse(name: str, *, slices: int = 1) -> Topology:
  """Reads the name of a topology.

  Args:
    name: GENERATION:SHAPE, or the name by which a slice is rented.
    slices: how many of it.

  Raises:
    ValueError: no such generation or shape, with examples of those there are.
  """
  match = re.fullmatch(r"([a-z0-9]+):(\d{1,5}(?:x\d{1,5})*)", RENTED.get(name, name))
  if not match or match[1] not in CHIPS:
    known = f"the generations are {', '.join(CHIPS)}"
    raise ValueError(f"--topology={name}: unknown; {known}, such as {EXAMPLES}")
  generation, shape = match[1], tuple(map(int, match[2].split("x")))
  axes = CHIPS[generation].axes or 1
  if len(shape) != axes or min(shape) < 1:
    sides = "one count of devices" if axes == 1 else f"{axes} sides"
    raise ValueError(f"--topology={name}: {generation} has {sides}, such as {EXAMPLES}")
  if slices < 1 or (slices > 1 and generation in GPUS):
    raise ValueError(
      f"--slices={slices}: at least 1, and of GPUs 1: give their number in --topology"
    )
  return Topology(generation, shape, slices)
