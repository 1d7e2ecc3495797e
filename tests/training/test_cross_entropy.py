"""Promises of training/cross_entropy.py: a loss whose logits never exist at once."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.training import cross_entropy
from tfusion.training.cross_entropy import next_token_loss

pytestmark = pytest.mark.usefixtures("mesh")

ROOT = pathlib.Path(__file__).parents[2]
B, L, D, V = 3, 50, 8, 40  # 150 positions
CHUNKS = 4  # of 38 positions, the last of 36


def numbers(dtype="float32", seed: int = 0):
  """x, head, targets and weights; every third position has no weight."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(B, L, D)).astype(np.float32)
  head = rng.normal(size=(D, V)).astype(np.float32)
  targets = rng.integers(0, V, (B, L)).astype(np.int32)
  weights = rng.choice([0.0, 0.5, 1.0], (B, L)).astype(np.float32)
  x, targets, weights = tiny.put((x, targets, weights))
  return x.astype(dtype), jnp.asarray(head), targets, weights


def loss_and_gradients(x, head, targets, weights, z_loss=0.0):
  """The mean loss, and its gradient by x and the head."""

  def mean(x, head):
    how = dict(weights_bl=weights, gradient="float32", z_loss=z_loss)
    sums = next_token_loss(x, head, targets, **how)
    return sums.mean(), sums

  (_, sums), gradients = jax.value_and_grad(mean, (0, 1), has_aux=True)(x, head)
  return sums, *gradients


