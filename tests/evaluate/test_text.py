"""Promises of tfusion/evaluate/text.py."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
import tiny_shards

from tfusion import sequence
from tfusion.data.digits import Digits
from tfusion.data.pipeline import Corpus
from tfusion.data.prose import Prose
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import text as text_lib
from tfusion.evaluate.evaluation import Asked
from tfusion.evaluate.text import count_bytes, perplexity
from tfusion.generate.trained import Trained
from tfusion.model.transfusion import bind

HELD_OUT = ("one two", "a seven, three", "the digit of the number", "x", "no scan")
PROSE = Prose("prose", HELD_OUT)
DIGITS = Digits("digits", np.zeros((2, 8, 8, 1), np.uint8), np.asarray([3, 7]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A model with random numbers, trained on nothing."""
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  tokenizer = Tokenizer.train([*HELD_OUT, *DIGITS.texts()], vocab_size=320, path=path)
  config = tiny.config(
    model__vocab_size=tokenizer.vocab_size,
    model__image_shape=(8, 8, 1),
    data__row_length=64,
  )
  with tiny.one_device() as mesh:
    yield Trained(config, 1, tiny.params(config.model), tokenizer, mesh)


@pytest.mark.slow
def test_perplexity_is_that_of_the_held_out_prose_read_one_by_one(trained, tmp_path):
  config, special = trained.config, trained.tokenizer.special
  texts = [trained.tokenizer.encode(text) for text in HELD_OUT]
  rows = [
    sequence.pack(
      [
        sequence.lay_out(
          (sequence.Text(ids),), special=special, patches_per_image=(16,)
        )
      ],
      row_length=config.data.row_length,
      kinds=(
        sequence.KindSizes(config.data.image_slots, config.model.image_shape, 16),
      ),
      special=special,
    )
    for ids in texts
  ]
  batch = tiny.put(sequence.stack(rows))

  @jax.jit
  def forward(params, batch):
    t_bn = batch.slots[0].starts
    return bind(config.model, params)(batch, (batch.slots[0].latents,), (t_bn,))[0]

  nats = []
  for ids, logits in zip(texts, np.asarray(forward(trained.params, batch), float)):
    for scores, target in zip(logits, [*ids, special.eos]):
      nats.append(np.log(np.sum(np.exp(scores))) - scores[target])
  corpus = Corpus(
    (Prose("prose", ("trained on",)),), (DIGITS, PROSE), trained.tokenizer
  )
  found = perplexity(trained, corpus, tmp_path)
  assert found["text_tokens"] == len(nats)
  # Float32 sums in another order.
  assert found["text_perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
  assert found["text_bytes"] == sum(len(text.encode()) for text in HELD_OUT)
  per_byte = np.exp(np.sum(nats) / found["text_bytes"])
  assert found["text_perplexity_per_byte"] == pytest.approx(per_byte, rel=1e-5)


def test_bytes_are_those_of_the_text_that_is_learned_in_whatever_language(trained):
  tokenizer = trained.tokenizer
  image = sequence.Image(np.zeros((8, 8, 1), np.float32))
  texts = "one", "\u0421\u0442\u043e\u043b", "\u65e5\u672c two", "not learned", "x"
  one, table, two, read, x = (tokenizer.encode(text) for text in texts)
  codes = sequence.Codes(np.full(3, tokenizer.vocab_size + 1))
  documents = [
    (sequence.Text(one), image, sequence.Text(table)),
    (sequence.Text(read, weight=0.0), codes, sequence.Text(two)),
    (sequence.BREAK, sequence.Text(x)),
  ]
  sizes = dict(special=tokenizer.special)
  laid = [
    sequence.lay_out(document, **sizes, patches_per_image=(16,))
    for document in documents
  ]
  sizes |= dict(row_length=192, kinds=(sequence.KindSizes(1, (8, 8, 1), 16),))
  batch = sequence.stack([sequence.pack(laid, **sizes)])
  learned = [texts[i].encode() for i in (0, 1, 2)]
  # The one token of the last is behind a Break, but the space before it may be another.
  want = sum(map(len, learned)) + len(tokenizer.decode(x[1:]).encode())
  assert count_bytes([batch, batch], tokenizer) == 2 * want


class Llama:
  """Writes a space before every word and drops the first of what it decodes."""

  special, vocab_size = tiny.SPECIAL, 30

  def decode(self, ids):
    return "".join(" word" for _ in ids)[1:]


def test_each_learned_text_is_decoded_by_itself_and_nothing_else_is():
  ids, image = np.arange(10, 20), sequence.Image(np.zeros((8, 8, 1), np.float32))
  codes = sequence.Codes(np.full(3, Llama.vocab_size + 1))
  documents = [
    (sequence.Text(ids[:3]), image, sequence.Text(ids[:5])),
    (sequence.Text(ids, weight=0.0), codes, sequence.Text(ids[:1])),
    (
      sequence.Text(ids[:2]),
      sequence.Text(ids[:4], weight=0.0),
      sequence.Text(ids[:2]),
    ),
  ]
  sizes = dict(special=Llama.special)
  laid = [
    sequence.lay_out(document, **sizes, patches_per_image=(16,))
    for document in documents
  ]
  sizes |= dict(row_length=96, kinds=(sequence.KindSizes(1, (8, 8, 1), 16),))
  batch = sequence.stack([sequence.pack(laid, **sizes)])
  want = sum(len(Llama().decode(range(n))) for n in (3, 5, 1, 2, 2))
  assert count_bytes([batch], Llama()) == want


def test_nats_of_all_hosts_are_shared_out_over_the_bytes_of_all(
  trained, tmp_path, monkeypatch
):
  corpus = Corpus((PROSE,), (PROSE,), trained.tokenizer)
  alone = perplexity(trained, corpus, tmp_path)
  monkeypatch.setattr(text_lib, "gather_json", lambda own: [own, 7])
  found = perplexity(trained, corpus, tmp_path)
  assert found["text_bytes"] == alone["text_bytes"] + 7
  nats = [
    np.log(x["text_perplexity_per_byte"]) * x["text_bytes"] for x in (alone, found)
  ]
  assert nats[0] == pytest.approx(nats[1])


def test_without_prose_captions_are_read(trained, tmp_path):
  corpus = Corpus((PROSE,), (DIGITS,), trained.tokenizer)
  found = perplexity(trained, corpus, tmp_path)
  captions = [trained.tokenizer.encode(text) for text in DIGITS.texts()]
  # Each is followed by BOI and EOS, in whichever order.
  assert found["text_tokens"] == sum(len(ids) + 2 for ids in captions)


def asked(trained, argument, workdir, *sources, data=None):
  corpus = Corpus((), sources, trained.tokenizer)
  return Asked(trained, corpus, workdir, data, argument)


@pytest.mark.slow
def test_ppl_of_a_source_is_the_perplexity_of_that_one_alone(trained, tmp_path):
  both = Prose("other", ("one two three",) * 3), PROSE
  found = text_lib.perplexity_of(asked(trained, "prose", tmp_path, *both))
  alone = perplexity(trained, Corpus((), (PROSE,), trained.tokenizer), tmp_path)
  assert found["ppl:prose"] == alone["text_perplexity"]
  assert found["ppl:prose perplexity_per_byte"] == alone["text_perplexity_per_byte"]
  assert found["ppl:prose tokens"] == alone["text_tokens"]


def test_ppl_takes_a_source_that_the_run_does_not_have(trained, tmp_path):
  source = text_lib.open_source(asked(trained, "pydoc", tmp_path, PROSE))
  assert source.name == "pydoc" and len(source) > 10
  room = trained.config.data.row_length - 1  # BOS
  lengths = [len(trained.tokenizer.encode(text)) for text in source.documents]
  assert room / 2 < max(lengths) <= room
  # As the run's own weights and epochs say nothing of it.
  config = tiny.build(data__sources=("digits",), data__weights=(1.0,))
  config = dataclasses.replace(trained.config, data=config.data)
  own = asked(trained._replace(config=config), "prose", tmp_path, PROSE)
  assert text_lib.perplexity_of(own)["ppl:prose"] > 1


@pytest.mark.parametrize(
  "argument, says",
  [
    ("wikipedia", "ppl:wikipedia: is no source .*, nor a folder of shards in --data"),
    ("digits", "ppl:digits: has images, and is none of data.sources="),
    ("shards:/none/such", "/none/such"),
  ],
)
def test_ppl_of_what_is_no_text_is_one_message(trained, tmp_path, argument, says):
  with pytest.raises(ValueError, match=says):
    text_lib.open_source(asked(trained, argument, tmp_path, PROSE))


def test_ppl_finds_shards_by_their_name_in_the_folder_of_data(trained, tmp_path):
  folder = tmp_path / "data" / "wikipedia"
  tiny_shards.make(folder, kind=None, words=trained.tokenizer)
  own = asked(trained, "wikipedia", tmp_path, PROSE, data=tmp_path / "data")
  assert len(text_lib.open_source(own)) == 4
  tiny_shards.make(folder, kind=None)
  with pytest.raises(ValueError, match="is another tokenizer than .*wikipedia"):
    text_lib.open_source(own)
