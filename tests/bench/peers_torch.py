"""One training step of two PyTorch programs on the rows of our step benchmark.

Owns: the rows, a plain eager PyTorch twin of our model, the same rows through the
package transfusion-pytorch, their timing. Not: our own program (`tfusion bench step`);
nothing here imports tfusion, so that no part of JAX is in the measured process.

b batch  l sequence  d width  h heads  k head dim  f mlp  v vocab  n patches
p patch features  m selected positions of a whole batch

The rows: caption of 64 tokens, image of 16x16 patches of 16 numbers, 64 tokens of text.
Elements are these 384 per row in both programs; markers are overhead, and not counted.
Positions that a program feeds to its transformer for one row, counted:
  plain    BOS + 64 + BOI + 256 + EOI + 64 = 387; the closing EOS is only ever a target.
  package  sos + 64 + (meta, the five characters "16,16", som) + 256 + eom + 64 = 393.
"""

import argparse
import importlib.metadata
import json
import math
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CAPTION_TOKENS = 64
GRID = 16
PATCHES = GRID * GRID
PATCH_FEATURES = 16
TEXT_TOKENS = 64
ELEMENTS_PER_ROW = CAPTION_TOKENS + PATCHES + TEXT_TOKENS

# Both programs draw text ids above these, so both see the same tokens.
BOS, EOS, BOI, EOI, PAD = range(5)
SPECIALS = 5
NO_TARGET = -100  # cross_entropy's own mark of a position without a loss

TIMESTEPS = 1000
SINUSOID = 256  # features of the timestep before its MLP, arXiv 2212.09748
IMAGE_WEIGHT = 5.0  # lambda of arXiv 2408.11039, section 3.2
WARMUP_STEPS = 3  # allocator and, in the package, its choice of a strategy
PACKAGE = "transfusion-pytorch"


class Rows(NamedTuple):
  """The content of a batch, the same for every program."""

  caption_bl: torch.Tensor
  image_bhwp: torch.Tensor
  text_bl: torch.Tensor


class Batch(NamedTuple):
  """Rows in the layout of the plain program; indices count in the batch laid flat."""

  ids_bl: torch.Tensor
  target_m: torch.Tensor  # next tokens at text_at
  text_at_m: torch.Tensor  # positions that carry a text loss
  patch_at_m: torch.Tensor  # positions of patches, raster order
  mask_b1ll: torch.Tensor  # True where a query (row) may look at a key (column)
  image_bnp: torch.Tensor


class Program(NamedTuple):
  """A model, its loss, and what the report says of it."""

  model: nn.Module
  loss: Callable[[], torch.Tensor]
  positions_per_row: Callable[[], int]
  mlp: int | None


def make_rows(batch: int, vocab: int, seed: int) -> Rows:
  """Draw random tokens in [SPECIALS, vocab) and unit normal images."""
  generator = torch.Generator().manual_seed(seed)

  def tokens(length: int) -> torch.Tensor:
    return torch.randint(SPECIALS, vocab, (batch, length), generator=generator)

  image_bhwp = torch.randn(batch, GRID, GRID, PATCH_FEATURES, generator=generator)
  return Rows(tokens(CAPTION_TOKENS), image_bhwp, tokens(TEXT_TOKENS))


def lay_out(rows: Rows) -> Batch:
  """Turn rows into BOS caption BOI patches EOI text [EOS], with mask and targets."""
  batch = rows.caption_bl.shape[0]

  def marker(token: int, length: int = 1) -> torch.Tensor:
    return torch.full((batch, length), token)

  full_bl = torch.cat(
    [
      marker(BOS),
      rows.caption_bl,
      marker(BOI),
      marker(PAD, PATCHES),
      marker(EOI),
      rows.text_bl,
      marker(EOS),
    ],
    dim=1,
  )
  ids_bl, target_bl = full_bl[:, :-1], full_bl[:, 1:].clone()
  is_patch_bl = ids_bl == PAD
  # No loss where the input is BOI (arXiv 2408.11039, footnote 8) or a patch.
  target_bl[is_patch_bl | (ids_bl == BOI)] = NO_TARGET
  length = ids_bl.shape[1]
  causal_ll = torch.ones(length, length, dtype=torch.bool).tril()
  # One image a row: two patches of a row are always of the same image.
  same_image_bll = is_patch_bl[:, :, None] & is_patch_bl[:, None, :]
  text_at_m = (target_bl != NO_TARGET).flatten().nonzero().squeeze(1)
  return Batch(
    ids_bl=ids_bl.contiguous(),
    target_m=target_bl.flatten()[text_at_m],
    text_at_m=text_at_m,
    patch_at_m=is_patch_bl.flatten().nonzero().squeeze(1),
    mask_b1ll=(causal_ll | same_image_bll)[:, None],
    image_bnp=rows.image_bhwp.flatten(1, 2),
  )


