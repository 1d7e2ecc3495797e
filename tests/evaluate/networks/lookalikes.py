"""Networks of others with random weights, in files as theirs are but narrow.

Not a test: shared by the tests of whatever opens such files.
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file

from tfusion.evaluate.networks import inception


def inception_weights(*, seed: int = 0, width: int = 3) -> dict[str, np.ndarray]:
  """Weights of an Inception whose every convolution has `width` outputs."""
  rng, found = np.random.default_rng(seed), {}

  def add(name: str, own: inception.Convolution, channels: int) -> int:
    shape = (width, channels, *own.kernel)
    spread = np.sqrt(2 / np.prod(shape[1:]))
    found[f"{name}.conv.weight"] = spread * rng.normal(size=shape)
    for part, low, high in (
      ("weight", 0.5, 1.5),
      ("bias", -0.2, 0.2),
      ("running_mean", -0.2, 0.2),
      ("running_var", 0.5, 1.5),
    ):
      found[f"{name}.bn.{part}"] = rng.uniform(low, high, width)
    return width

  channels = 3
  for own in inception.STEM:
    if not isinstance(own, str):
      channels = add(own.name, own, channels)
  for block, branches in inception.BLOCKS:
    joined = 0
    for branch in branches:
      inner = channels
      for step in branch:
        if isinstance(step, list):
          inner = sum(add(f"{block}.{own.name}", own, inner) for own in step)
        elif not isinstance(step, str):
          inner = add(f"{block}.{step.name}", step, inner)
      joined += inner
    channels = joined
  return {name: x.astype(np.float32) for name, x in found.items()}


def inception_file(path: pathlib.Path, **how) -> pathlib.Path:
  """The same in a .safetensors file; returns its path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  save_file(inception_weights(**how), path)
  return path