def run(monkeypatch, chunks: int, *arguments, z_loss: float = 0.0):
  """With so many chunks of logits; 1 is the plain loss."""
  monkeypatch.setattr(cross_entropy, "LOGITS", -(-B * L * V // chunks))
  # A function of its own: what was traced before is not found again.
  return jax.jit(lambda *x: loss_and_gradients(*x, z_loss))(*arguments)


def distance(got, want) -> float:
  """Relative to the length of what is wanted."""
  got, want = (np.asarray(x, np.float64) for x in (got, want))
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [2, CHUNKS, 150])
def test_chunks_give_the_loss_and_the_gradients_of_all_logits(monkeypatch, chunks):
  given = numbers()
  sums, dx, dw = run(monkeypatch, chunks, *given)
  plain, plain_dx, plain_dw = run(monkeypatch, 1, *given)
  assert float(sums.count) == float(plain.count) > 0
  assert distance(sums.total, plain.total) < 1e-6
  assert distance(dx, plain_dx) < 1e-6 and distance(dw, plain_dw) < 1e-6
  assert dx.dtype == dw.dtype == jnp.float32


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_chunks_give_what_float64_does(monkeypatch, z_loss):
  x, head, targets, weights = given = numbers()
  sums, dx, dw = run(monkeypatch, CHUNKS, *given, z_loss=z_loss)
  x, head, w = (np.asarray(y, np.float64) for y in (x, head, weights))
  logits = x @ head
  log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
  p = np.exp(logits - log_z)
  hit = np.asarray(targets)[..., None] == np.arange(V)
  added = z_loss * np.sum(log_z[..., 0] ** 2 * w)
  total = np.sum(-np.log(p[hit]).reshape(B, L) * w) + added
  assert distance(sums.total, total) < 1e-6
  assert sums.z is None if z_loss == 0 else distance(sums.z, added) < 1e-6
  p += 2 * z_loss * log_z * p
  dlogits = (p - hit) * w[..., None] / w.sum()
  assert distance(dx, dlogits @ head.T) < 1e-6
  assert distance(dw, np.einsum("bld,blv->dv", x, dlogits)) < 1e-6


@pytest.mark.slow
def test_in_bfloat16_chunks_round_no_worse_than_all_logits(monkeypatch):
  given = numbers("bfloat16")
  wide = (given[0].astype(jnp.float32), *given[1:])
  # The head too as the matmul sees it.
  wide = (wide[0], wide[1].astype(jnp.bfloat16).astype(jnp.float32), *wide[2:])
  want = run(monkeypatch, 1, *wide)
  found = [run(monkeypatch, chunks, *given) for chunks in (1, CHUNKS)]
  for plain, chunked, exact in zip(*found, want):
    if isinstance(exact, tuple):
      assert distance(chunked.total, exact.total) < 1e-6  # logits are float32
      continue
    # dlogits are rounded to bfloat16 in both, dx as well; in chunks, dx once more.
    assert chunked.dtype == plain.dtype
    assert distance(plain, exact) < 2**-8 and distance(chunked, exact) < 2**-8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_weighs_nothing_may_be_anything_and_learns_nothing(monkeypatch, bad):
  x, *rest = numbers()
  idle = np.asarray(rest[-1])[..., None] == 0
  want = run(monkeypatch, CHUNKS, x, *rest)
  got = run(monkeypatch, CHUNKS, tiny.put(np.where(idle, bad, np.asarray(x))), *rest)
  tiny.assert_same_tree(got, want)
  assert idle.any() and not np.asarray(got[1])[idle[..., 0]].any()


def test_without_any_weight_loss_and_gradients_are_zero(monkeypatch):
  *given, weights = numbers()
  sums, dx, dw = run(monkeypatch, CHUNKS, *given, 0 * weights)
  assert float(sums.total) == float(sums.count) == float(sums.mean()) == 0
  assert not np.asarray(dx).any() and not np.asarray(dw).any()


@pytest.mark.slow
@pytest.mark.parametrize("live, chunks", [(0, 0), (1, 1), (38, 1), (39, 2), (150, 4)])
def test_positions_without_weight_cost_no_chunk(monkeypatch, live, chunks):
  x, head, targets, _ = numbers()
  weights = np.zeros(B * L, np.float32)
  weights[np.random.default_rng(0).permutation(B * L)[:live]] = 1
  absorb, ran = cross_entropy._absorb, []

  def counted(*arguments):
    jax.debug.callback(lambda: ran.append(1))
    return absorb(*arguments)

  monkeypatch.setattr(cross_entropy, "_absorb", counted)
  given = (x, head, targets, tiny.put(weights.reshape(B, L)))
  jax.block_until_ready(run(monkeypatch, CHUNKS, *given))
  jax.effects_barrier()
  assert len(ran) == chunks


def test_no_array_holds_all_logits(monkeypatch):
  given = numbers()
  everything = re.compile(rf"\[(?:{B},{L}|{B * L}),{V}\]")
  for chunks, exists in ((1, True), (CHUNKS, False)):
    monkeypatch.setattr(cross_entropy, "LOGITS", -(-B * L * V // chunks))
    text = jax.jit(lambda *x: loss_and_gradients(*x)).lower(*given).compile().as_text()
    assert bool(everything.search(text)) == exists


MESHES = {
  "data": dict(data=8),
  "fsdp tensor": dict(data=1, fsdp=2, tensor=4),
  "data context": dict(data=2, context=4),
  "fsdp context tensor": dict(data=1, fsdp=2, context=2, tensor=2),
  "fsdp, outer and inner, tensor": dict(data=1, fsdp=4, inner=2, tensor=2),
}

EIGHT_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from tfusion import sharding
from tfusion.config import MeshConfig
from tfusion.sharding import make_mesh, spec
from tfusion.training import cross_entropy

B, L, D, V, report = 8, 12, 16, 24, {}
rng = np.random.default_rng(0)
x = rng.normal(size=(B, L, D)).astype(np.float32)
head = rng.normal(size=(D, V)).astype(np.float32)
targets = rng.integers(0, V, (B, L)).astype(np.int32)
weights = rng.choice([0.0, 0.5, 1.0], (B, L)).astype(np.float32)
weights[0] = 0  # one device may have nothing to do

def run(config, devices, logits, inner=1):
  sharding._fsdp_parts = lambda *_: [(config.fsdp // inner, inner)]
  cross_entropy.LOGITS = logits
  def loss(x, head, targets, weights):
    sums = cross_entropy.next_token_loss(
      x, head, targets, weights_bl=weights, gradient="float32", z_loss=0.1)
    return sums.total / sums.count
  mesh = make_mesh(config, devices=devices)
  with jax.set_mesh(mesh):
    put = lambda y, *names: jax.device_put(y, jax.NamedSharding(mesh, spec(*names)))
    given = (
      put(x, "batch", "sequence", None), put(head, "embed", "vocab"),
      put(targets, "batch"), put(weights, "batch"))
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(*given)
    assert grads[1].sharding == given[1].sharding, grads[1].sharding
    return [np.asarray(y) for y in (value, *grads)]

want = run(MeshConfig(), jax.devices()[:1], 1 << 26)
for name, axes in json.loads(sys.argv[1]).items():
  inner = axes.pop("inner", 1)
  # A few positions at a time.
  got = run(MeshConfig(**axes), jax.devices(), 2 * V, inner)
  apart = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want)]
  report[name] = apart
print(json.dumps(report))
"""


@pytest.mark.slow
def test_eight_devices_find_the_loss_of_one_on_every_mesh():
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  environment = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
  }
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES, json.dumps(MESHES)],
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found.keys() == MESHES.keys()
  assert max(max(errors) for errors in found.values()) < 1e-6, found
