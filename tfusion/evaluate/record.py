"""What eval.json holds: the numbers of a model, and what each of them depends on.

Owns: the file, which finished evaluations need not be done again. Not: what is measured
(suite.py).

The numbers stand at the top, for people and for `tfusion scaling`. `finished` has every
evaluation by its name and checkpoint, as in `loss@2000`: its own numbers, and `of`,
which is the checkpoint, a hash of the weights, the version of tfusion, the knobs and
the data that they depend on. With another `of` it is another measurement, made anew.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfusion import workdir as workdir_lib
from tfusion.config import Config, flatten
from tfusion.data.source import Source
from tfusion.model.transfusion import Params
from tfusion.sharding import gather_json

FILE = "eval.json"
FINISHED = "finished"  # the part of it that is not numbers


def read(workdir: Path) -> dict[str, Any]:
  """The finished evaluations of a workdir, by NAME@STEP; the same on all hosts.

  Raises:
    ValueError: eval.json is damaged.
  """
  return gather_json(_read(workdir) if jax.process_index() == 0 else None)[0]


def _read(workdir: Path) -> dict[str, Any]:
  path = workdir / FILE
  if not path.is_file():
    return {}
  try:
    finished = json.loads(path.read_text()).get(FINISHED, {})
    return {key: one for key, one in finished.items() if {"of", "values"} <= {*one}}
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{path}: is damaged ({error}); delete it, and all is measured anew"
    ) from error


def write(
  workdir: Path, finished: dict[str, Any], *, step: int, about: dict[str, Any]
) -> dict[str, Any]:
  """Writes eval.json on the first host; returns what it holds, on all.

  Args:
    workdir: of the run.
    finished: as `read` gives it, with what was measured since.
    step: whose numbers stand at the top.
    about: what else stands there, such as the hardware.
  """
  results: dict[str, Any] = {"step": step}
  for key, one in finished.items():
    if key.rpartition("@")[2] == str(step):
      results |= one["values"]
  results |= about | {FINISHED: finished}
  results = json.loads(json.dumps(results))  # as it will be read: no tuples
  if jax.process_index() == 0:
    workdir_lib.write_json(workdir, FILE, results)
  return results


def key_of(name: str, step: int) -> str:
  """The place of an evaluation among the finished ones."""
  return f"{name}@{step}"


def is_done(finished: dict[str, Any], key: str, of: dict[str, Any]) -> bool:
  """Whether these numbers are known already."""
  return key in finished and finished[key]["of"] == json.loads(json.dumps(of))


def knobs_of(config: Config, names: Iterable[str]) -> dict[str, Any]:
  """Knobs by their full name; `names` are those, or sections."""
  names = tuple(names)
  flat = flatten(config)
  return {
    key: value
    for key, value in flat.items()
    if key in names or key.partition(".")[0] in names
  }


def documents_of(sources: Iterable[Source]) -> list[list[Any]]:
  """What tells the documents of sources from others: name, number, hash if known."""
  return [[source.name, len(source), source.digest] for source in sources]


def hash_of_weights(params: Params) -> str:
  """Sixteen hexadecimal digits that do not depend on how arrays are sharded.

  The bits of a leaf are added up as whole numbers, and so are their squares, both
  modulo 2^32: in any order, the sum is the same.
  """
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    found.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
    found.update(np.asarray(_sums(leaf), np.uint32).tobytes())
  return found.hexdigest()[:16]


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
  whole = leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf
  bits = jax.lax.bitcast_convert_type(whole, jnp.uint32)
  return jnp.stack([jnp.sum(bits), jnp.sum(bits * bits)])
