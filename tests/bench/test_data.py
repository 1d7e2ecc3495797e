"""Promises of tfusion/bench/data.py, on a hundred documents."""

import numpy as np
import pytest

from tfusion import paper, sequence
from tfusion.bench import data
from tfusion.data.pipeline import open_corpus
from tfusion.training.machine import PEAK_FLOPS

DOCUMENTS = 120


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp("drawn")
  data.draw_shards(folder, documents=DOCUMENTS)
  return folder


def test_the_shares_of_one_process_are_all_of_its_time(drawn):
  config = data._config(drawn)
  parts = data.shares(open_corpus(config, drawn), config, seconds=0.1)
  assert set(parts) == {"decode", "pack", "batch"}
  assert sum(parts.values()) == pytest.approx(1)
  assert all(share > 0 for share in parts.values())


@pytest.mark.slow
def test_elements_and_bytes_are_those_of_the_documents_that_were_read(drawn):
  config = data._config(drawn)
  corpus = open_corpus(config, drawn)
  got, batch = data.rate(corpus, config, record_bytes=1000.0, seconds=0.2)
  assert batch.tokens_bl.shape == (16, 4096)
  assert got.workers == 0 and 0.9 < got.fill <= 1
  # A document is a latent of 256 patches with a caption of 20 tokens, BOS, BOI, EOI.
  elements = got.elements_per_s / (got.bytes_per_s / 1000)
  assert elements == pytest.approx(256 + 20 + 3, rel=0.1)  # 120 captions, drawn


@pytest.mark.slow
def test_what_a_host_needs_is_half_its_peak_over_the_work_of_an_element(drawn):
  config = data._config(drawn)
  corpus = open_corpus(config, drawn)
  _, batch = data.rate(corpus, config, record_bytes=1.0, seconds=0.0)
  needs = {(need.size, need.host): need.elements_per_s for need in data.needs(batch)}
  assert len(needs) == 5 * 3
  # 6 operations per parameter in the layers, and attention over what is seen.
  layers, width, mlp = 32, 4096, 11_008
  matmuls = 6 * layers * (4 * width**2 + 3 * width * mlp)
  live = batch.hi_bl >= batch.lo_bl
  seen = np.sum((batch.hi_bl - batch.lo_bl + 1) * live) / sequence.live_elements(batch)
  text = 1 - np.sum(batch.patch_bl >= 0) / sequence.live_elements(batch)
  heads = 6 * width * (text * 32_256 + (1 - text) * 2 * 2 * 2 * 8)
  flops = matmuls + heads + 12 * layers * width * seen
  assert needs["7B", "v5p"] == pytest.approx(4 * 459e12 / 2 / flops)
  ratio = PEAK_FLOPS["TPU v6e"] / PEAK_FLOPS["TPU v5e"]
  for size in map(str.upper, paper.SIZES):
    assert needs[size, "v6e"] == pytest.approx(ratio * needs[size, "v5e"])


@pytest.mark.slow
def test_the_table_has_a_line_for_every_count_of_workers_and_every_need():
  lines = list(data.table(documents=100, workers=[0], seconds=0.05))
  assert "one process: decode" in lines[1]
  assert lines[3].split()[0] == "0" and lines[3].endswith("%")
  assert len(lines) == 5 + 5 * 3
  assert lines[-1].split()[:2] == ["7B", "v6e"] and lines[-1].endswith("x")


def test_too_few_documents_are_refused():
  with pytest.raises(ValueError, match="--documents=99: give at least 100"):
    next(data.table(documents=99, workers=[0], seconds=0.1))
