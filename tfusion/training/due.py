"""Which updates a checkpoint and an evaluation belong to."""

from typing import Any


def checkpoint(config: Any, step: int) -> bool:
  """True if a checkpoint belongs to the update that was just done."""
  t = config.train
  return step % t.save_every_steps == 0 or step >= t.steps


def evaluation(config: Any, step: int) -> bool:
  """True if an evaluation belongs to the update that was just done."""
  t = config.train
  return step % t.eval_every_steps == 0 or step >= t.steps
