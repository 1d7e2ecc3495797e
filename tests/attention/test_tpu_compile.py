"""Promises of the TPU kernels that the compiler keeps, with no TPU at hand.

Every program is compiled for every generation: what does not fit in its VMEM, or is
not to the compiler's taste, fails. About 110 seconds on two cores.
"""

import json

import pytest
from attention import tpu_programs
from attention.tpu_programs import Key

from tfusion.bench import bundles

pytestmark = pytest.mark.libtpu
GENERATIONS = list(bundles.GENERATIONS)


@pytest.fixture(scope="module")
def started():
  return tpu_programs.compile_all(GENERATIONS)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_kernels_compile(started, generation):
  for key, profile in started[generation].result().items():
    assert profile.error is None, key


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_memory_is_small_and_grows_in_a_line_with_the_length(started, generation):
  compiled = started[generation].result()
  for backward, limit_mb in ((False, 8), (True, 90)):
    short = compiled[Key(8192, 128, backward)].temp_bytes
    long = compiled[Key(16384, 128, backward)].temp_bytes
    assert 0 < short <= limit_mb * 1e6
    assert long <= 2.2 * short  # an array of queries x keys would take 4 times as much


@pytest.mark.parametrize("generation", GENERATIONS)
def test_inner_loops_are_no_longer_than_their_budget(started, generation):
  budgets = json.loads(tpu_programs.BUDGETS.read_text())
  # Another compiler schedules otherwise, and that is not our doing.
  same = budgets["libtpu"] == tpu_programs.libtpu_version()
  slack = 1.0 if same else 1.1
  found = tpu_programs.count_bundles(generation, started[generation].result())
  budget = budgets["bundles"][generation]
  assert set(found) == set(budget)
  longer = {k: (n, budget[k]) for k, n in found.items() if n > slack * budget[k]}
  assert not longer, "python tests/attention/tpu_programs.py writes new budgets"