def mlp_width(dim: int) -> int:
  """Llama's SwiGLU width: two thirds of 4 dim, rounded up to a multiple of 256."""
  return 256 * math.ceil(8 * dim / 3 / 256)


def cosine_alpha_bar() -> torch.Tensor:
  """Cumulative signal power of the cosine schedule, [1000] (arXiv 2102.09672)."""
  step = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
  signal = torch.cos((step + 0.008) / 1.008 * math.pi / 2) ** 2
  beta = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
  return torch.cumprod(1 - beta, dim=0).float()


class Block(nn.Module):
  """Pre-norm attention and SwiGLU, no biases; qkv and the two gates are fused."""

  def __init__(self, dim: int, heads: int, mlp: int):
    super().__init__()
    self.heads = heads
    self.attention_norm = nn.RMSNorm(dim, eps=1e-5)
    self.qkv = nn.Linear(dim, 3 * dim, bias=False)
    self.attention_out = nn.Linear(dim, dim, bias=False)
    self.mlp_norm = nn.RMSNorm(dim, eps=1e-5)
    self.gate_up = nn.Linear(dim, 2 * mlp, bias=False)
    self.down = nn.Linear(mlp, dim, bias=False)

  def forward(self, x_bld, rope_l1k, mask_b1ll):
    qkv = self.qkv(self.attention_norm(x_bld)).unflatten(-1, (3, self.heads, -1))
    q_blhk, k_blhk, v_blhk = qkv.unbind(2)
    out_bhlk = F.scaled_dot_product_attention(
      rotate(q_blhk, rope_l1k).transpose(1, 2),
      rotate(k_blhk, rope_l1k).transpose(1, 2),
      v_blhk.transpose(1, 2),
      attn_mask=mask_b1ll,
    )
    x_bld = x_bld + self.attention_out(out_bhlk.transpose(1, 2).flatten(2))
    gate_blf, up_blf = self.gate_up(self.mlp_norm(x_bld)).chunk(2, dim=-1)
    return x_bld + self.down(F.silu(gate_blf) * up_blf)


def rope_table(length: int, head_dim: int) -> torch.Tensor:
  """Unit complex numbers [length, 1, head_dim / 2], theta 10,000."""
  rate = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
  angle = torch.arange(length)[:, None] * rate
  return torch.polar(torch.ones_like(angle), angle)[:, None]


def rotate(x_blhk: torch.Tensor, rope_l1k: torch.Tensor) -> torch.Tensor:
  """Rotate neighbouring pairs of features; complex is the fastest form in eager."""
  pairs = torch.view_as_complex(x_blhk.unflatten(-1, (-1, 2)))
  return torch.view_as_real(pairs * rope_l1k).flatten(-2)


