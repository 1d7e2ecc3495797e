"""A config, rows and a mesh so small that compiling is all that a test waits for.

Not a test: shared by tests/model and tests/train. Beside it, the paper's own configs.
"""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tfusion import config as config_lib
from tfusion import sequence
from tfusion.config import Config, MeshConfig, ModelConfig
from tfusion.data.lanes import kind_sizes
from tfusion.model.transfusion import Params, Transfusion
from tfusion.sequence import Document, SpecialTokens
from tfusion.sharding import global_batch, make_mesh

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, boi=3, eoi=4)
FIRST_TEXT = 5  # ids from here on are text

VALUES = {
  "model.layers": 2,
  "model.width": 32,
  "model.heads": 4,
  "model.kv_heads": 2,  # grouped queries
  "model.mlp": 48,
  "model.vocab_size": 32,
  "model.image_shape": (4, 4, 2),
  "model.patch": 2,  # 4 patches of 8 numbers
  "data.row_length": 24,
  "data.image_slots": 3,
  "data.lanes": 1,
  "train.batch_rows": 4,
  "train.steps": 20,
  "train.eval_rows": 4,
  "optim.peak_lr": 1e-2,
  "optim.warmup_steps": 2,
}


def changed(**values) -> dict:
  """The default config as a nested dict with `section__key` values replaced."""
  nested = dataclasses.asdict(Config())
  for name, value in values.items():
    *sections, key = name.split("__")
    inner = nested
    for section in sections:
      inner = inner[section]
    inner[key] = value
  return nested


def build(**values) -> Config:
  """The default config with `section__key` values replaced, checked."""
  return config_lib.from_dict(changed(**values))


def config(**changes) -> Config:
  """The tiny config with `section__key=value` changed; checked."""
  values = VALUES | {key.replace("__", "."): v for key, v in changes.items()}
  nested = dataclasses.asdict(Config())
  for key, value in values.items():
    section, _, name = key.rpartition(".")
    (nested[section] if section else nested)[name] = value
  return config_lib.from_dict(nested)


def paper(arg: str = "") -> Config:
  """The config of experiments/paper.py; checked."""
  return experiment("paper", arg)


def experiment(name: str, arg: str = "") -> Config:
  """The config of experiments/NAME.py; checked."""
  return config_lib.from_dict(load_experiment(name).get_config(arg))


def load_experiment(name: str) -> types.ModuleType:
  """The module experiments/NAME.py."""
  path = pathlib.Path(__file__).parents[1] / "experiments" / f"{name}.py"
  module_spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def one_device():
  """The mesh of a single device, in use."""
  mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


def put(rows):
  """Numpy rows on the mesh in use, sharded like a batch."""
  return global_batch(rows, mesh=jax.sharding.get_mesh())


def fill(make, *, seed: int = 0) -> nnx.Module:
  """A module with plain random numbers; no compilation, no zero bias, no scale of 1.

  Args:
    make: makes the module from `nnx.Rngs`.
    seed: of the numbers.
  """
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))
  )
  rng = np.random.default_rng(seed)

  def numbers(path, leaf):
    value = 0.2 * rng.normal(size=leaf.shape).astype(np.float32)
    return jnp.asarray(value + ("scale" in jax.tree_util.keystr(path)))

  return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(numbers, state))


def params(model: ModelConfig, *, seed: int = 0) -> Params:
  """Random parameters of the whole model."""
  filled = fill(lambda rngs: Transfusion(model, rngs=rngs), seed=seed)
  return nnx.to_pure_dict(nnx.state(filled, nnx.Param))


def text(rng: np.random.Generator, length: int, *, weight: float = 1.0):
  """Random text."""
  ids = rng.integers(FIRST_TEXT, VALUES["model.vocab_size"], length)
  return sequence.Text(ids.astype(np.int32), weight)


def image(rng: np.random.Generator, *, weight: float = 1.0, noise_cap: float = 1.0):
  """A random image."""
  latent = rng.normal(size=VALUES["model.image_shape"]).astype(np.float32)
  return sequence.Image(latent, weight, noise_cap)


def image_of(rng: np.random.Generator, c: Config, kind: int, **how) -> sequence.Image:
  """A random image of a kind of a run."""
  latent = rng.normal(size=c.model.every_kind[kind].shape).astype(np.float32)
  return sequence.Image(latent, kind=kind, **how)


def pack(documents: list[Document], c: Config) -> sequence.Row:
  """One row that holds these documents."""
  special = special_of(c)
  patches = c.model.patches_by_kind
  elements = [
    sequence.lay_out(d, special=special, patches_per_image=patches) for d in documents
  ]
  return sequence.pack(
    elements,
    row_length=c.data.row_length,
    kinds=kind_sizes(c),
    special=special,
    causal=c.model.image_attention == "causal",
  )


def special_of(c: Config) -> SpecialTokens:
  """The special tokens of a run of several kinds; their marks are the last ids."""
  last = c.model.vocab_size
  return SPECIAL._replace(other_bois=tuple(range(last - len(c.model.kinds), last)))


def with_slots(batch: sequence.Batch, **changes) -> sequence.Batch:
  """A batch with other fields in the slots of its first kind."""
  first, *others = batch.slots
  return batch._replace(slots=(first._replace(**changes), *others))


def batch(c: Config, *, seed: int = 0, rows: int | None = None) -> sequence.Batch:
  """Rows of captioned images, pictures with text behind them, and text."""
  rng = np.random.default_rng(seed)
  packed = []
  for row in range(rows or c.train.batch_rows):
    documents = [
      (text(rng, 2 + row % 2), image(rng)),  # 9 or 10 elements
      (image(rng, noise_cap=0.5), text(rng, 3)),  # 10
    ]
    # Rows differ in images, text and padding.
    chosen = documents[: 1 + row % 4] if row % 4 < 2 else documents
    others = range(1, len(c.model.every_kind))
    packed.append(pack([*chosen, *((image_of(rng, c, k),) for k in others)], c))
  return sequence.stack(packed)


def assert_same_batch(
  got: sequence.Batch | sequence.Row, want: sequence.Batch | sequence.Row
):
  """Both are numpy arrays of the same dtypes and numbers."""
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(want)]
  for name, x, y in zip(
    names, jax.tree.leaves(got), jax.tree.leaves(want), strict=True
  ):
    assert type(x) is np.ndarray and x.dtype == y.dtype, name
    np.testing.assert_array_equal(x, y, err_msg=name)


def assert_same_tree(got, want):
  """Both are trees of as many leaves, of the same numbers."""
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(x, y)


def lines(workdir: pathlib.Path, name: str = "metrics") -> list[dict]:
  """The lines of a .jsonl file of a run."""
  text = (workdir / f"{name}.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def clock_that_reads(*seconds: float) -> types.SimpleNamespace:
  """Stands for the module `time`; every look at the clock takes the next reading."""
  return types.SimpleNamespace(perf_counter=iter(seconds).__next__)
