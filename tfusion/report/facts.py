"""What a run is made of, on the page: its data, its machine, its config.

Owns: the table of the sources and the list of what was skipped, which agree, and short
names. Not: the counts (data/), which are written to data.json and skipped.json.
"""

import collections
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tfusion.numerals import percent
from tfusion.report.run import Run

PATHS = ("folder", "shards")  # sources whose argument is a path
SPLITS = {"train": "to train on", "test": "held out"}
KINDS = ("documents", "images", "texts")
LISTED = 100  # skipped inputs of a source, at most


class Label(NamedTuple):
  """What a source is called on the page."""

  full: str
  short: str


class Card(NamedTuple):
  """Names and values, one below the other."""

  title: str
  rows: list[tuple[str, str]]


def data(run: Run) -> dict[str, Any] | None:
  """Returns what the sources hold, what is left out and why, what has been read.

  Args:
    run: its `data` and `skipped`; either may be empty.

  Returns:
    The values of the macro `data`; None without data.
  """
  values, skipped = run.data, run.skipped
  sources = values.get("sources", {})
  names = dict.fromkeys([*sources, *values.get("contents", {}), *skipped])
  if not names:
    return None
  short = short_names(list(names))
  labels = {name: Label(name, short[name]) for name in names}
  return {
    "held": [_held(label, values, skipped) for label in labels.values()],
    "read": [
      _read(labels[name], counts)
      for name, counts in sources.items()
      if isinstance(counts, dict)
    ],
    "row_fill": percent(values["row_fill"]) if "row_fill" in values else "",
    "skipped": [_listed(labels[name], skipped[name]) for name in skipped],
  }


def machine(run: Run) -> dict[str, Any]:
  """Returns the values of the macro `machine`: the machine, the config by groups.

  The names of hosts stand with their times (hosts.py).
  """
  groups = {key: x for key, x in run.config.items() if isinstance(x, dict)}
  machine_facts = {k: x for k, x in run.machine.items() if k != "host_names"}
  groups["run"] = {key: x for key, x in run.config.items() if key not in groups}
  return {
    "machine": card("Machine", machine_facts),
    "config": [card(key, group) for key, group in groups.items()],
  }


def card(title: str, values: dict[str, Any]) -> Card:
  """Returns the leaves of nested dicts, each under its path."""
  rows, stack = [], list(reversed(values.items()))
  while stack:
    key, value = stack.pop()
    if isinstance(value, dict):
      stack += [(f"{key} / {k}", x) for k, x in reversed(value.items())]
    else:
      rows.append((key, format(value, {int: ",", float: ".6g"}.get(type(value), ""))))
  return Card(title, rows)


def short_names(names: list[str]) -> dict[str, str]:
  """Source -> the end of its path, as long as tells it from the others.

  `photos` for `folder:/data/photos`; `a/photos` and `b/photos` where there are two.
  """
  parts: dict[str, tuple[str, ...]] = {}
  for name in names:
    kind, _, path = name.partition(":")
    parts[name] = PurePosixPath(path).parts if kind in PATHS else ()

  def shortest(name: str) -> str:
    for length in range(1, len(parts[name]) + 1):
      end = parts[name][-length:]
      alone = sum(other[-length:] == end for other in parts.values()) == 1
      if alone and end[0] not in ("..", "/") and "/".join(end) not in names:
        return "/".join(end)
    return name

  return {name: shortest(name) for name in names}


def _held(label: Label, values: dict, skipped: dict) -> dict[str, Any]:
  """What a source holds and what of it was skipped, by split."""
  contents = values.get("contents", {}).get(label.full, {})
  found = {k: x for k, x in values.get("found", {}).get(label.full, {}).items() if x}
  listed = (
    {} if found else skipped.get(label.full, {})
  )  # of both splits, as it was once
  splits = []
  for split, words in SPLITS.items():
    held = found.get(split, {}).get("used") or contents.get(split, {})
    exact = split in found or contents.get(split, {}).get("exact")
    counts = [_count(held.get(kind), exact or kind == "documents") for kind in KINDS]
    reasons = _reasons_found(found.get(split, {})) or _reasons(listed)
    splits.append(
      {
        "words": words,
        "counts": counts,
        "skipped": f"{sum(amount for _, amount in reasons):,}",
        "why": "; ".join(f"{amount:,} {reason}" for reason, amount in reasons),
      }
    )
    listed = {}
  return {"label": label, "splits": splits}


def _count(count: int | None, exact: bool) -> str:
  if count is None:
    return "-"
  return f"{count:,}" if exact or not count else f"about {count:,}"


def _read(label: Label, counts: dict[str, Any]) -> dict[str, Any]:
  """What the rows have taken of a source so far."""
  rejected = counts.get("rejected", 0)
  return {
    "label": label,
    "documents": f"{counts.get('documents', 0):,}",
    "elements": f"{counts.get('elements', 0):,}",
    "epochs": f"{counts.get('epochs', 0):,.2f}",
    "share": percent(counts.get("share", 0)),
    "rejected": f"{rejected:,}",
    "lost_share": percent(counts.get("lost_share", 0)) if rejected else "",
    "damaged": f"{counts.get('damaged', 0):,}",
  }


def _reasons(skipped: dict[str, str]) -> list[tuple[str, int]]:
  """Each reason with how many inputs it holds for, the most frequent first."""
  return collections.Counter(r.split(": ")[0] for r in skipped.values()).most_common()


def _reasons_found(split: dict[str, Any]) -> list[tuple[str, int]]:
  """The same of a split of data.json; reasons that cost whole documents."""
  skipped = split.get("skipped", {}).items()
  counts = collections.Counter({why: amount["documents"] for why, amount in skipped})
  return (+counts).most_common()


def _listed(label: Label, skipped: dict[str, str]) -> dict[str, Any]:
  """What was skipped of a source, behind the same numbers as in the table."""
  few = dict(list(skipped.items())[:LISTED])
  first = f"The first {LISTED}" if len(skipped) > LISTED else "All of them"
  reasons = (f"{amount:,} {reason}" for reason, amount in _reasons(skipped))
  return {
    "label": label,
    "count": f"{len(skipped):,}",
    "reasons": ", ".join(reasons),
    "card": card(first, few),
  }