class PlainTransfusion(nn.Module):
  """Llama-style transformer, linear patch encoder and decoder, timestep MLP."""

  def __init__(self, dim: int, depth: int, heads: int, vocab: int, mlp: int):
    super().__init__()
    self.head_dim = dim // heads
    self.embed = nn.Embedding(vocab, dim)
    self.patch_in = nn.Linear(PATCH_FEATURES, dim)
    self.time_mlp = nn.Sequential(
      nn.Linear(SINUSOID, dim), nn.SiLU(), nn.Linear(dim, dim)
    )
    self.blocks = nn.ModuleList(Block(dim, heads, mlp) for _ in range(depth))
    self.norm = nn.RMSNorm(dim, eps=1e-5)
    self.text_out = nn.Linear(dim, vocab, bias=False)
    self.patch_out = nn.Linear(dim, PATCH_FEATURES)
    for parameter in self.parameters():
      if parameter.ndim == 2:
        nn.init.normal_(parameter, std=0.02)

  def forward(self, batch: Batch, noisy_bnp, t_b, rope_l1k):
    """Return logits [m, vocab] at batch.text_at_m and noise [b, n, p]."""
    half = SINUSOID // 2
    rate = torch.exp(torch.arange(half) * (-math.log(10000.0) / half))
    angle = t_b[:, None].float() * rate
    time_bd = self.time_mlp(torch.cat([angle.cos(), angle.sin()], dim=1))
    patch_bnd = self.patch_in(noisy_bnp) + time_bd[:, None]
    x_md = self.embed(batch.ids_bl.flatten())
    x_md = x_md.index_copy(0, batch.patch_at_m, patch_bnd.flatten(0, 1))
    x_bld = x_md.unflatten(0, batch.ids_bl.shape)
    for block in self.blocks:
      x_bld = block(x_bld, rope_l1k, batch.mask_b1ll)
    # Each head sees its own positions only: a head over all would waste time.
    x_md = self.norm(x_bld).flatten(0, 1)
    logits_mv = self.text_out(x_md.index_select(0, batch.text_at_m))
    noise_mp = self.patch_out(x_md.index_select(0, batch.patch_at_m))
    return logits_mv, noise_mp.view_as(noisy_bnp)


def build_plain(args: argparse.Namespace, rows: Rows | None) -> Program:
  """Build the plain eager program; rows None builds the model alone."""
  mlp = args.mlp or mlp_width(args.dim)
  model = PlainTransfusion(args.dim, args.depth, args.heads, args.vocab, mlp)
  batch = None if rows is None else lay_out(rows)
  alpha_bar = cosine_alpha_bar()

  def loss() -> torch.Tensor:
    t_b = torch.randint(TIMESTEPS, (batch.ids_bl.shape[0],))
    noise_bnp = torch.randn_like(batch.image_bnp)
    alpha_b11 = alpha_bar[t_b][:, None, None]
    noisy_bnp = alpha_b11.sqrt() * batch.image_bnp + (1 - alpha_b11).sqrt() * noise_bnp
    rope_l1k = rope_table(batch.ids_bl.shape[1], model.head_dim)
    logits_mv, predicted_bnp = model(batch, noisy_bnp, t_b, rope_l1k)
    text_loss = F.cross_entropy(logits_mv, batch.target_m)
    return text_loss + IMAGE_WEIGHT * F.mse_loss(predicted_bnp, noise_bnp)

  return Program(model, loss, lambda: batch.ids_bl.shape[1], mlp)


def build_package(args: argparse.Namespace, rows: Rows | None) -> Program:
  """Build the package as its README uses it, its defaults for all not named here."""
  from transfusion_pytorch import Transfusion

  model = Transfusion(
    num_text_tokens=args.vocab,
    dim_latent=PATCH_FEATURES,
    modality_default_shape=(GRID, GRID),
    add_pos_emb=args.axial_positions,
    transformer=dict(
      dim=args.dim,
      depth=args.depth,
      heads=args.heads,
      dim_head=args.dim // args.heads,
    ),
  )
  lengths = []
  model.transformer.register_forward_pre_hook(
    lambda module, inputs: lengths.append(inputs[0].shape[1])
  )

  def loss() -> torch.Tensor:
    return model([list(row) for row in zip(*rows)])

  return Program(model, loss, lambda: lengths[-1], None)


PROGRAMS = {"plain": build_plain, "package": build_package}


def count_parameters(model: nn.Module) -> int:
  """Count every parameter, also those that a loss does not reach."""
  return sum(parameter.numel() for parameter in model.parameters())


def width_for(args: argparse.Namespace, params: int) -> int:
  """Return the multiple of 2 * heads whose parameter count is nearest to params.

  The trial models are real (the package cannot be built on the meta device), but
  they hold no gradients, optimizer state or activations: the peak comes later.
  """
  # From 4 features a head: with 2 the rotary embedding of the package divides by 0.
  best_dim, best_gap, dim = 0, math.inf, 2 * args.heads
  while True:
    dim += 2 * args.heads
    trial = argparse.Namespace(**{**vars(args), "dim": dim})
    gap = abs(count_parameters(PROGRAMS[args.program](trial, None).model) - params)
    if gap >= best_gap:
      return best_dim  # counts grow with the width, so the gap only widens from here
    best_dim, best_gap = dim, gap


