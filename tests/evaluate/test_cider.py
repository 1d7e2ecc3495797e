"""Promises of tfusion/evaluate/cider.py."""

import shutil

import numpy as np
import pytest

from tfusion.evaluate.cider import cider, words_of

# Of eight images: a caption, and what people wrote.
IMAGES = {
  "a dog runs on the beach": [
    "A dog is running along the beach.",
    "The brown dog's running on wet sand",
    "a dog, wet and happy, runs at the seaside",
  ],
  "two people ride a red bus": [
    "A double-decker bus with two people on its roof.",
    'Two men ride a red "tour" bus.',
    "There are people on top of a bus",
  ],
  "a cat": ["A cat sleeps on a sofa.", "a cat, asleep."],
  "a plate of food with fruit and fruit and fruit": [
    "A plate with fruit & bread (and 2 [or 3] forks) on it!",
    "plate of fruit; a glass of milk",
    "some fruit on a plate",
  ],
  "a clock at 10:30 in a train station": [
    "The clock says 10:30 a.m. at St. Mary's station...",
    "An old clock hangs -- high up -- in a train station",
  ],
  "people cannot see the zebra": [
    "The zebra can't be seen by those who aren't near",
    "In the 1920s J. Smith saw a 19th zebra at -10 degrees",
    "you cannot see a zebra",
    "they've lost the zebra, we'll find it",
  ],
  "man in a suit standing next to a man in a suit": [
    "Men in suits stand side-by-side.",
    "A man wearing a suit and tie",
  ],
  "kitchen": ["A kitchen with a stove, a sink and 1,000 tiles", "Kitchen"],
}
CAPTIONS = [words_of(text) for text in IMAGES]
REFERENCES = [[words_of(text) for text in texts] for texts in IMAGES.values()]


def test_words_are_in_lower_case_without_punctuation():
  assert words_of("A dog, wet -- and 'happy' (very)!") == (
    "a dog wet and happy -lrb- very -rrb-".split()
  )
  assert words_of("It isn't the man's; they'll see.") == (
    "it is n't the man 's they 'll see".split()
  )
  assert words_of("A double-decker at 10:30...") == "a double-decker at 10:30".split()
  assert words_of("") == []


@pytest.mark.skipif(not shutil.which("java"), reason="Stanford's tokenizer takes Java")
def test_words_are_those_of_the_tokenizer_of_ms_coco():
  theirs = pytest.importorskip(
    "pycocoevalcap.tokenizer.ptbtokenizer", reason="it is in the extra `eval`"
  )
  texts = [*IMAGES, *(text for own in IMAGES.values() for text in own)]
  wrapped = {i: [{"caption": text}] for i, text in enumerate(texts)}
  found = theirs.PTBTokenizer().tokenize(wrapped)
  for i, text in enumerate(texts):
    assert words_of(text) == found[i][0].split(), text


def test_the_score_is_that_of_pycocoevalcap():
  theirs = pytest.importorskip(
    "pycocoevalcap.cider.cider", reason="pycocoevalcap is in the extra `eval`"
  )
  captions = {i: [" ".join(words)] for i, words in enumerate(CAPTIONS)}
  references = {
    i: [" ".join(words) for words in own] for i, own in enumerate(REFERENCES)
  }
  want, each = theirs.Cider().compute_score(references, captions)
  found, own = cider(CAPTIONS, REFERENCES)
  assert found == pytest.approx(want, rel=1e-12)
  np.testing.assert_allclose(own, each, rtol=1e-12)


def test_the_score_of_these_captions_is_what_pycocoevalcap_gave():
  found, each = cider(CAPTIONS, REFERENCES)
  assert found == pytest.approx(1.5442284551303622, rel=1e-12)
  assert each[2] > each[7] > 0


def test_what_people_wrote_alone_is_10_and_what_nobody_wrote_is_0():
  references = [[own[0]] for own in REFERENCES[:4]]
  found, each = cider([own[0] for own in references], references)
  assert found == pytest.approx(10.0) and each.min() == pytest.approx(10.0)
  assert cider([["unheard", "of"]] * 4, references)[0] == 0.0
  assert cider([[]] * 4, references)[0] == 0.0


def test_an_image_without_a_caption_or_without_references_is_refused():
  for captions, references in ((CAPTIONS[1:], REFERENCES), ([["a"]], [[]]), ([], [])):
    with pytest.raises(ValueError, match="each needs a caption"):
      cider(captions, references)
