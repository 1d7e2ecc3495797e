"""Sampling in plain eager PyTorch: the twin that `tfusion bench generate` is held to.

Owns: the twin's cache, its text, its images, their timing. Not: the model, which is the
plain one of peers_torch.py. Nothing here imports tfusion or JAX.

It does what a careful author of eager code would: a cache that is made once, prefixes
that are computed once, conditional and unconditional rows in one batch, no gradients.

b batch  l queries  s cache positions  d width  h heads  k head dim  n patches
"""

import argparse
import json
import math
import resource
import statistics
import time

import peers_torch as peers
import torch
import torch.nn.functional as F
from peers_torch import BOI, BOS, EOI, PATCH_FEATURES, PATCHES, PlainTransfusion, rotate

START = 0.97  # of the schedule, as tfusion begins
CLIP = 3.0  # deviations; the model is not trained, and numbers are to stay finite
WARMUP = 1


class Cache:
  """Keys and values of every layer, [b, h, s, k] each."""

  def __init__(self, model: PlainTransfusion, batch: int, length: int):
    heads = model.blocks[0].heads
    shape = (batch, heads, length, model.head_dim)
    self.layers = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.blocks]

  def twice(self, other: "Cache") -> "Cache":
    """The rows of both, one behind the other."""
    both = Cache.__new__(Cache)
    pairs = zip(self.layers, other.layers)
    both.layers = [tuple(torch.cat(kv) for kv in zip(a, b)) for a, b in pairs]
    return both


class Sampler:
  """A model and what sampling needs of it."""

  def __init__(self, model: PlainTransfusion, length: int):
    self.model = model.eval()
    self.rope_s1k = peers.rope_table(length, model.head_dim)

  def extend(self, x_bld, cache: Cache, at: list[int], *, causal: bool):
    """Runs inputs on the cache; row i stands behind at[i] positions."""
    b, l, _ = x_bld.shape
    end = max(at) + l
    same = len(set(at)) == 1
    rope = [self.rope_s1k[a : a + l] for a in at]
    rope_l1k = rope[0] if same else torch.stack(rope)
    mask = None
    if causal and l > 1 or not same:
      key = torch.arange(end)
      first = torch.tensor(at)[:, None] + (torch.arange(l) if causal else l - 1)
      mask = (key <= first[..., None])[:, None].expand(b, 1, -1, end)
    for block, (k_bhsk, v_bhsk) in zip(self.model.blocks, cache.layers):
      qkv = block.qkv(block.attention_norm(x_bld)).unflatten(-1, (3, block.heads, -1))
      q, k, v = qkv.unbind(2)
      q, k = rotate(q, rope_l1k).transpose(1, 2), rotate(k, rope_l1k).transpose(1, 2)
      v = v.transpose(1, 2)
      if same:
        k_bhsk[:, :, at[0] : end], v_bhsk[:, :, at[0] : end] = k, v
      else:
        for row, a in enumerate(at):
          k_bhsk[row, :, a : a + l], v_bhsk[row, :, a : a + l] = k[row], v[row]
      out = F.scaled_dot_product_attention(
        q, k_bhsk[:, :, :end], v_bhsk[:, :, :end], attn_mask=mask
      )
      x_bld = x_bld + block.attention_out(out.transpose(1, 2).flatten(2))
      gate, up = block.gate_up(block.mlp_norm(x_bld)).chunk(2, dim=-1)
      x_bld = x_bld + block.down(F.silu(gate) * up)
    return self.model.norm(x_bld)

  def patches(self, noisy_bnp, t: float):
    """Noisy patches as inputs."""
    half = peers.SINUSOID // 2
    rate = torch.exp(torch.arange(half) * (-math.log(10000.0) / half))
    angle = torch.full((len(noisy_bnp), 1), t) * rate
    time_bd = self.model.time_mlp(torch.cat([angle.cos(), angle.sin()], dim=1))
    return self.model.patch_in(noisy_bnp) + time_bd[:, None]

  def write(self, logits_bv, cache: Cache, at: int, tokens: int):
    """Greedy text; markers are not sampled."""
    made = []
    for number in range(tokens):
      logits_bv[:, : peers.SPECIALS] = -math.inf
      token_b = logits_bv.argmax(-1)
      made.append(token_b)
      x_b1d = self.model.embed(token_b[:, None])
      x_b1d = self.extend(x_b1d, cache, [at + number] * len(token_b), causal=True)
      logits_bv = self.model.text_out(x_b1d[:, 0])
    return torch.stack(made, 1)

  def text(self, prompt_bl, tokens: int):
    """Text behind text."""
    b, l = prompt_bl.shape
    cache = Cache(self.model, b, 1 + l + tokens)
    ids = torch.cat([torch.full((b, 1), BOS), prompt_bl], 1)
    x_bld = self.extend(self.model.embed(ids), cache, [0] * b, causal=True)
    return self.write(self.model.text_out(x_bld[:, -1]), cache, 1 + l, tokens)

  def caption(self, image_bnp, tokens: int):
    """Text behind an image."""
    b = len(image_bnp)
    cache = Cache(self.model, b, 3 + PATCHES + tokens)
    first = self.model.embed(torch.tensor([[BOS, BOI]] * b))
    self.extend(first, cache, [0] * b, causal=True)
    self.extend(self.patches(image_bnp, 0.0), cache, [2] * b, causal=False)
    last = self.model.embed(torch.full((b, 1), EOI))
    x_bld = self.extend(last, cache, [2 + PATCHES] * b, causal=True)
    return self.write(self.model.text_out(x_bld[:, -1]), cache, 3 + PATCHES, tokens)

  def image(self, prompt_bl, steps: int, guidance: float):
    """An image behind text, by ddpm."""
    b, l = prompt_bl.shape
    at, length = l + 2, l + 2 + PATCHES
    own, null = Cache(self.model, b, length), Cache(self.model, b, length)
    marks = torch.full((b, 1), BOS), torch.full((b, 1), BOI)
    ids = torch.cat([marks[0], prompt_bl, marks[1]], 1)
    self.extend(self.model.embed(ids), own, [0] * b, causal=True)
    self.extend(self.model.embed(torch.cat(marks, 1)), null, [0] * b, causal=True)
    both, ats = own.twice(null), [at] * b + [2] * b
    bar = torch.cat([torch.ones(1), peers.cosine_alpha_bar()]).double()
    stand = torch.linspace(0, START * peers.TIMESTEPS, steps + 1).round().long()
    x_bnp = torch.randn(b, PATCHES, PATCH_FEATURES)
    for t, before in zip(stand.flip(0)[:-1].tolist(), stand.flip(0)[1:].tolist()):
      x_bld = self.patches(torch.cat([x_bnp, x_bnp]), float(t))
      out = self.model.patch_out(self.extend(x_bld, both, ats, causal=False))
      told, free = out.chunk(2)
      noise = free + guidance * (told - free)
      now, then = bar[t].item(), bar[before].item()
      clean = ((x_bnp - math.sqrt(1 - now) * noise) / math.sqrt(now)).clamp(-CLIP, CLIP)
      alpha = now / then
      x_bnp = (
        math.sqrt(then) * (1 - alpha) / (1 - now) * clean
        + math.sqrt(alpha) * (1 - then) / (1 - now) * x_bnp
        + math.sqrt((1 - then) / (1 - now) * (1 - alpha)) * torch.randn_like(x_bnp)
      )
    # The clean image, for what follows.
    self.extend(self.patches(x_bnp, 0.0), own, [at] * b, causal=False)
    return x_bnp


