"""The whole training step on TPUs that are not here, as their compiler sees it.

Parameters over fsdp, heads over tensor, rows over context: every mesh axis that the
kernels meet, eight chips, bfloat16. About 40 seconds on one core.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfusion.bench.tpu import aot

pytestmark = [pytest.mark.libtpu, pytest.mark.slow]
ROW = 4096

STEP = """
import collections, dataclasses, functools, json, re
import jax, jax.numpy as jnp
from jax.experimental import topologies
from tfusion import config as config_lib
from tfusion.sequence import Batch
from tfusion.sharding import make_mesh, spec
from tfusion.training.step import abstract_state, train_step

base = config_lib.Config()
config = dataclasses.replace(
  base,
  model=dataclasses.replace(
    base.model, layers=3, width=512, heads=4, kv_heads=2, mlp=512, vocab_size=512,
    image_shape=(16, 16, 4), attention="tpu", dtype="bfloat16", remat="full", unroll=1),
  data=dataclasses.replace(base.data, row_length=ROW, image_slots=4),
  mesh=dataclasses.replace(base.mesh, data=1, fsdp=2, context=2, tensor=2),
  train=dataclasses.replace(base.train, batch_rows=2),
)
mesh = make_mesh(config.mesh, devices=topologies.get_topology_desc(
  platform="tpu", topology_name="v5e:2x4").devices)
row = jax.NamedSharding(mesh, spec("batch"))
array = lambda dtype, *shape: jax.ShapeDtypeStruct((2, *shape), dtype, sharding=row)
shapes = dict(
  tokens_bl=(jnp.int32, ROW), targets_bl=(jnp.int32, ROW),
  weights_bl=(jnp.float32, ROW), positions_bl=(jnp.int32, ROW),
  lo_bl=(jnp.int32, ROW), hi_bl=(jnp.int32, ROW), patch_bl=(jnp.int32, ROW),
  latents_bnhwc=(jnp.float32, 4, 16, 16, 4), image_start_bn=(jnp.int32, 4),
)
batch = Batch(**{
  name: array(*shapes.get(name, (jnp.float32, 4))) for name in Batch._fields})
key = jax.eval_shape(lambda: jax.random.key(0))
key = jax.ShapeDtypeStruct(
  key.shape, key.dtype, sharding=jax.NamedSharding(mesh, jax.P()))
with jax.set_mesh(mesh):
  step = jax.jit(functools.partial(train_step, config), donate_argnums=0)
  traced = step.trace(abstract_state(config, mesh), batch, key)
  compiled = traced.lower(lowering_platforms=("tpu",)).compile()
text = compiled.as_text()
sums = r"(?:all-reduce|reduce-scatter)[^ ]* = (.*?) (?:all-|reduce-)"
reduced = re.findall(sums, text)
print(json.dumps(dict(
  reduced=re.findall(r"(\\w+)\\[([0-9,]*)\\]", " ".join(reduced)),
  kernels=collections.Counter(re.findall(r"attend_(?:forward|backward)", text)),
  squares=re.findall(r"\\[[0-9,]*ROW,ROW[0-9,]*\\]", text)
  + re.findall(r"\\[[0-9,]*HALF,HALF[0-9,]*\\]", text))))
"""


def test_the_sharded_step_compiles_around_the_kernels_without_a_square_array():
  env = os.environ | aot.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      STEP.replace("ROW", str(ROW)).replace("HALF", str(ROW // 2)),
    ],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert not found["squares"]  # queries x keys, of a row or of two shards of it
  assert set(found["kernels"]) == {"attend_forward", "attend_backward"}
  # What is summed over chips in bfloat16 are activations [1, row / 2, width] of layers
  # that mesh.tensor shares out; gradients of all parameters are summed in float32.
  narrow = {shape for dtype, shape in found["reduced"] if dtype == "bf16"}
  wide = {shape for dtype, shape in found["reduced"] if dtype == "f32"}
  assert narrow == {f"1,{ROW // 2},512"}
  assert {"512,256", "512,1,128"} <= wide  # of w_up, of wk
