"""Which spans of a document are learned: the rules of --learn.

Owns: the rules, the part that applies one. Not: what a layout says by itself
(layouts/), what a weight of 0 means (sequence.py).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from tfusion.prepare import raw as raw_lib
from tfusion.prepare.raw import Raw, Rejected, Span


def _is_text(span: Span) -> bool:
  return isinstance(span, str)


# Rule -> a document's weights, one for each span.
RULES: dict[str, Callable[[Raw], tuple[float, ...]]] = {
  "all": lambda raw: (1.0,) * len(raw.spans),
  "text": lambda raw: tuple(float(_is_text(span)) for span in raw.spans),
  "images": lambda raw: tuple(float(not _is_text(span)) for span in raw.spans),
  "last": lambda raw: (0.0,) * (len(raw.spans) - 1) + (1.0,),
  "answers": lambda raw: raw.weights,  # as layouts with answers have them
}


@dataclasses.dataclass(frozen=True)
class Ruled:
  """A part of which a rule says what is learned."""

  part: Any  # a raw.Part, which is a dataclass
  rule: str  # one of RULES

  def read(self) -> Iterator[Raw | Rejected]:
    """Yields the documents of the part with the weights of the rule."""
    for document in self.part.read():
      if isinstance(document, Raw):
        # Blank texts go first: the last span is the last that is there.
        document = raw_lib.clean(document)
      if isinstance(document, Raw):
        weights = RULES[self.rule](document)
        document = dataclasses.replace(document, weights=weights)
        if not any(weights):
          document = document.reject(raw_lib.NOT_LEARNED, f"--learn={self.rule}")
      yield document


def apply(parts: list[raw_lib.Part], rule: str) -> list[raw_lib.Part]:
  """The parts with a rule; as they are where it is empty."""
  return [Ruled(part, rule) for part in parts] if rule else parts


def check(rule: str, source: str, *, has_answers: bool) -> None:
  """Refuses a rule that is none, or cannot be applied.

  Args:
    rule: as it was given; empty: none.
    source: for messages.
    has_answers: whether the layout of the source says which spans are answers.

  Raises:
    ValueError: names the rules that can.
  """
  if rule and rule not in RULES:
    raise ValueError(f"--learn={rule}: unknown; known: {', '.join(RULES)}")
  if rule == "answers" and not has_answers:
    others = ", ".join(name for name in RULES if name != "answers")
    raise ValueError(
      f"--learn=answers: {source} has no conversations, in which there are answers;"
      f" choose {others}"
    )