def main() -> None:
  """Times one task in rounds and prints one line of JSON for each."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--task", choices=("text", "image", "caption"), required=True)
  for name, value in dict(
    dim=256, depth=4, heads=8, vocab=256, batch=1, prompt=64, tokens=128, steps=30
  ).items():
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--guidance", type=float, default=3.0)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2)
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  mlp = peers.mlp_width(args.dim)
  model = PlainTransfusion(args.dim, args.depth, args.heads, args.vocab, mlp)
  sampler = Sampler(model, 1024)
  prompt_bl = torch.randint(peers.SPECIALS, args.vocab, (args.batch, args.prompt))
  image_bnp = torch.randn(args.batch, PATCHES, PATCH_FEATURES)
  run = {
    "text": lambda: sampler.text(prompt_bl, args.tokens),
    "caption": lambda: sampler.caption(image_bnp, args.tokens),
    "image": lambda: sampler.image(prompt_bl, args.steps, args.guidance),
  }[args.task]
  seconds = []
  with torch.inference_mode():
    for number in range(WARMUP + args.rounds):
      start = time.perf_counter()
      made = run()
      if number >= WARMUP:
        seconds.append(time.perf_counter() - start)
  assert torch.isfinite(made.float()).all()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
  report = dict(
    program="torch",
    task=args.task,
    median_s=statistics.median(seconds),
    min_s=min(seconds),
    seconds=seconds,
    peak_rss_gb=peak,
    params=sum(parameter.numel() for parameter in model.parameters()),
    torch=torch.__version__,
  )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
