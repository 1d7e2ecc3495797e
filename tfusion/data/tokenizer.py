"""Text <-> token ids.

Owns: training, loading and checking a sentencepiece model, the special tokens. Not:
where text comes from (sources.py), what the special tokens mean (sequence.py).
"""

import hashlib
import io
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

from tfusion import sequence

# Control symbols: sentencepiece never produces them from text, whatever it spells.
BOI, EOI = "<boi>", "<eoi>"
SPACE = "\u2581"  # how sentencepiece writes a space; text may hold it too
MAX_SENTENCE_BYTES = 1 << 30  # above any text, so that none is left out of training


class Tokenizer:
  """A sentencepiece model with PAD, BOS, EOS, BOI and EOI; picklable."""

  def __init__(self, model: bytes, *, origin: str = "the tokenizer"):
    """Reads a serialised sentencepiece model.

    Args:
      model: the bytes of a `.model` file.
      origin: what error messages call it.

    Raises:
      ValueError: not a sentencepiece model, or one that lacks a special token.
    """
    try:
      if not model:
        raise RuntimeError("it is empty")
      processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f"{origin}: not a sentencepiece model; name another data.tokenizer, or leave"
        " it empty to train one on the sources"
      ) from error
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
        f"{origin}: has no control symbol for {', '.join(lacking)}; train it with"
        f" pad, bos, eos and control_symbols={BOI},{EOI}, or leave data.tokenizer"
        " empty to train one on the sources"
      )
    self._model = bytes(model)
    self._processor = processor
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
    cls, texts: Iterable[str], *, vocab_size: int, path: str | Path
  ) -> "Tokenizer":
    """Trains byte-pair encoding with byte fallback and writes it to a file.

    Deterministic: the same texts in the same order give the same bytes. Every
    character of the texts gets a piece; any other text is spelled in bytes.

    Args:
      texts: the corpus.
      vocab_size: pieces at most; a small corpus gives fewer.
      path: the file to write, whole or not at all.

    Raises:
      ValueError: no text, or `vocab_size` has no room for its characters.
    """
    texts = [text for text in texts if text]
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
  def load(cls, path: str | Path) -> "Tokenizer":
    """Reads a model file.

    Raises:
      ValueError: no such file, not a sentencepiece model, or one without <boi>.
    """
    path = Path(path)
    if not path.is_file():
      raise ValueError(
        f"data.tokenizer={str(path)!r}: no such file; name a sentencepiece model, or"
        " leave it empty to train one on the sources"
      )
    return cls(path.read_bytes(), origin=f"data.tokenizer={str(path)!r}")

  def save(self, path: str | Path) -> None:
    """Writes the model to a file, whole or not at all."""
    path = Path(path)
    # Several hosts may write the same model into one workdir.
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    aside.write_bytes(self._model)
    os.replace(aside, path)

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
        ids += self._processor.encode(part)
    except RuntimeError as error:
      raise ValueError(f"text {text!r}: not valid Unicode") from error
    return np.asarray(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids; skips special tokens and ids that no piece has.

    The inverse of `encode`. A model's vocabulary may be larger than the tokenizer's,
    so ids without a piece can be sampled; they are silent.
    """
    spoken = [int(i) for i in ids if 0 <= i < self.vocab_size and self._spoken[i]]
    return self._processor.decode(spoken)


def _ending(piece: str) -> int:
  if "\n" in piece or piece == "<0x0A>":
    return 2
  return int(piece.endswith((".", "!", "?", "\u3002")))
