"""Results that others have printed, to stand beside ours.

Owns: reading published.json, which has them by arXiv id and table. Not: ours, nor
whether two protocols are the same, which a row's notes say where they are not.

Metrics have one name each: c4_ppl and wiki_ppl perplexities of tokens, llama_accuracy
in percent, cider x 100, fid, clip x 100, geneval from 0 to 1. What a paper does not
print is null.
"""

import functools
import json
from importlib import resources
from typing import Any

PAPER = "2408.11039"


def table(number: int, *, source: str = PAPER) -> list[dict[str, Any]]:
  """The rows of a table.

  Args:
    number: of the table, as printed.
    source: the arXiv id of the work.

  Raises:
    KeyError: there is no such work or table, with those there are.
  """
  known = _everything()
  if source not in known:
    raise KeyError(
      f"{source}: no results of it are here; of {', '.join(known)} there are"
    )
  tables = known[source]["tables"]
  if str(number) not in tables:
    raise KeyError(f"table {number} of {source}: only {', '.join(tables)} are here")
  return [dict(row) for row in tables[str(number)]["rows"]]


@functools.cache
def _everything() -> dict[str, Any]:
  file = resources.files("tfusion.evaluate") / "published.json"
  return json.loads(file.read_text(encoding="utf-8"))
