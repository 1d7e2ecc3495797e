"""Which token comes next, given its logits.

Owns: what of the logits is left to draw from. Not: which tokens may not come
(phases.py), codes' guidance (phases.py), randomness (the key is handed in).

v vocab
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tfusion.config import SampleConfig


class TextChoice(NamedTuple):
  """How tokens of text are drawn: the knobs of `sample.` by these names."""

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition: float = 1.0


def text_choice(sample: SampleConfig) -> TextChoice:
  """The knobs of a run."""
  return TextChoice(*(getattr(sample, name) for name in TextChoice._fields))


def draw(
  key: jax.Array,
  logits_v: jax.Array,
  choice: TextChoice,
  seen_v: jax.Array | None = None,
) -> jax.Array:
  """Draws a token id, i32[]; with a temperature of 0 the likeliest.

  Args:
    key: of the random numbers.
    logits_v: f32.
    choice: static. Its rules come in the order of transformers: repetition,
      temperature, top_k, top_p, min_p.
    seen_v: bool, the tokens that stand in the row; read with `repetition`.
  """
  if choice.repetition != 1.0:
    assert seen_v is not None, "repetition is of what stands in the row"
    logits_v = discourage(logits_v, seen_v, choice.repetition)
  if choice.temperature == 0:
    return jnp.argmax(logits_v).astype(jnp.int32)
  logits_v = logits_v / choice.temperature
  if choice.top_k:
    logits_v = keep_top_k(logits_v, choice.top_k)
  if choice.top_p < 1.0:
    logits_v = nucleus(logits_v, choice.top_p)
  if choice.min_p > 0.0:
    logits_v = keep_min_p(logits_v, choice.min_p)
  return jax.random.categorical(key, logits_v).astype(jnp.int32)


def discourage(logits_v: jax.Array, seen_v: jax.Array, penalty: float) -> jax.Array:
  """Divides the logits above 0 of what was seen by `penalty`, and multiplies those
  below by it (arXiv 1909.05858, section 4.1, as transformers has it for both signs)."""
  less_v = jnp.where(logits_v > 0, logits_v / penalty, logits_v * penalty)
  return jnp.where(seen_v, less_v, logits_v)


def keep_top_k(logits_v: jax.Array, k: int) -> jax.Array:
  """Leaves the k likeliest and sets all others to -inf (arXiv 1805.04833, section 5.4);
  of equal ones those of lower ids."""
  order_v = jnp.argsort(logits_v, descending=True)
  kept_v = jnp.zeros_like(logits_v, bool).at[order_v[:k]].set(True)
  return jnp.where(kept_v, logits_v, -jnp.inf)


def nucleus(logits_v: jax.Array, top_p: float) -> jax.Array:
  """Leaves the likeliest, whose probabilities are at least `top_p` together, and sets
  all others to -inf (arXiv 1904.09751)."""
  order_v = jnp.argsort(logits_v, descending=True)
  p_v = jax.nn.softmax(logits_v)[order_v]
  before_v = jnp.cumsum(p_v) - p_v
  # By places, not by a least value to compare with: a compiler may compute the logits
  # twice, each time rounded otherwise, and the last of the kept would fall out.
  kept_v = jnp.zeros_like(logits_v, bool).at[order_v].set(before_v < top_p)
  return jnp.where(kept_v, logits_v, -jnp.inf)


def keep_min_p(logits_v: jax.Array, min_p: float) -> jax.Array:
  """Leaves those at least `min_p` times as likely as the likeliest, and sets all others
  to -inf (arXiv 2407.01082)."""
  least = jnp.max(logits_v) + jnp.log(min_p)
  return jnp.where(logits_v >= least, logits_v, -jnp.inf)
