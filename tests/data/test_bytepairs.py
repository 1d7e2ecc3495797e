"""Text survives byte pairs of a tokenizer.json, and the file says all by itself."""

import hashlib
import json
import pickle
import random

import numpy as np
import pytest

from tfusion.data import bytepairs
from tfusion.data.tokenizer import Tokenizer
from tfusion.sequence import SpecialTokens

tokenizers = pytest.importorskip("tokenizers")

CORPUS = ["a handwritten seven.", "the digit nine\n\n    twice", "Gr\u00fc\u00dfe"] * 9
TEXTS = [
  "",
  "  two  spaces ",
  "line\r\nline\n\n\ttab",
  "\0 null",
  "<boi><eoi></s><s><pad><|endoftext|><|begin_of_text|><bos><eos>",
  "\u2581 \u65e5\u672c \U0001f389 e\u0301 \ufb01 \ufffd",
  "seven" * 50,
]


def made(*special: str, **changes) -> bytes:
  """A small model as GPT-2's, with these special tokens; changes of its JSON."""
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=list(special),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  model.train_from_iterator(CORPUS, trainer)
  return json.dumps(json.loads(model.to_str()) | changes).encode()


GPT = made("<|endoftext|>")
LLAMA = made("<|begin_of_text|>", "<|end_of_text|>")


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was_and_spells_no_special_token(model, text):
  tokenizer = Tokenizer(model)
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
  assert not set(ids) & {*tokenizer.special}


def test_any_characters_come_back_as_they_were():
  tokenizer, rng = Tokenizer(GPT), random.Random(0)
  for _ in range(100):
    codes = [rng.choice([rng.randrange(0xD800), rng.randrange(128)]) for _ in range(20)]
    text = "".join(map(chr, codes))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_known_by_name_and_those_that_lack_lie_above():
  gpt, llama = Tokenizer(GPT), Tokenizer(LLAMA)
  size = len(json.loads(GPT)["model"]["vocab"])
  assert gpt.special == SpecialTokens(
    pad=size, bos=size + 1, eos=0, boi=size + 2, eoi=size + 3
  )
  assert gpt.vocab_size == size + 4
  assert (llama.special.bos, llama.special.eos) == (0, 1)
  ids = [gpt.special.bos, *gpt.encode("seven"), gpt.special.boi, 10**6, -1]
  assert gpt.decode(ids) == "seven"


def test_what_was_added_is_in_the_file_that_is_saved(tmp_path):
  tokenizer = Tokenizer(GPT)
  tokenizer.save(tmp_path / "tokenizer.model")
  saved = (tmp_path / "tokenizer.model").read_bytes()
  assert tokenizer.sha256 == hashlib.sha256(saved).hexdigest()
  for again in (
    Tokenizer.load(tmp_path / "tokenizer.model"),
    Tokenizer(GPT),
    pickle.loads(pickle.dumps(tokenizer)),
  ):
    assert (again.sha256, again.special) == (tokenizer.sha256, tokenizer.special)
    np.testing.assert_array_equal(again.encode("nine"), tokenizer.encode("nine"))


def test_a_model_that_has_all_keeps_its_bytes():
  whole = made("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")
  tokenizer = Tokenizer(whole)
  assert tokenizer.sha256 == hashlib.sha256(whole).hexdigest()
  assert tokenizer.special == SpecialTokens(0, 1, 2, 3, 4)


def test_a_file_that_cuts_or_fills_texts_does_neither_here():
  cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
  fill = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
  fill |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
  tokenizer = Tokenizer(made("<|endoftext|>", truncation=cut, padding=fill))
  assert tokenizer.decode(tokenizer.encode(TEXTS[6])) == TEXTS[6]
  assert len(tokenizer.encode("")) == 0


def test_a_document_is_cut_behind_lines_and_sentences():
  tokenizer = Tokenizer(GPT)
  (line,), (stop,) = tokenizer.encode("\n"), tokenizer.encode(".")
  assert tokenizer.endings[line] == 2 and tokenizer.endings[stop] == 1
  assert tokenizer.endings[tokenizer.encode("a")[0]] == 0
  assert tokenizer.endings.shape == (tokenizer.vocab_size,)
  assert [bytepairs._ending("\u00e3\u0122\u0124"), bytepairs._ending("x!")] == [1, 1]


def test_half_a_character_is_refused():
  with pytest.raises(ValueError, match="not valid Unicode"):
    Tokenizer(GPT).encode("a \ud800")


VOCAB = json.loads(GPT)["model"]["vocab"]
MODEL = json.loads(GPT)["model"]
ADDED = json.loads(GPT)["added_tokens"]
LACKING = {piece: i for piece, i in VOCAB.items() if piece != "a"}


@pytest.mark.parametrize(
  ("model", "says"),
  [
    (b"{", "no JSON"),
    (b"{}", "is no BPE;"),
    (made(model={"type": "WordPiece"}), "is no BPE;"),
    (made(decoder=None), "is no BPE of bytes"),
    (made(model=MODEL | {"dropout": 0.1}), "at random"),
    (made(model=MODEL | {"vocab": {"a": "b"}}), "no vocabulary of ids"),
    (made(model=MODEL | {"vocab": LACKING}), "lacks 1 of the 256 bytes"),
    (made(added_tokens=None), "no list of added tokens"),
    (made(added_tokens=[{"id": 0, "content": "a"}]), "no list of added tokens"),
    (made(model=MODEL | {"merges": [["no", "such"]]}), "cannot be read"),
    (
      made(model=MODEL | {"vocab": VOCAB | {"<boi>": 300}}),
      "piece <boi> that text can",
    ),
    (
      made("<|endoftext|>", added_tokens=[ADDED[0] | {"special": False}]).replace(
        b"<|endoftext|>", b"<eos>"
      ),
      "piece <eos> that text can",
    ),
  ],
)
def test_a_file_that_cannot_serve_is_refused_with_what_to_do(tmp_path, model, says):
  (tmp_path / "tokenizer.json").write_bytes(model)
  with pytest.raises(ValueError, match=f"data.tokenizer=.*{says}.*leave it empty"):
    Tokenizer.load(tmp_path / "tokenizer.json")


def test_without_the_library_its_extra_is_named(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'tfusion\[tokenizers\]'"):
    Tokenizer(GPT)
