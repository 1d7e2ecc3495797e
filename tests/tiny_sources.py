"""Sources of a few documents of every kind that a lane must take.

Not a test: shared by the tests of lanes, pieces, mixtures and host batches.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfusion import config as config_lib
from tfusion import sequence
from tfusion.data.shards.records import Damaged
from tfusion.data.source import Source
from tfusion.data.tokenizer import Tokenizer

CONFIG = config_lib.Config()
FIRST_CODE = 300  # above the tokenizer's ids


def changed(config=CONFIG, **sections) -> config_lib.Config:
  """A checked config with some keys of some sections replaced."""
  parts = {
    name: dataclasses.replace(getattr(config, name), **values)
    for name, values in sections.items()
  }
  made = dataclasses.replace(config, **parts)
  config_lib.validate(made)
  return made


@functools.cache
def tokenizer() -> Tokenizer:
  """A piece for every digit and point, bytes for all else."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "tokenizer.model"
    return Tokenizer.train(["0123456789 ."], vocab_size=274, path=path)


@dataclasses.dataclass(frozen=True)
class Given(Source):
  """Documents made by a function of their number; picklable if that is."""

  count: int
  make: Callable[[int], tuple]

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return self.make(index)

  def texts(self):
    return [s for i in range(self.count) for s in self[i] if isinstance(s, str)]


def latent(number: int, shape=(8, 8, 1)) -> np.ndarray:
  """An image that says which it is."""
  return (np.arange(np.prod(shape)) + 100.0 * number).reshape(shape).astype(np.float32)


def stories(number: int) -> tuple:
  """Texts and up to four images in any order: most are longer than a row of 64."""
  rng = np.random.default_rng(number)
  spans = []
  for n in range(rng.integers(1, 9)):
    if rng.random() < 0.5:
      spans.append(f"{number}.{n} " * int(rng.integers(1, 9)))
    else:
      spans.append(latent(10 * number + n))
  return tuple(spans)


def posteriors(number: int) -> tuple:
  """A text and an image that is sampled anew at every showing."""
  std = np.full((8, 8, 1), 0.5, np.float32)
  return f"number {number}", sequence.Image(latent(number), std=std)


def codes(number: int) -> tuple:
  """A caption and an image in codes."""
  ids = FIRST_CODE + (np.arange(16) + number) % 50
  return f"{number}", sequence.Codes(ids.astype(np.int32))


def prose(number: int) -> tuple:
  """Text of 8 to 300 elements."""
  return (" ".join(f"{number}.{n}" for n in range(2 + 60 * (number % 3 == 0))),)


def edits(number: int) -> tuple:
  """An image to be read, an instruction, an image to be learned."""
  before = sequence.Image(latent(number), weight=0.0)
  said = sequence.Text(tokenizer().encode(f"{number} more"), weight=0.0)
  return before, said, sequence.Image(latent(number + 1))


def damaged(number: int) -> tuple:
  """One of 50 records cannot be read."""
  if number % 50 == 7:
    raise Damaged(f"shard: record {number} is damaged")
  return (f"whole {number}",)


# grain takes 65536 / n tries to shuffle n documents: few of them are slow.
SOURCES = (
  Given("stories", 250, stories),
  Given("posteriors", 200, posteriors),
  Given("codes", 200, codes),
  Given("prose", 200, prose, has_images=False),
  Given("edits", 64, edits),
  Given("damaged", 200, damaged, has_images=False),
)
# Everything at once: shares, an end, cut documents, damage.
ALL = changed(
  model=dict(vocab_size=384),
  data=dict(
    sources=tuple(source.name for source in SOURCES),
    weights=(3.0, 1.0, 1.0, 2.0, 1.5, 0.5),
    epochs=(0, 0, 0, 0, 2, 0),
    too_long="split",
    overlap=7,
    row_length=64,
    image_slots=3,
    lanes=8,
    packing_rows=1,
    workers=0,
  ),
  train=dict(batch_rows=16),
)
