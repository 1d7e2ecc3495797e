"""Perplexity of held-out text.

Owns: which rows those are, their bytes. Not: the loss.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tfusion.data import prepared
from tfusion.data.pipeline import Corpus, heldout_rows
from tfusion.data.source import TEST, Source
from tfusion.data.sources import OPEN, open_sources
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate.evaluation import Asked
from tfusion.generate.trained import Trained
from tfusion.sequence import Batch
from tfusion.sharding import gather_json, global_batch
from tfusion.training.validate import validate


def perplexity(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """exp of nats per token and per byte on the test split of the text-only sources, or,
  where a run has none, of all its sources: then it is the perplexity of captions.

  Tokens are the run's own, EOS included, so compare runs of one tokenizer only; bytes
  are those of the text in UTF-8, whatever the tokenizer. Both divide the same nats.
  """
  del out
  sources = [s for s in corpus.test if not s.has_images] or corpus.test
  found = measure(trained, sources, first_code=corpus.first_code)
  return {f"text_{name}": value for name, value in found.items()}


def measure(
  trained: Trained, sources: Sequence[Source], *, first_code: int | None = None
) -> dict[str, float]:
  """Perplexity of the first eval.text_rows held-out rows of sources, as `perplexity`.

  Args:
    trained: the model, whose mesh is in use.
    sources: test splits, of the run or of others.
    first_code: the token id of the first code of images, which are not counted.
  """
  config = trained.config
  rows = heldout_rows(
    sources,
    trained.tokenizer,
    config,
    rows=config.eval.text_rows,
    host=jax.process_index(),
    hosts=jax.process_count(),
  )
  batches = (global_batch(batch, mesh=trained.mesh) for batch in rows)
  values = validate(config, trained.params, batches, first_code=first_code)
  bytes_ = sum(gather_json(count_bytes(rows, trained.tokenizer)))
  nats = values["loss_text"] * values["text_targets"]
  return {
    "perplexity": values["perplexity"],
    "perplexity_per_byte": math.exp(nats / max(bytes_, 1)),
    "tokens": int(values["text_targets"]),
    "bytes": bytes_,
  }


def open_source(asked: Asked) -> Source:
  """The held-out split of the source behind `ppl:`, cut to the run's rows.

  Raises:
    ValueError: it is unknown or empty, was prepared with another tokenizer, or has
      images and is none of the run's.
  """
  spec, trained = asked.argument, asked.trained
  for source in asked.corpus.test:
    if spec in (source.name, source.spec):
      return source
  config, where = trained.config, asked.data and asked.data / spec
  if where and where.is_dir():
    spec = f"shards:{where}"
  elif spec.partition(":")[0] not in OPEN:
    raise ValueError(
      f"ppl:{spec}: is no source ({', '.join(sorted(OPEN))}), nor a folder of shards in"
      f" --data={asked.data or ''}"
    )
  (source,) = open_sources(
    [spec],
    split=TEST,
    image_shape=config.model.image_shape,
    workdir=asked.workdir,
  )
  if source.has_images:
    raise ValueError(
      f"ppl:{spec}: has images, and is none of data.sources={config.data.sources};"
      " name one of those, or a source of text alone"
    )
  shards = prepared.tokenizer_of([source])
  prepared.check_tokenizer(trained.tokenizer, "the run's tokenizer", shards, begun=True)

  @functools.cache
  def count(text: str) -> int:
    return len(trained.tokenizer.encode(text))

  return source.fit(count, room=config.data.row_length - 1)  # BOS


def perplexity_of(asked: Asked) -> dict[str, Any]:
  """`ppl:SOURCE`: the perplexity of one source, under that name."""
  config = asked.trained.config
  # Weights and epochs are those of data.sources, of which this may be none.
  data = dataclasses.replace(config.data, weights=(), epochs=())
  trained = asked.trained._replace(config=dataclasses.replace(config, data=data))
  found = measure(trained, [open_source(asked)], first_code=asked.corpus.first_code)
  name = f"ppl:{asked.argument}"
  return {name: found.pop("perplexity")} | {f"{name} {k}": v for k, v in found.items()}


def count_bytes(rows: Iterable[Batch[np.ndarray]], tokenizer: Tokenizer) -> int:
  """Bytes of the text that rows have as targets; special tokens have none."""
  special = tokenizer.special.ids
  total = 0
  for batch in rows:
    text_bl = (batch.weights_bl > 0) & ~np.isin(batch.targets_bl, special)
    text_bl &= batch.targets_bl < tokenizer.vocab_size  # codes of images lie above
    for targets_l, text_l in zip(batch.targets_bl, text_bl):
      edges = np.flatnonzero(np.diff(text_l, prepend=False, append=False))
      for start, stop in zip(edges[::2], edges[1::2]):
        total += len(tokenizer.decode(targets_l[start:stop]).encode())
  return total
