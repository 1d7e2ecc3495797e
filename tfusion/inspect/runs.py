"""What a workdir holds, for people to read.

Owns: the lines. Not: the config (workdir.py), the checkpoints (checkpoint.py), what
the time of a run is called (report/goodput.py).
"""

from collections.abc import Iterator
from pathlib import Path

from tfusion import files
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.config import flatten
from tfusion.report import goodput
from tfusion.report.run import read_run


def lines(workdir: str | Path, *, step: int | None = None) -> Iterator[str]:
  """Shows the config of a run, what its time went into, the steps of its checkpoints,
  and one of these.

  Args:
    workdir: of a run, of a model or an autoencoder.
    step: of the checkpoint to show; None: the newest.

  Raises:
    ValueError: there is no run, or no such checkpoint.
  """
  config = workdir_lib.load_config(workdir, kind=None)
  for key, value in flatten(config).items():
    yield f"{key} = {value!r}"
  yield from goodput.lines(read_run(files.to_path(workdir)).goodput)
  directory = files.to_path(workdir) / "checkpoints"
  with Checkpoints(directory, read_only=True) as checkpoints:
    yield f"checkpoints: {checkpoints.steps()}"
    step = checkpoints.latest if step is None else step
    if step is not None:
      yield f"checkpoint {step}:"
      for key, value in checkpoints.describe(step).items():
        yield f"  {key}: {value}"
