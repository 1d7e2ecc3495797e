"""Promises of tfusion.bench: of the step, with one that takes no time; of the race."""

import contextlib

import numpy as np
import pytest
import tiny

from tfusion.attention import intervals
from tfusion.bench import attention, training
from tfusion.data.pipeline import HostBatches, open_corpus
from tfusion.sequence import live_elements
from tfusion.training import machine
from tfusion.training.flops import batch_flops

STEPS = 3


def test_the_figures_fit_together_and_count_the_rows_of_the_loop(tmp_path, monkeypatch):
  config = tiny.config(
    model__image_shape=(8, 8, 1),
    model__vocab_size=320,
    data__sources=("digits",),
    data__row_length=64,
    data__workers=0,
  )
  rates = iter([3e9, 2e9])  # before and after
  monkeypatch.setattr(machine, "measure_matmul", lambda seconds: next(rates))
  step = 0, lambda state, batch: (state + 1, {"loss": 0.0})
  monkeypatch.setattr(training, "compile_step", lambda config, batch: step)
  found = training.bench_step(config, steps=STEPS)
  corpus = open_corpus(config, tmp_path)
  with contextlib.closing(HostBatches(corpus, config, host=0, hosts=1)) as data:
    _, *rows = [next(data) for _ in range(1 + STEPS)]  # the first is the step's alone
  seconds = STEPS * found["loop_ms"] / 1e3
  flops = sum(batch_flops(config.model, batch) for batch in rows)
  assert found["gflops"] * 1e9 * seconds == pytest.approx(flops)
  elements = sum(map(live_elements, rows))
  assert found["elements_per_s"] * seconds == pytest.approx(elements)
  assert found["matmul_gflops"] == 3.0 and not list(rates)  # the best of both
  assert found["share"] == pytest.approx(found["gflops"] / found["matmul_gflops"])
  overhead = 1 - found["step_ms"] / found["loop_ms"]
  assert found["host_overhead"] == pytest.approx(overhead)


SIZES = dict(batch=2, heads=4, kv_heads=2, head_dim=16, documents=3)


def test_the_race_runs_what_this_platform_has_on_rows_as_they_are_packed():
  results = list(attention.race([48, 64], seconds=0.01, **SIZES))
  assert [(r.name, r.length) for r in results] == [
    (name, length) for length in (48, 64) for name in ("chunked", attention.RIVAL)
  ]
  for r in results:
    lo, hi = attention.pack(np.random.default_rng(r.length), 2, r.length, 3)
    sees_bqk = np.asarray(intervals.sees(lo, hi, keys=r.length))
    assert r.live == pytest.approx(sees_bqk.mean())
    # A matmul of live scores is 2 * 4 heads * 16 numbers; there are 2 and 5 of them.
    flops = 7 * 2 * 4 * 16 * sees_bqk.sum()
    assert r.tflops * 1e12 * r.ms / 1e3 == pytest.approx(flops)
    assert r.ms > 0 and r.temp_bytes > 0
    assert (r.ratio == 1) == (r.name == attention.RIVAL)


def test_documents_of_a_row_hold_an_image_and_end_where_the_next_begins():
  lo, hi = attention.pack(np.random.default_rng(0), 3, 40, 4)
  for b in range(3):
    assert len(np.unique(lo[b])) == 4 and np.all(np.diff(lo[b]) >= 0)
    assert np.all(np.diff(hi[b]) >= 0) and np.any(hi[b] > np.arange(40))
    assert np.all(lo[b][hi[b]] == lo[b])  # no key of another document
