"""The promises of tfusion/attention/ring.py; test_ring.py runs this file."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tfusion.attention import attend, attend_with_lse, chunked, intervals, prepare, ring
from tfusion.attention.dense import DEAD_LSE

AXES = ("data", "tensor", "context")
B, S, H, N, D = 2, 64, 4, 2, 8


@pytest.fixture(autouse=True)
def no_silent_broadcast():
  with jax.numpy_rank_promotion("raise"):
    yield


def use(*shape):
  mesh = jax.make_mesh(
    shape,
    AXES,
    axis_types=(AxisType.Explicit,) * 3,
    devices=jax.devices()[: int(np.prod(shape))],
  )
  return jax.set_mesh(mesh)


def put(x, *spec):
  return jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), P(*spec)))


def cut(q, k, v, lo, hi, do, dlse):
  """The arrays as a ring takes them."""
  rows = [put(x, "data", "context", "tensor", None) for x in (q, k, v, do)]
  at = [put(x, "data", "context") for x in (lo, hi)]
  return *rows[:3], *at, rows[3], put(dlse, "data", "tensor", "context")


def operands(seed: int, *, queries=S, keys=S, dtype=np.float32):
  rng = np.random.default_rng(seed)
  shapes = (B, queries, H, D), (B, keys, N, D), (B, keys, N, D), (B, queries, H, D)
  wide = [rng.normal(size=shape).astype(dtype) for shape in shapes]
  return *wide, rng.normal(size=(B, H, queries)).astype(np.float32)


def straddling():
  """An image over each of the seven cuts, and padding."""
  lo = np.zeros((B, S), np.int32)
  hi = np.tile(np.arange(S, dtype=np.int32), (B, 1))
  for first in range(5, S - 8, 8):
    hi[:, first : first + 6] = first + 5
  lo[1, 21:] = 21  # behind a document, and inside of an image
  hi[1, 19:21] = 20
  lo[0, 61:], hi[0, 58:] = S, 60
  return lo, hi


def short(length: int):
  """Documents of this many tokens: nobody looks ahead."""
  lo = np.arange(S, dtype=np.int32) // length * length
  return np.tile(lo, (B, 1)), np.tile(np.arange(S, dtype=np.int32), (B, 1))


def brute_live(lo, hi, shards: int) -> set[int]:
  sees = np.asarray(intervals.sees(jnp.asarray(lo), jnp.asarray(hi), keys=S)).any(0)
  sees = sees.reshape(shards, S // shards, shards, S // shards).any((1, 3))
  return {int((s - k) % shards) for s, k in zip(*np.nonzero(sees), strict=True)}


@functools.cache
def compiled(tile, mesh, implementation, soft_cap):
  """One jitted function per setting, so that tests share what they compile."""
  del tile, mesh  # parts of the key: read while tracing

  @jax.jit
  def both(q, k, v, lo, hi, do, dlse):
    def forward(q, k, v):
      options = dict(implementation=implementation, soft_cap=soft_cap)
      return attend_with_lse(q, k, v, lo, hi, **options)

    (o, lse), pull = jax.vjp(forward, q, k, v)
    return o, lse, *pull((do, dlse))

  return both


def run(*arrays, implementation="chunked", soft_cap=None):
  """(o, lse, dq, dk, dv) of q, k, v, lo, hi, do, dlse."""
  mesh = jax.sharding.get_abstract_mesh()
  return compiled(chunked.WHOLE, mesh, implementation, soft_cap)(*arrays)


def check(got, want, arrays, tolerance):
  q, k, v, _, _, _, dlse = arrays
  for name, g, w, like in zip(
    ("o", "lse", "dq", "dk", "dv"), got, want, (q, dlse, q, k, v), strict=True
  ):
    assert g.sharding.spec == like.sharding.spec, name
    g, w = (np.asarray(x, np.float64) for x in (g, w))
    if name == "lse":
      dead = w < -1e38
      np.testing.assert_array_equal(g[dead], w[dead])
      g, w = g[~dead], w[~dead]
    assert np.linalg.norm(g - w) <= tolerance * np.linalg.norm(w), name


@pytest.mark.parametrize(
  "shape",
  [
    (1, 1, 2),
    (1, 1, 8),
    *(pytest.param(shape, marks=pytest.mark.long) for shape in ((1, 2, 4), (2, 2, 2))),
  ],
  ids=str,
)
def test_a_ring_gives_the_numbers_of_one_device(shape):
  q, k, v, do, dlse = operands(0)
  arrays = (q, k, v, *straddling(), do, dlse)
  want = run(*arrays)
  with use(*shape):
    arrays = cut(*arrays)
    check(run(*arrays), want, arrays, 1e-5)  # fp32 sums in another order


@pytest.mark.parametrize(
  "implementation", [pytest.param("dense", marks=pytest.mark.long), "chunked in tiles"]
)
def test_a_ring_goes_around_any_implementation(implementation, monkeypatch):
  if implementation == "chunked in tiles":  # which have ranges for every distance
    for name in ("WHOLE", "BLOCK", "CHUNK", "BUDGET"):
      monkeypatch.setattr(chunked, name, 0 if name == "WHOLE" else 5)
  q, k, v, do, dlse = operands(1)
  arrays = (q, k, v, *straddling(), do, dlse)
  options = dict(implementation=implementation.split()[0], soft_cap=2.0)
  want = run(*arrays, **options)
  with use(2, 1, 4):
    arrays = cut(*arrays)
    check(run(*arrays, **options), want, arrays, 1e-5)


@pytest.mark.long
def test_a_ring_goes_around_the_kernels_for_tpus():
  rng = np.random.default_rng(10)
  shapes = (1, 256, 2, 128), (1, 256, 1, 128), (1, 256, 1, 128), (1, 256, 2, 128)
  q, k, v, do = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
  lo = np.where(np.arange(256) < 100, 0, 100).astype(np.int32)[None]
  hi = np.arange(256, dtype=np.int32)[None].copy()
  hi[:, 120:140] = 139  # an image over the cut

  def both(q, k, v, lo, hi, do, **options):
    o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, lo, hi, **options), q, k, v)
    return o, *pull(do)

  want = jax.jit(both)(q, k, v, lo, hi, do)
  with use(1, 1, 2):
    arrays = [put(x, None, "context") for x in (q, k, v, lo, hi, do)]
    kernels = functools.partial(both, implementation="tpu", interpret=True)
    got = jax.jit(kernels)(*arrays)
  for g, w in zip(got, want, strict=True):
    g, w = np.asarray(g), np.asarray(w)
    assert np.linalg.norm(g - w) < 1e-5 * np.linalg.norm(w)


@pytest.mark.long
def test_queries_and_keys_may_differ_in_number():
  q, k, v, do, dlse = operands(2, queries=32)
  rng = np.random.default_rng(2)
  lo, hi = np.sort(rng.integers(-3, S + 3, (2, B, 32)), axis=0).astype(np.int32)
  arrays = (q, k, v, np.sort(lo), np.sort(hi), do, dlse)
  want = run(*arrays)
  with use(1, 1, 4):
    arrays = cut(*arrays)
    check(run(*arrays), want, arrays, 1e-5)


@pytest.mark.long
def test_bfloat16_stays_close_and_keeps_its_dtype():
  q, k, v, do, dlse = operands(3, dtype=jnp.bfloat16)
  lo, hi = straddling()
  wide = [np.asarray(x, np.float32) for x in (q, k, v, do)]
  want = run(*wide[:3], lo, hi, wide[3], dlse)
  with use(1, 1, 8):
    arrays = cut(q, k, v, lo, hi, do, dlse)
    got = run(*arrays)
    assert [x.dtype for x in got] == [q.dtype, np.float32, q.dtype, q.dtype, q.dtype]
    check(got, want, arrays, 2e-2)  # 8 bits of mantissa in every part and the results


def test_a_query_that_sees_nothing_gives_zero_and_takes_no_gradient():
  q, k, v, do, dlse = operands(4)
  lo, hi = straddling()
  dead = np.r_[0:10, 35:64]  # the others are ends and an image over a cut
  lo[:, dead], hi[:, dead] = S, S - 1
  with use(1, 1, 8):
    o, lse, dq, dk, dv = run(*cut(q, k, v, lo, hi, do, dlse))
  assert not np.asarray(o)[:, dead].any() and not np.asarray(dq)[:, dead].any()
  assert (np.asarray(lse)[:, :, dead] == np.float32(DEAD_LSE)).all()
  assert np.asarray(dv)[:, 32:35].all() and not np.asarray(dv)[:, 35:].any()
  with use(1, 1, 8):
    nobody = np.full((B, S), S, np.int32), np.full((B, S), -1, np.int32)
    o, lse, *grads = run(*cut(q, k, v, *nobody, do, dlse))
  assert not any(np.asarray(x).any() for x in (o, *grads))
  assert (np.asarray(lse) == np.float32(DEAD_LSE)).all()


@pytest.mark.parametrize("broken", ["q", "k", "v", "do"])
def test_a_nan_in_one_document_never_reaches_another(broken):
  q, k, v, do, dlse = operands(5)
  lo = np.tile(np.repeat([0, 21, 37], (21, 16, 27)), (B, 1)).astype(np.int32)
  hi = np.tile(np.arange(S, dtype=np.int32), (B, 1))
  hi[:, 29:36] = 35  # an image over the cut at 32
  inside = np.zeros(S, bool)
  inside[21:37] = True
  dlse[:, :, inside] = 0.0
  with use(1, 1, 4):
    clean = run(*cut(q, k, v, lo, hi, do, dlse))
    dict(q=q, k=k, v=v, do=do)[broken][0, 31, 0, 3] = np.nan
    got = run(*cut(q, k, v, lo, hi, do, dlse))
  for g, w, axis in zip(got, clean, (1, 2, 1, 1, 1), strict=True):
    g, w = (np.compress(~inside, np.asarray(x), axis) for x in (g, w))
    np.testing.assert_array_equal(g, w)
  # It reaches what sees it, over the cut too.
  reached = np.asarray(got[3 if broken in ("q", "do") else 0])[0, 31:36]
  assert np.isnan(reached).any((1, 2)).all()


LENGTHS = [4, 8, 13, 32]


def brute_far(lo, hi, shards: int) -> int:
  """The farthest shard that some query sees, apart from the one ahead."""
  return max({1, *brute_live(lo, hi, shards)} - {shards - 1})


@pytest.mark.parametrize("shards", [4, 8])
def test_the_farthest_distance_is_that_of_brute_force(shards):
  masks = [short(length) for length in LENGTHS] + [straddling()]
  seen = []
  with use(1, 1, shards):
    for lo, hi in masks:
      at = put(lo, None, "context"), put(hi, None, "context")
      options = dict(keys=S, heads=H, kv_heads=N, head_dim=D, dtype=np.float32)
      far = np.asarray(prepare(*at, implementation="chunked", **options).live.far_1)
      assert far.shape == (shards,) and (far == far[0]).all()
      assert far[0] == brute_far(lo, hi, shards)
      seen.append(int(far[0]))
  assert min(seen) == 1 and max(seen) == shards - 2


def gradient(q, k, v, lo, hi, do):
  o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, lo, hi), q, k, v)
  return o, *pull(do)


def test_keys_travel_as_far_as_someone_sees_and_nothing_is_traced_again(monkeypatch):
  sent, ppermute = [], jax.lax.ppermute

  def counted(x, axis, perm):
    jax.debug.callback(lambda: sent.append(perm[0][1]))  # whenever it runs
    return ppermute(x, axis, perm)

  monkeypatch.setattr(ring.lax, "ppermute", counted)
  # The rows of a batch may need different distances: all devices take part in each.
  mixed = tuple(
    np.stack([a[0], b[0]]) for a, b in zip(short(8), short(32), strict=True)
  )
  one_image = [x.copy() for x in short(16)]
  for x, value in zip(one_image, (0, 17), strict=True):
    x[:, 14:18] = value  # over the first cut
  q, k, v, do, dlse = operands(6)
  whole, parts = jax.jit(gradient), jax.jit(lambda *x: gradient(*x))
  for (lo, hi), far in (
    (short(8), 1),
    (short(13), 1),
    (mixed, 1),
    (one_image, 1),
    (short(48), 2),
    (straddling(), 2),
  ):
    assert brute_far(lo, hi, 4) == far
    want = whole(q, k, v, lo, hi, do)
    with use(2, 1, 4):
      *arrays, _ = cut(q, k, v, lo, hi, do, dlse)
      got = parts(*arrays)
    jax.effects_barrier()
    # On each of eight devices keys and values go to both neighbours and from one of
    # them on; they come back from there, and their gradients from all.
    onward, back = [1] * far + [1], [3] + [3] * (far - 1) + [3] * far
    assert sorted(sent) == sorted(8 * 2 * (onward + back))
    sent.clear()
    for g, w in zip(got, want, strict=True):
      np.testing.assert_allclose(g, w, atol=1e-5)
  assert parts._cache_size() == 1


def computations(text: str) -> dict[str, str]:
  """The computations of a compiled program by name."""
  found = re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?^}", text, re.M | re.S)
  bodies = re.findall(r"^(?:ENTRY )?%?[\w.-]+ \(.*?^}", text, re.M | re.S)
  return dict(zip(found, bodies, strict=True))


def test_no_exchange_but_those_of_neighbours_is_unconditional():
  q, k, v, do, dlse = operands(7)
  with use(1, 1, 4):
    *arrays, _ = cut(q, k, v, *straddling(), do, dlse)
    text = jax.jit(gradient).lower(*arrays).compile().as_text()
  inner = set(re.findall(r"(?:body|(?:true|false)_computation)=%([\w.-]+)", text))
  for names in re.findall(r"branch_computations=\{([^}]*)\}", text):
    inner |= {name.strip(" %") for name in names.split(",")}
  found = {
    name: len(re.findall(r" collective-permute(?:-start)?\(", body))
    for name, body in computations(text).items()
  }
  # Keys and values, and their gradients, to and from both.
  assert sum(n for name, n in found.items() if name not in inner) == 8
  # From there on: k and v; they come back, with the sums; the sums come from 2 to 1.
  assert sum(n for name, n in found.items() if name in inner) == 2 + 2 * 2 + 2 + 2
  assert "all-gather" not in text


@pytest.mark.long
def test_work_is_prepared_once_for_a_scan_over_layers():
  q, _, _, do, _ = operands(8)
  w = np.linspace(0.1, 0.3, 3, dtype=np.float32)

  def loss(x, w, lo, hi, once):
    work = None
    if once:
      options = dict(keys=S, heads=H, kv_heads=H, head_dim=D, dtype=x.dtype)
      work = prepare(lo, hi, **options)

    @jax.checkpoint
    def layer(x, w):
      return x + attend(x, x * w, x + w, lo, hi, work=work), None

    return jnp.sum(jnp.square(jax.lax.scan(layer, x, w)[0]))

  step = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=4)
  lo, hi = straddling()
  want = step(q, w, lo, hi, False)
  with use(2, 2, 2):
    x = put(q, "data", "context", "tensor", None)
    at = [put(a, "data", "context") for a in (lo, hi)]
    got = step(x, w, *at, True)
    jaxpr = str(jax.make_jaxpr(step, static_argnums=4)(x, w, *at, True))
  for g, w in zip(got, want, strict=True):
    g, w = np.asarray(g), np.asarray(w)
    assert np.linalg.norm(g - w) < 1e-5 * np.linalg.norm(w)
  assert jaxpr.count(" pmax[") == 1


def test_what_cannot_be_a_ring_is_a_clear_error():
  q, k, v, _, _ = operands(9)
  lo, hi = straddling()

  def refuses(message, q, k, v, lo, hi):
    with pytest.raises(ValueError, match=message):
      attend(q, k, v, lo, hi)

  with use(2, 2, 2):
    q, k, v = (put(x, None, "context") for x in (q, k, v))
    lo, hi = (put(x, None, "context") for x in (lo, hi))
    refuses("k is sharded", q, put(k), put(v), lo, hi)
    refuses("hi is sharded", q, k, v, lo, put(hi))
    refuses("lo is sharded", put(q), put(k), put(v), lo, hi)
    refuses("one mesh axis", put(q, None, ("data", "context")), k, v, lo, hi)
    refuses("one mesh axis", put(q, None, None, None, "context"), k, v, lo, hi)
