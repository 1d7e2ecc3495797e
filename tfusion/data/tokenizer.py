"""Text <-> token ids.

Owns: training, loading and saving a tokenizer, which kinds of model there are. Not:
what is in a model (sentencepieces.py, bytepairs.py), where text comes from
(sources.py), what the special tokens mean (sequence.py).

A model's file holds everything, the special tokens too: what it lacks of BOI, EOI and
PAD is added above its vocabulary, and its hash covers what was added. It is called
tokenizer.model in workdirs and shards, of whichever kind it is.
"""

import hashlib
import heapq
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
from absl import logging

from tfusion import files, sequence
from tfusion.data.bytepairs import BytePairs
from tfusion.data.sentencepieces import BOI, EOI, SentencePieces

TRAINING_CHARACTERS = 50_000_000  # at most; these take byte-pair encoding seconds
MAX_SENTENCE_BYTES = 1 << 30  # above any text, so that none is left out of training

# What to do about a file that cannot serve; it depends on whose file it is.
REMEDY = (
  "name a sentencepiece model or a tokenizer.json, or leave it empty to train one on"
  " the sources"
)
OF_RUN = (
  "a trained model knows no other tokenizer: put the run's own file back, or train in a"
  " new workdir"
)
OF_SHARDS = "shards are of one tokenizer: put their own file back, or prepare them anew"
OF_JOB = (
  "name a sentencepiece model or a tokenizer.json, or leave --tokenizer away to train"
  " one"
)


class Model(Protocol):
  """Pieces of text with ids, and the special tokens; a class for each kind of file."""

  data: bytes  # all of it, with what was added
  special: sequence.SpecialTokens
  vocab_size: int  # above every id
  spoken: list[bool]  # by id: whether it is text
  # u8, by id: how good a place to cut a text lies behind it: 2 a line end, 1 a
  # sentence's.
  endings: np.ndarray

  def encode(self, text: str) -> list[int]:
    """The ids of a text; ValueError where it is not valid Unicode."""

  def decode(self, ids: list[int]) -> str:
    """The text of ids that are spoken."""


