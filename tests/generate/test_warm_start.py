"""A second start of sampling finds every program that the first has compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = """
import collections, json, sys
from tfusion import startup
startup.keep_programs(sys.argv[1])
import jax, numpy as np, tiny
from tfusion.generate.interleaved import generate
from tfusion.generate.prompt import Blank
from tfusion.sequence import Text

seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name]))
c = tiny.config(sample__max_elements=40, sample__steps=2, sample__sampler="ddim")
with tiny.one_device():
  prompt = (Text(np.asarray([7, 8, 9], np.int32)), Blank())
  how = dict(special=tiny.SPECIAL, key=jax.random.key(int(sys.argv[2])))
  generate(c, tiny.params(c.model), [prompt], **how)
at = "/jax/compilation_cache/cache_"
print(json.dumps([seen[at + "hits"], seen[at + "misses"]]))
"""


@pytest.mark.slow
def test_a_second_start_of_sampling_compiles_nothing(tmp_path):
  tests = Path(__file__).parents[1]
  cached = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")  # that of these tests
  env = {name: own for name, own in os.environ.items() if not name.startswith(cached)}
  env["PYTHONPATH"] = f"{tests.parent}{os.pathsep}{tests}"
  env["JAX_PLATFORMS"] = "cpu"

  def start(seed):
    command = [sys.executable, "-c", SAMPLE, str(tmp_path), seed]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])

  hits, misses = start("0")
  assert not hits and misses > 5
  assert start("1") == [misses, 0]
