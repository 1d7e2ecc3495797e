"""Byte pairs in a tokenizer.json, as GPT-2, Llama 3 and Qwen have them.

Owns: reading one by the library tokenizers, its special tokens, adding those that it
lacks. Not: training one, which is done with sentencepiece (tokenizer.py).

Only byte-level models are read, whose text comes back as it was. Such a file does not
say which of its special tokens begins and ends a text, so they are known by their
names; BOI, EOI, and what there is none of, are added above the vocabulary, among the
file's own "added_tokens".
"""

import importlib.util
import json
from typing import Any

import numpy as np

from tfusion import parsing, sequence

# Special token -> names that it may have, the most particular first; if it has none of
# them, it is added under the last.
NAMES = {
  "pad": ("<|pad|>", "<pad>"),
  "bos": ("<|begin_of_text|>", "<s>", "<bos>"),
  "eos": ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"),
  "boi": ("<boi>",),
  "eoi": ("<eoi>",),
}
# How byte-level models write bytes that are no letters: a line end, and an ideographic
# full stop.
LINE_END, FULL_STOP = "\u010a", "\u00e3\u0122\u0124"


class BytePairs:
  """A byte-level model of the library tokenizers."""

  def __init__(self, model: bytes, *, origin: str, remedy: str):
    """Reads a model; adds the special tokens that it lacks.

    Args:
      model: the bytes of a tokenizer.json.
      origin: what error messages call it.
      remedy: what they tell to do.

    Raises:
      ValueError: the library is not installed, the file is none of a byte-level model,
        or text can spell a special token of it.
    """
    if importlib.util.find_spec("tokenizers") is None:
      raise ValueError(
        f"{origin}: tokenizers is missing: pip install 'tfusion[tokenizers]'"
      )
    import tokenizers

    try:
      values = parsing.parse_json(model)
    except ValueError as error:
      raise ValueError(f"{origin}: no JSON: {error}; {remedy}") from error
    if fault := _fault(values):
      raise ValueError(
        f"{origin}: {fault}; a byte-level BPE of the library tokenizers is needed: if"
        f" there is a sentencepiece model beside it, name that; {remedy}"
      )
    known = _known_ids(values)
    ids, added = {}, []
    for token, names in NAMES.items():
      ids[token], own = _special_id(values, known, token, names, origin, remedy)
      added += [own] if own else []
    if added:
      values["added_tokens"] = [*values["added_tokens"], *added]
      model = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    try:
      opened = tokenizers.Tokenizer.from_buffer(model)
    except Exception as error:  # it raises Exception itself
      raise ValueError(f"{origin}: cannot be read: {error}; {remedy}") from error
    opened.no_padding()
    opened.no_truncation()
    opened.encode_special_tokens = True  # text that spells one is text
    self._opened = opened
    self.data = bytes(model)
    pad, bos, eos, boi, eoi = (ids[name] for name in NAMES)
    self.special = sequence.SpecialTokens(pad, bos, eos, boi, eoi)
    self.vocab_size = max(known.values()) + 1
    special = {token["id"] for token in values["added_tokens"] if token["special"]}
    pieces = {id: piece for piece, id in known.items()}
    self.spoken = [i in pieces and i not in special for i in range(self.vocab_size)]
    self.endings = np.asarray(
      [_ending(pieces.get(i, "")) for i in range(self.vocab_size)], np.uint8
    )

  def encode(self, text: str) -> list[int]:
    """The ids of a text; never those of special tokens.

    Raises:
      ValueError: the text is not valid Unicode (a lone surrogate).
    """
    try:
      return self._opened.encode(text, add_special_tokens=False).ids
    except (TypeError, UnicodeEncodeError) as error:
      raise ValueError(f"text {text!r}: not valid Unicode") from error

  def decode(self, ids: list[int]) -> str:
    """The text of ids."""
    return self._opened.decode(ids, skip_special_tokens=False)


def _fault(values: Any) -> str:
  """Why JSON is not that of a byte-level BPE whose text comes back; empty if it is."""
  from tokenizers import pre_tokenizers

  values = values if isinstance(values, dict) else {}
  model, decoder, added = (values.get(k) for k in ("model", "decoder", "added_tokens"))
  if not isinstance(model, dict) or model.get("type") != "BPE":
    return "is no BPE"
  decoder = decoder if isinstance(decoder, dict) else {}
  steps = decoder.get("decoders") or [decoder]
  if "ByteLevel" not in [step.get("type") for step in steps]:
    return "is no BPE of bytes"
  if model.get("dropout"):
    return "drops merges at random (dropout)"
  vocab = model.get("vocab")
  if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
    return "has no vocabulary of ids"
  if lacking := set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys():
    return f"lacks {len(lacking)} of the 256 bytes, so text would be lost"
  kinds = {"id": int, "content": str, "special": bool}
  if not isinstance(added, list) or not all(
    isinstance(own, dict) and all(isinstance(own.get(k), t) for k, t in kinds.items())
    for own in added
  ):
    return "has no list of added tokens"
  return ""


def _known_ids(values: dict[str, Any]) -> dict[str, int]:
  """Every piece and its id."""
  added = {token["content"]: token["id"] for token in values["added_tokens"]}
  return values["model"]["vocab"] | added


def _special_id(
  values: dict[str, Any],
  known: dict[str, int],
  token: str,
  names: tuple[str, ...],
  origin: str,
  remedy: str,
) -> tuple[int, dict[str, Any] | None]:
  """The id of a special token, and its entry if it has to be added; notes its id."""
  special = {own["content"] for own in values["added_tokens"] if own["special"]}
  for name in names:
    if name in special:
      return known[name], None
  if names[-1] in known:
    raise ValueError(
      f"{origin}: has a piece {names[-1]} that text can spell, and no special token for"
      f" {token}; {remedy}"
    )
  known[names[-1]] = id = max(known.values()) + 1
  entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  return id, {"id": id, "content": names[-1], **entry, "special": True}


def _ending(piece: str) -> int:
  if LINE_END in piece:
    return 2
  return int(piece.endswith((".", "!", "?", FULL_STOP)))