def time_steps(program: Program, steps: int) -> tuple[list[float], list[float]]:
  """Train WARMUP_STEPS + steps; return milliseconds of the latter, losses of all."""
  parameters = list(program.model.parameters())
  decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
  others = [parameter for parameter in parameters if parameter.ndim < 2]
  # On CPU fused takes a quarter of the plain loop's time, a sixth of foreach's.
  optimizer = torch.optim.AdamW(
    [dict(params=decayed, weight_decay=0.1), dict(params=others, weight_decay=0.0)],
    lr=3e-4,
    betas=(0.9, 0.95),
    fused=True,
  )
  times_ms, losses = [], []
  for _ in range(WARMUP_STEPS + steps):
    start = time.perf_counter()
    loss = program.loss()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times_ms.append(1000 * (time.perf_counter() - start))
    losses.append(loss.item())
  return times_ms[WARMUP_STEPS:], losses


def parse_args() -> argparse.Namespace:
  """Read and check the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--program", choices=sorted(PROGRAMS), required=True)
  width = parser.add_mutually_exclusive_group()
  width.add_argument("--dim", type=int, default=256)
  width.add_argument(
    "--match-params",
    type=int,
    metavar="N",
    help="take the width, a multiple of 2 * heads, whose count is nearest to N",
  )
  parser.add_argument("--depth", type=int, default=4)
  parser.add_argument("--heads", type=int, default=8)
  parser.add_argument("--mlp", type=int, help="SwiGLU width of the plain program")
  parser.add_argument(
    "--axial-positions",
    action="store_true",
    help="package: add its position embedding of patches, off by its default",
  )
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--vocab", type=int, default=256, help="markers included")
  parser.add_argument("--steps", type=int, default=10, help="timed steps")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  for name in ("dim", "depth", "heads", "batch", "steps", "threads"):
    if getattr(args, name) < 1:
      parser.error(f"--{name} {getattr(args, name)}: give at least 1")
  if args.dim % (2 * args.heads):
    parser.error(f"--dim {args.dim}: give a multiple of 2 * heads = {2 * args.heads}")
  if args.vocab <= SPECIALS:
    parser.error(f"--vocab {args.vocab}: give more than the {SPECIALS} markers")
  if args.mlp is not None and (args.program != "plain" or args.mlp < 1):
    parser.error(f"--mlp {args.mlp}: give at least 1, with --program plain")
  if args.axial_positions and args.program != "package":
    parser.error("--axial-positions: give it with --program package")
  return args


def main() -> None:
  """Run one program and print one line of JSON."""
  args = parse_args()
  torch.set_num_threads(args.threads)
  if args.match_params is not None:
    args.dim = width_for(args, args.match_params)
  torch.manual_seed(args.seed)
  program = PROGRAMS[args.program](args, make_rows(args.batch, args.vocab, args.seed))
  times_ms, losses = time_steps(program, args.steps)
  is_package = args.program == "package"
  report = dict(
    program=args.program,
    dim=args.dim,
    depth=args.depth,
    heads=args.heads,
    mlp=program.mlp,
    axial_positions=args.axial_positions,
    batch=args.batch,
    vocab=args.vocab,
    threads=args.threads,
    seed=args.seed,
    params=count_parameters(program.model),
    positions_per_row=program.positions_per_row(),
    elements_per_step=args.batch * ELEMENTS_PER_ROW,
    median_ms=round(statistics.median(times_ms), 2),
    min_ms=round(min(times_ms), 2),
    times_ms=[round(value, 2) for value in times_ms],
    # Whole process: interpreter and libraries too. Linux counts ru_maxrss in KiB.
    peak_rss_gb=round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3
    ),
    loss_first=losses[0],
    loss_last=losses[-1],
    torch=torch.__version__,
    package_version=importlib.metadata.version(PACKAGE) if is_package else None,
  )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
