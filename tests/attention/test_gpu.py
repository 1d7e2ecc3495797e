"""The GPU kernels against the dense reference, interpreted: no GPU is needed."""

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

from tfusion.attention import intervals
from tfusion.attention.gpu import kernels, ranges
from tfusion.attention.gpu.ranges import Blocks, Tile
from tfusion.attention.intervals import Sizes

# Sides that differ where they may, and masked tiles smaller than others.
SMALL = Blocks(Tile(32, 32, 16, 4, 2), Tile(16, 32, 16, 4, 2), Tile(32, 16, 16, 4, 2))


@functools.partial(jit, static_argnames=("scale", "soft_cap", "blocks"))
def run(q, k, v, do, dlse, lo, hi, *, scale=0.3, soft_cap=None, blocks=SMALL):
  """(o, lse, dq, dk, dv) of the kernels, with the glue that tfusion.attention owns."""
  (b, queries, heads, d), keys = q.shape, k.shape[1]
  sizes = Sizes(b, queries, keys, heads, k.shape[2], d, q.dtype)
  options = dict(scale=scale, soft_cap=soft_cap, blocks=blocks, interpret=True)
  live = kernels.find_live(lo, hi, sizes, blocks)
  o, lse = kernels.forward(q, k, v, lo, hi, live, **options)
  delta = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), -1)
  delta = delta.swapaxes(1, 2) - dlse
  flag = jnp.where(jnp.isfinite(delta), lse, jnp.nan)
  delta = jnp.where(jnp.isfinite(delta), delta, 0.0)
  return o, lse, *kernels.backward(q, k, v, lo, hi, live, flag, delta, do, **options)


CASES = [
  # batch, queries, keys, heads, kv heads, head dim, soft cap, scale, dtype, intervals
  (2, 93, 93, 4, 2, 16, 2.0, 0.3, "float32", documents),  # ragged
  (1, 1, 300, 8, 1, 16, None, 0.3, "float32", cached),  # keys are split
]
MORE = [
  (2, 5, 150, 4, 2, 16, None, 0.3, "bfloat16", anything),  # heads are stacked
  (1, 67, 67, 8, 2, 32, None, 0.3, "bfloat16", documents),
  (1, 40, 100, 8, 1, 16, None, -0.3, "float32", ordered),  # 8 heads a group
  (2, 100, 40, 2, 2, 16, 3.0, 0.3, "float32", anything),
  (1, 3, 7, 1, 1, 64, None, 0.0, "float32", ordered),  # shorter than any tile
]
CASES += [pytest.param(case, marks=pytest.mark.long) for case in MORE]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:6])))
def test_outputs_and_gradients_are_those_of_dense(case):
  b, q, k, h, n, d, soft_cap, scale, dtype, intervals_of = case
  rng = np.random.default_rng(q)
  lo, hi = intervals_of(rng, b, q, *[k] * (intervals_of is not documents))
  x = operands(rng, b, q, k, h, n, d, dtype)
  options = dict(scale=scale, soft_cap=soft_cap)
  got = run(*x, lo, hi, **options)
  assert [a.dtype for a in (got[0], *got[2:])] == [jnp.dtype(dtype)] * 4
  compare(got, reference(*x, lo, hi, **options), np.dtype(dtype))


@pytest.mark.long
@pytest.mark.slow
def test_many_rows_of_documents():
  x = operands(np.random.default_rng(0), 2, 72, 72, 2, 1, 16)
  for seed in range(20):
    lo, hi = documents(np.random.default_rng(seed), 2, 72)
    compare(run(*x, lo, hi), reference(*x, lo, hi))


def test_intervals_in_no_order():
  x = operands(np.random.default_rng(1), 2, 72, 72, 2, 1, 16)
  for seed in range(20):
    lo, hi = anything(np.random.default_rng(seed), 2, 72, 72)
    compare(run(*x, lo, hi), reference(*x, lo, hi))


@pytest.mark.slow
def test_the_table_is_right_for_short_rows():
  """Also that it fits: every head dim and dtype, and a row shorter than a tile."""
  x = operands(np.random.default_rng(2), 1, 24, 24, 2, 1, 64, jnp.bfloat16)
  lo, hi = documents(np.random.default_rng(3), 1, 24)
  compare(run(*x, lo, hi, blocks=None), reference(*x, lo, hi), jnp.bfloat16)
  for d in (16, 32, 64, 128, 256):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
      for length in (1, 100, 8192):
        ranges.plan_of(Sizes(1, length, length, 8, 8, d, dtype), None)


