"""A folder of weights as the parameters of a model, each part straight to its device.

Owns: which tensor a parameter is read from, whether tensors, knobs and tokenizer fit,
reading. Not: names and configs (llama.py), files (tensors.py), what a run does with the
parameters (training/start.py).

v rows of the vocabulary  d width

What the folder has no tensors of, the patch layers of a plain language model, is left
to be made new. Weights that patches have of their own begin as copies of text's, as
those of LMFusion (arXiv 2412.15188) and BAGEL (arXiv 2505.14683) do.
"""

import contextlib
import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tfusion import buckets, parsing, progress
from tfusion.config import Config, ModelConfig
from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.interop import bagel, llama
from tfusion.interop.layout import Layout, Theirs
from tfusion.interop.tensors import Tensors, exist, some
from tfusion.model.transfusion import Params, build

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
# Files and names of what is no part of a language model: our tensors, in our shapes.
OURS, PREFIX = "tfusion", "tfusion."
# What a model must have as its weights have it.
KNOBS = "layers width heads head_dim kv_heads mlp norms qk_norm attention_bias".split()
KNOBS += ["norm_eps", "rope_theta", "rope_scaling"]
ROWS = 4_096  # of a vocabulary that are read at once for their mean


class _Source(NamedTuple):
  """Where a parameter is read from."""

  tensors: Tensors
  theirs: Theirs
  shape: tuple[int, ...]  # of theirs, as the model would have it
  layers: int | None  # None: it is not stacked

  def names(self) -> list[str]:
    """The tensors of all layers."""
    if self.layers is None:
      return [self.theirs.name]
    return [self.theirs.name.format(n) for n in range(self.layers)]


