"""Promises of bench/tpu/aot.py and static.py: real kernels, compiled for real."""

import jax
import jax.numpy as jnp
import pytest

from tfusion.bench.tpu import aot, bundles, rivals, static

SIZES = [2048, 2, 1, 128]


def refused():
  """A program that no TPU takes: more memory than a chip has."""
  huge = jax.ShapeDtypeStruct((1 << 40,), jnp.float32)
  return (lambda x: x + 1), [huge]


def doubled(rows):
  """A program without a kernel, which tells something."""
  x = jax.ShapeDtypeStruct((rows, 128), jnp.float32)
  return (lambda x: 2 * x), [x], lambda: {"rows": rows}


@pytest.mark.slow
@pytest.mark.libtpu
def test_a_process_compiles_what_it_can_and_says_what_it_cannot():
  here = "bench.tpu.test_static"  # as found from tests/, which is on the path
  cases = [aot.Case(f"{here}:refused"), aot.Case(f"{here}:doubled", {"rows": 8})]
  bad, good = aot.profile("v5e", cases)
  assert "RESOURCE_EXHAUSTED" in bad.error or "memory" in bad.error.lower()
  assert good.error is None and good.told == {"rows": 8} and good.kernels == {}
  assert good.argument_bytes == good.output_bytes == 8 * 128 * 4


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.libtpu
def test_splash_is_counted_and_keeps_the_bounds_of_the_mxus():
  found = static.measure("v6e", "splash, causal", SIZES)
  core = bundles.GENERATIONS["v6e"]
  cap = min(1.0, SIZES[3] / core.side)  # half of a 256-wide MXU is unused
  rows, keys = rivals.QUERIES, rivals.KEYS
  for direction, matmuls in static.MATMULS.items():
    assert found[direction].error is None
    (body,) = found[direction].bodies.values()  # masks every tile
    assert set(found[direction].bodies) == {"masked"}
    assert body.mask_ops >= 2 * rows * keys / 1024  # a comparison and a select
    flops = 2 * matmuls * rows * keys * SIZES[3]
    assert body.mxu_cycles == flops / core.flops_per_cycle / cap
    # Below the cap, and within a factor of two of it, or the count is of another body.
    assert cap / 2 < found[direction].peak["masked"] <= cap
    assert found[direction].temp_bytes > 0


def test_an_unknown_generation_is_refused_with_the_known():
  with pytest.raises(ValueError, match="'v3' is no TPU generation.*v5e"):
    next(static.table(["v3"], SIZES))


def test_a_package_that_is_missing_is_a_row_that_says_so(monkeypatch):
  missing = static.PROGRAMS["tokamax, causal"]._replace(needs="no_such_package")
  monkeypatch.setitem(static.PROGRAMS, "tokamax, causal", missing)
  found = static.measure("v5e", "tokamax, causal", SIZES)
  assert found["forward"].error == "no_such_package is not installed"


def test_the_table_shows_full_and_masked_tiles_and_what_was_not_counted(monkeypatch):
  body = bundles.Body(0, 100, 4, 50.0, 1, 0, {})
  busy = body._replace(mxu_cycles=200.0)
  both = {"full": busy, "masked": body}
  good = static.Pass(None, both, {"full": 0.985, "masked": 0.7}, 2_500_000)
  bad = static.Pass("no body\nat all", {}, {}, 0)
  passes = {"forward": good, "backward": bad}
  monkeypatch.setattr(static, "PROGRAMS", {"one": None})
  monkeypatch.setattr(static, "measure", lambda *args: passes)
  monkeypatch.setattr(aot, "check", lambda generation: None)
  *_, row, error = static.table(["v5e"], SIZES)
  assert row.split() == "v5e one 98 MXU / 70 ? 2.5 -".split()
  assert error.strip() == "no body"
