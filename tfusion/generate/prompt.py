r"""What a model can be asked for: given text, given images, blanks for its own images.

Owns: Prompt and its written form. Not: files (the caller loads them), what the model
makes of it (interleaved.py).

The written form is text with two marks: at `<image>` the model makes an image, and
`<image:FILE>` shows it one. In a run of several kinds `<audio>` and `<audio:FILE>` are
of a kind of that name, and `<image:wide>` is an image of a kind that has the layers of
`image`, not of a file called wide.

What is nearly a mark, or a mark of another program, is an error. A backslash before <
or > says that the sign is text: `\<image>` is the word, not the mark. Before such a
sign, and only there, a backslash is itself written twice. The mark in other brackets,
as in `[image]`, is nearly one too; `\[image]` is the word.
"""

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tfusion.kinds import FIRST, Kind
from tfusion.sequence import Codes, Image, Text

# In other brackets than ours: ASCII, full-width and those that keyboards make of <.
BRACKETS = dict(
  zip(
    "[{\uff3b\uff5b\uff1c\u3008\u2039\u00ab", "]}\uff3d\uff5d\uff1e\u3009\u203a\u00bb"
  )
)
BRACKETED = "|".join(
  rf"{re.escape(a)}\s*(?:images?|img)\s*(?:[:\uff1a][^{re.escape(b)}]*)?{re.escape(b)}"
  for a, b in BRACKETS.items()
)
OTHERWISE = re.compile(BRACKETED, re.IGNORECASE)
ESCAPED = re.compile(rf"(\\+)([<>]|(?={BRACKETED}).)", re.IGNORECASE)
ESCAPABLE = re.compile(ESCAPED.pattern.replace("+", "*", 1), re.IGNORECASE)
# What may be meant as one.
HUGGED = re.compile(r"<+<image[^<>]*>|<image[^<>]*>>+")
OPENED = re.compile(r"<([^<>]*)(>?)")  # from a < on, to its > if it has one
CLOSED = re.compile(r"\b(images?|img)(:[^<>\s]*)?>", re.IGNORECASE)  # without its <
SPECIAL = re.compile(r"[/|!]?[^\W\d][^\s:]*(:.*)?", re.DOTALL)  # <boi>, <video:a.mp4>
WORD = re.compile(r"[^\W\d_]+")
ALIKE = 0.75  # of the ratio of difflib: img and imgae are like image, page is not
APART = 3  # words behind "< " and before a >: more of them are a sentence
HOW = (
  r"write <image> where the model is to make an image, <image:FILE> to show it one, and"
  r" \< or \> for a sign that is text"
)
# What stands for signs of the text while marks are looked for: no text has these.
LITERAL = {sign: chr(0xD800 + n) for n, sign in enumerate(["<", ">", *BRACKETS])}
SIGNS = {code: sign for sign, code in LITERAL.items()}
LITERAL_OPEN = re.compile("\ud800[^<>]*>")  # its > is text as well


class Mark(NamedTuple):
  """A mark of a prompt, taken apart."""

  kind: int = 0  # its place among those of the run
  file: str | None = None  # what is shown; None: the model makes one


class Blank(NamedTuple):
  """A place in a prompt that the model fills with an image."""

  kind: int = 0  # its place among those of the run


Given = Text | Image | Codes
Prompt = tuple[Given | Blank, ...]


def parse_prompt(
  prompt: str,
  *,
  encode: Callable[[str], np.ndarray],
  load_image: Callable[[str, int], Image | Codes],
  kinds: Sequence[Kind] = (),
) -> Prompt:
  """Parses the written form.

  White space around a mark is not text: captions in training end at the image too.

  Args:
    prompt: may be empty.
    encode: text to token ids.
    load_image: the FILE of a mark, and the kind that it names, to an image.
    kinds: of the run; none: images alone.

  Raises:
    ValueError: what is nearly a mark, or another `<name>`; it says how to write both.
  """
  spans: list[Given | Blank] = []
  for part in split(prompt, kinds):
    if isinstance(part, str):
      spans.append(Text(encode(part)))
    elif part.file is None:
      spans.append(Blank(part.kind))
    else:
      spans.append(load_image(part.file, part.kind))
  return tuple(spans)


