"""What an evaluation is: a function of a model, and what its numbers depend on.

Owns: what it is given, what is kept of it. Not: which there are (suite.py), eval.json
(record.py), any metric.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tfusion.data.pipeline import Corpus
from tfusion.generate.trained import Trained


class Asked(NamedTuple):
  """What an evaluation is given."""

  trained: Trained
  corpus: Corpus  # of the run; its test split is evaluated on
  workdir: Path  # of the run
  data: Path | None = None  # --data: data sets and networks of others
  argument: str = ""  # what stands behind the colon of its name

  @property
  def out(self) -> Path:
    """The folder for images and whatever else is more than numbers."""
    return self.workdir / "eval"


def nothing(asked: Asked) -> Any:
  """Stands where there is nothing to be checked, or to depend on."""
  return None


def any_run(asked: Asked) -> str:
  """Stands where every run fits."""
  return ""


class Evaluation(NamedTuple):
  """One entry of the table of evaluations."""

  # Measures; all hosts call it. Its numbers go to eval.json under the names it gives.
  run: Callable[[Asked], dict[str, Any]]
  knobs: tuple[str, ...]  # sections and knobs that its numbers depend on
  # Why it is none of this run's, in words; empty: it fits.
  unfit: Callable[[Asked], str] = any_run
  argument: str = ""  # what has to stand behind its name and a colon, in a word
  # Raises ValueError for what is missing or too small, before anything is measured.
  check: Callable[[Asked], None] = nothing
  # What else its numbers depend on, as JSON: documents, networks, files.
  depends: Callable[[Asked], Any] = nothing


def needs_source(name: str) -> Callable[[Asked], str]:
  """What `unfit` is of an evaluation of one source, whatever its options."""

  def unfit(asked: Asked) -> str:
    if name in {source.name.partition(":")[0] for source in asked.corpus.test}:
      return ""
    return f"data.sources={asked.trained.config.data.sources} lacks {name}"

  return unfit
