"""What the tasks of sampling's benchmark make, and that its figures fit together."""

import numpy as np
import pytest
import tiny

from tfusion.bench import sampling
from tfusion.sequence import Image, Text
from tfusion.training import machine

SMALL = dict(SIDE=2, PATCHES=4, IMAGE=6, PROMPT=3, TOKENS=5, TEXT_END=9, STEPS=3, FEW=1)


@pytest.mark.slow
def test_every_task_writes_its_tokens_and_draws_its_images(monkeypatch):
  for name, value in SMALL.items():
    monkeypatch.setattr(sampling, name, value)
  monkeypatch.setattr(sampling, "ROWS", 2)
  config = sampling.make_config(width=32, layers=1)
  with tiny.one_device():
    single, mixed = sampling._tasks(config, sampling.make_params(config))
    made = {name: run() for name, run in (single | mixed).items()}

  def counts(row):
    own = [span for span, is_made in zip(row.spans, row.made) if is_made]
    words = sum(len(span.ids) for span in own if isinstance(span, Text))
    return words, sum(isinstance(span, Image) for span in own)

  found = {name: [counts(row) for row in rows] for name, rows in made.items()}
  assert found == {
    "text": [(5, 0)],
    "image": [(0, 1)],
    "few": [(0, 1)],
    "caption": [(5, 0)],
    "writers": [(5, 0)] * 2,
    "drawers": [(0, 2)] * 2,
    "mixed": [(5, 0), (0, 2)] * 2,
  }


def test_the_figures_fit_together(monkeypatch):
  seconds = dict(text=[2.0, 1.0, 9.0], image=[7.0], few=[3.0], caption=[4.0])
  more = dict(writers=[1.0], drawers=[3.0], mixed=[5.0])
  turns = iter([dict(seconds), more])
  monkeypatch.setattr(sampling, "_in_turns", lambda tasks, rounds: next(turns))
  rates = iter([2e9, 1e9])  # before and after
  monkeypatch.setattr(machine, "measure_matmul", lambda seconds: next(rates))
  found = sampling.bench_generate(width=64, layers=2, rounds=3)
  assert (found["text_s"], found["text_per_s"]) == (2.0, 64.0)
  assert (found["image_s"], found["caption_per_s"]) == (7.0, 32.0)
  assert found["step_ms"] == pytest.approx(1e3 * (7 - 3) / 20)
  # Both branches: 256 patches, 2 layers, and as many keys as patches and what stands
  # before: BOS, 64 tokens and BOI, or BOS and BOI.
  weights = 2 * (4 * 64**2 + 3 * 64 * 256)
  flops = sum(256 * 2 * (weights + 4 * 64 * keys) for keys in (66 + 256, 2 + 256))
  assert found["floor_ms"] == pytest.approx(1e3 * flops / 2e9)
  assert found["over_floor"] == pytest.approx(found["step_ms"] / found["floor_ms"])
  assert (found["apart_s"], found["over_apart"]) == (4.0, 1.25)
  turns, rates = iter([dict(seconds)]), iter([2e9, 1e9])
  single = sampling.bench_generate(width=64, layers=2, rounds=3, single=True)
  assert single["step_ms"] == found["step_ms"]
  assert set(found) - set(single) == {"mixed_s", "apart_s", "over_apart"}
  assert found["matmul_gflops"] == 2.0 and np.isfinite(found["peak_rss_gb"])