def split(prompt: str, kinds: Sequence[Kind] = ()) -> list[str | Mark]:
  """Takes the written form apart, and reads no file.

  Returns:
    In order: texts, none of them empty, and marks.

  Raises:
    ValueError: as parse_prompt.
  """
  parts: list[str | Mark] = []
  end, names = 0, [kind.name for kind in kinds] or [FIRST]
  like_images = [kind.name for kind in kinds if kind.like == FIRST]
  hidden = ESCAPED.sub(_hide, prompt)
  if match := HUGGED.search(hidden):
    raise _nearly(prompt, match[0])
  for match in _marks(tuple(names)).finditer(hidden):
    parts += _text(prompt, hidden[end : match.start()], names)
    name, file = match[1], match[2] and _shown(match[2])
    if name == FIRST and file in like_images:
      name, file = file, None
    parts.append(Mark(names.index(name), file))
    end = match.end()
  return [*parts, *_text(prompt, hidden[end:], names)]


@functools.lru_cache(64)
def _marks(names: tuple[str, ...]) -> re.Pattern[str]:
  """What a mark of these kinds looks like: its name, and its file if it has one."""
  file = r"(?::\s*([^<>\s](?:[^<>]*[^<>\s])?)\s*)?"
  return re.compile(rf"\s*<({'|'.join(map(re.escape, names))}){file}>\s*")


def mark_of(kind: Kind) -> str:
  """How a prompt asks for one of a kind."""
  inner = f"{FIRST}:{kind.name}" if kind.like == FIRST else kind.name
  return f"<{inner}>"


def escape(text: str) -> str:
  """Writes a text so that `split` gives it back; most texts are that as they are."""
  try:
    if split(text) == [text]:
      return text
  except ValueError:
    pass
  return ESCAPABLE.sub(r"\1\1\\\2", text)


def split_at_blanks(prompt: Prompt) -> list[list[Given]]:
  """What is given before, between and behind the blanks: one list more than those."""
  parts: list[list[Given]] = [[]]
  for span in prompt:
    if isinstance(span, Blank):
      parts.append([])
    else:
      parts[-1].append(span)
  return parts


def _hide(match: re.Match) -> str:
  """Half of the backslashes; behind an odd one the sign is text."""
  slashes, sign = match.groups()
  return "\\" * (len(slashes) // 2) + (LITERAL[sign] if len(slashes) % 2 else sign)


def _shown(hidden: str) -> str:
  return "".join(SIGNS.get(character, character) for character in hidden)


def _text(prompt: str, hidden: str, names: Sequence[str]) -> list[str]:
  """The text between two marks, if there is some; nothing in it may be nearly one."""
  for opened in OPENED.finditer(hidden):
    if _is_near(*opened.groups()):
      known = f"; kinds of this run: {', '.join(names)}" if len(names) > 1 else ""
      raise _nearly(prompt, opened[0], known)
  if match := OTHERWISE.search(hidden):
    raise _nearly(prompt, match[0], f"; write \\{match[0]} if it is text")
  if match := CLOSED.search(LITERAL_OPEN.sub("", hidden)):
    raise _nearly(prompt, match[0])
  return [_shown(hidden)] if hidden else []


def _is_near(inner: str, closed: str) -> bool:
  """Whether what stands behind a <, and before a > if that follows, is a mark's."""
  if closed and SPECIAL.fullmatch(inner):
    return True
  words = WORD.findall(inner.lower())
  if closed and (len(words) <= APART or not inner[:1].isspace()):
    return any(map(_alike, words))
  begins = re.match(r"\W*[^\W\d_]", inner) is not None  # and not with a number
  return begins and _alike(words[0])


def _alike(word: str) -> bool:
  return any(
    difflib.SequenceMatcher(None, word, known).ratio() >= ALIKE
    for known in ("image", "images")
  )


def _nearly(prompt: str, hidden: str, also: str = "") -> ValueError:
  name = "".join(f"\\{SIGNS[c]}" if c in SIGNS else c for c in hidden).strip()
  name = name if len(name) <= 60 else f"{name[:60]}..."
  return ValueError(
    f"prompt {prompt!r}: {name!r} is an unknown mark, or nearly a known one; {HOW}"
    + also
  )
