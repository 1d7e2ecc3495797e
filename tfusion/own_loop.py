"""What a training loop of one's own needs: the mesh, batches, a state, one step.

Owns: these, ready to call on one device or many, by the same lines. Not: what they
compute (training/step.py), the loop of `tfusion train` (training/loop.py).

docs/python.md has two loops of about 20 lines.
"""

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from tfusion import config as config_lib
from tfusion import files, startup
from tfusion.config import Config
from tfusion.data.pipeline import Corpus, HostBatches, open_corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.interop.weights import InitFrom
from tfusion.model.transfusion import Params
from tfusion.sequence import Batch
from tfusion.sharding import global_batch, make_mesh
from tfusion.training import start
from tfusion.training import step as step_lib
from tfusion.training.step import TrainState


def set_mesh(config: Config) -> contextlib.AbstractContextManager:
  """Puts the mesh of `config.mesh` over all devices into use, as jax.set_mesh does.

  Called as a statement it lasts for the rest of the program, in a `with` for that. All
  functions of the model need a mesh, on a single device too.

  Raises:
    ValueError: the mesh does not fit the devices, or train.batch_rows does not divide
      over it.
  """
  config_lib.validate_devices(
    config, devices=jax.device_count(), hosts=jax.process_count()
  )
  return jax.set_mesh(make_mesh(config.mesh))


class Batches(Iterator[Batch[jax.Array]]):
  """Batches without end, in the order in which `tfusion train` would take them.

  Attributes:
    tokenizer: of the texts in them.
  """

  def __init__(self, corpus: Corpus, config: Config, *, mesh: jax.sharding.Mesh, keep):
    """Reads this host's share of every batch from the corpus.

    Args:
      corpus: of a run.
      config: of the run.
      mesh: that batches are shared out over.
      keep: whatever must live as long as the corpus is read.
    """
    self.tokenizer: Tokenizer = corpus.tokenizer
    self._mesh, self._keep = mesh, keep
    hosts = dict(host=jax.process_index(), hosts=jax.process_count())
    self._rows = HostBatches(corpus, config, **hosts)

  def __next__(self) -> Batch[jax.Array]:
    """The next train.batch_rows rows, as arrays over all devices.

    Raises:
      ChildProcessError: a data worker died. The next batch is still the next one.
      ValueError: more than data.max_damaged records are damaged.
    """
    return global_batch(next(self._rows), mesh=self._mesh)

  def close(self) -> None:
    """Ends the data workers."""
    self._rows.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    where: TracebackType | None,
  ) -> None:
    self.close()


def batches(config: Config, workdir: str | Path | None = None) -> Batches:
  """Opens the data of a config: what `train_step` takes, without end.

  Args:
    config: checked.
    workdir: keeps the tokenizer and decoded images for the next time, as a run's does;
      None: a folder that is deleted with the batches.

  Raises:
    ValueError: a source or tokenizer that cannot serve, a config that does not fit the
      devices, or a script that asks for data workers outside of
      `if __name__ == "__main__":`.
  """
  startup.check_script(config.data.workers)
  config_lib.validate_devices(
    config, devices=jax.device_count(), hosts=jax.process_count()
  )
  keep = None
  if workdir is None:
    keep = tempfile.TemporaryDirectory()
    workdir = keep.name
  folder = files.to_path(workdir).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  mesh = jax.sharding.get_mesh()
  mesh = make_mesh(config.mesh) if mesh.empty else mesh
  return Batches(open_corpus(config, folder), config, mesh=mesh, keep=keep)


def init_params(config: Config, key: jax.Array | None = None) -> Params:
  """Makes the parameters that training begins with, float32, shared out over the mesh:
  random numbers, or those of `train.init_from`.

  Args:
    config: its `model` and `optim` are read.
    key: of the random numbers; None: that of config.seed, as in training.

  Raises:
    ValueError: no mesh is in use.
  """
  if config.train.init_from:
    return init_state(config, key).params
  return _init(config, _key(config, key), "params")


def init_state(config: Config, key: jax.Array | None = None) -> TrainState:
  """Makes the state of step 0: parameters, optimizer, average, all over the mesh.

  Args:
    config: checked.
    key: of the random numbers; None: that of config.seed, as in training.

  Raises:
    ValueError: no mesh is in use, or the weights are of another model. Whether the
      tokenizer is theirs is seen in `tfusion train` alone.
  """
  root = _key(config, key)
  if weights := InitFrom.of(config):
    return start.new_state(config, jax.sharding.get_mesh(), root, weights)
  return _init(config, root, None)


def train_step(
  config: Config,
  state: TrainState,
  batch: Batch[jax.Array],
  key: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update, exactly that of `tfusion train`; compiled once for a config.

  Args:
    config: of the run.
    state: before the update. It is used up: what is returned takes its memory.
    batch: from `batches`.
    key: the same in every step, which folds in its number; None: that of config.seed,
      as in training.

  Returns:
    The state after the update and its metrics, f32[] each: loss, loss_text, loss_image,
    grad_norm, lr, elements, images, skipped and skipped_total. An update that is not
    finite is skipped, and counted.

  Raises:
    ValueError: no mesh is in use.
  """
  return _step(config, state, batch, _key(config, key))


def _key(config: Config, key: jax.Array | None) -> jax.Array:
  if jax.sharding.get_abstract_mesh().empty:
    raise ValueError(
      "no mesh is in use; call tfusion.set_mesh(config) before, once in a program"
    )
  return jax.random.key(config.seed) if key is None else key


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(config: Config, key: jax.Array, field: str | None):
  """The state, or one field of it; what is not returned is not computed."""
  state = _laid_out(config, step_lib.init_state(config, key))
  return state if field is None else getattr(state, field)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(config: Config, state: TrainState, batch: Batch[jax.Array], key: jax.Array):
  state, metrics = step_lib.train_step(config, state, batch, key)
  return _laid_out(config, state), metrics


def _laid_out(config: Config, state: TrainState) -> TrainState:
  """The state, each leaf shared out as its parameter is."""
  shardings = step_lib.shardings(config, jax.sharding.get_abstract_mesh())
  return jax.tree.map(jax.sharding.reshard, state, shardings)
