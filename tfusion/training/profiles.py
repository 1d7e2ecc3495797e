"""A profile of the next updates, when one is asked for.

Owns: when it begins and ends, and its place. Not: who asks (watch.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STEPS = 3  # updates in a profile


class Profiles:
  """The profiles of a run; each host writes its own."""

  def __init__(self, workdir: Path, say: Callable[[str], None]):
    """Begins none.

    Args:
      workdir: gets profiles/.
      say: says something on the first host.
    """
    self._workdir, self._say = workdir, say
    self._last, self._folder = 0, Path()

  def turn(self, step: int, asked: Callable[[], bool], values: Any) -> None:
    """Begins or ends a profile, between two updates.

    Args:
      step: of the update that was handed to the device last.
      asked: whether a profile is wanted; is asked once.
      values: of that update, which the device may still be computing.
    """
    if self._last:
      if step >= self._last:
        self.stop(values)
    elif asked():
      jax.block_until_ready(values)
      self._folder = self._workdir / "profiles" / f"step_{step + 1:08d}"
      if jax.process_count() > 1:
        self._folder /= f"host_{jax.process_index()}"
      try:
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      except RuntimeError as error:  # another one runs
        self._say(f"step {step}: no profile can begin ({error})")
        return
      self._last = step + STEPS

  def stop(self, values: Any) -> None:
    """Ends a profile that has begun, and says how to read it."""
    if not self._last:
      return
    jax.block_until_ready(values)
    jax.profiler.stop_trace()
    self._last = 0
    self._say(
      f"{self._folder}: a profile of {STEPS} updates; open its"
      " perfetto_trace.json.gz in https://ui.perfetto.dev, or see more with `pip"
      f" install xprof` and `xprof --logdir {self._folder}`"
    )
