"""Images -> the fields of a record, in batches of one size on this worker's device.

Owns: batching across documents, keeping the device busy, the latents' sums. Not: the
autoencoder (autoencoder/codec.py), decoding files (data/images.py).
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tfusion.data.shards import records

PENDING = 3  # batches on the device or waiting for it


@dataclasses.dataclass(frozen=True)
class Settings:
  """How images are encoded; picklable."""

  image_shape: tuple[int, int, int]  # h, w, c of the pixels
  kind: str  # pixels, mean, mean_logvar or codes, as in data/shards/records.py
  autoencoder: str | None = None  # the file
  autoencoder_sha256: str = ""
  batch: int = 32  # images that the device gets at once; the last batch is filled up


def encode(
  documents: Iterable[tuple[Any, list[np.ndarray]]], settings: Settings
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
  """Encodes the images of documents, in order.

  What an image becomes does not depend on when a batch was full, but only on the images
  before it in the same call. So the same documents give the same bytes.

  Args:
    documents: anything, and its images u8[h, w, c].
    settings: of the encoding.

  Yields:
    The same thing, and the images as fields of a record; {} without images.
  """
  if settings.autoencoder is None:
    for document, some in documents:
      yield document, {"pixels": np.stack(some)} if some else {}
    return
  waiting: collections.deque = collections.deque()  # documents and how many images
  batches: collections.deque = collections.deque()  # futures
  rows: collections.deque = collections.deque()  # encoded images, by field
  images: list[np.ndarray] = []
  # One thread feeds the device while this one decodes, packs and writes.
  with concurrent.futures.ThreadPoolExecutor(1) as device:

    def submit(count: int) -> None:
      batch = np.stack(images[:count])
      del images[:count]
      batches.append(device.submit(_encode_batch, batch, settings))

    def complete(*, at_most: int) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
      while waiting:
        document, count = waiting[0]
        while len(rows) < count and len(batches) > at_most:
          rows.extend(batches.popleft().result())
        if len(rows) < count:
          return
        waiting.popleft()
        yield document, _stack([rows.popleft() for _ in range(count)])

    for document, some in documents:
      waiting.append((document, len(some)))
      images += some
      while len(images) >= settings.batch:
        submit(settings.batch)
      yield from complete(at_most=PENDING)
    if images:
      submit(len(images))
    yield from complete(at_most=0)


@dataclasses.dataclass
class Sums:
  """Sums over latents per channel, for their mean and standard deviation."""

  count: int = 0  # numbers per channel
  sum: list[float] = dataclasses.field(default_factory=list)
  squares: list[float] = dataclasses.field(default_factory=list)

  def add(self, fields: dict[str, np.ndarray]) -> None:
    """Adds the latents of a record, as they are stored, noise included."""
    if "mean" not in fields:
      return
    mean_nhwc = fields["mean"].astype(np.float64)
    squares_c = np.square(mean_nhwc).sum((0, 1, 2))
    if "logvar" in fields:  # training draws mean + std * normal
      squares_c += np.exp(fields["logvar"].astype(np.float64)).sum((0, 1, 2))
    self.merge(
      Sums(
        mean_nhwc[..., 0].size, mean_nhwc.sum((0, 1, 2)).tolist(), squares_c.tolist()
      )
    )

  def merge(self, other: "Sums") -> None:
    """Adds other sums to these."""
    zeros = [0.0] * len(other.sum)
    self.count += other.count
    if other.sum:
      self.sum = np.add(self.sum or zeros, other.sum).tolist()
      self.squares = np.add(self.squares or zeros, other.squares).tolist()

  def scale_shift(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Standard deviation and mean per channel; 1 and 0 without anything to measure."""
    if not self.count:
      return (1.0,) * channels, (0.0,) * channels
    shift = np.asarray(self.sum) / self.count
    variance = np.asarray(self.squares) / self.count - shift**2
    scale = np.sqrt(np.maximum(variance, 0))
    return tuple(np.where(scale > 0, scale, 1.0).tolist()), tuple(shift.tolist())


def _encode_batch(
  images: np.ndarray, settings: Settings
) -> list[dict[str, np.ndarray]]:
  codec = open_codec(settings.autoencoder, settings.autoencoder_sha256)
  empty = np.zeros((settings.batch - len(images), *images.shape[1:]), np.uint8)
  encoded = codec.encode(np.concatenate([images, empty]))
  fields = {}
  for name in records.KINDS[settings.kind]:
    fields[name] = np.asarray(encoded[name])[: len(images)].astype(
      records.FIELDS[name][0]
    )
  return [{name: f[i] for name, f in fields.items()} for i in range(len(images))]


@functools.lru_cache(1)
def open_codec(path: str, sha256: str = "") -> Any:
  """Opens the autoencoder once per process, until a job has another one."""
  # Here: jax takes seconds to import, and pixels need none.
  from tfusion import interop

  return interop.open_codec(path)


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  if not rows:
    return {}
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
