"""Models of sentencepiece, as we train them and as the Llama family has them.

Owns: reading one, its special tokens, adding BOI, EOI and PAD. Not: training one
(tokenizer.py).

A model of the Llama family (unk 0, bos 1, eos 2, no pad) has no BOI and EOI. They and
PAD are added above its vocabulary, as control pieces at the end of the model itself.
"""

import struct

import numpy as np
import sentencepiece

from tfusion import sequence

# Appended to a serialised model, this replaces add_dummy_prefix of its normalizer_spec:
# messages in protocol buffers are joined by joining their bytes.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# Control symbols: sentencepiece never produces them from text, whatever it spells.
BOI, EOI, PAD = "<boi>", "<eoi>", "<pad>"
SPACE = "\u2581"  # how sentencepiece writes a space; text may hold it too


class SentencePieces:
  """A sentencepiece model."""

  def __init__(self, model: bytes, *, origin: str, remedy: str):
    """Reads a serialised model; adds BOI, EOI and PAD if it has none.

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
    self.data = bytes(model)
    pad, bos, eos, boi, eoi = ids.values()
    self.special = sequence.SpecialTokens(pad, bos, eos, boi, eoi)
    self.vocab_size = processor.piece_size()
    self.spoken = [
      not (processor.is_control(i) or processor.is_unknown(i))
      for i in range(processor.piece_size())
    ]
    self.endings = np.asarray(
      [_ending(p) for p in map(processor.id_to_piece, range(processor.piece_size()))],
      np.uint8,
    )
    self._processor = processor
    # Behind the first part of a text, a space that is not there must not be added.
    self._inner = _open(self.data + NO_DUMMY_PREFIX, origin, remedy)
    self._space_ids = [processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]

  def encode(self, text: str) -> list[int]:
    """The ids of a text; never those of control symbols.

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
    return ids

  def decode(self, ids: list[int]) -> str:
    """The text of ids."""
    return self._processor.decode(ids)


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


def _ending(piece: str) -> int:
  if "\n" in piece or piece == "<0x0A>":
    return 2
  return int(piece.endswith((".", "!", "?", "\u3002")))
