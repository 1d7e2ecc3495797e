"""The whole training step on TPUs that are not here, as their compiler sees it.

Parameters over fsdp, heads over tensor, rows over context: every mesh axis that the
kernels meet, sixteen chips, bfloat16. It is compiled once, in two minutes on one core.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfusion.bench.tpu import aot
from tfusion.pods.hlo import Operation, Program

pytestmark = [pytest.mark.libtpu, pytest.mark.long]
ROW = 4096
SHARDS = 4

STEP = """
import dataclasses, json, sys
import jax
from tfusion import config as config_lib
from tfusion.pods import chips, hlo, links, program, timeline
from tfusion.training.lowered import lower_step

base = config_lib.Config()
config = dataclasses.replace(
  base,
  model=dataclasses.replace(
    base.model, layers=3, width=512, heads=4, kv_heads=2, mlp=512, vocab_size=512,
    image_shape=(16, 16, 4), attention="tpu", dtype="bfloat16", remat="full", unroll=1),
  data=dataclasses.replace(base.data, row_length=ROW, image_slots=4),
  mesh=dataclasses.replace(base.mesh, data=1, fsdp=2, context=SHARDS, tensor=2),
  train=dataclasses.replace(base.train, batch_rows=2),
)
mesh = program.mesh_of(config, chips.parse("v5e:4x4"))
with jax.set_mesh(mesh):
  compiled = lower_step(config, mesh).compile()
text = compiled.as_text()
topology = chips.parse("v5e:4x4")
link = links.Links(topology, links.places(topology, mesh), mesh.axis_names)
# Of a device's whole tiles at the peak of the chip: no kernel is faster.
seconds = {"attend_forward": 5e-6, "attend_backward": 14e-6}
time_of = lambda name: next((s for k, s in seconds.items() if name.startswith(k)), 0.0)
cost = timeline.Timeline(hlo.Program(text), topology.chip, link, time_of, 1).total()
ring = "collective-permute", "context"
open(sys.argv[1], "w").write(text)
open(sys.argv[2], "w").write(json.dumps([cost.busy[ring], cost.exposed[ring]]))
"""


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Path:
  """A folder with the compiled step, step.hlo, and in ring.json the seconds that the
  exchanges of a ring take, and those of them that are waited for."""
  folder = tmp_path_factory.mktemp("step")
  script = STEP.replace("ROW", str(ROW)).replace("SHARDS", str(SHARDS))
  done = subprocess.run(
    [sys.executable, "-c", script, str(folder / "step.hlo"), str(folder / "ring.json")],
    env=os.environ | aot.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture(scope="module")
def text(step) -> str:
  """The compiled step."""
  return (step / "step.hlo").read_text()


def test_the_sharded_step_compiles_around_the_kernels_without_a_square_array(text):
  for side in (ROW, ROW // SHARDS):  # queries x keys, of a row or of two shards of it
    assert not re.search(rf"\[[0-9,]*\b{side},{side}\b[0-9,]*\]", text)
  kernels = set(re.findall(r"attend_(?:forward|backward)", text))
  assert kernels == {"attend_forward", "attend_backward"}
  sums = r"(?:all-reduce|reduce-scatter)[^ ]* = (.*?) (?:all-|reduce-)"
  reduced = re.findall(r"(\w+)\[([0-9,]*)\]", " ".join(re.findall(sums, text)))
  # What is summed over chips in bfloat16 are activations [1, shard, width] of layers
  # that mesh.tensor shares out; gradients of all parameters are summed in float32.
  narrow = {shape for dtype, shape in reduced if dtype == "bf16"}
  wide = {shape for dtype, shape in reduced if dtype == "f32"}
  assert narrow == {f"1,{ROW // SHARDS},512"}
  assert {"512,256", "512,1,128"} <= wide  # of w_up, of wk


def kernels_of(program: Program, operation: Operation) -> set[str]:
  """The attention kernels that an operation runs, by itself or in what it calls."""
  if operation.target == "tpu_custom_call":
    return set(re.findall("attend_forward|attend_backward", operation.name))
  words = r"(?:body|to_apply|calls|(?:true|false)_computation)=%?([\w.-]+)"
  called = re.findall(words, operation.attributes)
  for names in re.findall(r"branch_computations=\{([^}]*)\}", operation.attributes):
    called += [name.strip(" %") for name in names.split(",")]
  return {
    kernel
    for name in called
    for inner in program.computations.get(name, [])
    for kernel in kernels_of(program, inner)
  }


def test_no_exchange_of_a_ring_is_waited_for(text, step):
  program, beside = Program(text), []
  for name, operations in program.computations.items():
    under_way: dict[str, set[str]] = {}
    for operation in operations:
      assert operation.kind != "collective-permute", name  # one that all wait for
      if operation.kind == "collective-permute-start":
        under_way[operation.name] = set()
      elif operation.kind == "collective-permute-done":
        beside.append(under_way.pop(operation.operands[0]))
      else:
        for kernels in under_way.values():
          kernels |= kernels_of(program, operation)
    assert not under_way, name
  forward, backward = {"attend_forward"}, {"attend_backward"}
  # k and v: of both neighbours and on, twice, as layers are run again; then back, with
  # dk and dv. Those of both neighbours go home beside attention or the next matmuls.
  assert beside.count(forward) == 2 * 2 * 3 and beside.count(backward) in (8, 12)
  assert len(beside) == 24
  busy, waited = json.loads((step / "ring.json").read_text())
  assert busy > 0 and waited < 0.1 * busy
