"""Decoding on a TPU that is not here, as its compiler sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfusion.bench.tpu import aot

pytestmark = pytest.mark.libtpu

WRITE = """
import dataclasses, json, re
import jax, jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from tfusion import config as config_lib
from tfusion.generate import store as store_lib
from tfusion.generate import writing
from tfusion.generate.choices import TextChoice
from tfusion.model.transfusion import build
from tfusion.sequence import SpecialTokens
from tfusion.sharding import make_mesh, spec

base = config_lib.Config()
model = dataclasses.replace(
  base.model, layers=3, width=1024, heads=8, kv_heads=4, mlp=512, vocab_size=512,
  image_shape=(16, 16, 4), attention="tpu", dtype="bfloat16", unroll=1)
devices = topologies.get_topology_desc(
  platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=[1, 1, 1]).devices
mesh = make_mesh(base.mesh, devices=devices)
one = jax.NamedSharding(mesh, jax.P())
rows = jax.NamedSharding(mesh, spec("batch"))
put = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
array = lambda dtype, *shape: jax.ShapeDtypeStruct((4, *shape), dtype, sharding=rows)
params = jax.tree.map(
  lambda x: put(x, one), nnx.to_pure_dict(nnx.state(build(model), nnx.Param)))
with jax.set_mesh(mesh):
  store = jax.eval_shape(lambda: store_lib.empty_store(model, rows=8, length=4096))
  store = jax.tree.map(
    lambda x: put(x, jax.NamedSharding(mesh, x.sharding.spec)), store)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
  number = put(jax.ShapeDtypeStruct((), jnp.int32), one)
  traced = writing.write.trace(
    model, params, special=SpecialTokens(pad=0, bos=1, eos=2, boi=3, eoi=4),
    choice=TextChoice(temperature=1.0), length=2048, store=store,
    index_b=array(jnp.int32), live_d=put(jax.ShapeDtypeStruct((1,), jnp.int32), rows),
    at_b=array(jnp.int32), writing_b=array(jnp.bool_), keys_b=put(keys, rows),
    limit=number, most=number, least=number)
  compiled = traced.lower(lowering_platforms=("tpu",)).compile()
memory, text = compiled.memory_analysis(), compiled.as_text()
print(json.dumps(dict(
  kernels=len(re.findall("attend_forward", text)),
  copies=re.findall(
    r"= bf16.3,(?:4,4,2048|8,4,4096),128.\\S* (?:copy|transpose)\\(", text),
  cache=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(store.cache)),
  reused=memory.alias_size_in_bytes)))
"""


@pytest.mark.slow
def test_a_token_is_written_where_the_cache_lies_and_read_by_the_kernel():
  env = os.environ | aot.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}
  done = subprocess.run(
    [sys.executable, "-c", WRITE], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["kernels"]
  assert found["reused"] >= found["cache"]
  assert not found["copies"]  # of all layers, of the store or of the rows at hand
