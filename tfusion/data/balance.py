"""The accounts of a source: what was found is what is used plus what is skipped.

Owns: amounts, what is left out and why, the balance of a split and its lines. Not:
finding and using things (folder.py, prepare/), where the lines are shown.

A document is what a source gives as one piece: an image with its caption, a row of a
table, the members of an archive that share a name. An image that has lost its caption,
or a caption without its image, is a document too. An image with two captions is in two
documents and counts in both. Blank text does not count as text.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

KINDS = ("documents", "images", "texts")
SPLITS = {"train": "train", "test": "held out"}  # what each is called for people


@dataclasses.dataclass(frozen=True)
class Amount:
  """So many documents, with so many images and texts in them."""

  documents: int = 0
  images: int = 0
  texts: int = 0

  def __add__(self, other: "Amount") -> "Amount":
    return Amount(*(getattr(self, k) + getattr(other, k) for k in KINDS))

  def __str__(self) -> str:
    parts = []
    for kind in KINDS:
      if count := getattr(self, kind):
        parts.append(f"{count:,} {kind if count > 1 else kind[:-1]}")
    return ", ".join(parts) or "no document"  # as of files of other kinds


@dataclasses.dataclass(frozen=True)
class Rejected:
  """What is left out, and why."""

  id: str  # unique in the source, if it has documents
  reason: str  # one of few, as counted
  detail: str = ""
  amount: Amount = Amount(1)  # 0 documents: a part of one that is used, or of none
  test: bool = False  # of the held-out split

  def __str__(self) -> str:
    return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclasses.dataclass
class Balance:
  """What became of all that a split holds: found = used + all skipped."""

  found: Amount = Amount()
  used: Amount = Amount()
  skipped: dict[str, Amount] = dataclasses.field(default_factory=dict)  # by reason

  def skip(self, rejected: Rejected) -> None:
    """Counts what is skipped; `found` is counted elsewhere."""
    before = self.skipped.get(rejected.reason, Amount())
    self.skipped[rejected.reason] = before + rejected.amount

  def merge(self, other: "Balance") -> None:
    """Adds the balance of another part of the same split."""
    self.found, self.used = self.found + other.found, self.used + other.used
    for reason, amount in other.skipped.items():
      self.skipped[reason] = self.skipped.get(reason, Amount()) + amount

  @property
  def all_skipped(self) -> Amount:
    """The sum over the reasons."""
    return sum(self.skipped.values(), Amount())

  @property
  def adds_up(self) -> bool:
    """Whether nothing is lost and nothing counted twice."""
    return self.found == self.used + self.all_skipped


def free_id(id: str, taken: set[str]) -> str:
  """Returns the id, with a number behind it if it is taken; adds it to those taken."""
  number, made = 1, id
  while made in taken:
    number += 1
    made = f"{id} {number}"
  taken.add(made)
  return made


def settle(used: Amount, rejected: Iterable[Rejected]) -> Balance:
  """The balance of a split whose documents have all been looked at."""
  balance = Balance(used=used)
  for one in rejected:
    balance.skip(one)
  balance.found = used + balance.all_skipped
  return balance


def examples(rejected: Iterable[Rejected]) -> str:
  """How many there are for each reason, the most frequent first, and one of them."""
  counts: Counter[str] = Counter()
  first: dict[str, Rejected] = {}
  for one in rejected:
    counts[one.reason] += one.amount.documents or 1  # one may stand for many
    first.setdefault(one.reason, one)
  return "; ".join(
    f"{count:,} {reason}, such as {first[reason].id}"
    + (f" ({first[reason].detail[:300]})" if first[reason].detail else "")
    for reason, count in counts.most_common(5)
  )


def lines(splits: Mapping[str, Balance]) -> Iterator[str]:
  """Shows the balances of "train" and "test": a line each, and one for every reason."""
  for split, balance in splits.items():
    name, sums = SPLITS[split], []
    for kind in KINDS:
      found, used, skipped = (
        getattr(amount, kind)
        for amount in (balance.found, balance.used, balance.all_skipped)
      )
      noun = kind if found != 1 else kind[:-1]
      sums.append(f"{found:,} {noun} = {used:,} used + {skipped:,} skipped")
    yield f"{name + ':':<9} {'; '.join(sums)}"
    for reason, amount in sorted(
      balance.skipped.items(), key=lambda item: (-item[1].documents, item[0])
    ):
      yield f"{'':<9} skipped, {reason}: {amount}"
