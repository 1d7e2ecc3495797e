"""Promises of tfusion/pods/counts.py: the operations of a step, counted three ways."""

import dataclasses

import numpy as np
import pytest
from tiny import config as tiny_config

from tfusion import config as config_lib
from tfusion.attention import intervals
from tfusion.config import MeshConfig
from tfusion.config_file import read_config
from tfusion.model.transfusion import parameter_count
from tfusion.pods import counts


@pytest.fixture(scope="module")
def paper():
  return read_config("experiments/paper.py:size=7b", [])


def test_a_typical_row_is_half_images_and_its_mask_is_that_of_a_row(paper):
  lo_l, hi_l, patch_l = counts.typical_row(paper)
  assert np.mean(patch_l >= 0) == pytest.approx(0.44, abs=0.02)  # with captions half
  assert (np.diff(lo_l) >= 0).all() and (lo_l <= hi_l).all()
  images = np.unique(patch_l[patch_l >= 0] // 256)
  assert len(images) <= paper.data.image_slots
  for image in images:  # each sees itself whole, both ways
    (own,) = np.nonzero(patch_l // 256 == image)
    own = own[patch_l[own] >= 0]
    assert (hi_l[own] == own[-1]).all() and len(own) == 256


def test_a_typical_row_of_causal_images_is_causal(paper):
  model = dataclasses.replace(paper.model, image_attention="causal")
  causal = counts.typical_row(dataclasses.replace(paper, model=model))
  np.testing.assert_array_equal(causal[1], np.arange(4096))
  lo_l, hi_l, patch_l = counts.typical_row(paper)
  np.testing.assert_array_equal(causal[0], lo_l)
  np.testing.assert_array_equal(causal[2], patch_l)
  assert (hi_l > causal[1]).sum() == (patch_l >= 0).sum() * 255 // 256


@pytest.mark.slow
def test_live_tiles_are_those_of_the_kernels_work_list(paper):
  lo_l, hi_l, _ = counts.typical_row(paper)
  tiles = intervals.tiles(
    lo_l[None], hi_l[None], keys=4096, block_q=counts.TILE, block_k=counts.TILE
  )
  full, masked = counts.live_tiles(lo_l, hi_l)
  assert full == int(np.sum(tiles.full_bij))
  assert full + masked == int(np.sum(tiles.live_bij))


def test_the_farthest_shard_of_a_typical_row_is_as_far_as_its_documents_are_long():
  config = tiny_config(data__row_length=4096)
  far = {
    parts: counts.farthest(
      dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=1, context=parts))
    )
    for parts in (1, 2, 4, 8, 16, 64)
  }
  # Texts of 1,024 do not all begin at a cut.
  assert far == {1: 1, 2: 1, 4: 1, 8: 2, 16: 4, 64: 16}


def test_exact_is_less_than_whole_tiles_and_those_less_than_the_square(paper):
  found = counts.count(paper)
  assert found.exact < found.tiles < found.square
  n, tokens = parameter_count(paper.model), 512 * 4096
  attention = 12.0 * 32 * 4096 * 4096 * tokens
  assert found.square == pytest.approx(6.0 * n * tokens + attention)


def test_counts_are_in_proportion_to_rows():
  config = tiny_config()
  one, two = (
    counts.count(config_lib.from_dict(_with_rows(config, rows))) for rows in (8, 16)
  )
  assert two.exact == pytest.approx(2 * one.exact)
  assert (two.full_tiles, two.masked_tiles) == (one.full_tiles, one.masked_tiles)


def _with_rows(config, rows):
  values = dataclasses.asdict(config)
  values["train"]["batch_rows"] = rows
  return values
