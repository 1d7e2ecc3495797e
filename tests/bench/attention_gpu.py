"""Times the GPU attention kernels beside other libraries', all in one run.

Rows of a length, a head dim and a mask; bfloat16; 2048 features of heads; as many rows
as make `--tokens`. Each line is a program: milliseconds of the forward pass, of the
backward pass and of both (medians), TFLOP/s, and how many times as long as ours it
takes (the median ratio of neighbouring runs). The programs of JAX take turns, so that
a change of the GPU's clock meets all of them; PyTorch has a process of its own, after.

TFLOP/s counts what is useful: 4 d operations forward, 10 backward, for each pair of a
query and a key that it sees. A program that computes more, or cannot skip what is
masked, does not get credit for it. cuDNN is run with its causal mask in every row:
for packed documents that is not the right answer, only the time of a kernel that
ignores them. The work list is found outside, as a model does once for all layers.

  python tests/bench/attention_gpu.py
  python tests/bench/attention_gpu.py --torch-python torch/bin/python --rounds 30

Without a GPU, `--smoke` runs it to the end on tiny rows, kernels interpreted; its
times mean nothing.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some

import jax
import jax.numpy as jnp
import numpy as np

from tfusion.attention import attend, intervals, prepare

WIDTH = 2048  # heads * head dim
MASKS = {"causal": 0, "4 documents": 4, "12 documents": 12}
FLOPS = {"forward": 4, "backward": 10, "both": 14}  # per pair and feature
HERE = Path(__file__).parent


def pack(rng: np.random.Generator, batch: int, length: int, documents: int):
  """Rows of so many documents, an image of at most 256 in each; 0: one of text."""
  lo = np.zeros((batch, length), np.int32)
  hi = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
  for b in range(batch if documents else 0):
    cuts = np.sort(rng.choice(np.arange(1, length), documents - 1, replace=False))
    for start, stop in zip([0, *cuts], [*cuts, length]):
      lo[b, start:stop] = start
      first = start + (stop - start) // 4
      last = min(first + 256, (start + stop) // 2) - 1
      hi[b, first : last + 1] = np.maximum(hi[b, first : last + 1], last)
  return lo, hi


def programs(lo, hi, q, flags) -> dict:
  """Returns {name: attention of q, k, v, or a reason why it is not run}."""
  batch, length, heads, d = q.shape
  shape = dict(keys=length, heads=heads, kv_heads=heads, head_dim=d, dtype=q.dtype)
  work = prepare(lo, hi, implementation="gpu", **shape)

  def ours(q, k, v):
    return attend(q, k, v, lo, hi, work=work, interpret=flags.smoke)

  def masked(attention, q, k, v):
    return attention(q, k, v, mask=intervals.sees(lo, hi, keys=length)[:, None])

  found = {"ours": ours}
  causal = functools.partial(
    jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"
  )
  found["cuDNN, causal"] = "needs a GPU" if flags.smoke else causal
  needs = 3 * 4 * batch * heads * length * length / 1e9
  found["jax.nn, mask"] = functools.partial(masked, jax.nn.dot_product_attention)
  if needs > flags.memory:
    found["jax.nn, mask"] = f"needs about {needs:.0f} GB: more than --memory"
  try:
    import tokamax
  except ImportError:
    found["tokamax, mask"] = "not installed"
  else:
    found["tokamax, mask"] = functools.partial(masked, tokamax.dot_product_attention)
    if batch * length * length / 1e9 > flags.memory:
      found["tokamax, mask"] = "its mask alone takes more than --memory"
  return found


def passes(attention, q, k, v, do) -> dict:
  """Returns {pass: a function without arguments that runs it}; compiles them."""
  forward = jax.jit(attention)
  pull = jax.jit(lambda q, k, v: jax.vjp(attention, q, k, v)[1])(q, k, v)
  backward = jax.jit(lambda pull, do: pull(do))

  @jax.jit
  def both(q, k, v, do):
    o, pull = jax.vjp(attention, q, k, v)
    return o, pull(do)

  return {
    "forward": lambda: forward(q, k, v),
    "backward": lambda: backward(pull, do),
    "both": lambda: both(q, k, v, do),
  }


def race(found: dict, operands, flags) -> dict:
  """Returns {name: {pass: ms of each round}, or the reason why there is none}."""
  ready, results = {}, {}
  for name, attention in found.items():
    results[name] = attention
    if isinstance(attention, str):
      continue
    try:
      ready[name] = passes(attention, *operands)
      for run in ready[name].values():
        jax.block_until_ready(run())
      results[name] = {one: [] for one in FLOPS}
    except Exception as error:  # whatever a library says of sizes it cannot take
      if name == "ours":
        raise
      ready.pop(name, None)
      results[name] = f"{type(error).__name__}: {error}".splitlines()[0][:90]
  for _ in range(flags.rounds):
    for one in FLOPS:
      for name, run in ready.items():
        start = time.perf_counter()
        for _ in range(flags.repeat):
          out = run[one]()
        jax.block_until_ready(out)
        ms = 1e3 * (time.perf_counter() - start) / flags.repeat
        results[name][one].append(ms)
  return results


def torch_times(lo, hi, q, flags):
  """Times FlexAttention in a process of its own, with the same intervals."""
  if flags.torch_python is None:
    return "give --torch-python"
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "intervals.npz"
    np.savez(path, lo=lo, hi=hi)
    command = [flags.torch_python, str(HERE / "attention_torch.py"), str(path)]
    command += [f"--heads={q.shape[2]}", f"--head-dim={q.shape[3]}"]
    command += [f"--rounds={flags.rounds}", f"--repeat={flags.repeat}"]
    done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    return (done.stderr.strip().splitlines() or ["it failed"])[-1][:90]
  return json.loads(done.stdout.strip().splitlines()[-1])


def check(found: dict, q, k, v) -> None:
  """Raises if ours and the masked reference do not agree."""
  if isinstance(found["jax.nn, mask"], str):
    return
  ours, theirs = (jax.jit(found[n])(q, k, v) for n in ("ours", "jax.nn, mask"))
  ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
  far = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
  if not far < 2e-2:
    raise RuntimeError(
      f"ours and jax.nn differ by {far:.1e}: no times of wrong numbers"
    )


def show(name: str, result, ours: dict, flops: dict) -> None:
  """Prints the line of one program."""
  if isinstance(result, str):
    print(f"  {name:<16} not run: {result}", flush=True)
    return
  columns = []
  for one, times in result.items():
    ms = statistics.median(times)
    columns.append(f"{ms:11.3f}{flops[one] / ms / 1e9:8.1f}")
    ratio = statistics.median(a / b for a, b in zip(times, ours[one]))
    columns.append(f"{ratio:6.2f}x")
  print(f"  {name:<16}", *columns, flush=True)


def main() -> None:
  """Prints a table for each length, head dim and mask."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", default="4096,8192,16384,32768", help="row lengths")
  parser.add_argument("--head-dims", default="64,128")
  parser.add_argument("--tokens", type=int, default=32768, help="of a batch")
  parser.add_argument("--rounds", type=int, default=20, help="of all programs")
  parser.add_argument("--repeat", type=int, default=5, help="runs in a round")
  parser.add_argument("--memory", type=float, default=40.0, help="GB for square arrays")
  parser.add_argument("--torch-python", help="a python that has torch")
  parser.add_argument("--smoke", action="store_true", help="tiny, without a GPU")
  flags = parser.parse_args()
  width, masks = WIDTH, MASKS
  if flags.smoke:
    masks = {"4 documents": 4}
    flags.sizes, flags.head_dims, flags.tokens, width = "48", "16", 48, 32
    flags.rounds = flags.repeat = 1
  elif jax.default_backend() != "gpu":
    parser.error("no GPU here: --smoke runs without one")
  device = jax.devices()[0].device_kind
  print(f"{device}, jax {jax.__version__}, bfloat16, {width} features of heads")
  print(f"medians of {flags.rounds} rounds of {flags.repeat} runs; ratios to ours")
  titles = [f"{one:>8} ms TFLOP/s  ratio" for one in FLOPS]
  for length in map(int, flags.sizes.split(",")):
    for d in map(int, flags.head_dims.split(",")):
      for mask, documents in masks.items():
        rng = np.random.default_rng(length)
        batch = max(1, flags.tokens // length)
        lo, hi = pack(rng, batch, length, documents)
        pairs = int(np.sum(hi - lo + 1, dtype=np.int64))
        shape = (batch, length, width // d, d)
        operands = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4)]
        share = pairs / (batch * length * length)
        print(f"\n{batch} x {length}, head dim {d}, {mask}, {share:.1%} live")
        print(" " * 18, *titles)
        found = programs(jnp.asarray(lo), jnp.asarray(hi), operands[0], flags)
        check(found, *operands[:3])
        results = race(found, operands, flags)
        results["FlexAttention"] = torch_times(lo, hi, operands[0], flags)
        flops = {one: n * pairs * width for one, n in FLOPS.items()}
        for name, result in results.items():
          show(name, result, results["ours"], flops)


if __name__ == "__main__":
  main()
