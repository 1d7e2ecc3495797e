"""Text survives the tokenizer, whatever it holds."""

import pickle
import random

import numpy as np
import pytest
import sentencepiece

from tfusion.data.tokenizer import Tokenizer

CORPUS = [
  "a handwritten seven",
  "the digit nine\n\n    indented, twice",
  "Gr\u00fc\u00dfe \u4f60\u597d",
] * 5
TEXTS = [
  "",
  " ",
  "  two  spaces ",
  "line\r\nline\n\n\ttab",
  "\0 null",
  "<boi><eoi></s><s><pad><unk><0x41>",
  "\u2581 is how a space is written \u2581\u2581",
  "\u65e5\u672c \U0001f389 e\u0301 \ufb01 \u00bd",
  "\u00a0\u2028\u3000 odd spaces",
  "\ufffd \U0010ffff \u2047",
  "seven" * 100,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return Tokenizer.train(CORPUS, vocab_size=340, path=path)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text


def test_any_characters_come_back_as_they_were(tokenizer):
  rng = random.Random(0)
  for _ in range(300):
    codes = [rng.choice([rng.randrange(0xD800), rng.randrange(128)]) for _ in range(20)]
    text = "".join(map(chr, codes))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_spells_a_special_token(tokenizer, text):
  assert not set(tokenizer.encode(text)) & {1, *tokenizer.special}


def test_special_tokens_have_the_first_ids(tokenizer):
  assert tokenizer.special._asdict() == dict(pad=0, bos=2, eos=3, boi=4, eoi=5)


def test_decoding_skips_special_tokens_and_ids_without_a_piece(tokenizer):
  ids = [2, *tokenizer.encode("the digit"), 4, 0, 5, 10**6, 1, -1, 3]
  assert tokenizer.decode(ids) == "the digit"


def test_training_twice_gives_the_same_bytes(tokenizer, tmp_path):
  again = Tokenizer.train(CORPUS, vocab_size=340, path=tmp_path / "again.model")
  assert again.sha256 == tokenizer.sha256
  assert Tokenizer.load(tmp_path / "again.model").sha256 == tokenizer.sha256
  other = Tokenizer.train(CORPUS, vocab_size=330, path=tmp_path / "other.model")
  assert other.sha256 != tokenizer.sha256
  assert {p.name for p in tmp_path.iterdir()} == {"again.model", "other.model"}


def test_a_small_corpus_gives_fewer_pieces_than_allowed(tmp_path):
  made = Tokenizer.train(["aaa bbb"], vocab_size=5000, path=tmp_path / "t.model")
  assert 6 + 256 < made.vocab_size < 300


def test_a_long_text_is_not_left_out_of_training(tmp_path):
  text = "zebra " * 10_000 + "\u00e9"
  made = Tokenizer.train([text, "b"], vocab_size=300, path=tmp_path / "t.model")
  assert len(made.encode("\u00e9")) == 1  # a piece, not bytes
  assert len(made.encode("zebra zebra")) < 5


def test_a_tokenizer_survives_pickling(tokenizer):
  copy = pickle.loads(pickle.dumps(tokenizer))
  assert copy.sha256 == tokenizer.sha256
  np.testing.assert_array_equal(copy.encode("a nine"), tokenizer.encode("a nine"))


def test_the_least_vocabulary_is_named_and_works(tmp_path):
  least = 6 + 256 + len(set("".join(CORPUS)))
  with pytest.raises(ValueError, match=f"model.vocab_size={least - 1}.*{least}"):
    Tokenizer.train(CORPUS, vocab_size=least - 1, path=tmp_path / "t.model")
  Tokenizer.train(CORPUS, vocab_size=least, path=tmp_path / "t.model")


def test_no_text_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no text"):
    Tokenizer.train(["", ""], vocab_size=300, path=tmp_path / "t.model")


def test_half_a_character_is_refused(tokenizer):
  with pytest.raises(ValueError, match="not valid Unicode"):
    tokenizer.encode("a \ud800")


def test_a_missing_a_foreign_and_an_empty_file_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no such file"):
    Tokenizer.load(tmp_path / "none.model")
  for content in (b"", b"not a model"):
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(ValueError, match="bad.model.*not a sentencepiece model"):
      Tokenizer.load(tmp_path / "bad.model")


@pytest.mark.parametrize(
  "options",
  [
    dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3),
    # As ordinary pieces, which text could spell.
    dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3, user_defined_symbols="<boi>,<eoi>"),
  ],
)
def test_a_model_without_its_own_boi_is_refused(tmp_path, options):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(tmp_path / "plain"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
    **options,
  )
  with pytest.raises(ValueError, match="boi.*data.tokenizer"):
    Tokenizer.load(tmp_path / "plain.model")
