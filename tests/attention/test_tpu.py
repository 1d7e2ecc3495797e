"""The TPU kernels against the dense reference, interpreted: no TPU is needed.

The contract itself is in test_attend.py; here is what only long rows, tiles, chips and
cores can show.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention.rows import (
  anything,
  cached,
  check_confined,
  compare,
  documents,
  jit,
  live_tiles,
  operands,
  ordered,
  reference,
)
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tfusion.attention import attend, prepare
from tfusion.attention.intervals import Sizes
from tfusion.attention.tpu import layout, lists, tiling
from tfusion.attention.tpu.tiling import Blocks, Tiling

# Sides that differ where they may; the queries of a row are two parts or more.
SMALL = Blocks(
  Tiling(1, 128, 256, 128, 128, 64, ahead=1),
  Tiling(1, 128, 256, 128, 64, 128, ahead=0),
  part=128,
)
PAIRS = Blocks(  # two key heads at once, a single chunk, one part
  Tiling(2, 128, 128, 128, 64, 128, ahead=2),
  Tiling(2, 128, 128, 128, 128, 64, ahead=0),
  part=384,
)


@functools.partial(jit, static_argnames=("scale", "soft_cap", "blocks", "interpret"))
def run(
  q, k, v, do, dlse, lo, hi, *, scale=0.1, soft_cap=None, blocks=SMALL, interpret=True
):
  """(o, lse, dq, dk, dv) of the kernels, with the glue that tfusion.attention owns."""
  (b, queries, heads, d), keys = q.shape, k.shape[1]
  sizes = Sizes(b, queries, keys, heads, k.shape[2], d, q.dtype)
  options = dict(scale=scale, soft_cap=soft_cap, blocks=blocks, interpret=interpret)
  live = layout.find_live(lo, hi, sizes, blocks)
  o, lse = layout.forward(q, k, v, lo, hi, live, **options)
  delta = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), -1)
  delta = delta.swapaxes(1, 2) - dlse
  flag = jnp.where(jnp.isfinite(delta), lse, jnp.nan)
  delta = jnp.where(jnp.isfinite(delta), delta, 0.0)
  return o, lse, *layout.backward(q, k, v, lo, hi, live, flag, delta, do, **options)


CASES = [
  # batch, queries, keys, heads, kv heads, head dim, soft cap, dtype, intervals, blocks
  (1, 384, 384, 4, 2, 128, None, "bfloat16", documents, PAIRS),
  (2, 3, 300, 8, 2, 128, None, "bfloat16", cached, None),  # heads count as queries
]
MORE = [
  (1, 300, 300, 8, 1, 64, 2.0, "float32", documents, SMALL),  # 8 heads a group
  (2, 333, 333, 2, 1, 64, None, "float32", documents, SMALL),  # ragged
  (1, 256, 200, 2, 2, 256, None, "bfloat16", ordered, None),
  (2, 100, 520, 4, 4, 64, None, "float32", anything, None),  # the table's
]
CASES += [pytest.param(case, marks=pytest.mark.long) for case in MORE]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:6])))
def test_outputs_and_gradients_are_those_of_dense(case):
  b, q, k, h, n, d, soft_cap, dtype, intervals_of, blocks = case
  rng = np.random.default_rng(q)
  lo, hi = intervals_of(rng, b, q, *[k] * (intervals_of is not documents))
  x = operands(rng, b, q, k, h, n, d, dtype)
  got = run(*x, lo, hi, soft_cap=soft_cap, blocks=blocks)
  assert [a.dtype for a in (got[0], *got[2:])] == [jnp.dtype(dtype)] * 4
  want = reference(*x, lo, hi, scale=0.1, soft_cap=soft_cap)
  # Queries are rounded to bfloat16 once more when they are scaled, in VMEM.
  lse_tolerance = 1e-5 if dtype == "float32" else 1e-3
  compare(got, want, np.dtype(dtype), lse_tolerance=lse_tolerance)


@pytest.mark.long
@pytest.mark.slow
def test_many_rows_of_documents():
  x = operands(np.random.default_rng(0), 1, 300, 300, 1, 1, 64)
  for seed in range(20):
    lo, hi = documents(np.random.default_rng(seed), 1, 300, block=128)
    compare(run(*x, lo, hi), reference(*x, lo, hi, scale=0.1))


def test_intervals_in_no_order():
  x = operands(np.random.default_rng(1), 1, 300, 300, 1, 1, 64)
  for seed in range(10):
    lo, hi = anything(np.random.default_rng(seed), 1, 300, 300)
    compare(run(*x, lo, hi), reference(*x, lo, hi, scale=0.1))


@pytest.mark.slow
@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("broken", (0, 1, 2, 3), ids=("q", "k", "v", "do"))
def test_what_is_not_finite_stays_with_those_who_see_it(value, broken):
  check_confined(run, (121, 16, 138, 25), broken=broken, value=value)


@pytest.mark.slow
def test_exactly_the_live_tiles_are_visited():
  """Chunks are what is computed: of live blocks those from the first to the last."""

  @jax.jit
  def find_live(lo, hi):
    return layout.find_live(lo, hi, Sizes(2, 1000, 1000, 1, 1, 64, jnp.float32), SMALL)

  def chunks(items, count, start, stop, full):
    items = items[:count]
    flag = lambda place: np.asarray(lists.bit(items, place)).astype(int)  # noqa: E731
    return int(np.where(flag(full), 2, flag(stop) - flag(start) + 1).sum())

  for seed in range(30):
    lo, hi = documents(np.random.default_rng(seed), 2, 1000, block=128)
    live = jax.device_get(find_live(lo, hi))
    want = live_tiles(lo, hi, 1000, 128, 128)
    assert chunks(live.forward_t, live.forward_count_1[0], 3, 4, 2) == want
    parts = zip(live.backward_pt, live.backward_count_p, strict=True)
    assert sum(chunks(*part, 3, 4, 2) for part in parts) == want


@pytest.mark.slow
def test_one_executable_serves_every_mask():
  traces = []

  @jax.jit
  def step(q, lo, hi):
    traces.append(None)
    sizes = dict(keys=256, heads=1, kv_heads=1, head_dim=64, dtype=q.dtype)
    work = prepare(lo, hi, **sizes, implementation="tpu", blocks=SMALL)

    def layer(x, _):
      return x + attend(x, x, x, lo, hi, work=work, interpret=True), None

    return jnp.sum(jax.lax.scan(layer, q, None, length=2)[0])

  q = operands(np.random.default_rng(0), 1, 256, 256, 1, 1, 64)[0]
  one = np.zeros((1, 256), np.int32), np.arange(256, dtype=np.int32)[None]
  twelve = np.arange(256, dtype=np.int32)[None] // 22 * 22, one[1]
  assert float(step(q, *one)) != float(step(q, *twelve))
  assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "implementation",
  (*(pytest.param(name, marks=pytest.mark.long) for name in ("tpu", "gpu")), "chunked"),
)
def test_vmap_makes_the_mapped_axis_part_of_the_batch(implementation):
  rng = np.random.default_rng(6)
  q, k, v, do, _ = operands(rng, 6, 40, 40, 2, 1, 64)
  lo, hi = (jnp.asarray(x) for x in documents(rng, 6, 40))

  def gradient(q, k, v, lo, hi, do):
    how = dict(implementation=implementation, interpret=implementation != "chunked")
    o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, lo, hi, **how), q, k, v)
    return o, *pull(do)

  def pairs(x):
    return x.reshape(3, 2, *x.shape[1:])

  want = jit(gradient)(q, k, v, lo, hi, do)
  got = jit(jax.vmap(gradient))(*map(pairs, (q, k, v, lo, hi, do)))
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, pairs(b), atol=1e-5)


# What the memory of a TPU allows: its own semantics, with two cores and no order
# between what is not ordered.


def simulated(cores: int):
  return pltpu.InterpretParams(
    detect_races=True,
    out_of_bounds_reads="raise",
    uninitialized_memory="nan",
    num_cores_or_threads=cores,
  )


@pytest.mark.slow
@pytest.mark.parametrize("cores", (pytest.param(1, marks=pytest.mark.long), 2))
def test_no_race_no_read_out_of_bounds_and_none_of_unwritten_memory(cores):
  rng = np.random.default_rng(7)
  x = operands(rng, 1, 256, 256, 2, 2, 64)
  lo, hi = documents(rng, 1, 256, block=128)
  interpreter.reset_tpu_interpret_mode_state()
  got = run(*x, lo, hi, interpret=simulated(cores))
  compare(got, reference(*x, lo, hi, scale=0.1))
  assert not interpreter.races.races_found


@pytest.mark.slow
def test_a_race_would_be_found():
  """Two cores write one block."""

  def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] + pl.program_id(0)

  interpreter.reset_tpu_interpret_mode_state()
  jax.block_until_ready(
    pl.pallas_call(
      kernel,
      grid=(2,),
      in_specs=[pl.BlockSpec((8, 128), lambda i: (0, 0))],
      out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
      out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
      interpret=simulated(2),
    )(jnp.zeros((8, 128)))
  )
  found = interpreter.races.races_found
  interpreter.reset_tpu_interpret_mode_state()
  assert found


def test_the_table_fits_every_chip(monkeypatch):
  chips = (
    (pltpu.ChipVersion.TPU_V4, 2),
    (pltpu.ChipVersion.TPU_V5E, 1),
    (pltpu.ChipVersion.TPU_V5P, 2),
    (pltpu.ChipVersion.TPU_V6E, 1),
    (pltpu.ChipVersion.TPU_7X, 1),
  )
  for chip in chips:
    monkeypatch.setattr(tiling, "chip", lambda: pltpu.get_tpu_info_for_chip(*chip))  # noqa: B023
    for length in (1, 100, 1000, 8192, 32768):
      for heads, kv_heads in ((8, 8), (16, 4), (8, 1), (6, 3), (10, 2)):
        for d in (64, 128, 256):
          for dtype in (jnp.bfloat16, jnp.float32):
            size = (1, length, length, heads, kv_heads, d, jnp.dtype(dtype))
            sizes = Sizes(*size)
            tiling.check(tiling.choose_blocks(sizes), sizes)


def test_what_cannot_work_is_a_clear_error():
  lo = jnp.zeros((1, 512), jnp.int32)
  sizes = Sizes(1, 512, 512, 4, 2, 128, jnp.dtype(jnp.bfloat16))

  def refuses(message, blocks=SMALL, **changed):
    with pytest.raises(ValueError, match=message):
      layout.find_live(lo, lo, sizes._replace(**changed), blocks)

  refuses("head_dim=80: .* model.width .* model.attention=.chunked", head_dim=80)
  t = SMALL.forward
  refuses("forward.heads=4 must divide 2", SMALL._replace(forward=t._replace(heads=4)))
  refuses("forward.rows=96 must divide", SMALL._replace(forward=t._replace(rows=96)))
  odd = t._replace(query=64, rows=64)
  refuses("forward.query=64.*multiple of 128", SMALL._replace(forward=odd))
  deep = t._replace(key=512)
  refuses("backward.chunk=128.*256", SMALL._replace(backward=deep))
  refuses("part=200", SMALL._replace(part=200))
  huge = Tiling(2, 4096, 4096, 4096, 512, 512, ahead=1)
  refuses("forward=.*MiB of VMEM.*smaller", SMALL._replace(forward=huge))
  refuses("list of the forward pass.*shard", batch=1 << 15)
