"""Perplexity of held-out text. Owns: which rows those are. Not: the loss."""

from pathlib import Path

import jax

from tfusion.data.pipeline import Corpus, heldout_rows
from tfusion.sharding import global_batch
from tfusion.train.trained import Trained
from tfusion.train.validate import validate


def perplexity(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """exp of nats per token on the test split of the text-only sources, or, where a run
  has none, of all its sources: then it is the perplexity of captions.

  Tokens are the run's own, so compare runs of one tokenizer only; BOS predicts the
  first token and the last predicts EOS.
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
  values = validate(config, trained.params, batches)
  return {
    "text_perplexity": values["perplexity"],
    "text_tokens": int(values["text_targets"]),
  }
