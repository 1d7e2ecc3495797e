"""Rules of what is learned: every span gets its weight, nothing is lost silently."""

import importlib.util
import json

import pytest
from prepare import lookalikes

from tfusion import sequence
from tfusion.data import sources
from tfusion.data.balance import Amount
from tfusion.data.shards import manifest, source
from tfusion.prepare import job, learn, raw
from tfusion.prepare.raw import Raw, Rejected

SPANS = ("a", b"image", "b", b"image", " ")
WEIGHTS = (0.0, 0.0, 1.0, 0.5, 1.0)


class Fixed:
  """A part of given documents."""

  def __init__(self, *documents):
    self.documents = documents

  def read(self):
    yield from self.documents


def weights(rule, spans=SPANS, given=WEIGHTS):
  (part,) = learn.apply([Fixed(Raw("id", spans, False, given))], rule)
  (found,) = part.read()
  return found


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("all", (1, 1, 1, 1)),
    ("text", (1, 0, 1, 0)),
    ("images", (0, 1, 0, 1)),
    ("last", (0, 0, 0, 1)),  # the blank text behind it is none
    ("answers", (0, 0, 1, 0.5)),
  ],
)
def test_a_rule_weighs_every_span_that_is_not_blank(rule, expected):
  found = weights(rule)
  assert found.spans == SPANS[:-1] and found.weights == expected


def test_every_rule_is_tested():
  assert set(learn.RULES) == {"all", "text", "images", "last", "answers"}


@pytest.mark.parametrize(("rule", "spans"), [("text", (b"a",)), ("images", ("a",))])
def test_a_document_with_nothing_to_learn_is_skipped_by_its_reason(rule, spans):
  found = weights(rule, spans, (1.0,))
  assert isinstance(found, Rejected) and found.reason == raw.NOT_LEARNED
  assert found.amount == Raw("id", spans, False).amount


def test_what_a_source_skips_stays_as_it_is():
  lost = Rejected("a", raw.NO_TEXT, "gone", Amount(1, 1))
  (part,) = learn.apply([Fixed(lost)], "last")
  assert list(part.read()) == [lost]
  assert learn.apply([part], "") == [part]


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs Beam")
def test_a_rule_that_is_none_or_has_no_answers_is_refused_before_any_work(tmp_path):
  root = tmp_path / "in"
  lookalikes.lines(root / "a.jsonl", [{"text": "a"}])
  for rule, says in (("some", "unknown; known: all"), ("answers", "no conversations")):
    request = job.Request(f"jsonl:{root}", str(tmp_path / "out"), learn=rule)
    with pytest.raises(ValueError, match=f"--learn={rule}: .*{says}"):
      job.prepare(request)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
  """Edits with sides that their rows state."""
  root = tmp_path_factory.mktemp("edits")
  lookalikes.store(root, ["a.png", "b.png"])
  rows = [
    {"input": "images/a.png", "instruction": f"redden {i}", "output": "images/b.png"}
    | {"split": "train" if i else "test"}
    for i in range(3)
  ]
  lookalikes.lines(root / "a.jsonl", rows)
  return root


def prepared(edits, out, **more):
  """The weights of every record, by split."""
  pytest.importorskip("apache_beam")
  request = job.Request(f"jsonl:{edits}", str(out), image_px=8, **more)
  made = job.prepare(request)
  return {
    shard.split: {record.weights for record in source.read_shard(out / shard.name)}
    for shard in made.shards
  }


@pytest.mark.slow
def test_shards_keep_the_weights_of_a_rule_and_another_one_is_refused(edits, tmp_path):
  assert prepared(edits, tmp_path / "own") == dict.fromkeys(
    ("train", "test"), {(0.0, 1.0, 1.0)}
  )
  out = tmp_path / "last"
  assert prepared(edits, out, learn="last") == dict.fromkeys(
    ("train", "test"), {(0.0, 0.0, 1.0)}
  )
  with pytest.raises(ValueError, match="learn: last there, None now"):
    prepared(edits, out)
  settings = json.loads((tmp_path / "own" / job.JOB).read_text())
  assert "learn" not in settings  # so that folders of older versions go on
  assert manifest.load(out).counts.kept == 3


@pytest.mark.slow
def test_what_a_rule_leaves_to_be_read_has_no_target(edits, tmp_path):
  prepared(edits, tmp_path / "shards", learn="last")
  spec = f"shards:{tmp_path / 'shards'}"
  (opened,) = sources.open_sources(
    [spec], split="train", image_shape=(8, 8, 3), workdir=tmp_path
  )
  special = sequence.SpecialTokens(0, 1, 2, 3, 4)
  (one, text, two) = opened[0]
  assert (one.weight, text.weight, two.weight) == (0, 0, 1)
  laid = sequence.lay_out((one, text, two), special=special, patches_per_image=(4,))
  targets = laid.targets_l[laid.weights_l > 0]
  assert targets.tolist() == [special.boi, special.eos]  # of the last image
