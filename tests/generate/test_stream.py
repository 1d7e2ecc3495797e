"""Promises of streaming: what is shown on the way, and what comes of it."""

import jax
import numpy as np
import pytest
import tiny_codec
import tiny_trained

from tfusion.data.shards.manifest import ImageFormat
from tfusion.generate import samples, stream
from tfusion.generate.canvas import Canvas
from tfusion.generate.events import Denoised, Drew, Ended, Wrote

CANVAS = Canvas(tiny_trained.SHAPE)
PROMPT = "seven <image> and <image>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("tokenizer")) as trained:
    yield trained


def events(trained, prompt=PROMPT, *, seed=3, every=1):
  return list(stream.stream(trained, prompt, canvas=CANVAS, seed=seed, every=every))


def sample(trained, prompt=PROMPT, *, seed=3):
  (one,) = samples.sample(trained, [prompt], canvas=CANVAS, count=1, seed=seed)
  return one


def test_a_stream_ends_with_the_sample_bit_for_bit(trained):
  want = sample(trained)
  for every in (0, 1):
    *_, last = events(trained, every=every)
    assert isinstance(last, Ended)
    assert (str(last.sample), last.sample.made) == (str(want), want.made)
    assert last.sample.call == want.call
    for got, part in zip(last.sample.parts, want.parts, strict=True):
      np.testing.assert_array_equal(got, part)


def test_text_and_images_are_told_of_in_their_order_and_whole(trained):
  told = events(trained)
  sample = told[-1].sample
  parts = [""]
  for event in told:
    if isinstance(event, Wrote):
      assert event.text
      parts[-1] += event.text
    if isinstance(event, Drew):
      parts += [event.image, ""]
  made = [part for part, own in zip(sample.parts, sample.made) if own]
  texts = [part for part in made if isinstance(part, str)]
  assert "".join(part for part in parts if isinstance(part, str)) == "".join(texts)
  drawn = [part for part in parts if not isinstance(part, str)]
  assert len(drawn) == 2
  for got, want in zip(drawn, sample.images, strict=True):
    assert got.tobytes() == want.tobytes()


def test_an_image_is_shown_every_few_steps_until_it_is_done(trained):
  told = [(e.number, e.step, e.steps) for e in events(trained) if type(e) is Denoised]
  assert told == [(0, 1, 2), (1, 1, 2)]  # of two steps; the last is the image itself
  assert not [e for e in events(trained, every=0) if type(e) is Denoised]
  first = next(e for e in events(trained) if type(e) is Denoised)
  assert (first.image.mode, first.image.size) == ("RGB", (4, 4))


def test_text_is_told_of_a_few_tokens_at_a_time(trained):
  pieces = [e.text for e in events(trained, "text") if type(e) is Wrote]
  assert len(pieces) > 3  # of about 30 tokens


def test_characters_of_several_bytes_are_told_of_whole(trained, monkeypatch):
  whole = "aé😀b"
  data = whole.encode()
  teller = stream._Teller(trained.tokenizer, CANVAS, trained)
  decode = lambda ids: bytes(ids).decode(errors="replace")  # noqa: E731
  monkeypatch.setattr(type(trained.tokenizer), "decode", lambda self, ids: decode(ids))
  told = []
  for byte in data:
    told += teller.tell(stream.Piece(0, np.asarray([byte])))
  assert [event.text for event in told] == list(whole)


def test_what_cannot_be_is_refused_before_the_first_event(trained):
  how = dict(canvas=CANVAS, seed=0, every=1)
  with pytest.raises(ValueError, match="37 elements.*sample.max_elements=32"):
    stream.stream(trained, "<image>" * 6, **how)
  with pytest.raises(ValueError, match="every=-1: must be at least 0"):
    stream.stream(trained, "x", **how | dict(every=-1))
  with pytest.raises(ValueError, match="seed=-1"):
    stream.stream(trained, "x", **how | dict(seed=-1))


def test_between_events_the_mesh_is_not_in_use(trained):
  before = jax.sharding.get_mesh()
  for _ in stream.stream(trained, "text", canvas=CANVAS, seed=0, every=1):
    assert jax.sharding.get_mesh() == before


def test_images_of_codes_are_told_of_when_they_are_done(trained, monkeypatch):
  codec = tiny_codec.make(tiny_codec.VQ)
  canvas = Canvas(tiny_trained.SHAPE, ImageFormat("codes", (4,), codebook=11), codec)
  teller = stream._Teller(trained.tokenizer, canvas, trained)
  ids = np.arange(4, dtype=np.int32) + trained.tokenizer.vocab_size
  (event,) = teller.tell(stream.Made(0, stream.samples.Codes(ids)))
  assert isinstance(event, Drew) and event.number == 0
  assert (
    np.abs(
      np.asarray(event.image).astype(int) - codec.decode(np.arange(4)[None])[0]
    ).max()
    <= 1
  )
