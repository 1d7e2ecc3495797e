"""The hosts of a run on the page: which one the others wait for.

Owns: which host is the slowest, and by how much. Not: the times (training/log.py),
which the first host writes to speed.jsonl as `host_ms`.
"""

import statistics
from typing import Any

from tfusion.numerals import percent
from tfusion.report.run import Run

LINES = 100  # newest of speed.jsonl, which are looked at
LISTED = 8  # hosts, at most: the slowest


def table(run: Run) -> dict[str, Any] | None:
  """Returns the values of the macro `hosts`; None of a run on a single host.

  A host's own time is what an update costs it beside its devices: reading data, Python,
  handing over work. Those of a host are medians over the newest lines.
  """
  lines = [line for line in run.speed if isinstance(line.get("host_ms"), list)]
  # Before, the run may have had another number of hosts.
  lines = [x for x in lines if len(x["host_ms"]) == len(lines[-1]["host_ms"])][-LINES:]
  own: dict[int, float] = {}
  for host in range(len(lines[-1]["host_ms"]) if lines else 0):
    heard = [x["host_ms"][host] for x in lines if x["host_ms"][host] is not None]
    if heard:
      own[host] = statistics.median(heard)
  if len(own) < 2:
    return None
  step_ms = statistics.median(line["step_ms"] for line in lines)
  slowest, *others = sorted(own, key=lambda host: -own[host])
  median = statistics.median(own[host] for host in others)
  names = dict(enumerate(run.machine.get("host_names", [])))
  return {
    "count": len(own),
    "slowest": _named(slowest, names),
    "own": f"{own[slowest]:,.1f}",
    "median": f"{median:,.1f}",
    "more": f"{own[slowest] - median:,.1f}",
    "step": f"{step_ms:,.1f}",
    "hosts": [
      {
        "name": _named(host, names),
        "own": f"{own[host]:,.1f}",
        "share": percent(min(own[host] / step_ms, 1.0)),
        "width": f"{min(own[host] / step_ms, 1.0):.2%}",
      }
      for host in [slowest, *others][:LISTED]
    ],
  }


def _named(host: int, names: dict[int, str]) -> str:
  return f"{host} ({names[host]})" if host in names else f"{host}"
