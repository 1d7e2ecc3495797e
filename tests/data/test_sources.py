"""The table of sources: each by its name, once, with what it takes."""

import pickle
import re

import pytest

from tfusion.data import sources


def open_one(spec, split, tmp_path="."):
  opened = sources.open_sources(
    [spec], split=split, image_shape=(8, 8, 1), workdir=tmp_path
  )
  return opened[0]


def test_sources_survive_pickling():
  for spec in ("digits", "pydoc"):
    source = open_one(spec, "train")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source) and copy[3][0] == source[3][0]


def test_an_unknown_or_repeated_source_is_refused():
  with pytest.raises(
    ValueError, match=re.escape("'photos': unknown; known: ['digits'")
  ):
    open_one("photos", "train")
  with pytest.raises(ValueError, match="once"):
    sources.open_sources(
      ["pydoc", "pydoc"], split="train", image_shape=(8, 8, 1), workdir=""
    )


@pytest.mark.parametrize("spec", ["digits:8", "pydoc:3.11"])
def test_an_argument_that_nothing_reads_is_refused(spec):
  name = spec.partition(":")[0]
  with pytest.raises(ValueError, match=f"'{spec}': takes no argument; write '{name}'"):
    open_one(spec, "train")


@pytest.mark.parametrize("spec", ["digits:", "pydoc:", "shapes:", "folder:", "shards:"])
def test_a_colon_with_nothing_behind_it_is_refused(spec):
  with pytest.raises(ValueError, match=f"'{spec}': nothing stands behind the colon"):
    open_one(spec, "train")
