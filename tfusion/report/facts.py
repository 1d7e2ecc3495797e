"""What a run is made of, on the page: its data, its machine, its config.

Owns: the table of the sources and the list of what was skipped, which agree, and short
names. Not: the counts (data/), which are written to data.json and skipped.json.
"""

import collections
from html import escape
from pathlib import PurePosixPath
from typing import Any

from tfusion.numerals import percent

PATHS = ("folder", "shards")  # sources whose argument is a path
SPLITS = {"train": "to train on", "test": "held out"}
KINDS = ("documents", "images", "texts")
LISTED = 100  # skipped inputs of a source, at most


def data(run: dict[str, Any]) -> str:
  """The sources: what they hold, what is left out and why, what has been read.

  Args:
    run: "data" as in data.json, "skipped" as in skipped.json; either may be empty.

  Returns:
    HTML; nothing without data.
  """
  values, skipped = run["data"], run["skipped"]
  sources = values.get("sources", {})
  names = dict.fromkeys([*sources, *values.get("contents", {}), *skipped])
  if not names:
    return ""
  short = short_names(list(names))
  label = {
    name: f'<span title="{escape(name)}">{escape(s)}</span>' if s != name else escape(s)
    for name, s in short.items()
  }
  page = _held(values, skipped, label) + _read(sources, label)
  if "row_fill" in values:
    page += (
      f"<p>{_percent(values['row_fill'])} of the positions in rows are filled.</p>"
    )
  return page + "".join(_listed(label[name], skipped[name]) for name in skipped)


def machine(run: dict[str, Any]) -> str:
  """Machine at a glance; config folded."""
  groups = {key: x for key, x in run["config"].items() if isinstance(x, dict)}
  groups |= {"run": {k: x for k, x in run["config"].items() if k not in groups}}
  config = "".join(card(key, group) for key, group in groups.items())
  return (
    f'<div class="grid">{card("Machine", run["run"])}</div>'
    f'<details><summary>Config</summary><div class="grid">{config}</div></details>'
  )


def card(title: str, values: dict) -> str:
  """The leaves of nested dicts, each under its path."""
  rows, stack = "", list(reversed(values.items()))
  while stack:
    key, value = stack.pop()
    if isinstance(value, dict):
      stack += [(f"{key} / {k}", x) for k, x in reversed(value.items())]
      continue
    value = format(value, {int: ",", float: ".6g"}.get(type(value), ""))
    rows += f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>"
  return (
    f'<div class="card"><h3>{escape(title)}</h3><dl>{rows or "none yet"}</dl></div>'
  )


def short_names(names: list[str]) -> dict[str, str]:
  """Source -> the end of its path, as long as tells it from the others.

  `photos` for `folder:/data/photos`; `a/photos` and `b/photos` where there are two.
  """
  parts = {}
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


def _held(values: dict, skipped: dict, label: dict[str, str]) -> str:
  """A row for each source and split, and how many inputs of a source were skipped."""
  rows = "<tr><th>Source</th><th></th>" + "".join(f"<th>{kind}</th>" for kind in KINDS)
  rows += '<th>skipped</th><th class="why">and why</th>'
  for name in label:
    contents = values.get("contents", {}).get(name, {})
    found = {k: x for k, x in values.get("found", {}).get(name, {}).items() if x}
    # Of shards there is no list here: preparing them has kept one.
    reasons = _reasons(skipped.get(name, {})) or _reasons_found(found)
    for number, (split, words) in enumerate(SPLITS.items()):
      held = found.get(split, {}).get("used") or contents.get(split, {})
      about = "" if split in found or contents.get(split, {}).get("exact") else "about "
      cells = ""
      for kind in KINDS:
        count = held.get(kind)
        sign = about if kind != "documents" and count else ""
        cells += f"<td>{'-' if count is None else f'{sign}{count:,}'}</td>"
      rows += f"<tr><td>{label[name] if not number else ''}</td><td>{words}</td>{cells}"
      if not number:
        why = "; ".join(f"{n:,} {escape(reason)}" for reason, n in reasons)
        total = sum(n for _, n in reasons)
        rows += f'<td>{total:,}</td><td class="why"><small>{why}</small></td>'
  return f'<div class="wide"><table>{rows}</table></div>'


def _read(sources: dict, label: dict[str, str]) -> str:
  """What the rows have taken so far."""
  if not sources:
    return ""
  titles = "read so far;epochs;share of the rows;too long for a row;damaged"
  rows = "<tr><th>Source</th>" + "".join(f"<th>{t}</th>" for t in titles.split(";"))
  for name, x in sources.items():
    if not isinstance(x, dict):
      continue
    lost = f"{x.get('rejected', 0):,}"
    if x.get("rejected"):
      lost += f"<small>{_percent(x.get('lost_share', 0))} of its elements</small>"
    cells = (
      f"{x.get('documents', 0):,}<small>{x.get('elements', 0):,} elements</small>",
      f"{x.get('epochs', 0):,.2f}",
      _percent(x.get("share", 0)),
      lost,
      f"{x.get('damaged', 0):,}",
    )
    rows += f"<tr><td>{label[name]}</td>" + "".join(f"<td>{c}</td>" for c in cells)
  return f'<div class="wide"><table>{rows}</table></div>'


def _percent(share: float) -> str:
  return escape(percent(share))


def _reasons(skipped: dict[str, str]) -> list[tuple[str, int]]:
  """Each reason with how many inputs it holds for, the most frequent first."""
  return collections.Counter(r.split(": ")[0] for r in skipped.values()).most_common()


def _reasons_found(found: dict[str, dict]) -> list[tuple[str, int]]:
  """The same of data.json, over both splits; reasons that cost whole documents."""
  counts = collections.Counter()
  for split in found.values():
    for reason, amount in split.get("skipped", {}).items():
      counts[reason] += amount["documents"]
  return (+counts).most_common()


def _listed(label: str, skipped: dict[str, str]) -> str:
  """What was skipped of a source, behind the same numbers as in the table."""
  reasons = ", ".join(f"{n:,} {escape(reason)}" for reason, n in _reasons(skipped))
  few = dict(list(skipped.items())[:LISTED])
  first = f"The first {LISTED}" if len(skipped) > LISTED else "All of them"
  return (
    f"<details><summary>Skipped of {label}: {len(skipped):,} ({reasons})</summary>"
    f"{card(first, few)}</details>"
  )
