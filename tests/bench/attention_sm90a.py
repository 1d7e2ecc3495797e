"""Compiles the GPU attention kernels for Hopper on a machine without a GPU.

Prints what ptxas says of each kernel: registers of a thread, bytes that spill from
them, shared memory of a block of threads, and how many wgmma instructions (Hopper's
matmul, fed from shared memory) the code has. Exits with 1 if anything spills, if a
kernel asks for more shared memory than there is, or if it has no wgmma (fp32, whose
sums must not round to tf32, has none).

Needs jax[cuda13] (about 4 GB, no GPU, no driver) and ptxas of a CUDA toolkit from 13.0:

  python -m venv cuda && cuda/bin/pip install "jax[cuda13]==0.10.2" absl-py
  PYTHONPATH=. cuda/bin/python tests/bench/attention_sm90a.py

Other block sizes than those of the table, for all head dims that are compiled:

  ... attention_sm90a.py --head-dims 128 --forward 128,128,8,2 --dkv 64,64,8,2
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DUMP = Path(tempfile.mkdtemp(prefix="sm90a_"))
os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax starts: the GPU is only described
os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_dump_to={DUMP}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from tfusion.attention.gpu import kernels, ranges  # noqa: E402
from tfusion.attention.intervals import Sizes  # noqa: E402

# What XLA asks of a device that is not there; from NVIDIA's H100 SXM data sheet and
# the CUDA programming guide's table of compute capability 9.0.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BATCH, HEADS, SCALE = 2, 8, 0.1
# Name, tokens of a row, key/value heads, soft cap. 4000 is no multiple of a block.
VARIANTS = (
  ("", 4096, 8, None),
  ("grouped, ragged", 4000, 2, None),
  ("soft cap", 4096, 8, 30.0),
)


def both(q, k, v, lo, hi, do, *, soft_cap, blocks):
  """Runs all three kernels."""
  batch, length, heads, d = q.shape
  sizes = Sizes(batch, length, length, heads, k.shape[2], d, q.dtype)
  live = kernels.find_live(lo, hi, sizes, blocks)
  options = dict(scale=SCALE, soft_cap=soft_cap, blocks=blocks)
  o, lse = kernels.forward(q, k, v, lo, hi, live, **options)
  delta = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), -1).swapaxes(1, 2)
  return o, kernels.backward(q, k, v, lo, hi, live, lse, delta, do, **options)


def compile_kernels(device, length, kv_heads, d, dtype, soft_cap, blocks):
  """Returns {kernel: (PTX, bytes of shared memory)}."""
  for path in DUMP.iterdir():
    path.unlink()
  sharding = jax.sharding.SingleDeviceSharding(device)

  def shape(*sizes, dtype=dtype):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

  q, kv = shape(BATCH, length, HEADS, d), shape(BATCH, length, kv_heads, d)
  lo = shape(BATCH, length, dtype=jnp.int32)

  def run(*args):
    return both(*args, soft_cap=soft_cap, blocks=blocks)

  jax.jit(run).trace(q, kv, kv, lo, lo, q).lower(lowering_platforms=("cuda",)).compile()
  [thunks] = DUMP.glob("*.thunk_sequence.txt")
  pattern = r"(interval_attention_(\w+)) .*shared_memory: (\d+) bytes"
  shared = {m[1]: int(m[3]) for m in re.finditer(pattern, thunks.read_text())}
  found = {}
  for path in DUMP.glob("*.ptx"):
    entry = re.search(r"\.entry (\w+)", text := path.read_text())
    if entry and entry[1] in shared:
      found[entry[1].removeprefix("interval_attention_")] = (text, shared[entry[1]])
  if set(found) != set(ranges.Blocks._fields):
    raise RuntimeError(f"XLA dumped the kernels {sorted(found)}: expected all three")
  return found


def assemble(ptxas: str, ptx: str) -> tuple[int, int]:
  """Returns registers of a thread, and bytes that are spilled or on the stack."""
  source = DUMP / "kernel.ptx"
  source.write_text(ptx)
  command = [ptxas, "-arch=sm_90a", "-v", str(source), "-o", os.devnull]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  report = done.stderr + done.stdout
  registers = int(re.search(r"Used (\d+) registers", report)[1])
  numbers = r"(\d+) bytes (?:stack frame|spill stores|spill loads)"
  return registers, sum(map(int, re.findall(numbers, report)))


def tile(text: str) -> ranges.Tile:
  """Reads queries,keys,edge,warps,stages."""
  return ranges.Tile(*map(int, text.split(",")))


def main() -> None:
  """Prints one line for each kernel, head dim and variant."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--head-dims", default="64,128,256")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--variants", type=int, default=len(VARIANTS), help="how many")
  parser.add_argument("--ptxas", default=shutil.which("ptxas"), help="of CUDA")
  for name in ranges.Blocks._fields:
    parser.add_argument(f"--{name}", type=tile, help="queries,keys,edge,warps,stages")
  flags = parser.parse_args()
  if flags.ptxas is None:
    parser.error("no ptxas in PATH: give --ptxas; every CUDA toolkit has it in bin")
  version = subprocess.run([flags.ptxas, "--version"], capture_output=True, text=True)
  release = re.search(r"release .*", version.stdout)[0]
  print("PYTHONPATH=. python tests/bench/attention_sm90a.py", *sys.argv[1:])
  print(f"jax[cuda13] {jax.__version__}, ptxas {release}")
  print(f"sm_90a, {flags.dtype}, batch {BATCH}, {HEADS} heads, rows of 4096 or 4000")
  print(
    "\n  d kernel   queries x keys edge warps stages registers spilled  shared wgmma"
  )
  topology = topologies.get_topology_desc(
    topology_name="h100", platform="cuda", target_config=H100, topology="1x1x1"
  )
  bad = False
  for d in map(int, flags.head_dims.split(",")):
    dtype = jnp.dtype(flags.dtype)
    sizes = Sizes(BATCH, 4096, 4096, HEADS, HEADS, d, dtype)
    given = {n: getattr(flags, n) for n in ranges.Blocks._fields if getattr(flags, n)}
    blocks = ranges.plan_of(sizes, None).blocks._replace(**given)
    for variant, length, kv_heads, soft_cap in VARIANTS[: flags.variants]:
      compiled = compile_kernels(
        topology.devices[0], length, kv_heads, d, dtype, soft_cap, blocks
      )
      for name in ranges.Blocks._fields:
        ptx, shared = compiled[name]
        registers, spilled = assemble(flags.ptxas, ptx)
        wgmma = ptx.count("wgmma.mma_async")
        wrong = spilled or shared > ranges.SHARED or (not wgmma and dtype.itemsize == 2)
        bad |= bool(wrong)
        queries, keys, edge, warps, stages = getattr(blocks, name)
        print(
          f"{d:>3} {name:<8} {queries:>7} x {keys:<4} {edge:>4} {warps:>5} {stages:>6}"
          f" {registers:>9} {spilled:>7} {shared:>7} {wgmma:>5} {variant}".rstrip()
          + ("  <-- bad" if wrong else ""),
          flush=True,
        )
  shutil.rmtree(DUMP)
  sys.exit(int(bad))


if __name__ == "__main__":
  main()
