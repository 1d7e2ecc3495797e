"""The training step with untied weights on TPUs that are not here.

It is compiled twice, tied and untied, in about two minutes on one core.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfusion.bench.tpu import aot

pytestmark = [pytest.mark.libtpu, pytest.mark.long]

STEP = """
import dataclasses, json
import jax
from tfusion import config as config_lib
from tfusion.pods import chips, hlo, program
from tfusion.training.lowered import lower_step

base = config_lib.Config()
KINDS = ("dot", "convolution", "custom-call")  # that multiply, inside fusions too
found = {}
for untied in ("none", "all"):
  config = dataclasses.replace(
    base,
    model=dataclasses.replace(
      base.model, layers=2, width=512, heads=4, kv_heads=4, mlp=1024, vocab_size=512,
      image_shape=(16, 16, 4), dtype="bfloat16", remat="dots", untied=untied),
    data=dataclasses.replace(base.data, row_length=1024, image_slots=8),
    mesh=dataclasses.replace(base.mesh, data=1, fsdp=4),
    train=dataclasses.replace(base.train, batch_rows=4),
  )
  mesh = program.mesh_of(config, chips.parse("v5e:2x2"))
  with jax.set_mesh(mesh):
    compiled = lower_step(config, mesh).compile()
  parsed = hlo.Program(compiled.as_text())
  every = [(c, o) for c, inner in parsed.computations.items() for o in inner]
  names = [o.name.partition(".")[0] for _, o in every if o.target == "tpu_custom_call"]
  found[untied] = {
    "flops": sum(parsed.flops_of(c, o) for c, o in every if o.kind in KINDS),
    "kernels": {name: names.count(name) for name in names},
    "sums": sum(o.kind in ("all-reduce", "all-reduce-start") for _, o in every),
  }
print(json.dumps(found))
"""


def test_on_a_tpu_untied_weights_take_the_operations_of_tied_ones():
  done = subprocess.run(
    [sys.executable, "-c", STEP],
    env=os.environ | aot.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  tied, own = found["none"], found["all"]
  assert own["flops"] == tied["flops"] > 1e10
  # Seven weights in a loop over layers forwards and in one backwards: the gradients of
  # inputs, and of weights. Matmuls are kept, so no product is computed again.
  assert "ragged-dot-none" not in tied["kernels"] and "tgmm" not in tied["kernels"]
  assert own["kernels"]["ragged-dot-none"] == 2 * 7 and own["kernels"]["tgmm"] == 7
  # What devices sum whole are the small parameters, tied or not.
  assert own["sums"] <= tied["sums"]
