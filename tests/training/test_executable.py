"""Promises of tfusion/training/executable.py: a compiled step in a file."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tfusion.config import MeshConfig
from tfusion.sharding import make_mesh
from tfusion.training import executable
from tfusion.training.clock import Clock
from tfusion.training.compiled import CompiledStep, compiler_options, jit_step

ROOT = pathlib.Path(__file__).parents[2]


def step(scale, state, x):
  """A step: the next state and metrics."""
  return {"w": state["w"] + scale * x}, {"sum": jnp.sum(x)}


@pytest.fixture(autouse=True)
def compiled_here():
  """No program comes from JAX's cache: it could not be written once more."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def mesh():
  with jax.set_mesh(make_mesh(MeshConfig(), devices=jax.devices()[:1])) as mesh:
    yield mesh


def lowered(scale: float = 2.0):
  sharding = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())
  jitted = jit_step(functools.partial(step, scale), sharding)
  return jitted.lower({"w": jnp.zeros(3)}, jnp.ones(3))


def test_a_step_from_a_file_computes_what_the_compiled_one_does(tmp_path):
  own = lowered()
  executable.save(own.compile(), own, tmp_path / "step")
  loaded = executable.load(tmp_path / "step", lowered())
  state, metrics = loaded({"w": jnp.arange(3.0)}, jnp.ones(3))
  assert state["w"].tolist() == [2, 3, 4] and float(metrics["sum"]) == 3


def test_a_file_of_another_program_version_or_machine_is_refused_with_what_differs(
  tmp_path,
):
  own = lowered()
  path = tmp_path / "step"
  executable.save(own.compile(), own, path)
  with pytest.raises(executable.Unfit, match="its program is [0-9a-f]+, here it is"):
    executable.load(path, lowered(3.0))
  header, _, payload = path.read_bytes().partition(b"\n")
  for name, value in (("jax", "0.1"), ("device", "TPU v5"), ("tfusion", "0")):
    facts = json.loads(header) | {name: value}
    path.write_bytes(json.dumps(facts).encode() + b"\n" + payload)
    with pytest.raises(executable.Unfit, match=f"its {name} is {value}, here it is"):
      executable.load(path, own)


@pytest.mark.parametrize("content", [None, b"", b"[]\nx", b"not JSON\n\0"])
def test_a_file_that_is_none_is_said_to_be_unreadable(tmp_path, content):
  if content is not None:
    (tmp_path / "step").write_bytes(content)
  with pytest.raises(executable.Unfit, match="=.*step: is no file of"):
    executable.load(tmp_path / "step", lowered())


def test_a_step_takes_its_file_and_does_not_compile_where_it_is_anothers(tmp_path):
  own = lowered()
  executable.save(own.compile(), own, tmp_path / "step")
  sharding = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())

  def update(scale):
    function = functools.partial(step, scale)
    program = CompiledStep(function, sharding, Clock(), tmp_path / "step")
    return program({"w": jnp.zeros(3)}, jnp.ones(3))[0]["w"].tolist()

  assert update(2.0) == [2.0] * 3
  with pytest.raises(executable.Unfit, match="its program is .*; write it anew with"):
    update(5.0)


@pytest.mark.slow
def test_a_file_is_loaded_by_another_process(tmp_path):
  own = lowered()
  executable.save(own.compile(), own, tmp_path / "step")
  code = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import jax
import jax.numpy as jnp
import test_executable as test
from tfusion.training import executable
with jax.set_mesh(test.make_mesh(test.MeshConfig(), devices=jax.devices()[:1])):
  loaded = executable.load({str(tmp_path / "step")!r}, test.lowered())
  print(loaded({{"w": jnp.zeros(3)}}, jnp.ones(3))[0]["w"].tolist())
"""
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True
  )
  assert done.stdout.strip() == "[2.0, 2.0, 2.0]", done.stderr[-2000:]


def test_on_a_cpu_the_compiler_is_asked_for_nothing():
  assert compiler_options() is None
