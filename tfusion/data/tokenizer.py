"""Text <-> token ids.

Owns: training, loading and checking a sentencepiece model, the special tokens. Not:
where text comes from (sources.py), what the special tokens mean (sequence.py).

A model of the Llama family (unk 0, bos 1, eos 2, no pad) has no BOI and EOI. They and
PAD are added above its vocabulary, as control pieces at the end of the model itself. So
one file holds everything, and its hash covers what was added.
"""

import hashlib
import heapq
import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece
from absl import logging

from tfusion import files, sequence

# Appended to a serialised model, this replaces add_dummy_prefix of its normalizer_spec:
# messages in protocol buffers are joined by joining their bytes.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# Control symbols: sentencepiece never produces them from text, whatever it spells.
BOI, EOI, PAD = "<boi>", "<eoi>", "<pad>"
SPACE = "\u2581"  # how sentencepiece writes a space; text may hold it too
TRAINING_CHARACTERS = 50_000_000  # at most; these take byte-pair encoding seconds
MAX_SENTENCE_BYTES = 1 << 30  # above any text, so that none is left out of training

# What to do about a file that cannot serve; it depends on whose file it is.
REMEDY = "name a sentencepiece model, or leave it empty to train one on the sources"
OF_RUN = (
  "a trained model knows no other tokenizer: put the run's own file back, or train in a"
  " new workdir"
)
OF_SHARDS = "shards are of one tokenizer: put their own file back, or prepare them anew"
OF_JOB = "name a sentencepiece model, or leave --tokenizer away to train one"


class Tokenizer:
  """A sentencepiece model with PAD, BOS, EOS, BOI and EOI; picklable."""

  def __init__(
    self, model: bytes, *, origin: str = "the tokenizer", remedy: str = REMEDY
  ):
    """Reads a serialised sentencepiece model; adds BOI, EOI and PAD if it has none.

    Args:
      model: the bytes of a `.model` file.
      origin: what error messages call it.
      remedy: what they tell to do.

    Raises:
      ValueError: not a sentencepiece model, or one without BOS and EOS, or with other
        pieces of the special tokens' names.
    """
    processor = _open(model, origin, remedy)
    lacking = [n for n in (BOI, EOI, PAD) if _is_absent(processor, n)]
    if lacking:
      model = model + b"".join(map(_control_piece, lacking))
      processor = _open(model, origin, remedy)
    ids = {
      "pad": processor.pad_id(),
      "bos": processor.bos_id(),
      "eos": processor.eos_id(),
      "boi": processor.piece_to_id(BOI),
      "eoi": processor.piece_to_id(EOI),
    }
    lacking = [n for n, i in ids.items() if i < 0 or not processor.is_control(i)]
    if lacking:
      raise ValueError(
        f"{origin}: has no control symbol for {', '.join(lacking)}; a model needs bos"
        f" and eos and no pieces called {BOI}, {EOI} and {PAD}; {remedy}"
      )
    self._model = bytes(model)
    self._processor = processor
    # Behind the first part of a text, a space that is not there must not be added.
    self._inner = _open(self._model + NO_DUMMY_PREFIX, origin, remedy)
    self._spoken = [
      not (processor.is_control(i) or processor.is_unknown(i))
      for i in range(processor.piece_size())
    ]
    # How good a place to cut a text lies behind an id: 2 a line end, 1 a sentence's.
    self.endings = np.asarray(
      [_ending(p) for p in map(processor.id_to_piece, range(processor.piece_size()))],
      np.uint8,
    )
    self._space_ids = [processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
    self.special = sequence.SpecialTokens(**ids)
    self.vocab_size = processor.piece_size()
    self.sha256 = hashlib.sha256(self._model).hexdigest()

  def __reduce__(self):
    return Tokenizer, (self._model,)

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
    files.write_whole(files.to_path(path), self._model)

  def encode(self, text: str) -> np.ndarray:
    """Returns i32[length]; never a special token, whatever the text spells.

    Raises:
      ValueError: the text is not valid Unicode (a lone surrogate).
    """
    ids = []
    try:
      for i, part in enumerate(text.split(SPACE)):
        # Spelled in bytes, or it would come back as a space.
        ids += self._space_ids if i else []
        ids += (self._inner if i else self._processor).encode(part)
    except RuntimeError as error:
      raise ValueError(f"text {text!r}: not valid Unicode") from error
    return np.asarray(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids; skips special tokens and ids that no piece has.

    The inverse of `encode` for models trained here and for those of the Llama family:
    `decode(encode(text)) == text`. A Llama's model writes a space before every text and
    drops one here: `encode(a)` and `encode(b)` joined decode to a, a space and b, and a
    text that is decoded piece by piece loses the spaces between the pieces. Of other
    models, one that normalises gives back what it made of the text, and one without
    byte fallback drops the characters that it has not.

    A model's vocabulary may be larger than the tokenizer's, so ids without a piece can
    be sampled; they are silent.
    """
    spoken = [int(i) for i in ids if 0 <= i < self.vocab_size and self._spoken[i]]
    return self._processor.decode(spoken)


def _open(
  model: bytes, origin: str, remedy: str
) -> sentencepiece.SentencePieceProcessor:
  try:
    if not model:
      raise RuntimeError("it is empty")
    return sentencepiece.SentencePieceProcessor(model_proto=model)
  except RuntimeError as error:
    raise ValueError(f"{origin}: not a sentencepiece model; {remedy}") from error


def _is_absent(processor: sentencepiece.SentencePieceProcessor, piece: str) -> bool:
  if piece == PAD and processor.pad_id() >= 0:
    return False  # by whatever name
  return processor.id_to_piece(processor.piece_to_id(piece)) != piece


def _control_piece(name: str) -> bytes:
  """ModelProto.pieces (1) with piece (1), score (2) = 0 and type (3) = CONTROL (3)."""
  coded = name.encode()
  inner = b"\x0a" + bytes([len(coded)]) + coded
  inner += b"\x15" + struct.pack("<f", 0.0) + b"\x18\x03"
  return b"\x0a" + bytes([len(inner)]) + inner


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


def _ending(piece: str) -> int:
  if "\n" in piece or piece == "<0x0A>":
    return 2
  return int(piece.endswith((".", "!", "?", "\u3002")))
