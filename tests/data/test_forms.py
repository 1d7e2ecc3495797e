"""A document's form: what may be noised how much, what is not learned of it."""

import collections

import numpy as np
import pytest
from tiny_sources import changed, latent, tokenizer

from tfusion import sequence
from tfusion.data import forms

READ = sequence.Image(latent(7), weight=0.0, noise_cap=0.0)
CODES = sequence.Codes(np.arange(3) + 300)
# Each with the places of images that learned text follows: it is read from them.
DOCUMENTS = {
  "story": (("1", latent(1), "2", latent(2), "3", latent(3)), [1, 3]),
  "page": ((latent(1), "1", latent(2), latent(3), "2"), [0, 2, 3]),
  "album": ((latent(1), latent(2), latent(3)), []),
  "edit": ((READ, "1", latent(2)), []),
  "answer": ((latent(1), sequence.Text(np.asarray([9]), weight=0.0)), []),
  "codes": ((CODES, latent(1), "1", CODES), [1]),
}


def formed(spans, *, showing, **diffusion):
  config = changed(diffusion=diffusion)
  how = dict(name="given", showing=showing)
  return forms.form(spans, tokenizer().encode, config, **how)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_cap_holds_for_every_image_that_text_follows_and_for_no_other(kind):
  spans, to_read = DOCUMENTS[kind]
  for showing in range(20):
    for cap in (0.5, 1.0):
      document = formed(spans, showing=showing, image_first_noise_cap=cap)
      for place, span in enumerate(document):
        if isinstance(span, sequence.Image) and span.weight:
          assert span.noise_cap == (cap if place in to_read else 1.0)


@pytest.mark.parametrize("kind", [kind for kind in DOCUMENTS if DOCUMENTS[kind][1]])
def test_the_clean_share_holds_for_each_of_these_images_alone(kind):
  spans, to_read = DOCUMENTS[kind]
  clean, together, count = collections.Counter(), collections.Counter(), 2000
  for showing in range(count):
    how = dict(image_first_noise_cap=0.5, image_first_clean=0.3)
    document = formed(spans, showing=showing, **how)
    own = [place for place in to_read if document[place].noise_cap == 0]
    clean.update(own)
    together[len(own)] += 1
    assert all(s.weight for s in document if s is not READ)  # BOI is learned
    others = (s for p, s in enumerate(document) if p not in to_read)
    assert all(getattr(s, "noise_cap", 1.0) == 1.0 for s in others if s is not READ)
  for place in to_read:
    assert abs(clean[place] / count - 0.3) < 0.06  # five standard deviations
  # Independent of each other: no image alone decides for all.
  assert len(together) == len(to_read) + 1


@pytest.mark.parametrize("kind", [kind for kind in DOCUMENTS if DOCUMENTS[kind][1]])
def test_a_clean_share_of_one_shows_every_image_that_text_follows_clean(kind):
  spans, to_read = DOCUMENTS[kind]
  for showing in range(20):
    document = formed(spans, showing=showing, image_first_clean=1.0)
    for place, span in enumerate(document):
      if isinstance(span, sequence.Image) and span is not READ:
        assert (span.noise_cap == 0) == (place in to_read)
    images = [s for s in document if isinstance(s, sequence.Image)]
    row = sequence.pack(
      [
        sequence.lay_out(document, special=tokenizer().special, patches_per_image=(16,))
      ],
      row_length=128,
      kinds=(sequence.KindSizes(4, (8, 8, 1), 16),),
      special=tokenizer().special,
    )
    want = [float(s.noise_cap > 0) for s in images]
    assert (
      row.slots[0].weights[: len(images)].tolist() == want
    )  # clean: no noise to learn


def test_what_becomes_of_a_pair_is_learned_as_it_was():
  special, ids = tokenizer().special, tokenizer().encode("1")
  kinds = collections.Counter()
  for showing in range(300):
    config = changed(data=dict(caption_first=0.5, caption_dropout=0.5))
    how = dict(name="pairs", showing=showing)
    document = forms.form(("1", latent(1)), tokenizer().encode, config, **how)
    laid = sequence.lay_out(document, special=special, patches_per_image=(16,))
    learned = list(laid.targets_l[laid.weights_l > 0])
    first, dropped = sequence.is_image(document[0]), document[0] == sequence.BREAK
    kinds["dropped" if dropped else "image first" if first else "caption first"] += 1
    text = [special.boi, *ids] if first else [*ids, special.boi]
    assert learned == ([] if dropped else [*text, special.eos])
  assert min(kinds.values()) > 40 and len(kinds) == 3
