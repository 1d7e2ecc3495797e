"""A trained model read back from its workdir, to sample with and to evaluate.

Owns: which weights those are. Not: how checkpoints are stored (checkpoint.py).
"""

from pathlib import Path
from typing import NamedTuple

import jax

from tfusion import config as config_lib
from tfusion import files
from tfusion import workdir as workdir_lib
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.data import identity, numbers
from tfusion.data.numbers import Numbers
from tfusion.data.tokenizer import Tokenizer
from tfusion.model.transfusion import Params
from tfusion.sharding import make_mesh
from tfusion.together import check_hosts, together
from tfusion.training.step import TrainState, abstract_state


class Trained(NamedTuple):
  """A model at one step of its run."""

  config: Config
  step: int  # updates done
  params: Params  # the moving average, if the run keeps one
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  numbers: Numbers | None = None  # what training images are made of, if known


def open_trained(
  config: Config, workdir: str | Path, *, step: int | None = None
) -> Trained:
  """Reads the parameters and the tokenizer of a run, which may still be training.

  Args:
    config: as `load_config(workdir)` gives it, perhaps with other `sample` or `eval`.
    workdir: of the run.
    step: of a checkpoint; None: the newest that is whole.

  Raises:
    ValueError: there is no such checkpoint, the mesh does not fit the devices, or the
      tokenizer is not the one that the run began with.
  """
  workdir = files.to_path(workdir)
  with together():
    workdir_lib.check_same_run(config, workdir)
    config_lib.validate_devices(
      config, devices=jax.device_count(), hosts=jax.process_count()
    )
  check_hosts(config)
  mesh = make_mesh(config.mesh)
  with (
    jax.set_mesh(mesh),
    Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints,
  ):
    wanted = abstract_state(config, mesh)._replace(opt_state=None)
    if wanted.ema:
      wanted = wanted._replace(params={})
    restored = checkpoints.restore(wanted, partial=True, step=step)
  if restored is None:
    raise ValueError(
      f"--workdir={workdir}: no checkpoint yet; train with `tfusion train` until the"
      f" first one, after train.save_every_steps={config.train.save_every_steps} steps"
    )
  with together():
    return of_state(config, workdir, restored.state)._replace(step=restored.step)


def of_state(config: Config, workdir: str | Path, state: TrainState) -> Trained:
  """The model of a state that training in a workdir has left."""
  return Trained(
    config=config,
    step=int(state.step),
    params=state.sampling_params,
    tokenizer=identity.open_tokenizer(workdir).for_kinds(len(config.model.every_kind)),
    mesh=make_mesh(config.mesh),
    numbers=numbers.kept(workdir),
  )
