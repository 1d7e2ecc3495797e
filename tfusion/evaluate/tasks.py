"""Tasks of lm-evaluation-harness as evaluations: `lm:TASK` and `llama2`.

Owns: their names, the group of the paper. Not: the harness's interface
(adapters/harness.py).
"""

import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tfusion.evaluate.adapters.generator import Generator
from tfusion.evaluate.evaluation import Asked
from tfusion.generate.canvas import open_canvas

# The evaluation suite of Llama 2, of whose accuracies arXiv 2408.11039 (section 4.1)
# gives the mean, by the harness's names.
LLAMA2 = (
  *("hellaswag", "piqa", "social_iqa", "winogrande"),
  *("arc_easy", "arc_challenge", "boolq"),
)


def check_lm(asked: Asked) -> None:
  """Checks that the harness is installed and has the task."""
  _harness().check_tasks([asked.argument], folder=_folder(asked))


def check_llama2(asked: Asked) -> None:
  """Checks that the harness is installed and has all seven tasks."""
  _harness().check_tasks(LLAMA2, folder=_folder(asked))


def evaluate_lm(asked: Asked) -> dict[str, Any]:
  """`lm:TASK`: the numbers of one task or group of the harness, under its name."""
  return _evaluate(asked, [asked.argument])


def evaluate_llama2(asked: Asked) -> dict[str, Any]:
  """`llama2`: the accuracy of each of the seven tasks, and their mean in per cent.

  The mean is of `acc`; that of answers by their length, `acc_norm`, stands beside it
  where a task has it.
  """
  found = _evaluate(asked, LLAMA2)
  mean = 100 * float(np.mean([found[f"{task} acc"] for task in LLAMA2]))
  return {"llama2_accuracy": mean} | found


def depends(asked: Asked) -> Any:
  """The harness's version, and the tasks of --data."""
  folder = _folder(asked)
  own = sorted(path.name for path in folder.rglob("*.yaml")) if folder else []
  return [_harness().version(), own]


def _evaluate(asked: Asked, tasks: Sequence[str]) -> dict[str, Any]:
  canvas = open_canvas(asked.trained.config, asked.workdir, look_only=True)
  generator = Generator(asked.trained, canvas)
  found = _harness().evaluate_tasks(generator, tasks, folder=_folder(asked))
  return found | {"lm_judge": _harness().version()}


def _folder(asked: Asked) -> Any:
  folder = asked.data and asked.data / "tasks"
  return folder if folder and folder.is_dir() else None


def _harness() -> ModuleType:
  """The adapter; it imports a package that tfusion does without."""
  if importlib.util.find_spec("lm_eval") is None:
    raise ValueError(
      "tasks of lm-evaluation-harness need the extra `eval`: pip install"
      " 'tfusion[eval]'"
    )
  from tfusion.evaluate.adapters import harness

  return harness
