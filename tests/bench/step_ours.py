"""Our training step on the rows of peers_torch.py, timed alone: one line of JSON.

Owns: these rows as a Batch. Not: the step (tfusion.training), its timing
(tfusion.bench).
"""

import argparse
import json
import resource
import statistics

import jax
import numpy as np

from tfusion import config as config_lib
from tfusion import sequence
from tfusion.bench import training
from tfusion.model.transfusion import parameter_count
from tfusion.sharding import global_batch, make_mesh
from tfusion.training import machine
from tfusion.training.flops import batch_flops

SPECIAL = sequence.SpecialTokens(pad=0, bos=1, eos=2, boi=3, eoi=4)
IMAGE_SHAPE = (16, 16, 16)  # 16 x 16 patches of 16 numbers at patch 1
ELEMENTS_PER_ROW = 64 + 256 + 64  # as peers_torch.py counts: no markers
ROW_LENGTH = 387  # BOS + 64 + BOI + 256 + EOI + 64, as in the plain twin


def main():
  """Times the step and prints the result."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name, default in dict(
    dim=256, depth=4, heads=8, mlp=0, batch=4, vocab=256, steps=20, seed=0
  ).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args()
  config = make_config(args)
  rng = np.random.default_rng(args.seed)
  matmul = machine.measure_matmul(seconds=0.5)
  with jax.set_mesh(make_mesh(config.mesh)):
    rows = [make_row(config, rng) for _ in range(args.batch)]
    host_batch = sequence.stack(rows)
    batch = global_batch(host_batch, mesh=jax.sharding.get_mesh())
    program = training.compile_step(config, batch)
    state, first = program.step(program.init(), batch)
    first = float(first["loss"])
    seconds, state = training.time_steps(program.step, state, batch, steps=args.steps)
    last = float(program.step(state, batch)[1]["loss"])
  matmul = max(matmul, machine.measure_matmul(seconds=0.5))
  environment = machine.environment()
  print(
    json.dumps(
      {
        "program": "ours",
        "dim": args.dim,
        "depth": args.depth,
        "heads": args.heads,
        "vocab": args.vocab,
        "batch": args.batch,
        "params": parameter_count(config.model),
        "positions_per_row": ROW_LENGTH,
        "elements_per_step": args.batch * ELEMENTS_PER_ROW,
        "gflop_per_step": batch_flops(config.model, host_batch) / 1e9,
        "matmul_gflops": matmul / 1e9,
        "cpu": environment["cpu"],
        "vectors": environment["vectors"],
        "median_ms": 1e3 * statistics.median(seconds),
        "min_ms": 1e3 * min(seconds),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "loss_first": first,
        "loss_last": last,
        "jax": jax.__version__,
      }
    )
  )


def make_config(args: argparse.Namespace) -> config_lib.Config:
  """The model that the plain twin mirrors, in float32."""
  c = config_lib.defaults()
  c.model.update(
    layers=args.depth,
    width=args.dim,
    heads=args.heads,
    kv_heads=args.heads,
    mlp=args.mlp or -(-(args.dim * 8 // 3) // 256) * 256,
    vocab_size=args.vocab,
    image_shape=IMAGE_SHAPE,
    patch=1,
    dtype="float32",
    unroll=args.depth,
  )
  c.data.update(row_length=ROW_LENGTH, image_slots=1, lanes=1)
  c.train.update(batch_rows=args.batch, eval_rows=args.batch)
  return config_lib.from_dict(c)


def make_row(config: config_lib.Config, rng: np.random.Generator) -> sequence.Row:
  """Caption of 64 tokens, image, 64 tokens of text."""
  words = rng.integers(5, config.model.vocab_size, (2, 64)).astype(np.int32)
  image = rng.standard_normal(IMAGE_SHAPE).astype(np.float32)
  document = (sequence.Text(words[0]), sequence.Image(image), sequence.Text(words[1]))
  patches = config.model.patches_per_image
  laid = sequence.lay_out(document, special=SPECIAL, patches_per_image=(patches,))
  return sequence.pack(
    [laid],
    row_length=ROW_LENGTH,
    kinds=(sequence.KindSizes(1, IMAGE_SHAPE, patches),),
    special=SPECIAL,
  )


if __name__ == "__main__":
  main()
