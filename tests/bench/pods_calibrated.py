"""Predicts steps that others have measured on TPUs: how far is the prediction off?

  python tests/bench/pods_calibrated.py

compiles our step for text alone, in the shapes of models whose speed MaxText publishes
(docs/reference/models/tiering.md of its repository), for the same slices, and prints
both MFUs. It is not their program: they choose other rematerialisation, and their
batch is not said there, so ours is the largest power of two of rows, up to 8, that
fits. About ten minutes.
"""

import dataclasses
import sys
from typing import NamedTuple

from tfusion.bench.tpu import aot
from tfusion.config import Config, MeshConfig
from tfusion.pods import chips, study


class Published(NamedTuple):
  """A line of that page."""

  name: str
  topology: str
  layers: int
  width: int
  heads: int
  kv_heads: int
  mlp: int
  vocab_size: int
  row_length: int
  mfu: float


PUBLISHED = (
  Published("Llama 2 70B", "v5p:8x8x8", 80, 8192, 64, 8, 28_672, 32_000, 4096, 0.654),
  Published(
    "Llama 3.1 8B", "v6e:16x16", 32, 4096, 32, 8, 14_336, 128_256, 8192, 0.4546
  ),
)


def config_of(model: Published, rows: int) -> Config:
  """Our step in its shapes; a row is one text."""
  base = Config()
  return dataclasses.replace(
    base,
    model=dataclasses.replace(
      base.model,
      layers=model.layers,
      width=model.width,
      heads=model.heads,
      kv_heads=model.kv_heads,
      mlp=model.mlp,
      vocab_size=model.vocab_size,
      image_shape=(2, 2, 1),
      patch=2,
      remat="full",
    ),
    data=dataclasses.replace(base.data, row_length=model.row_length, image_slots=1),
    mesh=MeshConfig(data=1, fsdp=-1),
    train=dataclasses.replace(
      base.train, batch_rows=rows * chips.parse(model.topology).devices
    ),
  )


def main() -> None:
  print(f"{'model':<14}{'slice':<12}{'rows':>5}{'published':>11}{'predicted':>11}")
  for model in PUBLISHED:
    rows, topology = 8, chips.parse(model.topology)
    while (
      not (found := study.study(config_of(model, rows), topology)).fits and rows > 1
    ):
      rows //= 2
    if not found.fits:
      print(f"{model.name:<14}{model.topology:<12}{'does not fit':>27}")
      continue
    # Its causal attention is half of all pairs, as they count since July 2025.
    pairs = 12.0 * model.layers * model.width * model.row_length**2
    flops = found.counts.square - pairs / 2 * found.config.train.batch_rows
    mfu = f"{found.mfu(flops):.1%}"
    line = f"{model.name:<14}{model.topology:<12}{rows:>5}{model.mfu:>11.1%}"
    print(line + f"{mfu:>11}", flush=True)


if __name__ == "__main__":
  if not aot.available():
    sys.exit("libtpu is not installed: pip install 'jax[tpu]'")
  main()
