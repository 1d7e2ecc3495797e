"""From arms to runs: what is trained, what it is called, which runs are the same.

Owns: the config of a run, its keys, the commands that train and measure it. Not: which
arms there are (suites.py), doing it (runner.py), what came of it (results.py).

A run is known by its config, whatever suite asks for it: `key` is a hash of all that
training depends on, `judged` of that and of how it is sampled and measured. So suites
share runs, and one model is sampled in several ways without being trained again.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tfusion.ablations.suites import Arm, Suite
from tfusion.config import Config, flatten
from tfusion.config_file import read_config

EXPERIMENT = "experiments/ablations.py"
# Images of every task of `scenes:N`.
IMAGES = {"tiny": 12, "small": 32, "smoke": 1}
RATES = (0.5, 1.0, 2.0)  # times an arm's learning rate, that are tried
SEARCHED = 4  # a search trains this part of the updates
# What a run does not depend on, but for rounding: where it is trained.
ELSEWHERE = ("mesh.", "data.workers", "train.loggers", "train.stall_seconds")
SAMPLED = ("sample.", "eval.")  # what training does not depend on
DIGITS = 12  # of a key


class Spec(NamedTuple):
  """One run."""

  arm: Arm
  seed: int
  scale: str  # of experiments/ablations.py, or smoke
  experiment: str  # the file
  assets: Path
  rate: float = 1.0  # times the learning rate of the arm
  search: bool = False  # one that looks for the rate, and is short
  start_rate: float = 1.0  # as `rate`, of the run that it starts from

  @property
  def start(self) -> "Spec | None":
    """The run whose weights it begins with."""
    if self.arm.start is None:
      return None
    rate = self.start_rate
    return self._replace(arm=self.arm.start, rate=rate, search=False, start_rate=1.0)

  @property
  def file(self) -> str:
    """`--config`."""
    scale = "smoke" if self.scale == "smoke" else f"scale={self.scale}"
    own = f"ground={self.arm.ground},size={self.arm.size},{scale}"
    return f"{self.experiment}:{own},assets={self.assets}"

  def overrides(self, weights: Path | None = None) -> list[str]:
    """The knobs on the command line.

    Args:
      weights: the folder that it begins with; None: its name does not matter.
    """
    knobs = dict(self.arm.knobs) | {"seed": self.seed}
    if self.arm.start is not None:
      knobs["train.init_from"] = str(weights or "weights")
    if self.search or self.rate != 1.0:
      plain = _config(self.file, tuple(_written(knobs)))
      knobs["optim.peak_lr"] = self.rate * plain.optim.peak_lr
      knobs["optim.end_lr"] = self.rate * plain.optim.end_lr
      if self.search:
        steps = max(plain.train.steps // SEARCHED, 1)
        knobs |= {"train.steps": steps, "train.eval_every_steps": steps}
        knobs |= {"train.save_every_steps": steps, "eval.prompts": ()}
    return _written(knobs)

  def config(self) -> Config:
    """The resolved config.

    Raises:
      ValueError: a knob does not fit the others.
    """
    return _config(self.file, tuple(self.overrides()))

  def depends(self) -> dict[str, Any]:
    """All that its numbers depend on: evaluations, and knobs with other values than
    their defaults.

    So a knob that is new in a later version, and leaves things as they are, changes no
    key. Paths are left out.
    """
    plain, flat = flatten(Config()), flatten(self.config())
    own = {
      name: value
      for name, value in flat.items()
      if value != plain[name] and not name.startswith(ELSEWHERE)
    }
    found = json.loads(json.dumps(own).replace(str(self.assets), "ASSETS"))
    if self.start is not None:
      found["train.init_from"] = f"run {self.start.key}"
    return found | {"evaluations": self.evaluations}

  @property
  def key(self) -> str:
    """Of what is trained."""
    own = {k: v for k, v in self.depends().items() if not k.startswith(SAMPLED)}
    return _hash({k: v for k, v in own.items() if k != "evaluations"})

  @property
  def judged(self) -> str:
    """Of what is trained, and of how it is measured."""
    return _hash(self.depends())

  @property
  def evaluations(self) -> str:
    """`--suite`, beside what training ends with; nothing for a search, or for text."""
    if self.search or self.arm.of_text:
      return ""
    scenes = f"scenes:{IMAGES[self.scale]}"
    return scenes if self.arm.ground == "codes" else f"{scenes},loss"

  @property
  def name(self) -> str:
    """For people."""
    what = f"search at {self.rate:g}" if self.search else f"seed {self.seed}"
    return f"{self.arm.name}, {what}"

  def train(self, workdir: Path, weights: Path | None) -> list[str]:
    """Arguments of `tfusion` that train it."""
    where = ["train", "--config", self.file, "--workdir", str(workdir)]
    return where + self.overrides(weights)

  def evaluate(self, workdir: Path) -> list[str]:
    """Arguments of `tfusion` that measure it when it is trained."""
    knobs = {k: v for k, v in self.arm.knobs.items() if k.startswith(SAMPLED)}
    where = ["eval", "--workdir", str(workdir), "--suite", self.evaluations]
    return where + _written(knobs)


def searches(spec: Spec) -> list[Spec]:
  """The short runs by which the learning rate of a run's arm is chosen."""
  return [spec._replace(seed=0, rate=rate, search=True) for rate in RATES]


def arms(suites: Iterable[Suite]) -> list[Arm]:
  """The arms of suites, and those that they begin with, which come first."""
  found: list[Arm] = []
  for suite in suites:
    for arm in suite.arms:
      found += [one for one in (arm.start, arm) if one and one not in found]
  return sorted(found, key=lambda arm: arm.start is not None)


@functools.cache
def _config(file: str, overrides: tuple[str, ...]) -> Config:
  return read_config(file, list(overrides))


def _written(knobs: dict[str, Any]) -> list[str]:
  return [f"--config.{name}={value}" for name, value in knobs.items()]


def _hash(values: dict[str, Any]) -> str:
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