class Weights:
  """A folder of weights, opened; nothing of the tensors is read yet.

  Attributes:
    folder: with config.json and safetensors.
    knobs: of `model.`, that the weights ask for.
    rows: of the vocabulary that there are weights of.
    layout: of the files.
  """

  def __init__(self, folder: str | Path):
    """Reads the config and the headers of the files.

    Raises:
      ValueError: a file is missing, damaged or half there, or it is another network
        than a Llama, a Qwen or one that tfusion wrote.
    """
    if buckets.is_bucket(folder):
      raise ValueError(f"{folder}: weights are mapped; copy them to this machine")
    self.folder = Path(folder).expanduser()
    self.layout = _layout_of(self.folder)
    self.knobs = self.layout.knobs
    self._text = Tensors(self.folder, stem=self.layout.stem)
    has_images = exist(self.folder, stem=OURS)
    self._images = Tensors(self.folder, stem=OURS) if has_images else None
    table = self._text.specs.get(self.layout.tables[0])
    self.rows: int = table.shape[0] if table and table.shape else 0

  def describe(self) -> str:
    """What it is, in a few words."""
    both = [t for t in (self._text, self._images) if t is not None]
    dtypes = sorted({spec.dtype for t in both for spec in t.specs.values()})
    size, files = sum(t.size for t in both), sum(t.files for t in both)
    what = "1 file" if files == 1 else f"{files} files"
    return f"{self.layout.kind}, {size:,} numbers in {what}, {' and '.join(dtypes)}"

  def check(self, model: ModelConfig) -> None:
    """Refuses a model that these are not the weights of.

    Raises:
      ValueError: names every knob that is another, and every tensor that is missing,
        left over, of another shape, or quantised.
    """
    head = self.knobs["head_size"] or self.knobs["width"] // self.knobs["heads"]
    asked = self.knobs | {"head_dim": head}
    differ = [
      f"model.{_knob(name)}={getattr(model, name)!r}, there {asked[name]!r}"
      for name in KNOBS
      if getattr(model, name) != asked[name]
    ]
    if differ:
      raise ValueError(
        f"{self.folder}: weights of another model: {'; '.join(differ)}; take the knobs"
        " of its config, as experiments/warmstart.py does"
      )
    if model.vocab_size < self.rows:
      raise ValueError(
        f"{self.folder}: model.vocab_size={model.vocab_size}: there are {self.rows}"
        " rows, which all have to have a place; make it as large, or larger"
      )
    problems = self._problems(self._sources(_shapes(model)))
    if problems:
      raise ValueError(
        f"{self.folder}: not the tensors of its config: {'; '.join(problems)}; copy the"
        " folder again, or name another"
      )

  def check_tokenizer(self, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer whose ids mean something else to these weights.

    Raises:
      ValueError: it has pieces, other than special tokens that were added, beyond the
        rows; or the folder has another.
    """
    above = range(self.rows, tokenizer.vocab_size)
    beyond = set(above) - set(tokenizer.special.ids.tolist())
    if beyond:
      raise ValueError(
        f"{self.folder}: the tokenizer has {tokenizer.vocab_size} pieces, and the"
        f" weights have {self.rows} rows; {self._remedy()}"
      )
    own = [t for name in TOKENIZERS if (t := _tokenizer(self.folder / name))]
    if own and tokenizer.sha256 not in [t.sha256 for t in own]:
      raise ValueError(
        f"{self.folder}: the tokenizer of the run is not that of the weights, which"
        f" would read other words; {self._remedy()}"
      )

  def _remedy(self) -> str:
    there = [name for name in TOKENIZERS if (self.folder / name).is_file()]
    named = (
      f"={self.folder / there[0]}" if there else " to the tokenizer of the weights"
    )
    return f"set data.tokenizer{named}, and prepare shards with it"

  def load(self, model: ModelConfig, wanted: Params) -> Params:
    """Reads all that there are tensors of, each device's part of them, one by one.

    At most one parameter and one layer of it are on the host, beside what is on
    devices; on a CPU these are the host's memory.

    Args:
      model: of the parameters.
      wanted: shapes with shardings, of all parameters of the model.

    Returns:
      As `wanted`, without what is to be made new.

    Raises:
      ValueError: as `check`.
    """
    self.check(model)
    leaves = leaves_of(wanted)
    sources = self._sources({path: leaf.shape for path, (_, leaf) in leaves.items()})
    shown = progress.Progress(f"{self.folder}: parameters read", len(sources))
    loaded: Params = {}
    for number, (path, source) in enumerate(sources.items()):
      keys, leaf = leaves[path]
      part = functools.partial(self._part, source, leaf.shape)
      inner = loaded
      for key in keys[:-1]:
        inner = inner.setdefault(key, {})
      inner[keys[-1]] = jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
      shown.show(number + 1)
    return loaded

  def _sources(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, _Source]:
    """Where each parameter is read from; those that are made new are left out."""
    found, images = {}, self._images
    for path, shape in shapes.items():
      if path.startswith("lora."):  # new: what was exported has it in its matrices
        continue
      theirs = self.layout.find(path)
      own = PREFIX + path
      if images is not None and (theirs is None or own in images.specs):
        whole = Theirs(own, tuple((axis,) for axis in range(len(shape))))
        found[path] = _Source(images, whole, shape, None)
      elif theirs is not None:
        found[path] = self._text_source(theirs, shape)
    return found

  def _text_source(self, theirs: Theirs, shape: tuple[int, ...]) -> _Source:
    layers = shape[0] if "{}" in theirs.name else None
    own = shape if layers is None else shape[1:]
    turned = tuple(math.prod(own[axis] for axis in axes) for axes in theirs.axes)
    return _Source(self._text, theirs, turned, layers)

  def _problems(self, sources: dict[str, _Source]) -> list[str]:
    missing, shaped, used = [], [], set()
    for source in sources.values():
      specs = source.tensors.specs
      for name in source.names():
        used.add(name)
        wanted = source.shape
        if name in self.layout.tables:  # further rows are added
          wanted = (self.rows, *wanted[1:])
        if name not in specs:
          missing.append(name)
        elif specs[name].shape != wanted:
          shaped.append(f"{name} {[*specs[name].shape]}, not {[*wanted]}")
    there = {*self._text.specs, *(self._images.specs if self._images else ())}
    known = {self.layout.tables[1]} if self.layout.is_tied else set()
    ignored = self.layout.ignored
    left = [n for n in there - used - known if not re.fullmatch(ignored, n)]
    other = self._text.other_dtypes(used & self._text.specs.keys())
    return [
      f"{len(names)} tensors {what}: {some(names)}"
      for what, names in (
        ("missing", set(missing)),
        ("left over", left),
        ("of another shape", set(shaped)),
        ("quantised", other),
      )
      if names
    ]

  def _part(
    self, source: _Source, shape: tuple[int, ...], index: Sequence[slice]
  ) -> np.ndarray:
    """Part of a parameter of ours, of the whole `shape`, as float32."""
    slices = [slice(*i.indices(n)[:2]) for i, n in zip(index, shape, strict=True)]
    if source.layers is None:
      found = self._of_layer(source, source.theirs.name, shape, slices)
      return np.ascontiguousarray(found)
    first, own = slices[0], slices[1:]
    part = np.empty([s.stop - s.start for s in slices], np.float32)
    for n in range(first.start, first.stop):
      name = source.theirs.name.format(n)
      part[n - first.start] = self._of_layer(source, name, shape[1:], own)
    return part

  def _of_layer(
    self, source: _Source, name: str, shape: Sequence[int], index: list[slice]
  ) -> np.ndarray:
    axes = source.theirs.axes
    there = [_merged([(index[a], shape[a]) for a in own]) for own in axes]
    part = self._rows(source.tensors, name, there)
    order = [axis for own in axes for axis in own]
    part = part.reshape([index[a].stop - index[a].start for a in order])
    return part.transpose(np.argsort(order))

  def _rows(self, tensors: Tensors, name: str, index: list[slice]) -> np.ndarray:
    """A part of a tensor; of a vocabulary also rows that there are no weights of."""
    if name not in self.layout.tables or index[0].stop <= self.rows:
      return tensors.read(name, index)
    stop = max(self.rows, index[0].start)
    parts = [self._mean(tensors, name, index[1])] * (index[0].stop - stop)
    if index[0].start < stop:
      parts.insert(0, tensors.read(name, [slice(index[0].start, stop), index[1]]))
    return np.concatenate(parts)

  def _mean(self, tensors: Tensors, name: str, columns: slice) -> np.ndarray:
    """The mean of all rows, [1, d]: what new ones begin with, ours. Their logits are
    then about as likely as any, and no outlier tells a new token from others."""
    total_d = np.zeros(columns.stop - columns.start, np.float64)
    for start in range(0, self.rows, ROWS):
      rows = slice(start, min(start + ROWS, self.rows))
      total_d += tensors.read(name, [rows, columns]).sum(axis=0, dtype=np.float64)
    return (total_d / self.rows).astype(np.float32)[None]


class InitFrom:
  """The weights that a run begins with: what `training.start` takes."""

  def __init__(self, folder: str, model: ModelConfig):
    """Notes the folder of `train.init_from`; opens nothing."""
    self._folder, self._model = folder, model

  @classmethod
  def of(cls, config: Config) -> "InitFrom | None":
    """Those that a config names, if it does."""
    folder = config.train.init_from
    return cls(folder, config.model) if folder else None

  def check(self, corpus: Corpus | None = None) -> None:
    """Called before training, and before there is a corpus, which may take long.

    Raises:
      ValueError: names what does not fit.
    """
    with _named(self._folder):
      weights = Weights(self._folder)
      weights.check(self._model)
      if corpus:
        weights.check_tokenizer(corpus.tokenizer)

  def describe(self) -> str:
    """What they are, in a line."""
    with _named(self._folder):
      return f"{self._folder}: {Weights(self._folder).describe()}"

  def load(self, wanted: Params) -> Params:
    """The parameters that there are, placed as `wanted`, shapes with shardings."""
    with _named(self._folder):
      return Weights(self._folder).load(self._model, wanted)


@contextlib.contextmanager
def _named(folder: str) -> Iterator[None]:
  """Says by which knob the folder was named."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"train.init_from={folder}: {error}") from error


def _layout_of(folder: Path) -> Layout:
  is_bagel = (folder / bagel.CONFIG).is_file()
  path = folder / (bagel.CONFIG if is_bagel else CONFIG)
  if not path.is_file():
    raise ValueError(
      f"{folder}: holds no {CONFIG}; give the folder of a Llama or a Qwen as Hugging"
      " Face has it, or one that `tfusion export` wrote"
    )
  try:
    values = parsing.parse_json(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path}: no JSON: {error}; copy it again") from error
  try:
    return bagel.layout(values) if is_bagel else llama.layout(values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _tokenizer(path: Path) -> Tokenizer | None:
  """The tokenizer in a file; None if there is none, or one of a kind that is not read,
  as Llama 2's tokenizer.json, beside which lies one that is."""
  if not path.is_file():
    return None
  try:
    return Tokenizer(path.read_bytes(), origin=str(path))
  except ValueError:
    return None


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter, by its dotted path."""
  state = nnx.to_pure_dict(nnx.state(build(model), nnx.Param))
  return {path: tuple(leaf.shape) for path, (_, leaf) in leaves_of(state).items()}


def leaves_of(tree: Any) -> dict[str, tuple[list[Any], Any]]:
  """Keys and leaf of a tree of dicts, by dotted path."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): ([k.key for k in path], x)
    for path, x in flat
  }


def _knob(name: str) -> str:
  return "head_size" if name == "head_dim" else name


def _merged(axes: list[tuple[slice, int]]) -> slice:
  """The slice of axes of these sizes that are joined to one, the last one fastest."""
  (first, _), *rest = axes
  # sharding.RULES cut whole heads from each other, and never within.
  assert all((s.start, s.stop) == (0, size) for s, size in rest)
  inner = math.prod(size for _, size in rest)
  return slice(first.start * inner, first.stop * inner)
