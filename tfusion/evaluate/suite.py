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

from tfusion.data.pipeline import open_corpus
from tfusion.evaluate.digits import evaluate_digits
from tfusion.evaluate.text import perplexity
from tfusion.train.metrics import environment
from tfusion.train.trained import Trained

# name -> (source it needs, function of the model, the corpus and a folder for pictures)
EVALUATIONS = {
  "text": (None, perplexity),
  "digits": ("digits", evaluate_digits),
}


def evaluate(trained: Trained, workdir: str | Path) -> dict[str, Any]:
  """Runs what fits the run's sources; writes workdir/eval.json, returns its content."""
  workdir = Path(workdir)
  corpus = open_corpus(trained.config, workdir)
  names = {source.name for source in corpus.test}
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
