"""The evaluations by name, the suites of them, and one table of what they found.

Owns: which there are and which fit a run, doing those that are not done, the table.
Not: any metric, what eval.json holds (record.py).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from tfusion import files
from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.pipeline import Corpus
from tfusion.evaluate import (
  digits,
  emoji,
  loss,
  mixed,
  pictured,
  record,
  scene_scores,
  shapes,
  tasks,
  text,
)
from tfusion.evaluate.benchmarks import benchmark
from tfusion.evaluate.benchmarks.dpg import DPG
from tfusion.evaluate.benchmarks.edits import GEdit, ImgEdit
from tfusion.evaluate.benchmarks.geneval import GenEval
from tfusion.evaluate.benchmarks.wise import Wise
from tfusion.evaluate.digits import check_digits
from tfusion.evaluate.emoji import check_emoji
from tfusion.evaluate.evaluation import Asked, Evaluation, needs_source
from tfusion.evaluate.mixed import check_mixed
from tfusion.evaluate.shapes import check_kind, check_shapes
from tfusion.generate.trained import Trained
from tfusion.model.transfusion import Params
from tfusion.together import together
from tfusion.training.machine import environment
from tfusion.version import __version__

# What changes rows, and what changes samples.
ROWS = ("data", "model", "eval.text_rows")
SAMPLES = ("seed", "model", "diffusion", "sample", "eval.batch")

EVALUATIONS = {
  "text": Evaluation(
    run=lambda asked: text.perplexity(asked.trained, asked.corpus, asked.out),
    knobs=ROWS,
    depends=lambda asked: record.documents_of(asked.corpus.test),
  ),
  "digits": Evaluation(
    run=lambda asked: digits.evaluate_digits(asked.trained, asked.corpus, asked.out),
    knobs=(*SAMPLES, "eval.samples_per_class"),
    unfit=needs_source("digits"),
    check=lambda asked: check_digits(asked.trained.config, asked.corpus),
  ),
  "shapes": Evaluation(
    run=lambda asked: shapes.evaluate_shapes(asked.trained, asked.corpus, asked.out),
    knobs=(*SAMPLES, "eval.samples_per_class"),
    unfit=needs_source("shapes"),
    check=lambda asked: check_shapes(asked.trained.config, asked.corpus),
    depends=lambda asked: record.documents_of(asked.corpus.test),
  ),
  "emoji": Evaluation(
    run=lambda asked: emoji.evaluate_emoji(asked.trained, asked.corpus, asked.out),
    knobs=(*SAMPLES, "eval.samples_per_class"),
    unfit=needs_source("emoji"),
    check=lambda asked: check_emoji(asked.trained.config, asked.corpus),
    depends=lambda asked: record.documents_of(asked.corpus.test),
  ),
  "shapes_of": Evaluation(
    run=lambda asked: shapes.evaluate_kind(
      asked.trained, asked.corpus, asked.argument, asked.out
    ),
    knobs=(*SAMPLES, "eval.samples_per_class"),
    unfit=needs_source("shapes"),
    argument="KIND",
    check=lambda asked: check_kind(asked.trained.config, asked.corpus, asked.argument),
    depends=lambda asked: record.documents_of(
      [shapes.source_of(asked.corpus, asked.argument)]
    ),
  ),
  "mixed": Evaluation(
    run=lambda asked: mixed.evaluate_mixed(asked.trained),
    knobs=(*SAMPLES, "eval.samples_per_class"),
    unfit=needs_source("mixed"),
    check=lambda asked: check_mixed(asked.trained.config, asked.corpus),
  ),
  "scenes": Evaluation(
    run=scene_scores.evaluate_scenes,
    knobs=SAMPLES,
    unfit=scene_scores.unfit,
    argument="N",
    check=scene_scores.check,
    depends=lambda asked: scene_scores.SCORER,
  ),
  "loss": Evaluation(
    run=loss.evaluate_loss,
    knobs=("data", "model", "diffusion", "train.eval_rows"),
    unfit=loss.unfit,
    depends=loss.depends,
  ),
  "ppl": Evaluation(
    run=text.perplexity_of,
    knobs=ROWS,
    argument="SOURCE",
    check=lambda asked: void(text.open_source(asked)),
    depends=lambda asked: record.documents_of([text.open_source(asked)]),
  ),
  "fid": Evaluation(
    run=pictured.evaluate_fid,
    knobs=SAMPLES,
    unfit=pictured.unfit,
    argument="N",
    check=pictured.check_images,
    depends=pictured.depends,
  ),
  "clip": Evaluation(
    run=pictured.evaluate_clip,
    knobs=SAMPLES,
    unfit=pictured.unfit,
    argument="N",
    check=pictured.check_clip,
    depends=pictured.depends,
  ),
  "sweep": Evaluation(
    run=pictured.evaluate_sweep,
    knobs=SAMPLES,
    unfit=pictured.unfit,
    argument="N",
    check=pictured.check_images,
    depends=pictured.depends,
  ),
  "cider": Evaluation(
    run=pictured.evaluate_cider,
    knobs=SAMPLES,
    unfit=pictured.unfit,
    check=pictured.check_cider,
    depends=pictured.depends_cider,
  ),
  "lm": Evaluation(
    run=tasks.evaluate_lm,
    knobs=("data", "model"),
    argument="TASK",
    check=tasks.check_lm,
    depends=tasks.depends,
  ),
  "llama2": Evaluation(
    run=tasks.evaluate_llama2,
    knobs=("data", "model"),
    check=tasks.check_llama2,
    depends=tasks.depends,
  ),
}
EVALUATIONS |= {
  one.name: benchmark.evaluation(one)
  for one in (GenEval(), DPG(), Wise(), GEdit(), ImgEdit())
}
ALWAYS = "own"  # the suite that training ends with
# Suite -> names; of those in OF_THE_RUN, what fits the run.
SUITES: dict[str, tuple[str, ...]] = {
  ALWAYS: ("text", "digits", "shapes", "emoji", "mixed"),
  "small": ("text", "loss", "digits", "shapes", "emoji", "mixed"),
  "paper": (
    *("ppl:wikipedia", "ppl:c4", "llama2"),
    *("cider", "fid:30000", "clip:30000", "geneval"),
  ),
}
OF_THE_RUN = (ALWAYS, "small")


class Named(NamedTuple):
  """One evaluation as it was asked for."""

  name: str  # with its argument, as in "ppl:pydoc"
  evaluation: Evaluation
  asked: Asked


class FinalEvaluation:
  """Runs every evaluation that fits, after the last update."""

  def __init__(self, config: Config, workdir: Path):
    """Keeps both; the data are checked by `check`."""
    self.config, self.workdir = config, workdir

  def check(self, corpus: Corpus) -> None:
    """Raises ValueError for what cannot be evaluated."""
    if any(source.name == "digits" for source in corpus.test):
      check_digits(self.config, corpus)
    if any(source.name == "mixed" for source in corpus.test):
      check_mixed(self.config, corpus)
    if any(source.name.partition(":")[0] == "emoji" for source in corpus.test):
      check_emoji(self.config, corpus)
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


def parse(suite: str) -> tuple[str, ...]:
  """Takes `--suite` apart.

  Args:
    suite: names of suites and evaluations, with commas between them, or nothing.

  Returns:
    The names, suites as they are, each once.

  Raises:
    ValueError: a name is unknown, or lacks what stands behind its colon.
  """
  if not suite:
    return ()
  names = tuple(dict.fromkeys(name.strip() for name in suite.split(",")))
  for name in names:
    head, colon, argument = name.partition(":")
    known = EVALUATIONS.get(head)
    if known is None and (head not in SUITES or colon):
      raise ValueError(f"--suite={suite}: {name!r} is unknown; known: {known_names()}")
    wanted = known.argument if known else ""
    if wanted and not argument:
      raise ValueError(f"--suite={suite}: write {head}:{wanted} instead of {name!r}")
    if colon and not wanted:
      raise ValueError(f"--suite={suite}: {head} takes nothing behind a colon")
  return names


def known_names() -> str:
  """All that `--suite` may name, in a line."""
  each = (f"{n}:{e.argument}" if e.argument else n for n, e in EVALUATIONS.items())
  return f"the suites {', '.join(SUITES)}; the evaluations {', '.join(each)}"


def evaluate(
  trained: Trained,
  corpus: Corpus,
  workdir: str | Path,
  *,
  names: Sequence[str] = (),
  data: str | Path | None = None,
) -> dict[str, Any]:
  """Runs evaluations; all hosts must call it.

  Each is written as soon as it is done, so that what was interrupted goes on.

  Args:
    trained: the model.
    corpus: of the run; its test split is evaluated on.
    workdir: gets eval.json and, in eval/, sheets of images.
    names: as `parse` gives them: those that are finished are not done again. Empty: the
      suite `own`, anew.
    data: folder with data sets and networks of others, as docs/evaluation.md has it.

  Returns:
    What eval.json holds.

  Raises:
    ValueError: something does not fit the run or is missing; nothing was measured then.
  """
  workdir = files.to_path(workdir)
  asked = Asked(trained, corpus, workdir, files.to_path(data) if data else None)
  about: dict[str, Any] = {}
  if said := sampler(trained.config, codes=corpus.first_code is not None):
    about["sampler"] = said
  about["hardware"] = environment()
  with jax.set_mesh(trained.mesh):
    with together():
      if asked.data and not asked.data.is_dir():
        raise ValueError(f"--data={data}: there is no such folder")
      chosen = choose(asked, names or (ALWAYS,))
      of = {one.name: _of(one) for one in chosen}
    weights = record.hash_of_weights(trained.params)
    finished = record.read(workdir)
    for name, _, own in chosen:
      key = record.key_of(name, trained.step)
      depends = of[name] | {"weights": weights}
      if names and record.is_done(finished, key, depends):
        logging.info("%s: is done", name)
        continue
      start = time.perf_counter()
      values = EVALUATIONS[name.partition(":")[0]].run(own)
      logging.info("%s: %.1f s", name, time.perf_counter() - start)
      finished[key] = {"of": depends, "values": values} | about
      record.write(workdir, finished, step=trained.step, about=about)
    return record.write(workdir, finished, step=trained.step, about=about)


def choose(asked: Asked, names: Sequence[str]) -> list[Named]:
  """The evaluations of names and suites, each once, after their checks.

  Raises:
    ValueError: what is missing or does not fit, for all of them in one message.
  """
  wanted: dict[str, bool] = {}  # name -> whether it must fit
  for name in names:
    for own in SUITES.get(name, (name,)):
      wanted[own] = wanted.get(own, False) or name not in OF_THE_RUN
  chosen, problems = [], []
  for name, must_fit in wanted.items():
    head, _, argument = name.partition(":")
    found = Named(name, EVALUATIONS[head], asked._replace(argument=argument))
    if why := found.evaluation.unfit(found.asked):
      problems += [f"{name}: {why}"] * must_fit
      continue
    try:
      found.evaluation.check(found.asked)
      chosen.append(found)
    except ValueError as error:
      problems.append(str(error))
  if problems:
    raise ValueError("\n".join(problems))
  return chosen


def void(found: object) -> None:
  """Forgets what a check has found."""


def _of(named: Named) -> dict[str, Any]:
  """What the numbers of an evaluation depend on, but for the weights."""
  return {
    "step": named.asked.trained.step,
    "tfusion": __version__,
    "knobs": record.knobs_of(named.asked.trained.config, named.evaluation.knobs),
    "data": named.evaluation.depends(named.asked),
  }


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
