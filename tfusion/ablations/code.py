"""By which code a number was made: a hash that comments and names of files leave alone.

Owns: which files count. Not: what is done with numbers of other code (results.py).
"""

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# What a number goes through from the data to eval.json. Commands, pages, files, pods
# and the tools beside are left out: a change of theirs makes no number stale.
ROOMS = (
  *("attention", "autoencoder", "data", "diffusion", "model"),
  *("sequence.py", "kinds.py", "sharding.py"),
  *("training/cross_entropy.py", "training/losses.py", "training/optim.py"),
  *("training/step.py", "training/validate.py"),
  "generate",
  *("evaluate/answers.py", "evaluate/cider.py", "evaluate/compositions.py"),
  *("evaluate/frechet.py", "evaluate/loss.py", "evaluate/marks.py"),
  *("evaluate/scene_scores.py", "evaluate/scenes.py", "evaluate/text.py"),
)
DIGITS = 12


@functools.cache
def version() -> str:
  """The hash, of the statements of every file of ROOMS without their docstrings."""
  found = hashlib.sha256()
  for room in ROOMS:
    path = PACKAGE / room
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
      found.update(f"{file.relative_to(PACKAGE).as_posix()}\n".encode())
      found.update(statements(file.read_text(encoding="utf-8")).encode())
  return found.hexdigest()[:DIGITS]


def statements(source: str) -> str:
  """What a program does, in one string that comments do not change."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and _is_docstring(body[0]):
      del body[0]
  return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
  value = node.value if isinstance(node, ast.Expr) else None
  return isinstance(value, ast.Constant) and isinstance(value.value, str)
