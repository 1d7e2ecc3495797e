"""Results that others have printed, to stand beside ours.

Owns: reading published.json, which has them by arXiv id and table. Not: ours, nor
whether two protocols are the same, which a row's notes say where they are not.

Metrics have one name each: c4_ppl and wiki_ppl perplexities of tokens, c4_loss and
wiki_loss their logarithms, ppl of text that is not known to be either; llama_accuracy
and hellaswag in percent, cider x 100, fid, clip x 100, geneval, dpg and wise from 0 to
1. What a paper does not print is null. FID depends so much on guidance that rows which
do not have the paper's say which they have; 1 is none.

Rows of other works than the paper also have `read`, where their numbers stand, and
`from_plot`, which of these were read from a plot and are good to its width.
"""

import functools
import json
from importlib import resources
from typing import Any

PAPER = "2408.11039"


def table(number: int | str, *, source: str = PAPER) -> list[dict[str, Any]]:
  """The rows of a table.

  Args:
    number: of the table, as printed; a name where it puts several places together:
      `sizes` of 2411.04996, `7b` of 2412.15188, `stack` of 2603.03276, `readme` of
      2505.14683.
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
