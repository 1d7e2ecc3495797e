"""How fast rows are made from shards, and how fast they must be: `tfusion bench data`.

Owns: the drawn shards, the measurement, the table of what hosts need. Not: what is
measured, which is the run's own pipeline.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tfusion import paper, sequence
from tfusion.config import Config, DataConfig, ModelConfig, TrainConfig
from tfusion.data import lanes
from tfusion.data.pipeline import Corpus, HostBatches, open_corpus
from tfusion.data.shards import manifest, records
from tfusion.data.shards import source as shards
from tfusion.data.source import Source, Span
from tfusion.data.tokenizer import Tokenizer
from tfusion.training import flops as flops_lib
from tfusion.training import machine

CAPTION = 20.0  # tokens, the mean; lognormal, ours
VOCABULARY = 1_000
SHARD_RECORDS = 1_000
WARMUP = 8  # batches
MFU = 0.5
CHIPS = 4  # of a host in a slice of several: v5e, v5p and v6e alike
HOSTS = {"v5e": "TPU v5e", "v5p": "TPU v5", "v6e": "TPU v6e"}


class Rate(NamedTuple):
  """What one host delivers with so many worker processes; 0 is the loop's own."""

  workers: int
  elements_per_s: float
  bytes_per_s: float  # of records
  fill: float  # share of row positions that are not padding


class Need(NamedTuple):
  """What a host must deliver so that its chips never wait."""

  size: str
  host: str
  elements_per_s: float


def table(*, documents: int, workers: Sequence[int], seconds: float) -> Iterator[str]:
  """Draws shards in a temporary folder, measures, and gives the lines to print.

  Everything is read from the page cache: what a disk or bucket gives comes on top.

  Args:
    documents: captioned latents to draw, 17 kB each.
    workers: counts of worker processes to try; 0 is the loop's own.
    seconds: of each measurement.

  Raises:
    ValueError: fewer than 100 documents.
  """
  if documents < 100:
    raise ValueError(f"--documents={documents}: give at least 100")
  with tempfile.TemporaryDirectory() as folder:
    draw_shards(Path(folder), documents=documents)
    found = manifest.load(folder).of("train")
    record_bytes = sum(shard.bytes for shard in found) / documents
    yield (
      f"{documents:,} documents, a latent {list(paper.LATENT_SHAPE)} in bfloat16 and"
      f" {CAPTION:g} tokens on average: {record_bytes:,.0f} bytes each; rows of"
      f" {paper.ROW_LENGTH:,}"
    )
    corpus = open_corpus(_config(folder), folder)
    parts = shares(corpus, _config(folder), seconds=seconds)
    yield "one process: " + ", ".join(f"{k} {v:.0%}" for k, v in parts.items())
    yield f"{'workers':>7} {'elements/s':>12} {'MB/s read':>10} {'rows filled':>12}"
    rates = []
    for count in workers:
      config = _config(folder, workers=count)
      got, batch = rate(corpus, config, record_bytes=record_bytes, seconds=seconds)
      rates.append(got)
      yield (
        f"{count:>7} {got.elements_per_s:>12,.0f} {got.bytes_per_s / 1e6:>10.1f}"
        f" {got.fill:>12.2%}"
      )
  one = next((r for r in rates if r.workers == 1), rates[0])
  yield (
    f"a host of {CHIPS} chips at {MFU:.0%} of their peak needs (computed), and one"
    f" worker ({one.workers}) gives so many times that:"
  )
  for need in needs(batch):
    yield (
      f"{need.size:>7} {need.host:>5} {need.elements_per_s:>12,.0f} elements/s"
      f" {one.elements_per_s / need.elements_per_s:>8.2f}x"
    )


def needs(batch: sequence.Batch) -> Iterator[Need]:
  """Elements per second that keep the chips of one host busy at 50 % of their peak.

  Args:
    batch: rows of row_length as they are trained on: attention's work depends on them.
  """
  for size, (layers, width, heads, mlp) in paper.SIZES.items():
    model = dataclasses.replace(
      _config("").model,
      layers=layers,
      width=width,
      heads=heads,
      kv_heads=heads,
      mlp=mlp,
      vocab_size=paper.VOCAB_SIZE,
    )
    flops = flops_lib.batch_flops(model, batch) / sequence.live_elements(batch)
    for host, kind in HOSTS.items():
      yield Need(size.upper(), host, CHIPS * machine.PEAK_FLOPS[kind] * MFU / flops)


