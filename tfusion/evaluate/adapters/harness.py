"""A model for lm-evaluation-harness (package lm_eval, of the extra `eval`).

Owns: its interface of language models, named groups of its tasks, their numbers. Not:
the tasks, which are its own; likelihoods (likelihood.py), sampling (generator.py).

Only functions import this file: it needs a package that tfusion does without.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import lm_eval
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from tfusion.evaluate import likelihood
from tfusion.evaluate.adapters.generator import Generator, Wishes, wishes


class LanguageModel(TemplateLM):
  """`lm_eval.simple_evaluate(model=LanguageModel(generator), tasks=[...])`.

  A text begins with BOS. A context that is too long for data.row_length loses its
  beginning.
  """

  def __init__(self, generator: Generator):
    """Takes what answers."""
    super().__init__()
    self.generator = generator

  @property
  def eot_token_id(self) -> int:
    """The token that ends a document."""
    return self.generator.trained.tokenizer.special.eos

  @property
  def prefix_token_id(self) -> int:
    """The token that stands before a text without a context."""
    return self.generator.trained.tokenizer.special.bos

  @property
  def tokenizer_name(self) -> str:
    """A hash: by it the harness keeps requests apart."""
    return f"tfusion-{self.generator.trained.tokenizer.sha256[:16]}"

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Token ids of a text; never special ones, as every row begins with BOS."""
    return self.generator.trained.tokenizer.encode(string).tolist()

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    bos = [self.prefix_token_id]
    pairs = [([] if a == bos else a, b) for _, a, b in requests]
    found = self._measure(pairs)
    return [(one.log, one.greedy) for one in found]

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """The log of the probability of each text, in nats, in pieces if it is long."""
    room = self.generator.trained.config.data.row_length - 1  # BOS
    pieces = [
      likelihood.windows(self.tok_encode(request.args[0]), room=room)
      for request in requests
    ]
    found = iter(self._measure([pair for own in pieces for pair in own]))
    return [sum(next(found).log for _ in own) for own in pieces]

  def generate_until(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[str]:
    """Answers, each up to one of its stops.

    Raises:
      ValueError: a task asks for a search over beams, which is not built.
    """
    groups: dict[Wishes, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(wishes(request.args[1]), []).append(i)
    found = [""] * len(requests)
    for wanted, own in groups.items():
      contexts = [[self._end_of(requests[i].args[0], wanted.most)] for i in own]
      made = self.generator.say(contexts, **wanted._asdict())
      for i, text in zip(own, made):
        found[i] = text
    return found

  def _measure(self, pairs: Sequence[Any]) -> list[likelihood.Likelihood]:
    with jax.set_mesh(self.generator.trained.mesh):
      return likelihood.measure(self.generator.trained, pairs, what="continuations")

  def _end_of(self, context: str, most: int) -> str:
    """A context without its beginning, where the answer would not fit behind it."""
    tokenizer = self.generator.trained.tokenizer
    room = self.generator.trained.config.data.row_length - 1 - most
    if room < 1:
      raise ValueError(
        f"an answer of {most} tokens: leaves no room for a context in"
        f" data.row_length={self.generator.trained.config.data.row_length}"
      )
    ids = tokenizer.encode(context)
    return context if len(ids) <= room else tokenizer.decode(ids[len(ids) - room :])


def check_tasks(tasks: Sequence[str], *, folder: Path | None = None) -> TaskManager:
  """The harness's list of tasks, which has these.

  Args:
    tasks: by the harness's names.
    folder: with more tasks as .yaml files.

  Raises:
    ValueError: it has not.
  """
  manager = TaskManager(include_path=str(folder) if folder else None)
  if unknown := sorted(set(tasks) - set(manager.all_tasks)):
    raise ValueError(
      f"lm-evaluation-harness has no task {', '.join(unknown)}; `lm_eval ls tasks`"
      " lists what it has, and the folder `tasks` of --data may hold more as .yaml"
    )
  return manager


def evaluate_tasks(
  generator: Generator, tasks: Sequence[str], *, folder: Path | None = None
) -> dict[str, float]:
  """Runs tasks of the harness, of which the data are fetched or found by itself.

  Args:
    generator: answers.
    tasks: by the harness's names.
    folder: with more tasks as .yaml files.

  Returns:
    Every number of every task, as in "piqa acc".

  Raises:
    ValueError: a task is unknown, or its data cannot be had.
  """
  manager = check_tasks(tasks, folder=folder)
  try:
    found = lm_eval.simple_evaluate(
      model=LanguageModel(generator),
      tasks=list(tasks),
      task_manager=manager,
      bootstrap_iters=0,
      log_samples=False,
    )
  except (OSError, ConnectionError) as error:
    raise ValueError(
      f"the data of {', '.join(tasks)} cannot be had ({error}); the harness fetches"
      " them from the Hugging Face hub, or takes those that HF_HOME holds"
    ) from error
  return {
    f"{task} {measure.partition(',')[0]}": float(value)
    for task, own in found["results"].items()
    for measure, value in own.items()
    if isinstance(value, int | float) and "stderr" not in measure
  }


def version() -> str:
  """The harness's, for eval.json."""
  return f"lm-evaluation-harness {lm_eval.__version__}"
