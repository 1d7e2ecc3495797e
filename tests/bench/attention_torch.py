"""Times PyTorch's FlexAttention on given intervals; attention_gpu.py runs it.

Nothing here imports tfusion or jax. Prints one line of JSON: {pass: ms of each round}.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def main() -> None:
  """Compiles FlexAttention with the block mask of the intervals and times it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("intervals", help="npz of lo and hi, i32 [batch, length]")
  parser.add_argument("--heads", type=int, required=True)
  parser.add_argument("--head-dim", type=int, required=True)
  parser.add_argument("--rounds", type=int, required=True)
  parser.add_argument("--repeat", type=int, required=True)
  args = parser.parse_args()
  gpu = torch.cuda.is_available()
  device = "cuda" if gpu else "cpu"
  loaded = np.load(args.intervals)
  lo, hi = (torch.from_numpy(loaded[name]).to(device) for name in ("lo", "hi"))
  batch, length = lo.shape

  def sees(b, h, q, k):
    return (k >= lo[b, q]) & (k <= hi[b, q])

  # As with our work list, what does not change from layer to layer is not timed.
  mask = create_block_mask(sees, batch, None, length, length, device=device)
  attention = torch.compile(flex_attention) if gpu else flex_attention
  shape = (batch, args.heads, length, args.head_dim)
  q, k, v, do = (
    torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(4)
  )
  leaves = [x.requires_grad_(gpu) for x in (q, k, v)]

  def forward():
    with torch.no_grad():
      return attention(q, k, v, block_mask=mask)

  def both():
    return torch.autograd.grad(attention(q, k, v, block_mask=mask), leaves, do)

  o = attention(q, k, v, block_mask=mask) if gpu else None

  def backward():
    return torch.autograd.grad(o, leaves, do, retain_graph=True)

  def wait():
    if gpu:
      torch.cuda.synchronize()

  runs = {"forward": forward}
  if gpu:  # FlexAttention has no gradient on CPUs
    runs |= {"backward": backward, "both": both}
  for run in runs.values():
    run()
  times = {name: [] for name in runs}
  for _ in range(args.rounds):
    for name, run in runs.items():
      wait()
      start = time.perf_counter()
      for _ in range(args.repeat):
        run()
      wait()
      times[name].append(1e3 * (time.perf_counter() - start) / args.repeat)
  print(json.dumps(times))


if __name__ == "__main__":
  main()
