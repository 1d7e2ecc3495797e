"""tfusion: train Transfusion models (arXiv 2408.11039) with JAX.

Whole runs:

  experiment    reads an experiment file, with knobs changed -> Config
  train         trains it in a workdir                       -> Run
  load          opens a run, finished or still training      -> Run
  scaling       fits power laws through finished runs        -> Scaling
  ablate        trains what a table of the paper compares    -> Ablated

A loop of one's own:

  set_mesh      puts config.mesh over the devices
  batches       what a step takes, without end
  init_params   parameters of an untrained model
  init_state    parameters, optimizer and average
  train_step    one update of a state
  draw_noise    noise and timestep of every image of a batch
  predict       the model on a noised batch
  losses        both losses of a prediction
  gradients     of both losses, with noise drawn and microbatches added

docs/python.md shows them at work. Importing tfusion imports none of them, nor jax: each
name does when it is first used.
"""

from tfusion.version import __version__

TYPE_CHECKING = False  # to type checkers and editors it is True
if TYPE_CHECKING:
  from tfusion.ablations.ablate import Ablated, ablate
  from tfusion.autoencoder_config import AutoencoderConfig
  from tfusion.config import Config
  from tfusion.config_file import experiment
  from tfusion.evaluate.families import Scaling, scaling
  from tfusion.generate.events import Denoised, Drew, Ended, Wrote
  from tfusion.generate.samples import Sample, Samples
  from tfusion.own_loop import batches, init_params, init_state, set_mesh, train_step
  from tfusion.run import AutoencoderRun, Run, load, train
  from tfusion.training.step import draw_noise, gradients, losses, predict

_HOMES = {  # name -> module that it is imported from
  "Ablated": "ablations.ablate",
  "AutoencoderConfig": "autoencoder_config",
  "AutoencoderRun": "run",
  "Config": "config",
  "Denoised": "generate.events",
  "Drew": "generate.events",
  "Ended": "generate.events",
  "Run": "run",
  "Sample": "generate.samples",
  "Samples": "generate.samples",
  "Scaling": "evaluate.families",
  "Wrote": "generate.events",
  "ablate": "ablations.ablate",
  "batches": "own_loop",
  "draw_noise": "training.step",
  "experiment": "config_file",
  "gradients": "training.step",
  "init_params": "own_loop",
  "init_state": "own_loop",
  "load": "run",
  "losses": "training.step",
  "predict": "training.step",
  "scaling": "evaluate.families",
  "set_mesh": "own_loop",
  "train": "run",
  "train_step": "own_loop",
}

__all__ = [
  "Ablated",
  "AutoencoderConfig",
  "AutoencoderRun",
  "Config",
  "Denoised",
  "Drew",
  "Ended",
  "Run",
  "Sample",
  "Samples",
  "Scaling",
  "Wrote",
  "__version__",
  "ablate",
  "batches",
  "draw_noise",
  "experiment",
  "gradients",
  "init_params",
  "init_state",
  "load",
  "losses",
  "predict",
  "scaling",
  "set_mesh",
  "train",
  "train_step",
]


def __getattr__(name: str):
  """Imports a name when it is first used (PEP 562)."""
  if name not in _HOMES:
    raise AttributeError(f"module 'tfusion' has no attribute {name!r}")
  import importlib

  value = getattr(importlib.import_module(f"tfusion.{_HOMES[name]}"), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted(globals().keys() | set(__all__))
