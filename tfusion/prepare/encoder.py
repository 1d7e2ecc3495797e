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
WAITING = 8  # batches' worth of documents, before batches of rare shapes are begun


@dataclasses.dataclass(frozen=True)
class Settings:
  """How images are encoded; picklable."""

  shapes: tuple[tuple[int, int, int], ...]  # h, w, c of the pixels; of several aspects
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
    documents: anything, and its images u8[h, w, c], each of one of the shapes.
    settings: of the encoding.

  Yields:
    The same thing, and the images as fields of a record; {} without images.
  """
  if settings.autoencoder is None:
    for document, some in documents:
      yield document, _fields([{"pixels": image} for image in some], some, settings)
    return
  waiting: collections.deque = collections.deque()  # documents and their images
  queues = {shape: _Queue() for shape in settings.shapes}
  # One thread feeds the device while this one decodes, packs and writes.
  with concurrent.futures.ThreadPoolExecutor(1) as device:

    def submit(queue: _Queue, count: int) -> None:
      batch = np.stack(queue.images[:count])
      del queue.images[:count]
      queue.batches.append(device.submit(_encode_batch, batch, settings))

    def complete(*, at_most: int) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
      while waiting:
        document, some = waiting[0]
        counts = collections.Counter(image.shape for image in some)
        for shape, count in counts.items():
          if not queues[shape].have(count, at_most=at_most):
            return
        waiting.popleft()
        rows = [queues[image.shape].rows.popleft() for image in some]
        yield document, _fields(rows, some, settings)

    def finish() -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
      for queue in queues.values():
        if queue.images:
          submit(queue, len(queue.images))
      yield from complete(at_most=0)

    for document, some in documents:
      waiting.append((document, some))
      for image in some:
        queues[image.shape].images.append(image)
      for queue in queues.values():
        while len(queue.images) >= settings.batch:
          submit(queue, settings.batch)
      if len(waiting) > WAITING * settings.batch:  # for images of a rare shape
        yield from finish()
      yield from complete(at_most=PENDING)
    yield from finish()


class _Queue:
  """Images of one shape on their way through the device."""

  def __init__(self) -> None:
    self.images: list[np.ndarray] = []  # not yet in a batch
    self.batches: collections.deque = collections.deque()  # futures
    self.rows: collections.deque = collections.deque()  # encoded images, by field

  def have(self, count: int, *, at_most: int) -> bool:
    """Whether so many are encoded; waits for those beyond `at_most` batches."""
    while len(self.rows) < count and len(self.batches) > at_most:
      self.rows.extend(self.batches.popleft().result())
    return len(self.rows) >= count


@dataclasses.dataclass
class Sums:
  """Sums over latents per channel, for their mean and standard deviation."""

  count: int = 0  # numbers per channel
  sum: list[float] = dataclasses.field(default_factory=list)
  squares: list[float] = dataclasses.field(default_factory=list)

  def add(self, fields: dict[str, np.ndarray]) -> None:
    """Adds the latents of a record, as they are stored, noise included."""
    for name, stored in fields.items():
      base, _, shape = name.partition(".")
      if base != "mean":
        continue
      mean_nhwc = stored.astype(np.float64)
      squares_c = np.square(mean_nhwc).sum((0, 1, 2))
      logvar = fields.get(records.field_of("logvar", int(shape or 0)))
      if logvar is not None:  # training draws mean + std * normal
        squares_c += np.exp(logvar.astype(np.float64)).sum((0, 1, 2))
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


def _fields(
  rows: list[dict[str, np.ndarray]], images: list[np.ndarray], settings: Settings
) -> dict[str, np.ndarray]:
  """The fields of a record: those of its images, stacked by the images' shapes."""
  fields = {}
  for number, shape in enumerate(settings.shapes):
    pairs = zip(rows, images, strict=True)
    own = [row for row, image in pairs if image.shape == shape]
    for name in own[0] if own else ():
      stacked = np.stack([row[name] for row in own])
      fields[records.field_of(name, number)] = stacked
  return fields
