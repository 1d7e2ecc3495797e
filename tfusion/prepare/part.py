"""One part of a job: a share of the source -> a shard for each split.

Owns: cleaning, decoding ahead, tokenising, what is rejected, the part's own account of
it. Not: encoding images (encoder.py), a shard's bytes (data/shards/source.py), the
other parts (job.py).

The account, parts/NUMBER.json, is written last. Once it is there the part is done,
whatever happens to the job. A part writes the same bytes wherever and whenever it runs.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfusion import files, parsing
from tfusion.data import aspects
from tfusion.data import images as images_lib
from tfusion.data.balance import Amount, Balance
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records as records_lib
from tfusion.data.shards.source import write_shard
from tfusion.data.tokenizer import OF_SHARDS, Tokenizer
from tfusion.prepare import encoder
from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected

COUNTS = ".counts.tmp"  # of a part under way, for the progress alone
COUNT_EVERY_SECONDS = 2.0
TOGETHER = 16  # documents a thread decodes in one go: handing over takes time too
AHEAD = 16  # such runs decoded before they are needed, at most


@dataclasses.dataclass(frozen=True)
class Job:
  """What all parts share; picklable."""

  out: str  # the folder of shards
  parts: int
  images: encoder.Settings
  tokenizer_sha256: str = ""  # of the one in the folder


def _no_balances() -> dict[str, Balance]:
  return {split: Balance() for split in manifest_lib.SPLITS}


@dataclasses.dataclass
class Account:
  """What became of a part's documents."""

  balances: dict[str, Balance] = dataclasses.field(default_factory=_no_balances)
  rejected: list[Rejected] = dataclasses.field(default_factory=list)
  shards: list[manifest_lib.Shard] = dataclasses.field(default_factory=list)
  # Of the latents in the training split.
  sums: encoder.Sums = dataclasses.field(default_factory=encoder.Sums)

  def find(self, amount: Amount, *, test: bool) -> None:
    """Counts what the source gave."""
    balance = self.balances["test" if test else "train"]
    balance.found += amount

  def use(self, amount: Amount, *, test: bool) -> None:
    """Counts what goes into a shard."""
    balance = self.balances["test" if test else "train"]
    balance.used += amount

  def reject(self, rejected: Rejected) -> None:
    """Counts and lists what is left out."""
    self.balances["test" if rejected.test else "train"].skip(rejected)
    self.rejected.append(rejected)

  @property
  def counts(self) -> tuple[int, int, int]:
    """Documents, rejected ones, images."""
    both = self.balances.values()
    return (
      sum(balance.found.documents for balance in both),
      sum(balance.all_skipped.documents for balance in both),
      sum(balance.used.images for balance in both),
    )


@dataclasses.dataclass(frozen=True)
class Decoded:
  """A document whose texts are tokenised and whose images have their shape."""

  id: str
  spans: str
  texts: tuple[np.ndarray, ...]
  images: list[np.ndarray]
  weights: tuple[float, ...]
  test: bool
  amount: Amount  # what it has

  def reject(self, reason: str) -> Rejected:
    """The document as one that is left out."""
    return Rejected(self.id, reason, "", self.amount, self.test)


def account_path(out: str | Path, number: int) -> Path:
  """Where the account of a part lies."""
  return files.to_path(out) / "parts" / f"{number:06d}.json"


def read_counts(out: str | Path) -> dict[int, tuple[int, int, int]]:
  """Documents, rejected ones and images so far, of parts that are being written."""
  counts = {}
  for path in (files.to_path(out) / "parts").glob(f"*{COUNTS}"):
    try:
      counts[int(path.name.removesuffix(COUNTS))] = tuple(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):  # done, or just being written
      continue
  return counts


def read_account(out: str | Path, number: int) -> Account | None:
  """Returns the account of a part if it is done and its shards are whole."""
  try:
    values = parsing.parse_json(account_path(out, number).read_bytes())
    # What an older version wrote without counting it all is no account: the part is
    # done again.
    account = parsing.build(Account, values)
    folder = files.to_path(out)
    whole = all((folder / s.name).stat().st_size == s.bytes for s in account.shards)
  except (FileNotFoundError, ValueError):
    return None
  return account if whole else None


def write(numbered: tuple[int, raw_lib.Part], job: Job) -> None:
  """Reads a part and writes its shards and its account, unless they are there.

  Args:
    numbered: which of the job's parts, and the part.
    job: what all parts share.

  Raises:
    OSError: they cannot be written, as when the disk is full.
  """
  number, part = numbered
  if read_account(job.out, number) is not None:
    return
  account, out = Account(), files.to_path(job.out)
  counts = out / "parts" / f"{number:06d}{COUNTS}"
  held_out: list[records_lib.Record] = []
  records = _records(part, job, account)

  def training() -> Iterator[records_lib.Record]:
    counted = time.monotonic()
    for record, test in records:
      if time.monotonic() - counted > COUNT_EVERY_SECONDS:
        counted = time.monotonic()
        counts.write_text(json.dumps(account.counts))
      if test:
        held_out.append(record)
      else:
        account.sums.add(record.images)
        yield record

  for split, some in (("train", training()), ("test", held_out)):
    first = next(some := iter(some), None)
    if first is not None:
      path = out / f"{split}-{number:06d}-of-{job.parts:06d}.array_record"
      some = itertools.chain([first], some)
      account.shards.append(write_shard(path, some, split=split))
  text = json.dumps(dataclasses.asdict(account)) + "\n"
  files.write_whole(account_path(job.out, number), text)
  counts.unlink(missing_ok=True)


