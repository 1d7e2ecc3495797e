"""A network that turns images into features, run over the devices.

Owns: batches of one size, their way to the devices and back. Not: what it computes
(inception.py, clip.py).

n images  h w c height, width, channels  d numbers of a feature
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from tfusion.sharding import batch_shards, fetch_rows, put_rows, spec

BATCH = 64  # images at a time, or a multiple of what the mesh divides; one is compiled


class Network(NamedTuple):
  """Weights, and what is computed with them; replicated, images lie over devices."""

  name: str  # its kind and the hash of its file: features of two files do not compare
  function: Callable[[Any, jax.Array], jax.Array]  # params, rows [n, ...] -> f32[n, d]
  params: Any

  def features(self, rows: np.ndarray) -> np.ndarray:
    """Features f32[n, d] of rows [n, ...], on every host; all hosts give the same."""
    return np.concatenate(list(self.stream([rows])))

  def stream(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """As `features`, part by part: each is computed when it is asked for."""
    size = -(-BATCH // batch_shards()) * batch_shards()
    for rows in parts:
      for start in range(0, len(rows), size):
        some = rows[start : start + size]
        filled = np.zeros((size, *rows.shape[1:]), rows.dtype)
        filled[: len(some)] = some
        made = _run(self.function, self.params, put_rows(filled))
        yield fetch_rows(made)[: len(some)].astype(np.float32)


@jax.jit(static_argnums=0)
def _run(function, params, rows: jax.Array) -> jax.Array:
  own = jax.shard_map(function, in_specs=(P(), spec("batch")), out_specs=spec("batch"))
  return own(params, rows)
