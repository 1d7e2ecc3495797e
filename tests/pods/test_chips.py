"""Promises of tfusion/pods/chips.py: names of topologies, and their data sheets."""

import pytest

from tfusion.bench.tpu import bundles
from tfusion.pods import chips
from tfusion.training import machine


@pytest.mark.parametrize(
  "name, generation, shape, devices",
  [
    ("v5p:8x8x8", "v5p", (8, 8, 8), 512),
    ("v5p-128", "v5p", (4, 4, 4), 64),  # is rented by cores
    ("v5p-512", "v5p", (4, 8, 8), 256),
    ("v5e-256", "v5e", (16, 16), 256),  # and this by chips
    ("v6e-8", "v6e", (2, 4), 8),
    ("h100:64", "h100", (64,), 64),
  ],
)
def test_a_topology_is_named_by_its_shape_or_as_it_is_rented(
  name, generation, shape, devices
):
  found = chips.parse(name)
  assert (found.generation, found.shape, found.devices) == (generation, shape, devices)
  assert chips.parse(found.slice_name) == found


def test_slices_multiply_the_devices():
  found = chips.parse("v5p-256", slices=2)
  assert found.devices == 256 and str(found) == "2 x v5p:4x4x8"


@pytest.mark.parametrize(
  "name, slices, says",
  [
    ("v5q:4x4", 1, "--topology=v5q:4x4: unknown; the generations are v5e"),
    ("v5p-100", 1, "--topology=v5p-100: unknown"),
    ("v5p:4x4", 1, "v5p has 3 sides, such as v5p:4x4x4"),
    ("v5e:4x4x4", 1, "v5e has 2 sides"),
    ("v5e:0x4", 1, "v5e has 2 sides"),
    ("h100:8x8", 1, "h100 has one count of devices"),
    ("v5e:4x4", 0, "--slices=0: at least 1"),
    ("h100:8", 2, "--slices=2: at least 1, and of GPUs 1"),
  ],
)
def test_a_topology_that_is_none_is_refused_with_some_that_are(name, slices, says):
  with pytest.raises(ValueError) as error:
    chips.parse(name, slices=slices)
  assert says in str(error.value)


def test_peaks_are_those_of_the_clock_and_of_the_machine_that_runs():
  names = {"v5e": "TPU v5e", "v5p": "TPU v5", "v6e": "TPU v6e", "h100": "NVIDIA H100"}
  for name, chip in chips.CHIPS.items():
    if name in names:
      assert chip.flops == machine.PEAK_FLOPS[names[name]]
    if name not in chips.GPUS:
      cycles = bundles.GENERATIONS[name].flops_per_cycle * chip.megacore
      assert cycles * chip.hertz == pytest.approx(chip.flops, rel=0.01)
