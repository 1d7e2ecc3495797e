"""The contract of a source: one that only gives documents serves everywhere."""

import dataclasses

import pytest
import tiny_sources
from tiny_sources import Given

from tfusion.data import census, identity, notices, numbers, prepared
from tfusion.data.lanes import Lane
from tfusion.data.source import Source, some_documents

PLAIN = Given("plain", 40, lambda n: (f"number {n}", tiny_sources.latent(n)))
CONFIG = tiny_sources.changed(data=dict(sources=("plain",), lanes=1))


def test_what_a_source_does_not_say_has_a_plain_answer(tmp_path):
  assert (PLAIN.spec, PLAIN.has_images, PLAIN.leaves_out) == ("plain", True, False)
  assert PLAIN.skipped == {} and PLAIN.balance is None and PLAIN.prepared is None
  assert PLAIN.contents() is None and PLAIN.digest is None and PLAIN.advice() == ""
  assert PLAIN.fit(len, room=1) is PLAIN
  assert [own[0] for own in PLAIN.several([3, 1])] == ["number 3", "number 1"]


def test_a_source_with_plain_answers_is_trained_on_and_told_of(tmp_path):
  lane = Lane([PLAIN], tiny_sources.tokenizer(), CONFIG, lane=0)
  first = next(lane)
  assert next(lane).tokens_l.shape == first.tokens_l.shape
  splits = {"train": [PLAIN], "test": [PLAIN]}
  named, kept = identity.recognise(splits, ["plain"], tmp_path)
  assert named["train"] == (PLAIN,) and kept.sources[0]["train"] is None
  assert prepared.agree([PLAIN]) == (PLAIN,)
  assert prepared.tokenizer_of([PLAIN]) is None and prepared.codebook([PLAIN]) == 0
  prepared.keep([PLAIN], tmp_path, begun=False)
  notices.warn([PLAIN], tiny_sources.tokenizer(), CONFIG, tmp_path)
  assert not list(tmp_path.iterdir())
  assert notices.found([PLAIN], [PLAIN]) == {}
  (line,) = notices.found_lines([PLAIN], [PLAIN])
  assert line == "plain: 40 documents to train on, 40 held out"
  assert census.of([PLAIN], [PLAIN])["plain"]["train"]["images"] == 40
  assert numbers.measure([PLAIN]).images == 40


@pytest.mark.slow
def test_a_renamed_source_is_still_known_by_what_the_config_calls_it():
  moved = Given("folder:new", 40, PLAIN.make).renamed("folder:old")
  assert (moved.name, moved.spec) == ("folder:old", "folder:new")
  assert moved.renamed("folder:older").spec == "folder:new"
  config = tiny_sources.changed(
    data=dict(sources=("folder:new", "words"), weights=(1.0, 3.0), lanes=1)
  )
  words = Given("words", 40, lambda n: (f"{n}",), has_images=False)
  lane = Lane([moved, words], tiny_sources.tokenizer(), config, lane=0)
  for _ in range(40):
    next(lane)
  elements = lane.state().elements
  share = elements["words"] / elements["folder:old"]
  assert abs(share - 3) < 0.2  # of one document in some hundreds


def test_a_source_that_lacks_what_has_no_plain_answer_cannot_be_made():
  @dataclasses.dataclass(frozen=True)
  class Silent(Source):
    def __len__(self):
      return 1

    def __getitem__(self, index):
      return ("a",)

  with pytest.raises(TypeError, match="texts"):
    Silent("silent")


def test_a_look_at_some_documents_passes_over_those_that_are_damaged():
  source = Given("damaged", 200, tiny_sources.damaged, has_images=False)
  seen = dict(some_documents(source, 200))
  assert len(seen) == 196 and seen[6] == ("whole 6",) and 7 not in seen
  assert list(dict(some_documents(PLAIN, 10))) == list(range(0, 40, 4))
