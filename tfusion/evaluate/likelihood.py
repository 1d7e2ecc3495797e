"""How likely a model finds a continuation of a text.

Owns: rows of a context and its continuation, the sum of log probabilities. Not: which
texts those are (adapters/), perplexity of a source (text.py).

b batch  l sequence  v vocab
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfusion import sequence
from tfusion.config import Config
from tfusion.data import lanes
from tfusion.diffusion import process
from tfusion.generate.trained import Trained
from tfusion.model.transfusion import Params, bind
from tfusion.progress import Progress
from tfusion.sequence import Batch, Text
from tfusion.sharding import fetch_rows, put_rows
from tfusion.training.step import diffusions

SHORTEST = 64  # elements; rows are this long, or twice, four times ... as long


class Likelihood(NamedTuple):
  """Of a continuation."""

  log: float  # the sum over its tokens of the log of their probability, in nats
  greedy: bool  # whether each of them is the likeliest


def measure(
  trained: Trained,
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
  *,
  what: str = "texts",
) -> list[Likelihood]:
  """Measures continuations; all hosts must call it, on the mesh in use.

  Args:
    trained: the model.
    pairs: token ids of a context, which may be empty, and of its continuation. BOS
      stands before both; a context that is too long for data.row_length loses its
      beginning.
    what: is measured, as the progress line calls it.

  Raises:
    ValueError: a continuation is empty, or longer than a row.
  """
  config, room = trained.config, trained.config.data.row_length - 1  # BOS
  for _, continuation in pairs:
    if not 0 < len(continuation) <= room:
      raise ValueError(
        f"a continuation of {len(continuation)} tokens: give 1 to {room}, as"
        f" data.row_length={config.data.row_length} has"
      )
  lengths = [min(len(a) + len(b), room) + 1 for a, b in pairs]
  order = sorted(range(len(pairs)), key=lambda i: -lengths[i])  # the longest first
  found: list[Likelihood | None] = [None] * len(pairs)
  rows, progress = config.train.batch_rows, Progress(what, len(pairs))
  for start in range(0, len(order), rows):
    own = order[start : start + rows]
    length = _length(lengths[own[0]], config)
    batch = _batch(trained, [pairs[i] for i in own], length=length, rows=rows)
    log_b, greedy_b = score_step(
      _sized(config, length), trained.params, put_rows(batch), trained.tokenizer.special
    )
    for i, log, greedy in zip(own, fetch_rows(log_b), fetch_rows(greedy_b)):
      found[i] = Likelihood(float(log), bool(greedy))
    progress.show(start + len(own))
  return [one for one in found if one is not None]


def windows(
  ids: Sequence[int], *, room: int
) -> list[tuple[Sequence[int], Sequence[int]]]:
  """Cuts a long text into pairs whose continuations are all of it, each token once.

  Args:
    ids: of the text.
    room: tokens of a row beside BOS.

  A piece has the token before it as its context, as in lm-evaluation-harness, and here
  BOS before that.
  """
  pairs: list[tuple[Sequence[int], Sequence[int]]] = [([], ids[:room])]
  for start in range(room, len(ids), room - 1):
    pairs.append((ids[start - 1 : start], ids[start : start + room - 1]))
  return [pair for pair in pairs if len(pair[1])]


@functools.partial(jax.jit, static_argnums=(0, 3))
def score_step(
  config: Config,
  params: Params,
  batch: Batch[jax.Array],
  special: sequence.SpecialTokens,
) -> tuple[jax.Array, jax.Array]:
  """Of the learned tokens of every row but EOS: the sum of the logs of their
  probabilities, f32[b], and whether each is the likeliest, bool[b]."""
  clean = tuple(slots.latents for slots in batch.slots)
  zero = tuple(
    jnp.zeros_like(
      slots.starts, jnp.float32 if own.schedule == process.LINEAR else jnp.int32
    )
    for slots, own in zip(batch.slots, diffusions(config), strict=True)
  )
  logits = bind(config.model, params)(batch, clean, zero)[0]
  vocab_v = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  hit_blv = batch.targets_bl[:, :, None] == vocab_v[None, None, :]
  target_bl = jnp.sum(jnp.where(hit_blv, logits, 0.0), axis=-1)
  log_bl = target_bl - jax.nn.logsumexp(logits, axis=-1)
  live_bl = (batch.weights_bl > 0) & (batch.targets_bl != special.eos)
  best_bl = target_bl >= jnp.max(logits, axis=-1)
  log_b = jnp.sum(jnp.where(live_bl, log_bl, 0.0), axis=1)
  return log_b, jnp.all(best_bl | ~live_bl, axis=1)


def _batch(
  trained: Trained,
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
  *,
  length: int,
  rows: int,
) -> Batch[np.ndarray]:
  """One row for each pair, and empty ones behind them."""
  config = _sized(trained.config, length)
  documents = []
  for context, continuation in pairs:
    kept = max(length - 1 - len(continuation), 0)
    context = context[len(context) - min(kept, len(context)) :]
    parts = (Text(np.asarray(context, np.int32), 0.0),) if len(context) else ()
    document = (*parts, Text(np.asarray(continuation, np.int32)))
    laid = sequence.lay_out(
      document,
      special=trained.tokenizer.special,
      patches_per_image=config.model.patches_by_kind,
    )
    documents.append([laid])
  documents += [[]] * (rows - len(documents))
  return lanes.pack_rows(documents, config, trained.tokenizer)


def _sized(config: Config, length: int) -> Config:
  data = dataclasses.replace(config.data, row_length=length, image_slots=1)
  return dataclasses.replace(config, data=data)


def _length(needed: int, config: Config) -> int:
  """Few lengths, so that few programs are compiled."""
  length = SHORTEST
  while length < needed:
    length *= 2
  return min(length, config.data.row_length)
