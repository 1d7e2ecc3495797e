"""Rows, operands and the reference that the tests of every kernel share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.attention import dense, intervals

# Compiling takes longer than running: LLVM need not try hard.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def documents(rng: np.random.Generator, batch: int, length: int, block: int = 16):
  """Rows of documents with images at, over and inside the edges of tiles."""
  lo = np.full((batch, length), length, np.int32)
  hi = np.full((batch, length), length - 1, np.int32)
  for b in range(batch):
    start, end = 0, length - int(rng.integers(0, length // 4 + 1))
    while start < end:
      size = int(rng.choice([1, 2, block - 1, block, block + 1, length // 2, length]))
      stop = min(end, start + size)
      lo[b, start:stop], hi[b, start:stop] = start, np.arange(start, stop)
      first = rng.choice([start, start // block * block + block, (start + stop) // 2])
      last = rng.choice([stop - 1, stop // block * block - 1, first + block])
      first, last = max(first, start), min(last, stop - 1)
      if first <= last:
        hi[b, first : last + 1] = last
      start = stop
  return lo, hi


def anything(rng: np.random.Generator, batch: int, queries: int, keys: int):
  """Intervals in no order at all: dead ones, and ends outside of the keys."""
  lo, hi = rng.integers(-9, keys + 9, (2, batch, queries))
  wide = rng.random((batch, queries)) < 0.5
  return np.where(wide, lo // 8, lo).astype(np.int32), hi.astype(np.int32)


def ordered(rng: np.random.Generator, batch: int, queries: int, keys: int):
  """Intervals that never decrease; some see nothing, some reach over the ends."""
  return tuple(np.sort(x, axis=1) for x in anything(rng, batch, queries, keys))


def cached(rng: np.random.Generator, batch: int, queries: int, keys: int):
  """Decoding: every query sees nearly all keys."""
  lo, hi = rng.integers(0, 9, (batch, queries)), rng.integers(1, 9, (batch, queries))
  return lo.astype(np.int32), (keys - hi).astype(np.int32)


def operands(rng, b, q, k, h, n, d, dtype=np.float32):
  """q, k, v, do in dtype, and dlse."""
  shapes = ((b, q, h, d), (b, k, n, d), (b, k, n, d), (b, q, h, d), (b, h, q))
  x = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
  return [*(a.astype(dtype) for a in x[:4]), x[4]]


@functools.partial(jit, static_argnames=("scale", "soft_cap"))
def reference(q, k, v, do, dlse, lo, hi, *, scale=0.3, soft_cap=None):
  """The same in fp32 from dense, whose gradient is JAX's own."""
  q, k, v, do = (x.astype(jnp.float32) for x in (q, k, v, do))

  def attend(q, k, v):
    return dense.forward(q, k, v, lo, hi, scale=scale, soft_cap=soft_cap)

  (o, lse), pull = jax.vjp(attend, q, k, v)
  return o, lse, *pull((do, jnp.where(lse > dense.DEAD_LSE, dlse, 0.0)))


def far(got, want) -> float:
  """Relative distance in the 2-norm; infinite if anything is not finite."""
  got, want = (np.asarray(x.astype(jnp.float32), np.float64) for x in (got, want))
  if not np.isfinite(got).all():
    return float("inf")
  return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def compare(got, want, dtype=np.float32, *, lse_tolerance=1e-5):
  """fp32 to 1e-5; bfloat16 to 2e-2, its 8 bits in p, ds and the results."""
  alive = np.asarray(want[1]) > dense.DEAD_LSE
  np.testing.assert_array_equal(np.asarray(got[1])[~alive], np.float32(dense.DEAD_LSE))
  got = [got[0], jnp.asarray(np.asarray(got[1])[alive]), *got[2:]]
  want = [want[0], jnp.asarray(np.asarray(want[1])[alive]), *want[2:]]
  for name, g, w in zip(("o", "lse", "dq", "dk", "dv"), got, want):
    tolerance = 1e-5 if dtype == np.float32 else 2e-2
    tolerance = lse_tolerance if name == "lse" else tolerance
    assert far(g, w) < tolerance, name


def check_confined(run, lengths: tuple[int, ...], *, broken: int, value: float):
  """What is not finite in one query or key stays with those who see it.

  Args:
    run: `(q, k, v, do, dlse, lo, hi)` to `(o, lse, dq, dk, dv)`.
    lengths: of three documents and the padding of a row; the second document is broken
      at its place 7, inside an image of places 4 to 8.
    broken: which of q, k, v, do.
    value: what is written there.
  """
  first, after, padding = np.cumsum(lengths)[:3]
  length, at = sum(lengths), first + 7
  lo = np.repeat([0, first, after, padding], lengths).astype(np.int32)[None]
  hi = np.arange(length, dtype=np.int32)[None].copy()
  hi[:, first + 4 : first + 9] = first + 8
  hi[:, padding:] = padding - 1  # padding sees nothing, and nobody sees it
  inside = (lo[0] == first) & (hi[0] >= at)
  other = lo[0] != first
  x = operands(np.random.default_rng(4), 1, length, length, 2, 1, 64)
  clean = [np.asarray(a) for a in run(*x, lo, hi)]
  x[broken] = x[broken].at[:, at, 0, 3].set(value)
  got = [np.asarray(a) for a in run(*x, lo, hi)]
  for axis, g, c in zip((1, 2, 1, 1, 1), got, clean):
    np.testing.assert_array_equal(*(np.compress(other, a, axis) for a in (g, c)))
  if np.isnan(value):
    o, _, dq, dk, dv = (np.isnan(a[0]).any((-1, -2)) for a in got)
    of_query = np.arange(length) == at
    seers = of_query if broken in (0, 3) else inside
    assert o[seers].all() or broken == 3
    assert dq[seers].all()
    seen = slice(first, first + 9)  # by the query
    assert dk[seen].all() and dv[seen].all()


def live_tiles(lo, hi, keys: int, queries: int, width: int) -> int:
  """Tiles of queries x width in which some query sees some key, of all rows."""
  sees = np.asarray(intervals.sees(jnp.asarray(lo), jnp.asarray(hi), keys=keys))
  pad = [(0, 0), (0, -sees.shape[1] % queries), (0, -keys % width)]
  sees = np.pad(sees, pad)
  b, q, k = sees.shape
  return int(
    sees.reshape(b, q // queries, queries, k // width, width).any((2, 4)).sum()
  )