def shares(corpus: Corpus, config: Config, *, seconds: float) -> dict[str, float]:
  """Where the time of one process goes, as shares of their sum.

  Returns:
    decode: reading, checking and decoding records; pack: tokens, layout, the choice of
    documents; batch: these into the arrays of a batch.
  """
  source = _Timed(corpus.train[0].name, corpus.train[0])
  lane = lanes.Lane([source], corpus.tokenizer, config, lane=0)
  next(lane)
  rows = config.train.batch_rows
  source.seconds.clear()
  pack, batch, start = 0.0, 0.0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    begin = time.perf_counter()
    taken = [lane.take() for _ in range(rows)]
    middle = time.perf_counter()
    lanes.pack_rows(taken, config, corpus.tokenizer)
    pack, batch = pack + middle - begin, batch + time.perf_counter() - middle
  whole, decode = pack + batch, sum(source.seconds)
  return {
    "decode": decode / whole,
    "pack": (pack - decode) / whole,
    "batch": batch / whole,
  }


def rate(
  corpus: Corpus, config: Config, *, record_bytes: float, seconds: float
) -> tuple[Rate, sequence.Batch]:
  """What this host's pipeline gives a loop that does nothing else, and a batch."""
  with contextlib.closing(HostBatches(corpus, config, host=0, hosts=1)) as data:
    for _ in range(WARMUP):  # workers start, and fill their buffers
      batch = next(data)
    before, elements, start = _documents(data), 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
      batch = next(data)
      elements += sequence.live_elements(batch)
    documents = _documents(data) - before
    bytes_per_s = documents * record_bytes / spent
    return Rate(
      config.data.workers, elements / spent, bytes_per_s, data.tally().fill()
    ), batch


def draw_shards(folder: Path, *, documents: int, seed: int = 0) -> None:
  """Makes shards of latents with captions, as `tfusion prepare` would.

  Args:
    folder: gets them.
    documents: of the training split.
    seed: of latents (normal) and captions (random ids).
  """
  rng = np.random.default_rng(seed)
  words = (f"{i:04d}" for i in range(VOCABULARY * 4))
  tokenizer = Tokenizer.train(
    words, vocab_size=VOCABULARY, path=folder / manifest.TOKENIZER
  )

  def draw(name: str) -> records.Record:
    length = int(np.clip(rng.lognormal(np.log(CAPTION) - 0.125, 0.5), 3, 120))
    return records.Record(
      id=name,
      spans="ti",
      texts=(rng.integers(300, tokenizer.vocab_size, length, dtype=np.int32),),
      images={
        "mean": rng.normal(size=(1, *paper.LATENT_SHAPE)).astype(ml_dtypes.bfloat16)
      },
      weights=(1.0, 1.0),
    )

  written = []
  for start in range(0, documents, SHARD_RECORDS):
    names = range(start, min(start + SHARD_RECORDS, documents))
    path = folder / f"train-{start:08d}.arrayrecord"
    drawn = (draw(str(name)) for name in names)
    written.append(shards.write_shard(path, drawn, split="train"))
  last = [draw("held out")]
  path = folder / "test-00000000.arrayrecord"
  written.append(shards.write_shard(path, last, split="test"))
  channels = paper.LATENT_SHAPE[-1]
  manifest.save(
    manifest.Manifest(
      source="drawn",
      images=manifest.ImageFormat(
        "mean", paper.LATENT_SHAPE, scale=(1.0,) * channels, shift=(0.0,) * channels
      ),
      tokenizer_sha256=manifest.sha256(folder / manifest.TOKENIZER),
      vocabulary=tokenizer.vocab_size,
      autoencoder_sha256=None,
      shards=tuple(written),
      counts=manifest.Counts(read=documents + 1, kept=documents + 1, rejected={}),
    ),
    folder,
  )


def _config(folder: str | Path, *, workers: int = 0) -> Config:
  """Rows of the paper (arXiv 2408.11039, section 4.1) from shards in a folder."""
  return Config(
    model=ModelConfig(vocab_size=VOCABULARY, image_shape=paper.LATENT_SHAPE, patch=2),
    data=DataConfig(
      sources=(f"shards:{folder}",),
      row_length=paper.ROW_LENGTH,
      image_slots=15,
      lanes=4,
      workers=workers,
    ),
    train=TrainConfig(batch_rows=16),
  )


def _documents(data: HostBatches) -> int:
  return sum(counts["documents"] for counts in data.tally().counts().values())


@dataclasses.dataclass(frozen=True)
class _Timed(Source):
  """A source that notes the seconds its documents took."""

  source: Source
  seconds: list[float] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[Span, ...]:
    return self.several([index])[0]

  def several(self, indices: Sequence[int]) -> list[tuple[Span, ...]]:
    start = time.perf_counter()
    documents = self.source.several(indices)
    self.seconds.append(time.perf_counter() - start)
    return documents

  def texts(self) -> Iterable[str]:
    return self.source.texts()
