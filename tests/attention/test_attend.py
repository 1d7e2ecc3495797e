"""The promises of tfusion.attention, against numpy in float64 where numbers matter."""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention.rows import jit

from tfusion.attention import attend, attend_with_lse, chunked, intervals

KERNELS = ("gpu", "tpu")  # interpreted; they do not take every head dim
ON_CPUS = ("dense", "chunked", "chunked in tiles")
IMPLEMENTATIONS = (
  *ON_CPUS,
  *(pytest.param(name, marks=pytest.mark.slow) for name in KERNELS),
)
# An interpreted kernel takes seconds to compile: every test but those of numbers has
# this one shape, and they share what is compiled.
B, S, H, N = 1, 48, 4, 2  # rows, their length, heads, kv heads


@pytest.fixture(autouse=True)
def no_silent_broadcast(request):
  # ranges.py means its broadcasts, of bounds over blocks.
  allow = "gpu" in request.node.name
  with jax.numpy_rank_promotion("allow" if allow else "raise"):
    yield


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch) -> str:
  """Also cuts small rows into tiles, which otherwise only long ones are."""
  if request.param == "chunked in tiles":
    monkeypatch.setattr(chunked, "WHOLE", 0)
    monkeypatch.setattr(chunked, "BLOCK", 16)
    monkeypatch.setattr(chunked, "CHUNK", 16)
    monkeypatch.setattr(chunked, "BUDGET", 16 * 16)
  return request.param.split()[0]


def how(implementation: str, **more) -> dict:
  """Arguments of attend that choose an implementation, on a CPU."""
  return dict(
    implementation=implementation, interpret=implementation in KERNELS, **more
  )


def width(implementation: str, head_dim: int) -> int:
  return 64 if implementation in KERNELS else head_dim


