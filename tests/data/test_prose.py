"""Prose: splits that share nothing, text that loses nothing when it is cut."""

import random
import re

import numpy as np
import pytest

from tfusion import sequence
from tfusion.data.prose import Prose, open_pydoc, split_text


def test_held_out_prose_is_not_in_the_training_prose():
  def paragraphs(source):
    text = "\n\n".join(source.documents)
    return {" ".join(p.split()) for p in text.split("\n\n")}

  train, test = open_pydoc(split="train"), open_pydoc(split="test")
  shared = {p for p in paragraphs(train) & paragraphs(test) if len(p) >= 40}
  assert not shared
  share = sum(map(len, test.documents)) / sum(map(len, train.documents))
  assert 0.05 < share < 0.12


def test_every_topic_is_in_exactly_one_split():
  from pydoc_data import topics

  split = open_pydoc(split="train").documents + open_pydoc(split="test").documents
  assert sorted(split) == sorted(topics.topics.values())


@pytest.mark.parametrize("limit", [8, 40, 127])
def test_cut_prose_fits_and_joins_to_the_whole(limit):
  source = open_pydoc(split="test")
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
  source = open_pydoc(split="test")
  pieces = source.fit(len, room=200).documents
  assert np.mean([len(p) for p in pieces]) > 130


def test_a_piece_of_a_longer_text_teaches_neither_a_beginning_nor_an_end():
  text = "one two three.\n\nfour five six.\n\nseven eight nine."
  whole = Prose("prose", ("short", text, "also"))
  fitted = whole.fit(lambda t: len(t.encode()), room=20)
  spans = [fitted[i] for i in range(len(fitted))]
  texts = [[s for s in own if isinstance(s, str)] for own in spans]
  assert ["".join(own) for own in texts] == list(fitted.documents)
  assert "".join(fitted.documents) == "short" + text + "also"
  edges = [(own[0] == sequence.BREAK, own[-1] == sequence.BREAK) for own in spans]
  none, first, middle, last = (False, False), (False, True), (True, True), (True, False)
  assert edges == [none, first, middle, last, none]


def test_what_pydoc_teaches_to_begin_and_end_are_its_topics():
  source = open_pydoc(split="test")
  fitted = source.fit(lambda t: len(t.encode()), room=120)
  assert len(fitted) > 10 * len(source)
  joined, topics = "", []
  for spans in map(fitted.__getitem__, range(len(fitted))):
    assert (spans[0] == sequence.BREAK) == bool(joined)
    joined += "".join(span for span in spans if isinstance(span, str))
    if spans[-1] != sequence.BREAK:
      topics, joined = [*topics, joined], ""
  assert tuple(topics) == source.documents and not joined
