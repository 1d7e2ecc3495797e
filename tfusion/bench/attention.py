"""How fast attention is on this machine: `tfusion bench attention`.

Owns: the race. Not: what runs in it; what a TPU would do (tpu/static.py).
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion import attention
from tfusion.attention import intervals
from tfusion.progress import Progress

RIVAL = "jax.nn + mask"


class Result(NamedTuple):
  """One program on rows of one length, forward and backward together."""

  name: str
  length: int
  live: float  # share of queries x keys that the mask lets through
  ms: float  # median
  ratio: float  # the rival's time over ours, median of runs side by side
  temp_bytes: int  # that XLA planned
  tflops: float  # 1e12/s; 2 matmuls forward and 5 backward, of live scores alone


def pack(rng: np.random.Generator, batch: int, length: int, documents: int):
  """Returns lo and hi of packed rows: half of each document, at most 256, is an image.

  The image stands in the middle. Where documents end is random.
  """
  lo = np.zeros((batch, length), np.int32)
  hi = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
  for b in range(batch):
    cuts = np.sort(rng.choice(np.arange(1, length), documents - 1, replace=False))
    for start, stop in zip([0, *cuts], [*cuts, length]):
      lo[b, start:stop] = start
      patches = min(256, (stop - start) // 2)
      first = start + (stop - start - patches) // 2
      hi[b, first : first + patches] = first + patches - 1
  return lo, hi


def race(
  lengths: list[int],
  *,
  batch: int,
  heads: int,
  kv_heads: int,
  head_dim: int,
  documents: int,
  seconds: float,
) -> Iterator[Result]:
  """Times the implementations for this platform and jax.nn.dot_product_attention.

  The latter gets the mask as an array, its only way to this mask, and holds several
  length x length arrays a head. All run in turn, so that whatever else the machine
  does strikes each of them.

  Args:
    lengths: of the rows.
    batch, heads, kv_heads, head_dim: of q, k and v: float32 on a CPU, else bfloat16.
    documents: in each row.
    seconds: of runs for each length; each program runs three times at least.
  """
  platform = jax.default_backend()
  names = dict.fromkeys([attention.BY_PLATFORM.get(platform, "chunked"), "chunked"])
  programs = {
    name: functools.partial(attention.attend, implementation=name) for name in names
  }
  dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
  for length in lengths:
    rng = np.random.default_rng(length)
    lo, hi = pack(rng, batch, length, documents)
    shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, do = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    args = (q, k, v, jnp.asarray(lo), jnp.asarray(hi), do)
    scores = int(np.sum(hi - lo + 1, dtype=np.int64))
    times, temps = _time(programs | {RIVAL: _rival}, args, seconds, length)
    for name in times:
      ms = float(np.median(times[name]))
      yield Result(
        name=name,
        length=length,
        live=scores / (batch * length**2),
        ms=ms,
        ratio=float(np.median(np.divide(times[RIVAL], times[name]))),
        temp_bytes=temps[name],
        tflops=(2 + 5) * 2 * scores * heads * head_dim / ms / 1e9,
      )


def _rival(q, k, v, lo, hi):
  mask_b1qk = intervals.sees(lo, hi, keys=k.shape[1])[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask_b1qk)


def _time(programs: dict[str, Callable], args: tuple, seconds: float, length: int):
  """Returns milliseconds of every run, and planned temporary bytes, by name."""
  compiled, temps = {}, {}
  times: dict[str, list[float]] = {}
  for name, program in programs.items():

    def step(q, k, v, lo, hi, do, program=program):
      o, pull = jax.vjp(lambda q, k, v: program(q, k, v, lo, hi), q, k, v)
      return o, pull(do)

    compiled[name] = jax.jit(step).lower(*args).compile()
    memory = compiled[name].memory_analysis()
    assert memory is not None  # every compiler of XLA tells it
    temps[name] = memory.temp_size_in_bytes
    jax.block_until_ready(compiled[name](*args))
    times[name] = []
  progress = Progress(f"length {length}: seconds", int(np.ceil(seconds)))
  start, runs = time.perf_counter(), 0
  while time.perf_counter() - start < seconds or runs < 3:
    for name, run in compiled.items():
      before = time.perf_counter()
      jax.block_until_ready(run(*args))
      times[name].append(1e3 * (time.perf_counter() - before))
    runs += 1
    progress.show(int(min(seconds, time.perf_counter() - start)))
  return times, temps


def table(results: Iterator[Result], **sizes: Any) -> Iterator[str]:
  """Yields the lines to print, each as soon as it is known."""
  yield ", ".join(f"{name} {value}" for name, value in sizes.items())
  yield f"jax {jax.__version__}, {jax.devices()[0].device_kind}; forward and backward"
  yield "length   live %  program               ms  speed-up  temp MB   TFLOP/s"
  for r in results:
    yield (
      f"{r.length:<8} {100 * r.live:6.1f}  {r.name:<14} {r.ms:9.2f} {r.ratio:8.2f}x"
      f" {r.temp_bytes / 1e6:8.1f} {r.tflops:9.3f}"
    )
