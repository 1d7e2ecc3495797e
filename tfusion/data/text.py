"""Whether bytes and strings are text that a person can read.

Owns: decoding files, blank text, files that are not lines of JSON. Not: tokens
(tokenizer.py), what a text belongs to (folder.py, prepare/).
"""

import codecs
import unicodedata

# The longer mark first: UTF-32 begins like UTF-16.
MARKS = {
  codecs.BOM_UTF32_LE: "utf-32",
  codecs.BOM_UTF32_BE: "utf-32",
  codecs.BOM_UTF16_LE: "utf-16",
  codecs.BOM_UTF16_BE: "utf-16",
}
COMPRESSED = {
  b"\x1f\x8b": "gzip",
  b"BZh": "bzip2",
  b"\xfd7zXZ\x00": "xz",
  b"\x28\xb5\x2f\xfd": "zstd",
  b"PK\x03\x04": "zip",
}
NUL = "holds NUL characters, as UTF-16 without a mark does; save it as UTF-8"
# Spaces, controls, formats, halves of characters; marks, which need a letter to stand
# on. Not what is unassigned: an older Python knows fewer letters.
UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Mn", "Me", "Mc")
# Letters and symbols that show nothing, and what stands for a lost character.
BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800\ufffc\ufffd\ufffe\uffff")


def decode(data: bytes) -> str:
  """Decodes a text file: UTF-8, or UTF-16 and UTF-32 that begin with their mark.

  Line ends become "\\n".

  Raises:
    UnicodeDecodeError: it is in none of these; says what to do.
  """
  name = next((n for mark, n in MARKS.items() if data.startswith(mark)), "utf-8-sig")
  try:
    return data.decode(name).replace("\r\n", "\n").replace("\r", "\n")
  except UnicodeDecodeError as error:
    packed = why_packed(data)
    error.reason += f"; it {packed}" if packed else "; save it as UTF-8"
    raise


def fault(text: str) -> str:
  """Why a string cannot be text; empty if it can, or is blank.

  No text holds NUL. UTF-16 without its mark does when it is read as UTF-8.
  """
  return NUL if "\0" in text else ""


def is_blank(text: str) -> bool:
  """Whether a text shows nothing: only spaces, controls, zero-width characters."""
  return all(c in BLANKS or unicodedata.category(c) in UNSEEN for c in text)


def why_packed(head: bytes) -> str:
  """That a file is compressed, as its first bytes show; empty if it is not."""
  names = (name for magic, name in COMPRESSED.items() if head.startswith(magic))
  name = next(names, "")
  return f"is compressed by {name}; unpack it" if name else ""


def why_no_lines(head: bytes) -> str:
  """Why a file is not lines of JSON, as its first bytes show; empty if it may be.

  Args:
    head: enough of them to hold a few lines.
  """
  if why := why_packed(head):
    return why
  if head.startswith(tuple(MARKS)):
    return "is UTF-16 or UTF-32; save it as UTF-8"
  if b"\0" in head:
    return NUL
  bare = head.removeprefix(codecs.BOM_UTF8).lstrip()
  if bare.startswith(b"[") and b"{" in bare[:1000]:
    return "is a JSON array; write each of its objects on a line of its own"
  if bare.startswith(b"{") and bare.partition(b"\n")[0].strip() == b"{":
    return "has objects over several lines; write each on a line of its own"
  return ""
