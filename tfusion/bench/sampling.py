"""How fast sampling is on this machine: `tfusion bench generate`.

Owns: the tasks, their times, the floor of a denoising step. Not: sampling itself
(generate/), the same in PyTorch (tests/bench/generate_torch.py).

The model has random numbers and the sizes of the benchmark of the training step
(tests/bench/step_ours.py): images of 16 x 16 patches of 16 numbers, 256 tokens.
"""

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tfusion import config as config_lib
from tfusion.config import Config
from tfusion.generate.interleaved import generate, readable
from tfusion.generate.prompt import Blank, Prompt
from tfusion.model.transfusion import Params, Transfusion
from tfusion.progress import Progress
from tfusion.sequence import Image, SpecialTokens, Text
from tfusion.sharding import make_mesh
from tfusion.training import machine

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, boi=3, eoi=4)
VOCAB, HEADS, SIDE = 256, 8, 16
PATCHES = SIDE * SIDE
PROMPT, TOKENS = 64, 128  # of text: given, and written
STEPS, FEW, GUIDANCE = 30, 10, 3.0
ROWS = 4  # that write, and that draw, in the mixed batch
TEXT_END = 1 + PROMPT + TOKENS  # elements, BOS among them
IMAGE = PATCHES + 2  # with BOI and EOI


def make_config(*, width: int, layers: int) -> Config:
  """The model's sizes, in float32."""
  c = config_lib.defaults()
  c.model.update(
    layers=layers,
    width=width,
    heads=HEADS,
    kv_heads=HEADS,
    mlp=256 * -(-8 * width // (3 * 256)),
    vocab_size=VOCAB,
    image_shape=(SIDE, SIDE, 16),
    patch=1,
    dtype="float32",
  )
  c.data.update(row_length=1024)
  c.sample.update(guidance=GUIDANCE, steps=STEPS)
  c.diffusion.update(clip=3.0)
  return config_lib.from_dict(c)


def make_params(config: Config) -> Params:
  """Random numbers, with which greedy text does not end."""

  @jax.jit
  def make():
    model = Transfusion(config.model, rngs=nnx.Rngs(params=jax.random.key(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))

  params = make()
  # Of 256 logits some are above 0, so that these tokens are never the likeliest.
  special = np.asarray(SPECIAL.ids)
  return params | {"head": params["head"].at[:, special].set(0)}


def step_flops(config: Config, *, at: int) -> float:
  """Operations of one denoising step of one image, on patches alone: matmuls of the
  layers and attention, in both branches of guidance."""
  m = config.model
  linear = 2 * (4 * m.width**2 + 3 * m.width * m.mlp)
  keys = [at + PATCHES, 2 + PATCHES]
  return sum(PATCHES * m.layers * (linear + 4 * k * m.width) for k in keys)


def bench_generate(
  *, width: int, layers: int, rounds: int, single: bool = False
) -> dict[str, Any]:
  """Times text, images, captions and a batch that does both, in turns; if
  `single`, all but that batch, whose figures are then left out.

  Returns:
    text_s, image_s, caption_s: TOKENS of text behind PROMPT, an image of PATCHES in
      STEPS evaluations behind PROMPT, TOKENS behind an image; medians of the rounds.
    text_per_s, caption_per_s: tokens.
    step_ms, floor_ms, over_floor: one denoising step, the operations of its patches at
      the rate of matmuls here, and how many times the one is the other.
    mixed_s, apart_s, over_apart: ROWS that write TOKENS and ROWS that draw two images
      in one batch; the same as two batches; and how many times one is the other.
    matmul_gflops: float32 matmuls of 1024 x 1024 in this process, best of before and
      after.
    peak_rss_gb: of the process after text, image and caption, on Linux and macOS.
  """
  matmul = machine.measure_matmul(seconds=1.0)
  config = make_config(width=width, layers=layers)
  with jax.set_mesh(make_mesh(config.mesh)):
    params = readable(config, make_params(config))
    alone, mixed = _tasks(config, params)
    seconds = _in_turns(alone, rounds=rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds |= {} if single else _in_turns(mixed, rounds=rounds)
  matmul = max(matmul, machine.measure_matmul(seconds=1.0))
  found = {name: statistics.median(own) for name, own in seconds.items()}
  step = (found["image"] - found["few"]) / (STEPS - FEW)
  floor = step_flops(config, at=2 + PROMPT) / matmul
  figures = machine.environment() | {
    "text_s": found["text"],
    "image_s": found["image"],
    "caption_s": found["caption"],
    "text_per_s": TOKENS / found["text"],
    "caption_per_s": TOKENS / found["caption"],
    "step_ms": 1e3 * step,
    "floor_ms": 1e3 * floor,
    "over_floor": step / floor,
    "matmul_gflops": matmul / 1e9,
    "peak_rss_gb": peak * (1 if sys.platform == "darwin" else 1024) / 1e9,
  }
  if single:
    return figures
  apart = found["writers"] + found["drawers"]
  return figures | {
    "mixed_s": found["mixed"],
    "apart_s": apart,
    "over_apart": found["mixed"] / apart,
  }


Tasks = dict[str, Callable[[], Any]]


def _tasks(config: Config, params: Params) -> tuple[Tasks, Tasks]:
  """Of one row, and of several."""
  rng = np.random.default_rng(0)

  def text(length: int) -> Text:
    ids = rng.integers(max(SPECIAL.ids) + 1, VOCAB, length)
    return Text(ids.astype(np.int32))

  def task(prompts: Sequence[Prompt], *, end: int, steps: int = STEPS):
    sample = dataclasses.replace(config.sample, max_elements=end, steps=steps)
    own = dataclasses.replace(config, sample=sample)
    how: dict[str, Any] = dict(special=SPECIAL, key=jax.random.key(0))
    return lambda: generate(own, params, prompts, **how)

  said = text(PROMPT)
  shown = Image(rng.standard_normal((SIDE, SIDE, 16)).astype(np.float32))
  to_draw = 1 + PROMPT + IMAGE
  single = {
    "text": task([(said,)], end=TEXT_END),
    "image": task([(said, Blank())], end=to_draw),
    "few": task([(said, Blank())], end=to_draw, steps=FEW),
    "caption": task([(shown,)], end=1 + IMAGE + TOKENS),
  }
  # Both end at the same number of elements, so that text has TOKENS to write.
  end = to_draw + IMAGE
  write = [(text(end - 1 - TOKENS),) for _ in range(ROWS)]
  draw: list[Prompt] = [(text(PROMPT), Blank(), Blank()) for _ in range(ROWS)]
  both = [one for pair in zip(write, draw) for one in pair]
  return single, {
    "writers": task(write, end=end),
    "drawers": task(draw, end=end),
    "mixed": task(both, end=end),
  }


def _in_turns(tasks: Tasks, *, rounds: int) -> dict[str, list[float]]:
  """Seconds of every task in every round, as a machine's speed changes."""
  seconds: dict[str, list[float]] = {name: [] for name in tasks}
  progress = Progress("sampling: tasks", (1 + rounds) * len(tasks))
  for number in range(1 + rounds):
    for done, (name, run) in enumerate(tasks.items(), number * len(tasks) + 1):
      start = time.perf_counter()
      run()
      if number:  # the first compiles
        seconds[name].append(time.perf_counter() - start)
      progress.show(done)
  return seconds
