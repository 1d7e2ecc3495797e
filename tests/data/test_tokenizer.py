"""Text survives the tokenizer, whatever it holds."""

import hashlib
import pickle
import random
import re
import weakref

import numpy as np
import pytest
import sentencepiece

from tfusion.data import tokenizer as tokenizer_lib
from tfusion.data.tokenizer import Tokenizer
from tfusion.sequence import SpecialTokens

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
  assert tokenizer.special == SpecialTokens(pad=0, bos=2, eos=3, boi=4, eoi=5)


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


def test_a_model_in_which_text_can_spell_boi_is_refused(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(tmp_path / "plain"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
    user_defined_symbols="<boi>,<eoi>",
  )
  with pytest.raises(ValueError, match="data.tokenizer.*boi, eoi.*leave it empty"):
    Tokenizer.load(tmp_path / "plain.model")


# A model as the Llama family has them.

PLAIN = [text for text in TEXTS if text != TEXTS[4]]  # without its names of tokens


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  """A model file trained with the options of Llama's, which differ from ours."""
  folder = tmp_path_factory.mktemp("llama")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(folder / "llama"),
    model_type="bpe",
    vocab_size=400,
    hard_vocab_limit=False,
    character_coverage=0.99995,
    byte_fallback=True,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=True,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  return folder / "llama.model"


def test_boi_eoi_and_pad_are_added_above_a_llamas_vocabulary(llama):
  plain = sentencepiece.SentencePieceProcessor(model_file=str(llama))
  n = plain.piece_size()
  made = Tokenizer.load(llama)
  assert made.special == SpecialTokens(pad=n + 2, bos=1, eos=2, boi=n, eoi=n + 1)
  assert made.vocab_size == n + 3
  for text in PLAIN:
    if "\u2581" not in text:
      assert list(made.encode(text)) == plain.encode(text)  # the ids it has always had
  assert made.decode([1, n, *made.encode("seven"), n + 1, n + 2, 2, 0]) == "seven"


def test_a_llama_with_a_pad_of_its_own_keeps_it(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(tmp_path / "own"),
    model_type="bpe",
    vocab_size=400,
    hard_vocab_limit=False,
    byte_fallback=True,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=3,
    pad_piece="<filler>",
    minloglevel=2,
  )
  made = Tokenizer.load(tmp_path / "own.model")
  n = made.vocab_size
  assert made.special == SpecialTokens(pad=3, bos=1, eos=2, boi=n - 2, eoi=n - 1)


@pytest.mark.parametrize("text", [*TEXTS, "\u2581", "\u2581a", "a\u2581", " \u2581 "])
def test_text_comes_back_from_a_llama_as_it_was(llama, text):
  made = Tokenizer.load(llama)
  assert made.decode(made.encode(text)) == text
  assert not set(made.encode(text)) & {0, *made.special}


def test_texts_that_a_llama_encoded_one_by_one_are_joined_with_spaces(llama, tokenizer):
  made = Tokenizer.load(llama)
  joined = [*made.encode("a seven"), *made.encode("the nine")]
  assert made.decode(joined) == "a seven the nine"
  ids = made.encode("a seven")
  assert "".join(made.decode([i]) for i in ids).replace(" ", "") == "aseven"
  joined = [*tokenizer.encode("a seven"), *tokenizer.encode("the nine")]
  assert tokenizer.decode(joined) == "a seventhe nine"  # ours adds nothing


def test_the_hash_of_a_llama_is_of_the_model_and_what_was_added(llama, tmp_path):
  made = Tokenizer.load(llama)
  assert made.sha256 != hashlib.sha256(llama.read_bytes()).hexdigest()
  made.save(tmp_path / "saved.model")
  saved = (tmp_path / "saved.model").read_bytes()
  assert saved.startswith(llama.read_bytes())
  assert made.sha256 == hashlib.sha256(saved).hexdigest()
  for again in (
    Tokenizer.load(tmp_path / "saved.model"),
    Tokenizer.load(llama),
    pickle.loads(pickle.dumps(made)),
  ):
    assert (again.sha256, again.special) == (made.sha256, made.special)


def test_a_model_that_has_all_keeps_its_bytes(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "own.model")
  own = hashlib.sha256((tmp_path / "own.model").read_bytes()).hexdigest()
  assert tokenizer.sha256 == own


@pytest.mark.parametrize("lacking", ["bos", "eos"])
def test_a_model_without_bos_or_eos_is_refused(tmp_path, lacking):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=str(tmp_path / "bare"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
    **{f"{lacking}_id": -1},
  )
  with pytest.raises(ValueError, match=f"no control symbol for {lacking}"):
    Tokenizer.load(tmp_path / "bare.model")


# Training on a sample.


def numbered(count, *, alive=None):
  for n in range(count):
    text = Counted(f"text number {n} " * 4)
    if alive is not None:
      alive.add(text)
    yield text
    del text


class Counted(str):
  """A text that can be weakly referred to."""

  def __hash__(self):
    return id(self)


def test_a_larger_corpus_is_sampled_without_being_held(tmp_path, caplog):
  alive, most = weakref.WeakSet(), 0

  def texts():
    nonlocal most
    for text in numbered(3000, alive=alive):
      most = max(most, len(alive))
      yield text

  made = Tokenizer.train(
    texts(), vocab_size=400, path=tmp_path / "t.model", max_characters=10_000
  )
  assert most < 200  # of 3000; 10,000 characters are about 150
  said = re.search(r"sample: (\d+) of 3,000 texts, ([\d,]+) of ([\d,]+)", caplog.text)
  assert 100 < int(said[1]) < 200
  assert 9_900 < int(said[2].replace(",", "")) <= 10_000
  assert int(said[3].replace(",", "")) == sum(map(len, numbered(3000)))
  again = Tokenizer.train(
    numbered(3000), vocab_size=400, path=tmp_path / "u.model", max_characters=10_000
  )
  assert again.sha256 == made.sha256


def test_a_sample_is_from_all_over_the_corpus_and_in_order():
  texts = [f"{n:05d}" for n in range(10_000)]
  chosen = [int(t) for t in tokenizer_lib._sample(texts, 5_000)]
  assert len(chosen) == 1000 and chosen == sorted(set(chosen))
  shares = np.histogram(chosen, 10, (0, 10_000))[0]
  assert 60 < shares.min() and shares.max() < 140  # four deviations of 100


def test_a_small_corpus_is_not_sampled_and_said_nothing_of(tmp_path, caplog):
  texts = ["aaa", "", "bbb"]
  assert tokenizer_lib._sample(texts, 6) == ["aaa", "bbb"] and not caplog.text
  assert tokenizer_lib._sample(["a" * 50], 6) == ["a" * 6]
  assert "1 of 1 texts, 6 of 50" in caplog.text
