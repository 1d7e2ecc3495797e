"""Perplexity of held-out text.

Owns: which rows those are, their bytes. Not: the loss.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from tfusion.data.pipeline import Corpus, heldout_rows
from tfusion.data.tokenizer import Tokenizer
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
  config = trained.config
  rows = heldout_rows(
    sources,
    corpus.tokenizer,
    config,
    rows=config.eval.text_rows,
    host=jax.process_index(),
    hosts=jax.process_count(),
  )
  batches = (global_batch(batch, mesh=trained.mesh) for batch in rows)
  first = corpus.first_code
  values = validate(config, trained.params, batches, first_code=first)
  bytes_ = sum(gather_json(count_bytes(rows, corpus.tokenizer)))
  nats = values["loss_text"] * values["text_targets"]
  return {
    "text_perplexity": values["perplexity"],
    "text_perplexity_per_byte": math.exp(nats / max(bytes_, 1)),
    "text_tokens": int(values["text_targets"]),
    "text_bytes": bytes_,
  }


def count_bytes(rows: Iterable[Batch[np.ndarray]], tokenizer: Tokenizer) -> int:
  """Bytes of the text that rows have as targets; special tokens have none."""
  special = np.asarray(tokenizer.special)
  total = 0
  for batch in rows:
    text_bl = (batch.weights_bl > 0) & ~np.isin(batch.targets_bl, special)
    text_bl &= batch.targets_bl < tokenizer.vocab_size  # codes of images lie above
    for targets_l, text_l in zip(batch.targets_bl, text_bl):
      edges = np.flatnonzero(np.diff(text_l, prepend=False, append=False))
      for start, stop in zip(edges[::2], edges[1::2]):
        total += len(tokenizer.decode(targets_l[start:stop]).encode())
  return total
