"""Times the chunked attention against jax.nn.dot_product_attention with a mask.

Forward and backward together, in one process, in turns, so that whatever else the
machine does strikes both. Prints the median time, the median of the ratios of
neighbouring runs, and the temporary memory that XLA planned.

  python tests/bench/attention_cpu.py --sizes 1024,4096,8192
  python tests/bench/attention_cpu.py --sizes 393 --batch 4 --head-dim 32 --documents 1

The rival holds several length x length arrays per head: 8192 needs about 9 GB.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.attention import attend, intervals


def pack(rng: np.random.Generator, batch: int, length: int, documents: int):
  """Rows of so many documents; the middle half of each, at most 256, is an image."""
  lo = np.zeros((batch, length), np.int32)
  hi = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
  for b in range(batch):
    cuts = np.sort(rng.choice(np.arange(1, length), documents - 1, replace=False))
    for start, stop in zip([0, *cuts], [*cuts, length]):
      lo[b, start:stop] = start
      patches = min(256, (stop - start) // 2)
      first = start + (stop - start - patches) // 2
      hi[b, first : first + patches] = np.maximum(
        hi[b, first : first + patches], first + patches - 1
      )
  return lo, hi


def rival(q, k, v, lo, hi):
  mask_bhqk = intervals.sees(lo, hi, keys=k.shape[1])[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask_bhqk)


def forward_backward(attention):
  def step(q, k, v, lo, hi, do):
    o, pull = jax.vjp(lambda q, k, v: attention(q, k, v, lo, hi), q, k, v)
    return o, pull(do)

  return jax.jit(step)


def race(rivals: dict, args, *, seconds: float) -> dict[str, tuple[list[float], float]]:
  """Returns {name: (ms of each run, MB of temporary memory)}; the runs take turns."""
  compiled, times = {}, {}
  for name, attention in rivals.items():
    compiled[name] = forward_backward(attention).lower(*args).compile()
    jax.block_until_ready(compiled[name](*args))
    times[name] = []
  end = time.perf_counter() + seconds
  while time.perf_counter() < end or len(times[name]) < 3:
    for name, run in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(run(*args))
      times[name].append(1e3 * (time.perf_counter() - start))
  memory = {
    n: c.memory_analysis().temp_size_in_bytes / 1e6 for n, c in compiled.items()
  }
  return {name: (times[name], memory[name]) for name in rivals}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", default="1024,4096", help="row lengths")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--heads", type=int, default=8)
  parser.add_argument("--head-dim", type=int, default=64)
  parser.add_argument("--documents", type=int, default=12, help="per row")
  parser.add_argument("--seconds", type=float, default=5.0, help="per size")
  flags = parser.parse_args()
  print(f"batch {flags.batch}, heads {flags.heads}, head dim {flags.head_dim}, fp32,")
  print(f"{flags.documents} documents a row; jax {jax.__version__}")
  print(f"{'':8}{'live':>7}{'chunked':>18}{'jax.nn + mask':>21}{'ratio':>14}")
  print(f"{'length':8}{'%':>7}{'ms':>10}{'MB':>8}{'ms':>12}{'MB':>9}{'ms':>8}{'MB':>6}")
  for length in map(int, flags.sizes.split(",")):
    rng = np.random.default_rng(length)
    shape = (flags.batch, length, flags.heads, flags.head_dim)
    q, k, v, do = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4))
    lo, hi = pack(rng, flags.batch, length, flags.documents)
    live = 100 * np.mean(hi - lo + 1) / length
    ours = functools.partial(attend, implementation="chunked")
    args = (q, k, v, jnp.asarray(lo), jnp.asarray(hi), do)
    results = race({"ours": ours, "jax": rival}, args, seconds=flags.seconds)
    (ours_ms, ours_mb), (jax_ms, jax_mb) = results["ours"], results["jax"]
    ratio = np.median(np.divide(jax_ms, ours_ms))
    print(
      f"{length:<8}{live:7.1f}{np.median(ours_ms):10.2f}{ours_mb:8.1f}"
      f"{np.median(jax_ms):12.2f}{jax_mb:9.1f}{ratio:8.2f}{jax_mb / ours_mb:6.1f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
