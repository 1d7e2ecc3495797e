"""Where one sequence stands: what is in the cache, what is to come.

Owns: Row, Generated. Not: which rows are computed together (interleaved.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfusion.generate.prompt import Blank, Given, Prompt, split_at_blanks
from tfusion.sequence import Codes, Image, SpecialTokens, Text


class Generated(NamedTuple):
  """What stands after the prompt began: its own spans and the model's, in order."""

  spans: tuple[Given, ...]
  made: tuple[bool, ...]  # the model made this span
  finished: bool  # it ended with EOS; False: max_elements stopped it

  @property
  def made_images(self) -> list[np.ndarray]:
    """The images that the model made, f32[h, w, c] each; codes are not among them."""
    own = (span for span, made in zip(self.spans, self.made) if made)
    return [span.latent for span in own if isinstance(span, Image)]


class Row:
  """Where one sequence stands."""

  def __init__(self, prompt: Prompt, *, special: SpecialTokens):
    """A row with nothing in the cache yet."""
    self.special = special
    self.parts = split_at_blanks(prompt)
    self.blanks = [span.kind for span in prompt if isinstance(span, Blank)]
    self.pending: list[Given] = [token(special.bos)]  # not in the cache yet
    self.at = 0  # elements in the cache
    self.next = 0  # position, of RoPE, of the element behind them
    self.images = 0  # that the model made
    # Of which kind BOI is the last element, in the cache or pending; None: it is not.
    self.at_kind: int | None = None
    self.done = self.finished = False
    self.spans: list[Given] = []
    self.made: list[bool] = []
    self.is_in_text = False  # the last span is text that the model goes on with
    self._take_part()

  @property
  def writes(self) -> bool:
    """Whether it wants text, once nothing is pending."""
    return not self.done and self.at_kind is None

  @property
  def generated(self) -> Generated:
    """What has come of it."""
    return Generated(tuple(self.spans), tuple(self.made), self.finished)

  def take_text(
    self, ids: np.ndarray, *, ended: bool, limit: int, patches: Sequence[int]
  ) -> np.ndarray:
    """Takes sampled ids, of which the last may have ended the text: BOI, EOS or one too
    many. Returns those that are text.

    Args:
      ids: i32[l].
      ended: whether the last did.
      limit: elements that a row may have.
      patches: elements between BOI and EOI, of every kind.
    """
    text = ids[:-1] if ended else ids
    if len(text):
      self._add_text(text)
    self.at += len(text)
    self.next += len(text)
    if not ended:
      return text
    self.is_in_text = False
    end, bois = int(ids[-1]), self.special.bois
    room = limit - self.at - 1
    if end in bois and patches[bois.index(end)] + 1 <= room:
      self.at += 1  # it is in the cache already
      self.next += 1
      self.at_kind = bois.index(end)
    else:
      self.done, self.finished = True, end == self.special.eos
    return text

  def take_image(self, image: Image | Codes, *, patches: int, positions: int):
    """Takes the finished image, puts EOI behind it and goes on with the prompt.

    Args:
      image: behind BOI.
      patches: elements that it takes.
      positions: from its first patch to EOI.
    """
    self.spans.append(image)
    self.made.append(True)
    self.at += patches
    self.next += positions
    self.images += 1
    self.at_kind = None
    self.pending.append(token(self.special.eoi))
    if self.parts:
      self._take_part()

  def _take_part(self):
    """Takes what is given up to the next blank, and BOI there."""
    part = self.parts.pop(0)
    self.pending += part
    self.spans += part
    self.made += [False] * len(part)
    if self.parts:
      self.at_kind = self.blanks.pop(0)
      self.pending.append(token(self.special.bois[self.at_kind]))

  def _add_text(self, ids: np.ndarray):
    if self.is_in_text:
      before = self.spans.pop()
      assert isinstance(before, Text)
      self.spans.append(Text(np.concatenate([before.ids, ids])))
      return
    self.spans.append(Text(ids))
    self.made.append(True)
    self.is_in_text = True


def token(id_: int) -> Text:
  """One token as text."""
  return Text(np.asarray([id_], np.int32))