class Tokenizer:
  """A model with PAD, BOS, EOS, BOI and EOI; picklable."""

  def __init__(
    self, model: bytes, *, origin: str = "the tokenizer", remedy: str = REMEDY
  ):
    """Reads a model; adds BOI, EOI and PAD if it has none.

    Args:
      model: the bytes of a sentencepiece model, or of a tokenizer.json.
      origin: what error messages call it.
      remedy: what they tell to do.

    Raises:
      ValueError: neither, or a model without what it needs: see sentencepieces.py and
        bytepairs.py.
    """
    kind = BytePairs if model.lstrip().startswith(b"{") else SentencePieces
    self._model: Model = kind(model, origin=origin, remedy=remedy)
    self.special, self.vocab_size = self._model.special, self._model.vocab_size
    self.endings = self._model.endings
    self.sha256 = hashlib.sha256(self._model.data).hexdigest()

    self._kinds = 1

  def __reduce__(self):
    return _reopen, (self._model.data, self._kinds)

  def for_kinds(self, kinds: int) -> "Tokenizer":
    """The same tokenizer for a run of so many kinds of images: what begins those behind
    the first has ids above all pieces."""
    other = Tokenizer.__new__(Tokenizer)  # not copied: copy reads the model again
    vars(other).update(vars(self))
    above = range(self.vocab_size, self.vocab_size + kinds - 1)
    other.special = self.special._replace(other_bois=tuple(above))
    other._kinds = kinds
    return other

  @classmethod
  def train(
    cls,
    texts: Iterable[str],
    *,
    vocab_size: int,
    path: str | Path,
    max_characters: int = TRAINING_CHARACTERS,
  ) -> "Tokenizer":
    """Trains byte-pair encoding with byte fallback and writes it to a file.

    The same texts in the same order give the same bytes. Every character that occurs
    gets a piece; text with other characters is spelled in bytes.

    Args:
      texts: the corpus, which may be larger than memory.
      vocab_size: pieces at most; a small corpus gives fewer.
      path: the file to write, whole or not at all.
      max_characters: to train on, all in memory; of a larger corpus, texts are chosen
        by a hash of their number.

    Raises:
      ValueError: no text, or `vocab_size` has no room for its characters.
    """
    texts = _sample(texts, max_characters)
    if not texts:
      raise ValueError("data.sources: hold no text to train a tokenizer on")
    alphabet = set().union(*map(set, texts))
    least = 6 + 256 + len(alphabet)  # specials and UNK, bytes, characters
    if vocab_size < least:
      raise ValueError(
        f"model.vocab_size={vocab_size}: the text has {len(alphabet)} different"
        f" characters, which with bytes and special tokens need at least {least}"
      )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type="bpe",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      num_threads=1,
      max_sentence_length=MAX_SENTENCE_BYTES,
      # Lossless: text comes back as it was, spaces and line ends included.
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      character_coverage=1.0,
      byte_fallback=True,
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      control_symbols=[BOI, EOI],
      minloglevel=2,
    )
    tokenizer = cls(model.getvalue())
    tokenizer.save(path)
    return tokenizer

  @classmethod
  def load(
    cls, path: str | Path, *, key: str = "data.tokenizer", remedy: str = REMEDY
  ) -> "Tokenizer":
    """Reads a model file.

    Args:
      path: of the file.
      key: by which the user named it, for messages; empty: nobody did.
      remedy: what the messages tell to do.

    Raises:
      ValueError: no such file, or not a model that can serve.
    """
    path = files.to_path(path)
    origin = f"{key}={str(path)!r}" if key else str(path)
    if not path.is_file():
      files.check_there(path, option=key or "tokenizer")
      raise ValueError(f"{origin}: no such file; {remedy}")
    return cls(path.read_bytes(), origin=origin, remedy=remedy)

  def save(self, path: str | Path) -> None:
    """Writes the model to a file, whole or not at all."""
    files.write_whole(files.to_path(path), self._model.data)

  def encode(self, text: str) -> np.ndarray:
    """Returns i32[length]; never a special token, whatever the text spells.

    Raises:
      ValueError: the text is not valid Unicode (a lone surrogate).
    """
    return np.asarray(self._model.encode(text), np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids; skips special tokens and ids that no piece has.

    The inverse of `encode` for models trained here, for those of the Llama family, and
    for byte pairs: `decode(encode(text)) == text`. A Llama's sentencepiece model writes
    a space before every text and drops one here: `encode(a)` and `encode(b)` joined
    decode to a, a space and b, and a text that is decoded piece by piece loses the
    spaces between the pieces. Of other models, one that normalises gives back what it
    made of the text, and one without byte fallback drops the characters that it has
    not.

    A model's vocabulary may be larger than the tokenizer's, so ids without a piece can
    be sampled; they are silent.
    """
    spoken = self._model.spoken
    return self._model.decode(
      [int(i) for i in ids if 0 <= i < self.vocab_size and spoken[i]]
    )


def _reopen(model: bytes, kinds: int) -> Tokenizer:
  return Tokenizer(model).for_kinds(kinds)


def _sample(texts: Iterable[str], limit: int) -> list[str]:
  """At most `limit` characters of texts that are not empty, in order."""
  heap: list[tuple[int, int, str]] = []  # the largest hash on top
  read = held = whole = 0
  for number, text in enumerate(filter(None, texts)):
    read, whole = read + 1, whole + len(text)
    place = hashlib.blake2b(str(number).encode(), digest_size=6).digest()
    heapq.heappush(heap, (-int.from_bytes(place), number, text[:limit]))
    held += len(text[:limit])
    while held > limit:
      held -= len(heapq.heappop(heap)[2])
  if held < whole:
    logging.warning(
      "the tokenizer is trained on a sample: %s of %s texts, %s of %s characters",
      *(f"{n:,}" for n in (len(heap), read, held, whole)),
    )
  return [text for _, _, text in sorted(heap, key=lambda item: item[1])]
