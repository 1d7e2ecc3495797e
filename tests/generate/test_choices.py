"""Which token is drawn: every rule against its definition, and off as if not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfusion.generate.choices import (
  TextChoice,
  discourage,
  draw,
  keep_min_p,
  keep_top_k,
)

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=40) * 3, jnp.float32)


def kept(logits):
  return set(np.flatnonzero(np.isfinite(np.asarray(logits))).tolist())


@pytest.mark.parametrize("k", [1, 5, 40, 100])
def test_the_k_likeliest_are_left_as_they_are(k):
  left = keep_top_k(LOGITS, k)
  want = set(np.argsort(-np.asarray(LOGITS))[:k].tolist())
  assert kept(left) == want
  own = sorted(want)
  np.testing.assert_array_equal(np.asarray(left)[own], np.asarray(LOGITS)[own])


def test_of_equal_logits_as_many_are_left_as_asked_for():
  assert kept(keep_top_k(jnp.zeros(9), 4)) == {0, 1, 2, 3}


@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.999])
def test_those_at_least_so_likely_as_a_share_of_the_likeliest_are_left(min_p):
  p = np.exp(np.asarray(LOGITS, np.float64))
  want = set(np.flatnonzero(p >= min_p * p.max()).tolist())
  assert kept(keep_min_p(LOGITS, min_p)) == want


def test_what_was_seen_becomes_less_likely_whatever_the_sign_of_its_logit():
  logits = jnp.asarray([2.0, -2.0, 1.0, -1.0])
  seen = jnp.asarray([True, True, False, False])
  got = discourage(logits, seen, 2.0)
  np.testing.assert_array_equal(got, [1.0, -4.0, 1.0, -1.0])


def draws(choice, count=400, seen=None):
  keys = jax.random.split(jax.random.key(0), count)
  run = jax.jit(jax.vmap(lambda key: draw(key, LOGITS, choice, seen)))
  return np.asarray(run(keys))


def test_off_no_rule_changes_a_draw():
  plain = draws(TextChoice(temperature=0.7))
  keys = jax.random.split(jax.random.key(0), 400)
  want = jax.vmap(lambda key: jax.random.categorical(key, LOGITS / 0.7))(keys)
  np.testing.assert_array_equal(plain, want)
  off = TextChoice(temperature=0.7, top_k=40, top_p=1.0, min_p=0.0, repetition=1.0)
  np.testing.assert_array_equal(draws(off), plain)


def test_greedy_is_the_likeliest_and_so_is_a_choice_of_one():
  best = int(np.argmax(LOGITS))
  assert set(draws(TextChoice())) == {best}
  assert set(draws(TextChoice(temperature=2.0, top_k=1))) == {best}
  assert set(draws(TextChoice(temperature=2.0, top_p=1e-6))) == {best}
  assert set(draws(TextChoice(temperature=2.0, min_p=0.999999))) == {best}


def test_greedy_leaves_what_was_seen_for_the_next():
  order = np.argsort(-np.asarray(LOGITS))
  seen = jnp.zeros(40, bool).at[order[0]].set(True)
  choice = TextChoice(repetition=1e6)
  assert set(draws(choice, seen=seen)) == {order[1]}


def test_rules_come_after_the_temperature_and_one_after_the_other():
  choice = TextChoice(temperature=3.0, top_k=10, top_p=0.6, min_p=0.3)
  scaled = np.asarray(LOGITS, np.float64) / 3
  order = np.argsort(-scaled)[:10]
  p = np.exp(scaled[order])
  p /= p.sum()
  count = int(np.searchsorted(np.cumsum(p), 0.6) + 1)
  want = [i for i in order[:count] if np.exp(scaled[i] - scaled.max()) >= 0.3]
  assert set(draws(choice, count=4000)) == set(want)
