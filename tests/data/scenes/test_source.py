"""The source `shapes`: documents by index, true words, pairs kept from training."""

import dataclasses
import itertools
import pickle
import re

import numpy as np
import pytest

from tfusion import config as config_lib
from tfusion import sequence
from tfusion.data import sources
from tfusion.data.lanes import Lane
from tfusion.data.scenes import captions
from tfusion.data.scenes import source as shapes
from tfusion.data.scenes.outlines import SHAPES
from tfusion.data.scenes.render import render
from tfusion.data.scenes.scene import COLOURS, HELD_OUT, PLACES, SIZES, apart, pair_of
from tfusion.data.tokenizer import Tokenizer

KINDS = ["pairs", "stories", "edits"]


def open_one(argument="", *, split="train", px=32):
  spec = f"shapes:{argument}" if argument else "shapes"
  (source,) = sources.open_sources(
    [spec], split=split, image_shape=(px, px, 3), workdir=""
  )
  return source


def spans_of(document):
  return [
    span if isinstance(span, str) else getattr(span, "latent", span).tobytes()
    for span in document
  ]


@pytest.mark.parametrize("px", [32, 64])
def test_a_pair_is_a_true_caption_and_the_image_of_its_scene(px):
  source = open_one(px=px)
  assert len(source) == 1_000_000 and source.has_images and source.name == "shapes"
  for index in (0, 7, 999_999):
    text, image = source[index]
    truth = source.truth(index)
    assert (text,) == truth.texts and len(truth.scenes) == 1
    assert image.shape == (px, px, 3) and image.dtype == np.float32
    np.testing.assert_array_equal(
      np.round((image + 1) * 127.5), render(truth.scenes[0], px)
    )
    assert captions.claims_hold(captions.claims_of(text), truth.scenes[0].things)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_depends_on_its_index_alone(kind):
  source, other = open_one(kind), open_one(f"{kind},length=5")
  backwards = {i: spans_of(other[i]) for i in reversed(range(5))}
  assert [spans_of(source[i]) for i in range(5)] == [backwards[i] for i in range(5)]
  assert spans_of(pickle.loads(pickle.dumps(source))[3]) == backwards[3]
  for index in (-1, 5):
    with pytest.raises(IndexError, match=f"document {index} of 5"):
      other[index]


def test_seeds_splits_and_kinds_share_no_image_or_scene():
  opened = [
    open_one(f"{kind},seed={seed}", split=split)
    for kind, seed, split in itertools.product(KINDS, (0, 1), ("train", "test"))
  ]
  firsts = [source.truth(i).scenes[0] for source in opened for i in range(40)]
  assert len({render(scene, 32).tobytes() for scene in firsts}) == len(firsts) == 480
  assert len({scene.things for scene in firsts}) == len(firsts)


NAMED = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


@pytest.mark.parametrize("kind", KINDS)
def test_training_never_shows_or_names_a_held_out_pair(kind):
  source = open_one(kind)
  shown, named = set(), set()
  for index in range(700):
    truth = source.truth(index)
    shown |= {pair_of(t) for scene in truth.scenes for t in scene.things}
    named |= {pair for text in truth.texts for pair in NAMED.findall(text)}
    assert source.part(index) == "seen"
  assert not (shown | named) & set(HELD_OUT)
  assert len(shown) == 56 and len(named) > 50  # all others are met


@pytest.mark.parametrize("kind", KINDS)
def test_a_quarter_of_the_test_split_ends_with_a_held_out_pair(kind):
  source = open_one(kind, split="test")
  ends = set()
  for index in range(240):
    truth = source.truth(index)
    first, last = ({pair_of(t) for t in truth.scenes[i].things} for i in (0, -1))
    if source.part(index) == "held_out":
      assert last & set(HELD_OUT)
      ends |= last & set(HELD_OUT)
    else:
      assert not (first | last) & set(HELD_OUT)
  parts = [source.part(index) for index in range(len(source))]
  assert parts.count("held_out") * shapes.HELD_OUT_EVERY == len(parts)
  assert ends == set(HELD_OUT)


# What instructions mean, written down apart from the code that says them.


def follow(text, things):
  """The things after an instruction, from its words and the things before alone."""
  text = re.sub(r"^(now|then|next,|after that,) ", "", text)
  things = [vars(t).copy() for t in things]
  if match := re.fullmatch(r"(?:add|draw) (an? .*)", text):
    (new,) = captions.claims_of(match[1]).things
    x, y = PLACES[new.place]
    rgb, radius = COLOURS[new.colour], SIZES[new.size]
    made = dict(shape=new.shape, colour=new.colour, size=new.size)
    return [*things, made | dict(x=x, y=y, radius=radius, rgb=rgb)]
  match = re.search(
    rf"\bthe (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|shape)", text
  )
  meant = [
    t
    for t in things
    if match[1] in (None, t["colour"]) and match[2] in ("shape", t["shape"])
  ]
  (it,) = meant  # exactly one thing is meant
  verb, rest = text[: match.start()].strip(), text[match.end() :].strip()
  if verb == "remove" or (verb, rest) == ("take", "away"):
    things.remove(it)
  elif verb == "move":
    place = re.fullmatch(r"to the (.*?)(?: side)?", rest)[1]
    it["x"], it["y"] = PLACES[place]
  elif verb in ("turn", "change"):
    it["shape"] = re.fullmatch(r"into an? (\w+)", rest)[1]
  elif rest in SIZES:
    assert verb == "make"
    it["size"], it["radius"] = rest, SIZES[rest]
  else:
    assert verb in ("make", "paint", "colour")
    it["colour"], it["rgb"] = rest, COLOURS[rest]
  return things


