"""The embedded corpora: fixed splits that share nothing, text that loses nothing."""

import pickle
import random
import re

import numpy as np
import pytest

from tfusion import sequence
from tfusion.data import sources
from tfusion.data.sources import CAPTIONS, DIGIT_WORDS, caption_label, split_text


def open_one(spec, split, tmp_path="."):
  opened = sources.open_sources(
    [spec], split=split, image_shape=(8, 8, 1), workdir=tmp_path
  )
  return opened[0]


def test_every_scan_is_in_exactly_one_split():
  from sklearn import datasets

  train, train_labels = sources.load_digits("train")
  test, test_labels = sources.load_digits("test")
  assert train.shape == (1500, 8, 8, 1) and test.shape == (297, 8, 8, 1)
  assert train.dtype == np.float32
  assert train.min() == -1 and train.max() == 1
  both = np.concatenate([train, test]).reshape(-1, 64)
  labels = np.concatenate([train_labels, test_labels])
  raw, raw_labels = datasets.load_digits(return_X_y=True)
  made = sorted(map(tuple, np.column_stack([(both + 1) * 8, labels])))
  assert made == sorted(map(tuple, np.column_stack([raw, raw_labels])))


def test_the_digits_split_never_changes():
  # Pinned: with another split, figures of different releases would not compare.
  _, labels = sources.load_digits("test")
  assert labels[:12].tolist() == [5, 4, 1, 8, 6, 6, 5, 0, 4, 6, 2, 8]
  assert np.bincount(labels).min() >= 20  # every digit is held out


def test_a_digit_document_is_a_caption_that_names_its_scan():
  source = open_one("digits", "test")
  scans, labels = sources.load_digits("test")
  assert len(source) == 297 * len(CAPTIONS) and source.has_images
  for index in range(0, len(source), 7):
    caption, image = source[index]
    scan, template = divmod(index, len(CAPTIONS))
    np.testing.assert_array_equal(image, scans[scan])
    assert caption == CAPTIONS[template].format(DIGIT_WORDS[labels[scan]])
    assert caption_label(caption) == labels[scan]
  assert sorted(source.texts()) == sorted(source[i][0] for i in range(len(source)))


def test_caption_label_wants_exactly_one_digit():
  assert caption_label("A handwritten SEVEN.") == 7
  assert caption_label("seven, yes seven") == 7
  assert caption_label("seven or nine") is None
  assert caption_label("someone wrote often") is None
  assert caption_label("") is None


def test_digits_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"model.image_shape=\(16, 16, 1\)"):
    sources.open_sources(["digits"], split="train", image_shape=(16, 16, 1), workdir="")


def test_held_out_prose_is_not_in_the_training_prose():
  def paragraphs(source):
    text = "\n\n".join(source.documents)
    return {" ".join(p.split()) for p in text.split("\n\n")}

  train, test = open_one("pydoc", "train"), open_one("pydoc", "test")
  shared = {p for p in paragraphs(train) & paragraphs(test) if len(p) >= 40}
  assert not shared
  share = sum(map(len, test.documents)) / sum(map(len, train.documents))
  assert 0.05 < share < 0.12


def test_every_topic_is_in_exactly_one_split():
  from pydoc_data import topics

  split = open_one("pydoc", "train").documents + open_one("pydoc", "test").documents
  assert sorted(split) == sorted(topics.topics.values())


@pytest.mark.parametrize("limit", [8, 40, 127])
def test_cut_prose_fits_and_joins_to_the_whole(limit):
  source = open_one("pydoc", "test")
  cut = source.fit(lambda text: len(text.encode()), room=limit)
  assert all(0 < len(piece.encode()) <= limit for piece in cut.documents)
  assert "".join(cut.documents) == "".join(source.documents)


def test_any_text_can_be_cut():
  rng = random.Random(0)
  for _ in range(200):
    text = "".join(rng.choices("ab \n\u00e9\u4f60", k=rng.randrange(200)))
    limit = rng.randrange(4, 30)
    pieces = split_text(text, lambda t: len(t.encode()), limit=limit)
    assert "".join(pieces) == text
    assert all(0 < len(p.encode()) <= limit for p in pieces)
    if all(len(w.encode()) <= limit for w in re.findall(r"\s+|\S+\s*", text)):
      assert all(p[-1].isspace() for p in pieces[:-1])  # no word is cut in two


def test_a_cut_prefers_paragraphs_then_lines_then_words():
  text = "one two three.\nfour five six.\n\nseven eight nine ten eleven twelve"
  assert split_text(text, len, limit=40)[0] == "one two three.\nfour five six.\n\n"
  assert split_text(text, len, limit=22)[0] == "one two three.\n"
  assert split_text("aaa bbb ccc ddd", len, limit=9) == ["aaa bbb ", "ccc ddd"]
  # But not at the price of a row that is mostly padding.
  assert split_text("one\n\ntwo three four", len, limit=14)[0] == "one\n\ntwo "
  assert split_text("a" * 10, len, limit=4) == ["aaaa", "aaaa", "aa"]


def test_prose_pieces_are_not_mostly_short():
  source = open_one("pydoc", "test")
  pieces = source.fit(len, room=200).documents
  assert np.mean([len(p) for p in pieces]) > 130


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


def test_a_piece_of_a_longer_text_teaches_neither_a_beginning_nor_an_end():
  text = "one two three.\n\nfour five six.\n\nseven eight nine."
  whole = sources.Prose("prose", ("short", text, "also"))
  fitted = whole.fit(lambda t: len(t.encode()), room=20)
  spans = [fitted[i] for i in range(len(fitted))]
  texts = [[s for s in own if isinstance(s, str)] for own in spans]
  assert ["".join(own) for own in texts] == list(fitted.documents)
  assert "".join(fitted.documents) == "short" + text + "also"
  edges = [(own[0] == sequence.BREAK, own[-1] == sequence.BREAK) for own in spans]
  none, first, middle, last = (False, False), (False, True), (True, True), (True, False)
  assert edges == [none, first, middle, last, none]


def test_what_pydoc_teaches_to_begin_and_end_are_its_topics():
  source = open_one("pydoc", "test")
  fitted = source.fit(lambda t: len(t.encode()), room=120)
  assert len(fitted) > 10 * len(source)
  joined, topics = "", []
  for spans in map(fitted.__getitem__, range(len(fitted))):
    assert (spans[0] == sequence.BREAK) == bool(joined)
    joined += "".join(span for span in spans if isinstance(span, str))
    if spans[-1] != sequence.BREAK:
      topics, joined = [*topics, joined], ""
  assert tuple(topics) == source.documents and not joined
