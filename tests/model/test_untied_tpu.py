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
from tfusion.pods import chips, program
from tfusion.training.lowered import lower_step

base = config_lib.Config()
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
  found[untied] = compiled.cost_analysis()["flops"], compiled.as_text()
tied, own = found["none"], found["all"]
kernels = own[1].count('custom_call_target="tpu_custom_call"')
kernels -= tied[1].count('custom_call_target="tpu_custom_call"')
print(json.dumps({"ratio": own[0] / tied[0], "kernels": kernels}))
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
  # Sorting and choosing between norms is elementwise; products taken twice would give
  # 1.9. Both products and both gradients of a weight are one kernel each.
  assert 0.98 < found["ratio"] < 1.05
  assert found["kernels"] >= 7 * 3