def in_any_order(things):
  return sorted(
    sorted(t.items()) for t in (t if isinstance(t, dict) else vars(t) for t in things)
  )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["stories", "edits"])
def test_following_the_words_leads_exactly_to_the_next_scene(kind, split):
  source = open_one(kind, split=split)
  kinds = set()
  for index in range(250):
    truth = source.truth(index)
    steps = truth.texts[1:] if kind == "stories" else truth.texts
    assert len(steps) == len(truth.scenes) - 1 == len(truth.changes)
    for text, change, a, b in zip(steps, truth.changes, truth.scenes, truth.scenes[1:]):
      assert in_any_order(follow(text, a.things)) == in_any_order(b.things), text
      assert change.apply(a) == b and a.background == b.background and a != b
      assert apart(b.things) and 1 <= len(b.things) <= 4
      kinds.add(change.kind)
  assert kinds == {"colour", "shape", "size", "place", "add", "remove"}


def test_a_story_is_text_and_images_in_turn_and_begins_with_a_caption():
  source = open_one("stories,things=3")
  lengths = set()
  for index in range(40):
    truth, spans = source.truth(index), source[index]
    assert spans[::2] == truth.texts
    for scene, image in zip(truth.scenes, spans[1::2], strict=True):
      np.testing.assert_array_equal(np.round((image + 1) * 127.5), render(scene, 32))
    claims = captions.claims_of(spans[0])
    assert captions.claims_hold(claims, truth.scenes[0].things)
    lengths.add(len(truth.scenes))
    assert max(len(scene.things) for scene in truth.scenes) <= 3
  assert lengths == set(shapes.STORY_IMAGES)


def test_the_first_image_of_an_edit_is_read_and_not_learned():
  source = open_one("edits")
  given, text, image = source[5]
  before, after = source.truth(5).scenes
  assert isinstance(given, sequence.Image)
  assert (given.weight, given.noise_cap) == (0.0, 0.0)
  np.testing.assert_array_equal(
    np.round((given.latent + 1) * 127.5), render(before, 32)
  )
  np.testing.assert_array_equal(np.round((image + 1) * 127.5), render(after, 32))
  assert text == source.truth(5).texts[0]


def test_texts_are_a_bounded_sample_with_every_word(monkeypatch):
  monkeypatch.setattr(shapes, "SAMPLED_TEXTS", 300)
  source = open_one("stories")
  texts = list(source.texts())
  assert texts == [t for i in range(300) for t in source.truth(i).texts]
  words = {word.strip(",") for text in texts for word in text.split()}
  assert words >= {*COLOURS, *SHAPES, *SIZES, "left", "above", "below", "two", "now"}
  short = list(open_one("pairs,length=3").texts())
  assert short == [source.texts[0] for source in map(open_one("pairs").truth, range(3))]


def test_options_are_read():
  source = open_one("edits,length=12,seed=3,things=2", px=64)
  assert (source.kind, source.length, source.seed, source.things) == ("edits", 12, 3, 2)
  assert source.px == 64 and source.name == "shapes:edits,length=12,seed=3,things=2"
  assert open_one("seed=1").kind == "pairs" and open_one("seed=1").seed == 1
  assert len(open_one("length=12", split="test")) == 12
  assert len(open_one(split="test")) == shapes.TEST_LENGTH


@pytest.mark.parametrize(
  "argument, said",
  [
    ("story", r"'story' is unknown; known: \('pairs', 'stories', 'edits'\)"),
    ("pairs,lenght=3", r"'lenght=3' is unknown or repeated; known: \['length', "),
    ("pairs,seed=1,seed=2", "'seed=2' is unknown or repeated"),
    ("length=0", "'length=0' is not a number from 1 to"),
    ("length=1e6", "'length=1e6' is not a number"),
    ("things=5", "'things=5' is not a number from 1 to 4"),
    ("seed=-1", "'seed=-1' is not a number from 0"),
    ("stories,", "'' is unknown or repeated"),
  ],
)
def test_what_cannot_be_drawn_is_refused(argument, said):
  with pytest.raises(ValueError, match=f"data.sources='shapes:{argument}'.*{said}"):
    open_one(argument)


def test_a_lane_packs_any_of_two_thousand_million_documents(tmp_path):
  specs = [f"shapes:{kind},length={shapes.MOST_DOCUMENTS}" for kind in KINDS]
  config = config_lib.Config()
  sizes = dict(image_shape=(32, 32, 3), patch=8, vocab_size=400)
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, **sizes),
    data=dataclasses.replace(config.data, sources=tuple(specs), row_length=256),
  )
  opened = sources.open_sources(
    specs, split="train", image_shape=(32, 32, 3), workdir=tmp_path
  )
  texts = [t for source in opened for i in range(99) for t in source.truth(i).texts]
  path = tmp_path / "tokenizer.model"
  tokenizer = Tokenizer.train(texts, vocab_size=400, path=path)
  lane = Lane(opened, tokenizer, config, lane=0)
  rows = [next(lane) for _ in range(6)]
  weights = np.concatenate([r.slots[0].weights[r.slots[0].starts > 0] for r in rows])
  assert 0.0 in weights and 1.0 in weights  # edits read one image, learn the other
  drawn = lane.state().taken
  assert set(drawn) == set(specs) and min(drawn.values()) > 0


@pytest.mark.parametrize("shape", [(32, 32, 1), (16, 16, 3), (32, 64, 3)])
def test_images_of_another_shape_are_refused(shape):
  with pytest.raises(ValueError, match=r"model.image_shape=.*\(32, 32, 3\) or \(64,"):
    sources.open_sources(["shapes"], split="train", image_shape=shape, workdir="")