def _records(
  part: raw_lib.Part, job: Job, account: Account
) -> Iterator[tuple[records_lib.Record, bool]]:
  """Yields each record and whether it is held out, counting everything."""

  def sound() -> Iterator[tuple[Decoded, list[np.ndarray]]]:
    for decoded in _decode_ahead(part.read(), job):
      account.find(decoded.amount, test=decoded.test)
      if isinstance(decoded, Rejected):
        account.reject(decoded)
      else:
        yield decoded, decoded.images

  for document, fields in encoder.encode(sound(), job.images):
    # A single one would make the scale and shift of all shards not finite.
    latents = (x for name, x in fields.items() if name.startswith(("mean", "logvar")))
    if not all(np.isfinite(latent).all() for latent in latents):
      account.reject(document.reject(raw_lib.NOT_FINITE))
      continue
    images, texts = len(document.images), len(document.texts)
    account.use(Amount(1, images, texts), test=document.test)
    record = records_lib.Record(
      document.id, document.spans, document.texts, fields, document.weights
    )
    yield record, document.test


def _decode_ahead(
  raws: Iterator[Raw | Rejected], job: Job
) -> Iterator[Decoded | Rejected]:
  """Decodes documents in threads, in order, some ahead of the one asked for."""
  path = str(files.to_path(job.out) / manifest_lib.TOKENIZER)
  tokenizer = open_tokenizer(path, job.tokenizer_sha256)
  pending: collections.deque[concurrent.futures.Future] = collections.deque()
  seen = set()
  with (
    # Broken files make Pillow warn; each is counted with its reason instead.
    warnings.catch_warnings(action="ignore"),
    concurrent.futures.ThreadPoolExecutor(images_lib.DECODE_THREADS) as pool,
  ):
    while some := list(itertools.islice(raws, TOGETHER)):
      for i, raw in enumerate(some):
        if isinstance(raw, Raw) and raw.id in seen:
          some[i] = raw.reject(raw_lib.TWICE)
        seen.add(raw.id)
      pending.append(pool.submit(_decode_all, some, tokenizer, job.images.shapes))
      if len(pending) > AHEAD:
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()


def _decode_all(
  raws: list[Raw | Rejected],
  tokenizer: Tokenizer,
  shapes: Sequence[tuple[int, int, int]],
) -> list[Decoded | Rejected]:
  return [_decode(raw, tokenizer, shapes) for raw in raws]


def _decode(
  raw: Raw | Rejected, tokenizer: Tokenizer, shapes: Sequence[tuple[int, int, int]]
) -> Decoded | Rejected:
  document = raw_lib.clean(raw) if isinstance(raw, Raw) else raw
  if isinstance(document, Rejected):
    return document
  letters, texts, images = "", [], []
  for span in document.spans:
    if isinstance(span, str):
      letters += records_lib.TEXT
      texts.append(tokenizer.encode(span))
      continue
    name = raw_lib.printable(span.name) + ": " if isinstance(span, Path) else ""
    try:
      shape = _shape_for(span, shapes)
      if shape is None:
        return document.reject(raw_lib.ASPECT, name.removesuffix(": "))
      images.append(images_lib.decode(span, shape))
      letters += records_lib.IMAGES[shapes.index(shape)]
    except images_lib.TooLarge as error:
      return document.reject(raw_lib.LARGE_IMAGE, f"{name}{error}")
    except FileNotFoundError as error:
      return document.reject(raw_lib.NO_IMAGE, f"{name}{error}")
    except Exception as error:  # Pillow's decoders raise almost any kind
      raw_lib.stop_if_of_machine(error)
      why = f"{name}{type(error).__name__}: {error}"
      return document.reject(raw_lib.BAD_IMAGE, why)
  return Decoded(
    document.id,
    letters,
    tuple(texts),
    images,
    document.weights,
    document.test,
    document.amount,
  )


def _shape_for(
  image: Any, shapes: Sequence[tuple[int, int, int]]
) -> tuple[int, int, int] | None:
  """The shape that suits an image best; None: it would lose too much in any."""
  size = images_lib.size_of(image) if len(shapes) > 1 else None
  if size is None:  # one shape for all, or an image whose fault shows in decoding
    return shapes[0]
  nearest = aspects.nearest(size, shapes)
  return None if nearest is None else shapes[nearest]


@functools.lru_cache(1)
def open_tokenizer(path: str, sha256: str = "") -> Tokenizer:
  """Opens the tokenizer once per process, until a job has another one."""
  return Tokenizer.load(path, key="", remedy=OF_SHARDS)
