"""Images/s of `tfusion prepare` beside those of its autoencoder alone, in turns.

  python tests/bench/prepare_rate.py [--px 64] [--widths 32,64,64,128] [--rounds 8]

Parts of a job, with files read, decoded, encoded and written, alternate with as many
images through the autoencoder alone, in one process, so that what else the machine
does meets both. Compilation and start are left out: they are seconds of a long job.
The ratio of CPU seconds is what an otherwise idle machine approaches; wall time is what
was seen.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from tfusion.autoencoder import codec, network
from tfusion.autoencoder_config import AutoencoderModelConfig
from tfusion.data.shards import manifest
from tfusion.data.tokenizer import Tokenizer
from tfusion.prepare import encoder, part, readers

SOURCE_PX = 160  # JPEG files, about the least that an image on the web has


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--px", type=int, default=64)
  parser.add_argument("--widths", default="32,64,64,128", help="of the autoencoder")
  parser.add_argument("--documents", type=int, default=512, help="of a part")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=8)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    parts, job = make(root, args)
    race(parts, job, args)


def make(root: pathlib.Path, args: argparse.Namespace):
  """Pictures, a tokenizer and an autoencoder with random weights."""
  rng = np.random.default_rng(0)
  (root / "photos").mkdir()
  for i in range(args.documents):
    pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    pixels.resize((SOURCE_PX + i % 7, SOURCE_PX)).save(root / "photos" / f"{i}.jpg")
    (root / "photos" / f"{i}.txt").write_text(f"a picture of noise, number {i}")
  config = AutoencoderModelConfig(
    widths=tuple(map(int, args.widths.split(","))), blocks=1, groups=8
  )
  shapes = network.abstract(config)
  params = {n: rng.normal(size=x.shape, scale=0.05) for n, x in shapes.items()}
  codec.Codec(config, params).save(root / manifest.AUTOENCODER)
  print(f"autoencoder of {sum(p.size for p in params.values()) / 1e6:.1f}M parameters")
  Tokenizer.train(
    ["a picture of noise"], vocab_size=300, path=root / manifest.TOKENIZER
  )
  (root / "parts").mkdir()
  shape = (args.px, args.px, 3)
  spec = f"folder:{root / 'photos'}"
  parts = readers.plan(spec, documents=args.documents, image_shape=shape)
  path = str(root / manifest.AUTOENCODER)
  settings = encoder.Settings((shape,), "mean", path, batch=args.batch)
  return parts, part.Job(str(root), len(parts), settings)


def race(parts: list, job: part.Job, args: argparse.Namespace) -> None:
  """Times both, round by round."""
  opened = encoder.open_codec(job.images.autoencoder)
  shape = (args.batch, args.px, args.px, 3)
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  batches = args.documents // args.batch

  def alone() -> None:
    for _ in range(batches):
      opened.encode(pixels)

  def prepare() -> None:
    part.write((0, parts[0]), job)
    part.account_path(job.out, 0).unlink()

  alone(), prepare()
  seconds = {alone: np.zeros(2), prepare: np.zeros(2)}
  for _ in range(args.rounds):
    for work, spent in seconds.items():
      start = time.perf_counter(), time.process_time()
      work()
      spent += time.perf_counter() - start[0], time.process_time() - start[1]
  images = batches * args.batch * args.rounds
  for work, (wall, cpu) in seconds.items():
    print(
      f"{work.__name__:<8} {images / wall:8.1f} images/s {images / cpu:8.1f} per CPU s"
    )
  wall, cpu = seconds[alone] / seconds[prepare]
  print(f"prepare reaches {wall:.1%} of the rate, {cpu:.1%} per CPU second")


if __name__ == "__main__":
  main()
