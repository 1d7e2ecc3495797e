"""The tables of a suite in words: ours, the paper's, and what claims come to.

Owns: what stands in which cell, and Markdown. Not: the numbers (board.py), the page
(pages.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tfusion.ablations.board import Board, Standing
from tfusion.ablations.suites import MORE, SAME_TARGET, TITLES
from tfusion.evaluate import published
from tfusion.evaluate.scaling import Interval

NONE = "-"
# Of a published row, what says which it is; all that is left is a number.
SAYS = (
  *("model", "recipe", "size", "batch", "patches", "patch", "patches_per_image"),
  *("image_attention", "noise_limit", "elements"),
)
HIDDEN = (
  "notes",
  "read",
  "from_plot",
  "pixels_per_patch",
  "added_percent",
  "text_rows",
)


class Table(NamedTuple):
  """A head, rows of as many cells, and a sentence above them."""

  title: str
  sentence: str
  head: list[str]
  rows: list[list[str]]


def of(board: Board) -> list[Table]:
  """All tables of a suite."""
  found = [ours(board), claims(board)]
  if board.suite.families:
    found.append(parity(board))
  if board.suite.table:
    found.append(theirs(*board.suite.table))
  return found


def ours(board: Board) -> Table:
  """Mean and deviation over seeds of every arm and measure."""
  metrics = [
    m for m in board.suite.metrics if any(s.values(m) for s in board.standings)
  ]
  arrows = [f"{TITLES[m]} ({'more' if MORE[m] else 'less'} is better)" for m in metrics]
  head = ["", *arrows, "6 N D", "with attention", "rate", "seeds"]
  rows = [_row(one, metrics) for one in board.standings]
  said = f"{board.done} of {board.wanted} runs are done."
  if board.is_stale:
    said += f" All by code {board.version}, which is not today's: they are stale."
  elif board.stale:
    said += f" {board.stale} more were done by other code: stale, and left out."
  return Table("Ours", said, head, rows)


def _row(one: Standing, metrics: Sequence[str]) -> list[str]:
  cells = [one.arm.name]
  for metric in metrics:
    found = one.spread(metric)
    cells.append(_spread(found.mean, found.deviation, found.seeds) if found else NONE)
  done = [seat.result for seat in one.seats if seat.result]
  for name in ("flops_6nd", "flops_exact"):
    cells.append(f"{done[0].about[name]:.2e}" if done else NONE)
  cells.append(NONE if one.rate is None else f"x{one.rate:g}")
  failed = sum(bool(seat.failed) for seat in one.seats)
  cells.append(f"{len(done)}" + (f", {failed} failed" if failed else ""))
  return cells


def claims(board: Board) -> Table:
  """Every claim, and what the seeds say to it."""
  rows = []
  for claim in board.suite.claims:
    found = board.difference(claim)
    what = [f"{claim.better} beats {claim.worse}", TITLES[claim.metric], claim.source]
    if found is None:
      rows.append([*what, NONE, NONE, NONE, "not known yet"])
      continue
    interval = f"{found.low:.3g} to {found.high:.3g}" if found.seeds > 1 else NONE
    seeds = f"{found.better} of {found.seeds}"
    rows.append([*what, f"{found.mean:.3g}", interval, seeds, found.verdict])
  return Table(
    "Claims",
    "Better by, seed by seed; above 0 is better, whichever way that is. The interval is"
    " Student's, of 95 %: a claim holds if it lies above 0 as a whole.",
    ["claim", "measure", "said by", "better by", "interval", "in seeds", "here"],
    rows,
  )


def parity(board: Board) -> Table:
  """The parity FLOP ratio of both families, by measure."""
  assert board.suite.families is not None, "asked of suites with families alone"
  ours_, theirs_ = board.suite.families
  rows = []
  for metric in board.suite.metrics:
    if metric in SAME_TARGET:
      continue
    found = board.parity(metric)
    interval = NONE
    if isinstance(found, Interval):
      interval = f"{found.low:.3g} to {found.high:.3g}"
      found = found.value
    rows.append([TITLES[metric], NONE if found is None else f"{found:.3g}", interval])
  return Table(
    "Parity",
    f"The share of its FLOPs with which {ours_} reaches what {theirs_} reaches with the"
    " most, by lines through logarithms (section 4.2). Lines of three small sizes say"
    " little where the interval is wide.",
    ["measure", "parity FLOP ratio", "interval"],
    rows,
  )


def theirs(source: str, number: int | str) -> Table:
  """A published table, with the notes of its rows."""
  rows = published.table(number, source=source)
  names = [n for row in rows for n in row if n not in HIDDEN]
  names = list(dict.fromkeys(names))
  said = [name for name in names if name in SAYS]
  measured = [name for name in names if name not in SAYS]
  notes = list(dict.fromkeys(note for row in rows for note in row.get("notes", ())))
  return Table(
    f"arXiv {source}, table {number}",
    " ".join(["Models of other sizes, on other data.", *(f"{n}." for n in notes)]),
    [*(name.replace("_", " ") for name in said), *measured],
    [[_plain(row.get(name)) for name in said + measured] for row in rows],
  )


def markdown(board: Board, *, command: str, guide: str = "") -> str:
  """The tables of a suite as a page of Markdown.

  Args:
    board: where the suite stands.
    command: that did the runs.
    guide: a link to the page that says how to read it; empty: there is none.
  """
  name, about = board.suite.name, board.suite.about
  lines = [f"# Ablation {name}", "", f"This page has what came of a suite. {about}", ""]
  lines += [f"How to read it: [Ablations]({guide}).", ""] if guide else []
  lines += [f"    {command}", ""]
  lines += _made_with(board)
  for table in of(board):
    lines += [f"## {table.title}", "", table.sentence, ""]
    lines += [_line(table.head), _line(["---"] * len(table.head))]
    lines += [*map(_line, table.rows), ""]
  for one in board.standings:
    for seat in one.seats:
      if seat.failed:
        lines += [f"{one.arm.name}, seed {seat.seed} failed:", "", "```"]
        lines += [*seat.failed.splitlines(), "```", ""]
  return "\n".join(lines)


def _made_with(board: Board) -> list[str]:
  """Commits and machines of all results, in a sentence."""
  done = [s.result for one in board.standings for s in one.seats if s.result]
  if not done:
    return []
  commits = sorted({result.about.get("commit") or "unknown" for result in done})
  machines = sorted({_machine(result.about) for result in done})
  minutes = sum(result.about.get("seconds", 0.0) for result in done) / 60
  return [
    f"Commit {', '.join(commits)}, code {board.version}; {'; '.join(machines)};"
    f" {minutes:.0f} minutes in all, searches aside.",
    "",
  ]


def _machine(about: dict[str, Any]) -> str:
  what = f"{about.get('devices')} x {about.get('device')}"
  return (
    f"{what} of {about.get('cores')} cores, {about.get('cpu')}, jax {about.get('jax')}"
  )


def _spread(mean: float, deviation: float, seeds: int) -> str:
  return f"{mean:.4g}" if seeds == 1 else f"{mean:.4g} +- {deviation:.2g}"


def _plain(value: Any) -> str:
  return NONE if value is None else f"{value}"


def _line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