def pack(rng: np.random.Generator, batch: int, length: int):
  """Rows of documents of text and images, and a tail of padding: lo and hi."""
  lo = np.full((batch, length), length, np.int32)
  hi = np.full((batch, length), length - 1, np.int32)
  for b in range(batch):
    start, end = 0, length - int(rng.integers(0, length // 3 + 1))
    while start < end:
      stop = min(end, start + int(rng.integers(1, length + 1)))
      lo[b, start:stop] = start
      hi[b, start:stop] = np.arange(start, stop)
      first, last = sorted(rng.integers(start, stop, 2))
      hi[b, first : last + 1] = last  # one image of last - first + 1 patches
      start = stop
  return lo, hi


def scatter(rng: np.random.Generator, batch: int, queries: int, keys: int):
  """Any non-decreasing intervals; some see nothing, some reach over the ends."""
  lo = np.sort(rng.integers(-3, keys + 3, (batch, queries)), axis=1)
  hi = np.sort(rng.integers(-3, keys + 3, (batch, queries)), axis=1)
  return lo.astype(np.int32), hi.astype(np.int32)


def operands(rng: np.random.Generator, b, q, k, h, n, d):
  """q, k, v, do and dlse in float32."""
  shapes = ((b, q, h, d), (b, k, n, d), (b, k, n, d), (b, q, h, d), (b, h, q))
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def brute_force(q, k, v, lo, hi, do, dlse, *, scale, soft_cap):
  """One query at a time in float64: (o, lse, dq, dk, dv)."""
  q, k, v, do, dlse = (x.astype(np.float64) for x in (q, k, v, do, dlse))
  o, lse = np.zeros_like(q), np.full(dlse.shape, -np.inf)
  dq, dk, dv = (np.zeros_like(x) for x in (q, k, v))
  for b, i, h in np.ndindex(*q.shape[:3]):
    n = h // (q.shape[2] // k.shape[2])
    js = np.arange(max(lo[b, i], 0), min(hi[b, i], k.shape[1] - 1) + 1)
    if len(js) == 0:
      continue
    raw = scale * k[b, js, n] @ q[b, i, h]
    s = raw if soft_cap is None else soft_cap * np.tanh(raw / soft_cap)
    lse[b, h, i] = np.log(np.sum(np.exp(s - s.max()))) + s.max()
    p = np.exp(s - lse[b, h, i])
    o[b, i, h] = p @ v[b, js, n]
    ds = p * (v[b, js, n] @ do[b, i, h] - o[b, i, h] @ do[b, i, h] + dlse[b, h, i])
    ds *= 1.0 if soft_cap is None else 1.0 - np.square(s / soft_cap)
    dq[b, i, h] = scale * ds @ k[b, js, n]
    dk[b, js, n] += scale * np.outer(ds, q[b, i, h])
    dv[b, js, n] += np.outer(p, do[b, i, h])
  return o, lse, dq, dk, dv


@functools.cache
def compiled(tile, scale, soft_cap, implementation):
  """One jitted function per setting, so that tests share what they compile."""
  del tile  # part of the key: what the fixture sets is read while tracing

  @jit
  def both(q, k, v, lo, hi, do, dlse):
    def forward(q, k, v):
      options = how(implementation, scale=scale, soft_cap=soft_cap)
      return attend_with_lse(q, k, v, lo, hi, **options)

    (o, lse), pull = jax.vjp(forward, q, k, v)
    return o, lse, *pull((do, dlse))

  return both


def run(*arrays, scale=None, soft_cap=None, implementation):
  """(o, lse, dq, dk, dv) of q, k, v, lo, hi, do, dlse."""
  both = compiled(chunked.BLOCK, scale, soft_cap, implementation)
  return [np.asarray(x) for x in both(*arrays)]


def far(got, want) -> float:
  """Relative distance in the 2-norm; infinite if anything is not finite."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  if not np.isfinite(got).all():
    return float("inf")
  return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


CASES = [
  # batch, queries, keys, heads, kv heads, head dim, soft cap, packed
  (2, 33, 33, 8, 2, 8, 3.0, True),
  (2, 50, 50, 4, 4, 8, None, True),
  (3, 47, 47, 4, 2, 16, None, True),  # ragged: 47 = 2 * 16 + 15
  (4, 16, 16, 6, 6, 4, None, True),
  (1, 1, 1, 1, 1, 4, None, True),
  (2, 20, 70, 4, 1, 8, None, False),  # fewer queries than keys, multi-query
  (2, 70, 20, 4, 4, 8, 2.0, False),  # more
  (3, 1, 65, 4, 2, 8, None, False),  # decoding
  (1, 130, 12, 3, 3, 4, None, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("implementation", "case"),
  [
    *itertools.product(ON_CPUS, CASES),
    # Its own file, beside this one, compares a kernel at many more shapes.
    *(pytest.param(name, CASES[0], marks=pytest.mark.long) for name in KERNELS),
  ],
  ids=str,
  indirect=["implementation"],
)
def test_outputs_and_gradients_are_those_of_brute_force(implementation, case):
  b, q, k, h, n, d, soft_cap, packed = case
  d = width(implementation, d)
  rng = np.random.default_rng(sum(case[:6]))
  x = operands(rng, b, q, k, h, n, d)
  lo, hi = pack(rng, b, q) if packed else scatter(rng, b, q, k)
  want = brute_force(*x[:3], lo, hi, *x[3:], scale=0.7, soft_cap=soft_cap)
  seen = np.isfinite(want[1])
  x[4] = np.where(seen, x[4], 0.0)
  got = run(
    *x[:3], lo, hi, *x[3:], scale=0.7, soft_cap=soft_cap, implementation=implementation
  )
  assert far(got[1][seen], want[1][seen]) < 1e-5
  for name, g, w in zip(
    ("o", "dq", "dk", "dv"), got[:1] + got[2:], want[:1] + want[2:]
  ):
    assert far(g, w) < 1e-5, name  # fp32 sums of at most 130 terms


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ON_CPUS, indirect=True)
def test_bfloat16_stays_close_and_keeps_its_dtype(implementation):
  rng = np.random.default_rng(5)
  d = width(implementation, 16)
  x = operands(rng, 2, 40, 40, 4, 2, d)
  lo, hi = pack(rng, 2, 40)
  x[4][:] = 0.0
  low = [jnp.asarray(a, jnp.bfloat16) for a in x[:4]]
  x[:4] = [np.asarray(a, np.float32) for a in low]
  want = brute_force(*x[:3], lo, hi, *x[3:], scale=d**-0.5, soft_cap=None)
  got = run(*low[:3], lo, hi, low[3], x[4], implementation=implementation)
  for g, w in zip(got[:1] + got[2:], want[:1] + want[2:]):
    assert g.dtype == jnp.bfloat16
    assert far(g, w) < 2e-2  # 8 bits of mantissa in o and in the results


@pytest.mark.slow
def test_the_default_scale_is_one_over_the_root_of_head_dim(implementation):
  rng = np.random.default_rng(6)
  d = width(implementation, 16)
  x = operands(rng, B, S, S, H, N, d)
  lo, hi = pack(rng, B, S)
  want, *_ = brute_force(*x[:3], lo, hi, *x[3:], scale=d**-0.5, soft_cap=None)
  got, *_ = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  assert far(got, want) < 1e-5  # fp32 sums of at most 48 terms


@pytest.mark.slow
def test_a_query_that_sees_nothing_gives_zero_and_takes_no_gradient(implementation):
  rng = np.random.default_rng(7)
  x = operands(rng, B, S, S, H, N, width(implementation, 8))
  lo = np.where(np.arange(S) < 25, 3, S).astype(np.int32)[None]
  hi = np.where(np.arange(S) < 25, np.arange(S), S - 1).astype(np.int32)[None]
  o, lse, dq, dk, dv = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  dead = np.r_[0:3, 25:S]  # the first three see nothing too
  assert not any(x[:, dead].any() for x in (o, dq, dk, dv))
  assert np.isfinite(lse).all() and (lse[:, :, dead] < -1e38).all()
  assert all(x[:, 3:25].any(-1).all() for x in (o, dv))


def test_nothing_but_padding_gives_zero(implementation):
  x = operands(np.random.default_rng(8), B, S, S, H, N, width(implementation, 8))
  lo, hi = np.full((B, S), S, np.int32), np.full((B, S), S - 1, np.int32)
  o, lse, dq, dk, dv = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  assert not any(a.any() for a in (o, dq, dk, dv))
  assert np.isfinite(lse).all()


@pytest.mark.parametrize("broken", ("q", "k", "v"))
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_a_nan_in_one_document_never_reaches_another(implementation, broken, value):
  rng = np.random.default_rng(9)
  x = operands(rng, B, S, S, H, N, width(implementation, 8))
  lo = np.repeat([[0, 21, 37]], (21, 16, 11), axis=1).astype(np.int32)
  hi = np.arange(48, dtype=np.int32)[None].copy()
  hi[:, 25:30] = 29
  inside = np.zeros(48, bool)
  inside[21:37] = True
  x[3][:, inside] = 0.0  # the loss is about the other documents
  x[4][:, :, inside] = 0.0
  clean = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  x["qkv".index(broken)][:, 28, 0, 3] = value
  o, lse, *grads = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  np.testing.assert_array_equal(o[:, ~inside], clean[0][:, ~inside])
  np.testing.assert_array_equal(lse[:, :, ~inside], clean[1][:, :, ~inside])
  for got, want in zip(grads, clean[2:]):
    np.testing.assert_array_equal(got[:, ~inside], want[:, ~inside])
  if np.isnan(value):
    assert np.isnan(o[:, 28]).any()  # and is not hidden where it belongs


def test_a_nan_cotangent_of_one_document_never_reaches_another(implementation):
  if implementation == "dense":
    pytest.skip("the gradient of the reference is JAX's own: it multiplies nan by zero")
  rng = np.random.default_rng(14)
  x = operands(rng, B, S, S, H, N, width(implementation, 8))
  lo = np.repeat([[0, 21, 37]], (21, 16, 11), axis=1).astype(np.int32)
  hi = np.arange(48, dtype=np.int32)[None]
  clean = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  x[3][:, 28, 1, 2] = np.nan
  got = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  others = np.r_[0:21, 37:48]
  for a, b in zip(got[2:], clean[2:]):
    np.testing.assert_array_equal(a[:, others], b[:, others])
    assert np.isnan(a[:, 21:29]).any()


def test_text_takes_no_gradient_from_later_patches(implementation):
  rng = np.random.default_rng(10)
  x = operands(rng, B, S, S, H, N, width(implementation, 8))
  lo = np.zeros((B, S), np.int32)
  hi = np.arange(S, dtype=np.int32)[None].copy()
  hi[:, 12:28] = 27  # sixteen patches behind twelve tokens
  x[3][:, 12:] = x[4][:, :, 12:] = 0.0  # the loss is about the tokens
  *_, dk, dv = run(*x[:3], lo, hi, *x[3:], implementation=implementation)
  assert not dk[:, 12:].any() and not dv[:, 12:].any()
  assert dv[:, :12].all()


def test_patches_of_one_image_see_each_other(implementation):
  rng = np.random.default_rng(11)
  q, k, v, _, _ = operands(rng, B, S, S, H, N, width(implementation, 8))
  lo = np.zeros((B, S), np.int32)
  hi = np.arange(S, dtype=np.int32)[None].copy()
  hi[:, 12:28] = 27
  for i in (12, 20, 27):
    do, dlse = np.zeros_like(q), np.zeros((B, H, S), np.float32)
    do[:, i] = 1.0
    *_, dv = run(q, k, v, lo, hi, do, dlse, implementation=implementation)
    assert dv[:, :28].all() and not dv[:, 28:].any()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ON_CPUS, indirect=True)
def test_results_over_two_halves_of_the_keys_merge_by_lse(implementation):
  rng = np.random.default_rng(12)
  q, k, v, do, _ = operands(rng, 2, 36, 36, 4, 2, width(implementation, 8))
  lo, hi = (jnp.asarray(x) for x in pack(rng, 2, 36))

  def whole(q, k, v):
    return attend(q, k, v, lo, hi, **how(implementation))

  def merged(q, k, v):
    one, lse_one = attend_with_lse(
      q, k[:, :17], v[:, :17], lo, hi, **how(implementation)
    )
    two, lse_two = attend_with_lse(
      q, k[:, 17:], v[:, 17:], lo - 17, hi - 17, **how(implementation)
    )
    share_bhq = jax.nn.sigmoid(lse_one - lse_two)
    share_bqh1 = jnp.swapaxes(share_bhq, 1, 2)[..., None]
    return one * share_bqh1 + two * (1.0 - share_bqh1)

  @jit
  def both(q, k, v, do):
    pairs = (jax.vjp(f, q, k, v) for f in (merged, whole))
    return [(o, *pull(do)) for o, pull in pairs]

  for a, b in zip(*both(q, k, v, do)):
    assert far(a, b) < 1e-5  # fp32; the gradient runs through both lse


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ON_CPUS, indirect=True)
def test_scan_over_layers_and_remat_change_nothing(implementation):
  rng = np.random.default_rng(13)
  d = width(implementation, 8)
  x, w, _, _, _ = operands(rng, 2, 36, 36, 2, 2, d)
  w = jnp.asarray(w[:1, :3].reshape(3, 2, d) / 4)
  lo, hi = (jnp.asarray(a) for a in pack(rng, 2, 36))

  def layer(x, w):
    w = w[None, None]
    return x + attend(x, x * w, x + w, lo, hi, **how(implementation))

  def unrolled(x, w):
    for i in range(3):
      x = layer(x, w[i])
    return jnp.sum(jnp.square(x))

  def scanned(x, w):
    body = jax.checkpoint(lambda x, w: (layer(x, w), None))
    return jnp.sum(jnp.square(jax.lax.scan(body, x, w)[0]))

  want = jit(jax.grad(unrolled, argnums=(0, 1)))(x, w)
  got = jit(jax.grad(scanned, argnums=(0, 1)))(x, w)
  for a, b in zip(got, want):
    assert far(a, b) < 1e-5  # another order of fp32 sums


def temp_bytes(implementation: str, length: int) -> int:
  """What XLA plans beside arguments and results for the gradient of one row."""
  row = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
  interval = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def loss(q, k, v, lo, hi):
    return jnp.sum(attend(q, k, v, lo, hi, **how(implementation)))

  step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  compiled = step.lower(row, row, row, interval, interval).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_a_row_of_4096_never_makes_a_square_array():
  assert temp_bytes("dense", 4096) > 4096 * 4096 * 4  # as a square array would show
  assert temp_bytes("chunked", 4096) < 4096 * 4096 / 2


@pytest.mark.slow
def test_memory_grows_in_a_line_with_a_row_and_a_row_of_447_is_one_tile():
  short, long = (temp_bytes("chunked", x) for x in (1024, 4096))
  # At most in proportion; S x S would be 16 times it, and 16 MiB even as single bytes.
  # (Differences between lengths depend on how a version of XLA overlaps its buffers.)
  assert long < 4 * short and long < 4096 * 4096 / 8
  for length in (447, 448):
    grid = chunked.cut(1, length, length, kv_heads=4, group=1)
    assert grid.whole_rows == (length == 447)


@pytest.mark.parametrize("block,chunk", ((1, 1), (4, 3), (7, 5), (24, 8), (10, 24)))
def test_key_ranges_are_those_of_brute_force(block, chunk):
  rng = np.random.default_rng(block)
  for lo, hi in (pack(rng, 3, 24), scatter(rng, 3, 24, 24)):
    ranges = functools.partial(intervals.key_ranges, keys=24, block=block, chunk=chunk)
    first_bc, count_bc = map(np.asarray, jax.jit(ranges)(lo, hi))
    sees = np.asarray(intervals.sees(jnp.asarray(lo), jnp.asarray(hi), keys=24))
    for b in range(3):
      for c, start in enumerate(intervals.block_starts(24, block)):
        live = np.flatnonzero(sees[b, start : start + block].any(0))
        count = -(-(live[-1] - live[0] + 1) // chunk) if len(live) else 0
        assert count_bc[b, c] == count
        if count:
          assert first_bc[b, c] == live[0]


def test_the_drawing_of_a_row_is_what_lo_and_hi_mean():
  lo = jnp.asarray([[0, 0, 0, 3, 3, 3, 3, 8]], jnp.int32)
  hi = jnp.asarray([[0, 1, 2, 3, 6, 6, 6, 7]], jnp.int32)
  drawn = [
    line.split()[-10:-2]
    for line in intervals.__doc__.splitlines()
    if line.strip().startswith("query ")
  ]
  drawn[-1] = "  query 7    .  .  .  .  .  .  .  .".split()[2:]
  want = np.array([[mark == "x" for mark in line] for line in drawn])
  np.testing.assert_array_equal(intervals.sees(lo, hi, keys=8)[0], want)


@pytest.mark.slow
def test_the_tiles_drawn_in_the_readme_are_those_of_the_row_beside_them():
  page = (Path(__file__).parents[2] / "tfusion/attention/README.md").read_text()
  lines = page.partition("lo hi")[2].partition("Tiles with")[0].splitlines()
  rows = [line.split() for line in lines if line.split()[:1] and " o " in line]
  lo, hi = (jnp.asarray([[int(row[at], 16) for row in rows]]) for at in (-2, -1))
  drawn = [["o" == mark for mark in row[2:-2] if mark != "|"] for row in rows]
  np.testing.assert_array_equal(intervals.sees(lo, hi, keys=12)[0], drawn)
  live_bij, full_bij = intervals.tiles(lo, hi, keys=12, block_q=4, block_k=4)
  words = [line.replace("|", " ").split() for line in lines if "masked" in line]
  assert (live_bij[0] == (np.array(words) != "-")).all()
  assert (full_bij[0] == (np.array(words) == "full")).all()


def test_every_size_is_cut_into_steps_that_cover_it():
  for batch, length, heads, group in (
    (1, 8192, 8, 1),
    (16, 128, 4, 1),
    (16, 256, 6, 1),
    (4, 393, 8, 1),
    (3, 1000, 5, 4),
    (7, 513, 32, 1),
  ):
    grid = chunked.cut(batch, length, length, kv_heads=heads, group=group)
    assert batch % grid.rows == 0 and heads % (grid.lanes * grid.heads) == 0
    assert grid.block * grid.blocks >= length
    assert grid.rows * grid.heads * grid.block * grid.chunk <= 2 * chunked.BUDGET


def bad_inputs():
  q, k = jnp.zeros((2, 8, 4, 16)), jnp.zeros((2, 8, 2, 16))
  lo = jnp.zeros((2, 8), jnp.int32)
  yield "q has shape", (q[0], k, k, lo, lo), {}
  yield "q has dtype int32", (q.astype(jnp.int32), k, k, lo, lo), {}
  yield "they must be alike", (q, k, k[:, :4], lo, lo), {}
  yield "they must be alike", (q, k, k.astype(jnp.bfloat16), lo, lo), {}
  yield "batch and head dim", (q, k[:1], k[:1], lo, lo), {}
  yield "batch and head dim", (q, k[..., :8], k[..., :8], lo, lo), {}
  yield "multiple", (q[:, :, :3], k, k, lo, lo), {}
  yield "none may be 0", (q, k[:, :0], k[:, :0], lo, lo), {}
  yield "lo has shape", (q, k, k, lo[:, :4], lo), {}
  yield "hi has dtype float32", (q, k, k, lo, lo.astype(jnp.float32)), {}
  yield (
    "'chunked', 'dense', 'gpu', 'tpu'",
    (q, k, k, lo, lo),
    {"implementation": "flash"},
  )


@pytest.mark.parametrize("message,arguments,options", list(bad_inputs()))
def test_bad_input_is_a_clear_error(message, arguments, options):
  with pytest.raises(ValueError, match=message):
    attend(*arguments, **options)


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tfusion.attention import attend

def step(q, k, v, lo, hi, do, how):
  f = lambda q, k, v: attend(q, k, v, lo, hi, implementation=how, interpret=how=="tpu")
  o, pull = jax.vjp(f, q, k, v)
  return o, *pull(do)

rng = np.random.default_rng(0)
b, s, h, n, d = 4, 40, 8, 4, 64
x = [rng.normal(size=(b, s, y, d)).astype(np.float32) for y in (h, n, n, h)]
lo = np.zeros((b, s), np.int32)
lo[:, 17:] = 17
hi = np.tile(np.arange(s, dtype=np.int32), (b, 1))
hi[:, 20:30] = 29
run = jax.jit(step, static_argnums=6)
assert len(jax.devices()) == 8
MESHES = {
  "dense": ((2, 2, 2), (1, 4, 2), (1, 1, 1)),
  "chunked": ((2, 2, 2), (1, 4, 2)),
  "tpu": ((2, 2, 2),),
}
for implementation, shapes in MESHES.items():
  want = run(*x[:3], lo, hi, x[3], implementation)
  for shape in shapes:
    mesh = jax.make_mesh(
      shape, ("data", "fsdp", "tensor"), devices=jax.devices()[: np.prod(shape)],
      axis_types=(AxisType.Explicit,) * 3)
    with jax.set_mesh(mesh):
      put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
      rows = ("data", "fsdp")
      y = [put(a, P(rows, None, "tensor", None)) for a in x]
      at = [put(a, P(rows, None)) for a in (lo, hi)]
      compiled = run.lower(*y[:3], *at, y[3], implementation).compile()
      got = compiled(*y[:3], *at, y[3])
      for a, g, w in zip(y[:3] + y[:1], (*got[1:], got[0]), (*want[1:], want[0])):
        assert g.sharding.spec == a.sharding.spec, (g.sharding, a.sharding)
        error = np.linalg.norm(np.asarray(g) - np.asarray(w)) / np.linalg.norm(w)
        assert error < 1e-6, (implementation, shape, error)
      text = compiled.as_text()
      assert "all-reduce" not in text and "all-gather" not in text, shape

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"),
                     axis_types=(AxisType.Explicit,) * 3)
with jax.set_mesh(mesh):
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
  def refuses(word, q, k, v, lo, hi):
    try:
      attend(q, k, v, lo, hi)
    except ValueError as error:
      assert word in str(error), error
    else:
      raise AssertionError("no error about " + word)
  lo_, hi_ = put(lo, "data"), put(hi, "data")
  kv = [put(a, "data", None, "tensor") for a in x[1:3]]
  refuses("q is sharded", put(x[0], "data", None, None, "fsdp"), *kv, lo_, hi_)
  refuses("k is sharded", put(x[0], "data", None, "tensor"), put(x[1], "data"), *kv[1:],
          lo_, hi_)
  refuses("lo is sharded", put(x[0], "data", None, "tensor"), *kv, put(lo), hi_)
print("done")
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_mesh_of_eight_devices_gives_the_numbers_of_one():
  env = dict(os.environ, JAX_PLATFORMS="cpu")
  env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  env["PYTHONPATH"] = str(Path(__file__).parents[2])
  done = subprocess.run(
    [sys.executable, "-c", ON_A_MESH], env=env, capture_output=True, text=True
  )
  assert done.stdout.strip() == "done", done.stderr
