"""The evaluations that fit a run, and one table of what they found.

Owns: which ones fit, eval.json, the table. Not: any metric.
"""

import time
from pathlib import Path
from typing import Any

import jax
from absl import logging

from tfusion import files
from tfusion import workdir as workdir_lib
from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.pipeline import Corpus
from tfusion.evaluate.digits import check_digits, evaluate_digits
from tfusion.evaluate.shapes import check_shapes, evaluate_shapes
from tfusion.evaluate.text import perplexity
from tfusion.generate.trained import Trained
from tfusion.model.transfusion import Params
from tfusion.training.machine import environment

# name -> (source it needs, function of the model, the corpus and a folder for images)
EVALUATIONS = {
  "text": (None, perplexity),
  "digits": ("digits", evaluate_digits),
  "shapes": ("shapes", evaluate_shapes),
}


class FinalEvaluation:
  """Runs every evaluation that fits, after the last update."""

  def __init__(self, config: Config, workdir: Path):
    """Keeps both; the data are checked by `check`."""
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
      model = Trained(
        config=self.config,
        step=step,
        params=params,
        tokenizer=corpus.tokenizer,
        mesh=mesh,
        numbers=known,
      )
      show(evaluate(model, corpus, self.workdir))


def evaluate(trained: Trained, corpus: Corpus, workdir: str | Path) -> dict[str, Any]:
  """Runs what fits the run's sources; all hosts must call it.

  Args:
    trained: the model.
    corpus: of the run; its test split is evaluated on.
    workdir: gets eval.json and, in eval/, sheets of images.

  Returns:
    What eval.json holds.
  """
  workdir = files.to_path(workdir)
  names = {source.name.partition(":")[0] for source in corpus.test}
  results: dict[str, Any] = {"step": trained.step}
  with jax.set_mesh(trained.mesh):
    for name, (needs, function) in EVALUATIONS.items():
      if needs is None or needs in names:
        start = time.perf_counter()
        results |= function(trained, corpus, workdir / "eval")
        logging.info("%s: %.1f s", name, time.perf_counter() - start)
  if said := sampler(trained.config, codes=corpus.first_code is not None):
    results["sampler"] = said
  results["hardware"] = environment()
  if jax.process_index() == 0:
    workdir_lib.write_json(workdir, "eval.json", results)
  return results


def sampler(config: Config, *, codes: bool) -> str:
  """How images are made, in a few words; nothing of a model that makes none."""
  s = config.sample
  if codes:
    return (
      f"codes, guidance {s.guidance:g} and {s.image_guidance:g}, temperature"
      f" {s.code_temperature:g}, top-p {s.code_top_p:g}"
    )
  if config.model.patches == "none":
    return ""
  return f"{s.sampler} {s.steps} steps, guidance {s.guidance:g}"


def show(results: dict[str, Any], *more: str) -> None:
  """Prints the table, and more lines below it, on the first host."""
  if jax.process_index() == 0:
    print(table(results), *more, sep="\n", flush=True)


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
