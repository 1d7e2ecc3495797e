"""The race of attention's implementations runs what it says, and counts it."""

import numpy as np
import pytest

from tfusion.attention import intervals
from tfusion.bench import attention

SIZES = dict(batch=2, heads=4, kv_heads=2, head_dim=16, documents=3)


@pytest.mark.slow
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
