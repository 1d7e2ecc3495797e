"""Runs the evaluations that fit a run and writes one table.

Owns: eval.json and the printed table. Not: any metric.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
from absl import logging

from tfusion import report
from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.pipeline import Corpus, open_corpus
from tfusion.evaluate.digits import check_digits, evaluate_digits
from tfusion.evaluate.shapes import check_shapes, evaluate_shapes
from tfusion.evaluate.text import perplexity
from tfusion.model.transfusion import Params
from tfusion.training.machine import environment
from tfusion.training.trained import Trained

# name -> (source it needs, function of the model, the corpus and a folder for pictures)
EVALUATIONS = {
  "text": (None, perplexity),
  "digits": ("digits", evaluate_digits),
  "shapes": ("shapes", evaluate_shapes),
}


class FinalEvaluation:
  """Runs everything after the last update."""

  def __init__(self, config: Config, workdir: Path):
    self.config, self.workdir = config, workdir

  def check(self, corpus: Corpus) -> None:
    """Raises ValueError for what cannot be evaluated."""
    if any(source.name == "digits" for source in corpus.test):
      check_digits(self.config, corpus)
    check_shapes(self.config, corpus)

  def __call__(self, step: int, params: Params, corpus: Corpus) -> None:
    """Prints the table and writes eval.json if this was the last step."""
    if step == self.config.train.steps:
      mesh = jax.sharding.get_mesh()
      known = numbers.kept(self.workdir)
      model = Trained(self.config, step, params, corpus.tokenizer, mesh, known)
      _show(evaluate(model, corpus, self.workdir))


def evaluate_and_report(trained: Trained, workdir: str | Path) -> None:
  """What `tfusion eval` does: prints the table, writes eval.json and report.html."""
  _show(evaluate(trained, open_corpus(trained.config, workdir), workdir))
  if jax.process_index() == 0:
    print(report.write_report(workdir))


def evaluate(trained: Trained, corpus: Corpus, workdir: str | Path) -> dict[str, Any]:
  """Runs what fits the run's sources; writes workdir/eval.json, returns its content."""
  workdir = Path(workdir)
  names = {source.name.partition(":")[0] for source in corpus.test}
  results: dict[str, Any] = {"step": trained.step}
  with jax.set_mesh(trained.mesh):
    for name, (needs, function) in EVALUATIONS.items():
      if needs is None or needs in names:
        start = time.perf_counter()
        results |= function(trained, corpus, workdir / "eval")
        logging.info("%s: %.1f s", name, time.perf_counter() - start)
  s = trained.config.sample
  results["sampler"] = f"{s.sampler} {s.steps} steps, guidance {s.guidance:g}"
  results["hardware"] = environment()
  if jax.process_index() == 0:
    aside = workdir / "eval.json.tmp"
    aside.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(aside, workdir / "eval.json")
  return results


def _show(results: dict[str, Any]) -> None:
  if jax.process_index() == 0:
    print(table(results), flush=True)


def table(results: dict[str, Any]) -> str:
  """The results as aligned lines of name and value."""
  lines = {k: v for k, v in results.items() if not isinstance(v, dict)}
  width = max(map(len, lines))
  return "\n".join(
    f"{name:<{width}}  {value:.4g}"
    if isinstance(value, float)
    else f"{name:<{width}}  {value}"
    for name, value in lines.items()
  )
