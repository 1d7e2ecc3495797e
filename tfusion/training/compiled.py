"""A training step, compiled when it is first called.

Owns: its compilation ahead of time, which the clock counts apart. Not: what it
computes.
"""

from collections.abc import Callable
from typing import Any

import jax

from tfusion.training.clock import Clock


class CompiledStep:
  """A step whose state is donated; one shape of arguments, one program."""

  def __init__(self, step: Callable[..., tuple[Any, Any]], sharding: Any, clock: Clock):
    """Compiles nothing yet.

    Args:
      step: (state, ...) -> the next state and metrics.
      sharding: of the state, one or a tree like it.
      clock: counts the seconds of compiling.
    """
    self._step = jax.jit(step, donate_argnums=0, out_shardings=(sharding, None))
    self._program: jax.stages.Compiled | None = None
    self._clock = clock

  def __call__(self, state: Any, *args: Any) -> tuple[Any, Any]:
    """The next state and metrics, which may still be on the device."""
    if self._program is None:
      with self._clock.measure("compile"):
        self._program = self._step.lower(state, *args).compile()
    return self._program(state, *args)