@pytest.mark.slow
@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("broken", (0, 1, 2, 3), ids=("q", "k", "v", "do"))
def test_what_is_not_finite_stays_with_those_who_see_it(value, broken):
  check_confined(run, (21, 16, 38, 5), broken=broken, value=value)


@pytest.mark.slow
def test_padding_that_is_not_finite_harms_nobody():
  x = operands(np.random.default_rng(5), 1, 40, 40, 2, 2, 16)
  lo = np.where(np.arange(40) < 30, 0, 40)[None].astype(np.int32)
  hi = np.where(np.arange(40) < 30, np.arange(40), 39)[None].astype(np.int32)
  clean = run(*x, lo, hi)
  for i in range(3):
    x[i] = x[i].at[:, 30:].set(np.nan)
  for got, want in zip(run(*x, lo, hi), clean):
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_exactly_the_live_tiles_are_visited():
  count = jax.jit(
    lambda lo, hi, sizes: ranges.visited(kernels.find_live(lo, hi, sizes, SMALL)),
    static_argnums=2,
  )
  sizes = Sizes(2, 333, 333, 8, 8, 16, jnp.float32)
  for seed in range(30):
    lo, hi = documents(np.random.default_rng(seed), 2, 333)
    got = [int(x) for x in count(lo, hi, sizes)]
    want = [live_tiles(lo, hi, 333, t.queries, t.edge) for t in SMALL[:2]]
    want.append(live_tiles(lo, hi, 333, SMALL.dkv.edge, SMALL.dkv.keys))
    assert got == want


@pytest.mark.slow
@pytest.mark.parametrize("intervals_of", (documents, anything))
def test_tiles_without_a_mask_are_seen_whole_and_no_live_one_is_left_out(intervals_of):
  sizes = Sizes(2, 333, 333, 8, 8, 16, jnp.float32)
  find_live = jax.jit(kernels.find_live, static_argnums=(2, 3))
  whole = 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    lo, hi = intervals_of(rng, 2, 333, *[333] * (intervals_of is anything))
    sees = np.asarray(intervals.sees(jnp.asarray(lo), jnp.asarray(hi), keys=333))
    for name, x_cw in zip(Blocks._fields, find_live(lo, hi, sizes, SMALL)):
      tile = getattr(SMALL, name)
      own, mask = tile.queries, sees
      if name == "dkv":
        own, mask = tile.keys, sees.swapaxes(1, 2)
      blocks = -(-333 // own)
      assert sorted(x_cw[:, 0]) == list(range(2 * blocks))
      lengths = np.asarray(x_cw[:, 4] - x_cw[:, 1])
      assert (np.diff(lengths) <= 0).all()  # longest first
      for index, first, full, full_end, end in np.asarray(x_cw):
        rows = mask[index // blocks, index % blocks * own :][:own]
        assert rows[:, full * tile.edge : full_end * tile.edge].all()
        assert full == full_end or full_end * tile.edge <= 333
        whole += full_end - full
        assert not rows[:, : first * tile.edge].any()
        assert not rows[:, end * tile.edge :].any()
  assert whole > 100 or intervals_of is anything


def test_what_cannot_work_is_a_clear_error():
  lo = jnp.zeros((1, 64), jnp.int32)
  sizes = Sizes(1, 64, 64, 2, 2, 64, jnp.bfloat16)

  def refuses(message, blocks=SMALL, **changed):
    with pytest.raises(ValueError, match=message):
      kernels.find_live(lo, lo, sizes._replace(**changed), blocks)

  refuses("head dim 80.*power of two", head_dim=80)
  refuses("head dim 512.*power of two", head_dim=512)
  refuses("dtype int8", dtype=jnp.int8)
  tile = SMALL.forward
  refuses("forward.queries=48", SMALL._replace(forward=tile._replace(queries=48)))
  refuses("dq.keys=8", SMALL._replace(dq=tile._replace(keys=8)))
  refuses("dkv.edge=64.*queries=32", SMALL._replace(dkv=tile._replace(edge=64)))
  refuses("forward.warps=3", SMALL._replace(forward=tile._replace(warps=3)))
  refuses("forward.stages=0", SMALL._replace(forward=tile._replace(stages=0)))
  wide = tile._replace(queries=256, keys=512)
  refuses("bytes of shared memory", SMALL._replace(forward=wide))
