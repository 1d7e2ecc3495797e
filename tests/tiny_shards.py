"""Folders of shards so small that writing one takes milliseconds.

Not a test: shared by the tests of whatever reads shards. Document n is a caption with
an image; 2, 6, ... have two images between their texts, 3, 7, ... are text alone.
"""

import functools
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records, source
from tfusion.data.tokenizer import Tokenizer

COLOURS = "red green blue white black grey".split()
AUTOENCODER = b"not one, but its bytes have a hash"
CODEBOOK = 16


@functools.cache
def tokenizer(words: str = "picture number with a behind it") -> Tokenizer:
  """A tokenizer of these words; other words make another one."""
  texts = [f"{words} {colour}" for colour in COLOURS]
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "tokenizer.model"
    return Tokenizer.train(texts, vocab_size=320, path=path)


def record(
  n: int, *, kind: str | None = "mean", shape=(4, 4, 2), words: Tokenizer | None = None
) -> records.Record:
  """Document n, always the same.

  Args:
    n: its number.
    kind: one of records.KINDS; None is text alone.
    shape: h, w, c, or (codes,).
    words: encodes the texts.
  """
  spans = ("ti", "ti", "titi", "t")[n % 4] if kind else "t"
  rng = np.random.default_rng(n)
  texts = tuple(
    (words or tokenizer()).encode(f"picture {n} {COLOURS[(n + i) % len(COLOURS)]}")
    for i in range(spans.count("t"))
  )
  stacked = (spans.count("i"), *shape)
  fields = {
    "pixels": lambda: rng.integers(0, 256, stacked).astype(np.uint8),
    "mean": lambda: (2 * rng.normal(size=stacked) + 1).astype(ml_dtypes.bfloat16),
    "logvar": lambda: (rng.normal(size=stacked) - 2).astype(ml_dtypes.bfloat16),
    "codes": lambda: rng.integers(0, CODEBOOK, stacked).astype(np.int32),
  }
  names = records.KINDS[kind] if "i" in spans else ()
  images = {name: fields[name]() for name in names}
  return records.Record(f"album/{n:04d}", spans, texts, images, (1.0,) * len(spans))


def make(
  folder: str | Path,
  *,
  kind: str | None = "mean",
  shape: tuple[int, ...] = (4, 4, 2),
  train: int = 12,
  test: int = 4,
  per_shard: int = 5,
  words: Tokenizer | None = None,
  autoencoder: bytes | None = AUTOENCODER,
) -> manifest_lib.Manifest:
  """Writes a folder of shards: train-0000.array_record and so on.

  Args:
    folder: is made.
    kind: of the images, one of records.KINDS; None is text alone.
    shape: h, w, c of an image, or (codes,).
    train: documents to train on, numbered from 0.
    test: documents held out, numbered behind those.
    per_shard: documents in a file.
    words: the tokenizer, `tokenizer()` without it.
    autoencoder: of latents and codes, the bytes of the file; None leaves it away.
  """
  folder, words = Path(folder), words or tokenizer()
  folder.mkdir(parents=True, exist_ok=True)
  listed = []
  for split, numbers in (("train", range(train)), ("test", range(train, train + test))):
    for start in range(0, len(numbers), per_shard):
      own = numbers[start : start + per_shard]
      documents = [record(n, kind=kind, shape=shape, words=words) for n in own]
      path = folder / f"{split}-{start // per_shard:04d}.array_record"
      listed.append(source.write_shard(path, documents, split=split))
  words.save(folder / manifest_lib.TOKENIZER)
  latents = kind in ("mean", "mean_logvar")
  encoded = autoencoder is not None and (latents or kind == "codes")
  if encoded:
    (folder / manifest_lib.AUTOENCODER).write_bytes(autoencoder)
  rejected = {"empty caption": 2, "cannot be decoded": 1}
  manifest = manifest_lib.Manifest(
    source="folder:photos",
    images=kind
    and manifest_lib.ImageFormat(
      kind=kind,
      shape=tuple(shape),
      scale=tuple(2.0 + c for c in range(shape[-1])) if latents else (),
      shift=tuple(1.0 - c for c in range(shape[-1])) if latents else (),
      codebook=CODEBOOK if kind == "codes" else 0,
    ),
    tokenizer_sha256=words.sha256,
    vocabulary=words.vocab_size,
    autoencoder_sha256=manifest_lib.sha256(folder / manifest_lib.AUTOENCODER)
    if encoded
    else None,
    shards=tuple(listed),
    counts=manifest_lib.Counts(
      read=train + test + sum(rejected.values()), kept=train + test, rejected=rejected
    ),
  )
  manifest_lib.save(manifest, folder)
  return manifest
