"""Promises of tfusion/training/spikes.py."""

import math

import numpy as np

from tfusion.training.spikes import LEAST, Spikes


def found(losses) -> list[int]:
  spikes = Spikes()
  return [i for i, x in enumerate(losses) if spikes.find({"loss": float(x)})]


def test_a_spike_is_found_and_noise_and_a_falling_loss_are_not():
  losses = 3 * np.exp(-np.arange(400) / 200)
  losses += 0.1 * np.random.default_rng(0).normal(size=400)
  assert found(losses) == []
  losses[[200, 201, 300]] = 5.0, 5.5, math.nan
  assert found(losses) == [200, 201]


def test_a_higher_level_is_no_spike_for_long():
  assert len(found([1.0] * 100 + [4.0] * 200)) <= 64


def test_nothing_is_a_spike_before_enough_was_seen():
  assert found([1.0] * (LEAST - 1) + [9.0]) == []
  assert found([1.0] * LEAST + [9.0]) == [LEAST]
