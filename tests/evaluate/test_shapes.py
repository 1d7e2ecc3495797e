"""Promises of tfusion/evaluate/shapes.py; oracles stand where the model would."""

import dataclasses
import re

import jax
import pytest
import tiny
from PIL import Image as Pillow

from tfusion.data.pipeline import Corpus
from tfusion.data.scenes import captions
from tfusion.data.scenes.scene import HELD_OUT, pair_of
from tfusion.data.scenes.source import open_shapes
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers, shapes, suite
from tfusion.generate.prompt import Blank
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text

EACH = 6  # documents of a part
KINDS = ["pairs", "stories", "edits"]


def source_of(kind):
  return open_shapes(kind, split="test", image_shape=(32, 32, 3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run without a model: nothing but an oracle can answer for it."""
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  texts = [
    t for kind in KINDS for i in range(60) for t in source_of(kind).truth(i).texts
  ]
  config = tiny.config(
    model__image_shape=(32, 32, 3),
    model__patch=8,
    model__vocab_size=512,
    eval__samples_per_class=EACH,
    eval__batch=4,
    sample__max_elements=400,
  )
  tokenizer = Tokenizer.train(texts, vocab_size=512, path=path)
  mesh = jax.make_mesh((1,), ("data",))
  return Trained(config, 1, None, tokenizer, mesh)


def corpus_of(trained, *kinds):
  return Corpus((), tuple(source_of(kind) for kind in kinds), trained.tokenizer)


class Oracle:
  """Stands for `generate`: answers with the truth, which `spoil` may change."""

  def __init__(self, trained, *kinds, spoil=lambda made: made):
    self.spoil, self.decode, self.asked = spoil, trained.tokenizer.decode, []
    self.image, self.caption = {}, {}
    self.encode = trained.tokenizer.encode
    for kind in kinds:
      for part in shapes.PARTS:
        for task in shapes.find_tasks(
          source_of(kind), trained.tokenizer, part=part, count=EACH
        ):
          self.image[self.key(task.prompt)] = task.image_hwc
          self.caption[task.image_hwc.tobytes()] = task.truth.texts[0]

  def key(self, prompt):
    return tuple(
      s.ids.tobytes() if isinstance(s, Text) else s.latent.tobytes()
      for s in prompt
      if s != Blank()
    )

  def __call__(self, config, params, prompts, *, special, key):
    return [self.answer(prompt) for prompt in prompts]

  def answer(self, prompt):
    self.asked.append(prompt)
    if prompt[-1] == Blank():
      made = self.spoil(Image(self.image[self.key(prompt)]))
      given = prompt[:-1]
    else:
      made = self.spoil(Text(self.encode(self.caption[prompt[0].latent.tobytes()])))
      given = prompt
    made_flags = (False,) * len(given) + (True,)
    return Generated((*given, made), made_flags, finished=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_all_gets_full_marks(trained, monkeypatch, tmp_path, kind):
  oracle = Oracle(trained, kind)
  monkeypatch.setattr(answers, "generate", oracle)
  found = shapes.evaluate_shapes(trained, corpus_of(trained, kind), tmp_path)
  for part in shapes.PARTS:
    assert found.pop(f"{kind}_{part}_images") == EACH
    assert f"{kind}_{part}_classifier_right" in found
  assert (f"{kind}_seen_captions_right" in found) == (kind == "pairs")
  assert set(found.values()) == {1.0}
  with Pillow.open(tmp_path / f"{kind}.png") as sheet:
    assert sheet.width >= 32 * shapes.COLUMNS and sheet.height >= 64


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_things_is_wrong(trained, monkeypatch, tmp_path, kind):
  def empty(made):
    return Image(0 * made.latent) if isinstance(made, Image) else made

  monkeypatch.setattr(answers, "generate", Oracle(trained, kind, spoil=empty))
  found = shapes.evaluate_shapes(trained, corpus_of(trained, kind), tmp_path)
  for part in shapes.PARTS:
    assert found[f"{kind}_{part}_right"] == found[f"{kind}_{part}_colour"] == 0
    assert found[f"{kind}_{part}_classifier_right"] == 1


def test_an_edit_that_changes_nothing_is_wrong(trained, monkeypatch, tmp_path):
  class Lazy(Oracle):
    def answer(self, prompt):
      spans = (*prompt[:-1], Image(prompt[0].latent))
      return Generated(spans, (False, False, True), finished=True)

  monkeypatch.setattr(answers, "generate", Lazy(trained, "edits"))
  found = shapes.evaluate_shapes(trained, corpus_of(trained, "edits"), tmp_path)
  assert found["edits_seen_right"] == found["edits_held_out_right"] == 0
  assert found["edits_seen_colour"] > 0.3  # most is as it should be


@pytest.mark.parametrize("wrong, most", [("ring", 0.5), (None, 0.0)])
def test_a_caption_is_right_if_it_is_true(trained, monkeypatch, tmp_path, wrong, most):
  """Some have a ring there already; no words are never right."""

  def spoil(made):
    if isinstance(made, Image):
      return made
    text = trained.tokenizer.decode(made.ids) if wrong else ""
    text = re.sub("|".join(captions.SHAPES), wrong or "", text, count=1)
    return Text(trained.tokenizer.encode(text))

  monkeypatch.setattr(answers, "generate", Oracle(trained, "pairs", spoil=spoil))
  found = shapes.evaluate_shapes(trained, corpus_of(trained, "pairs"), tmp_path)
  assert found["pairs_seen_right"] == 1
  assert found["pairs_seen_captions_right"] <= most


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_are_test_documents_without_their_last_image(trained, kind):
  for part in shapes.PARTS:
    tasks = shapes.find_tasks(source_of(kind), trained.tokenizer, part=part, count=EACH)
    assert len(tasks) == EACH
    for task in tasks:
      texts = [
        trained.tokenizer.decode(s.ids) for s in task.prompt if isinstance(s, Text)
      ]
      assert tuple(texts) == task.truth.texts
      assert task.prompt[-1] == Blank() and task.prompt.count(Blank()) == 1
      pairs = {pair_of(thing) for thing in task.truth.scenes[-1].things}
      assert bool(pairs & set(HELD_OUT)) == (part == "held_out")
      if kind == "pairs":  # and the words ask for it
        asked = captions.claims_of(texts[0]).things
        assert {(c.colour, c.shape) for c in asked} == pairs


def test_tasks_that_leave_no_room_are_refused_before_training(trained):
  corpus = corpus_of(trained, "stories")
  suite.FinalEvaluation(trained.config, None).check(corpus)
  sample = dataclasses.replace(trained.config.sample, max_elements=60)
  config = dataclasses.replace(trained.config, sample=sample)
  with pytest.raises(ValueError, match="sample.max_elements=60"):
    suite.FinalEvaluation(config, None).check(corpus)


def test_every_kind_and_option_of_shapes_is_evaluated(trained, monkeypatch, tmp_path):
  called = []

  def evaluation(asked):
    called.append([source.name for source in asked.corpus.test])
    return {}

  table = suite.EVALUATIONS
  entry = table["shapes"]._replace(run=evaluation)
  monkeypatch.setattr(suite, "EVALUATIONS", table | {"shapes": entry})
  monkeypatch.setattr(suite, "SUITES", {"own": ("digits", "shapes")})
  for spec in ("pairs,things=2", "edits"):
    suite.evaluate(trained, corpus_of(trained, spec), tmp_path)
  assert called == [["shapes:pairs,things=2"], ["shapes:edits"]]


def test_scenes_of_a_kind_that_the_run_lacks_are_as_its_own(trained):
  own = source_of("pairs,things=1,seed=3")
  corpus = Corpus((), (own,), trained.tokenizer)
  edits = shapes.source_of(corpus, "edits")
  assert (edits.kind, edits.things, edits.seed, edits.px) == ("edits", 1, 3, own.px)
  assert all(len(edits.truth(n).scenes[0].things) == 1 for n in range(8))
  assert shapes.source_of(corpus, "pairs") is own


def test_a_kind_that_the_run_was_not_trained_on_is_marked_by_name(
  trained, monkeypatch, tmp_path
):
  """As edits are before a model is taught them."""
  monkeypatch.setattr(answers, "generate", Oracle(trained, "edits"))
  corpus = corpus_of(trained, "pairs")
  found = suite.evaluate(trained, corpus, tmp_path, names=["shapes_of:edits"])
  assert found["edits_seen_right"] == found["edits_held_out_right"] == 1
  assert found["edits_seen_images"] == EACH and "pairs_seen_right" not in found
  with pytest.raises(
    ValueError, match="shapes_of:edit: is no kind of scenes; known: pair"
  ):
    suite.evaluate(trained, corpus, tmp_path, names=["shapes_of:edit"])
