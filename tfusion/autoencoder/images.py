"""The images of a run that learns from nothing else: an autoencoder's.

Owns: one image of each document, their order, batches made ahead, held-out ones. Not:
where documents come from (sources.py).

The order depends on the seed alone: batch n of a run is the same on any number of hosts
and threads, and after a restart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from tfusion import sequence
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.data import sources as sources_lib

CHANNELS = 3  # that an autoencoder sees
PREFETCHED_BATCHES = 4
HELD_OUT_SEED = 0  # the same held-out images for every config.seed


def open_images(
  config: AutoencoderConfig, workdir: str | Path, *, split: str
) -> tuple[sources_lib.Source, ...]:
  """Opens data.sources.

  Args:
    config: gives sources and image shape.
    workdir: where a source may cache what it prepared.
    split: "train" or "test".

  Raises:
    ValueError: a source that cannot serve, has no images, or others than
      data.image_shape.
  """
  data = config.data
  height, width, channels = data.image_shape
  try:
    opened = sources_lib.open_sources(
      data.sources,
      split=split,
      image_shape=(height, width, channels),
      workdir=workdir,
    )
  except ValueError as error:  # sources know the other command's key
    text = str(error).replace("model.image_shape", "data.image_shape")
    raise ValueError(text) from error
  for source in opened:
    if not source.has_images or not len(source):
      raise ValueError(
        f"data.sources={source.name!r}: has no images in its {split} split; an"
        " autoencoder learns from images alone"
      )
    _image(source, data.image_shape, 0)
  return opened


class ImageBatches:
  """A host's share of every batch, without end: f32[b, h, w, 3] in [-1, 1].

  All documents of all sources in a shuffled order, shuffled anew in every epoch; of a
  document with several images one by lot.
  """

  def __init__(
    self,
    sources: Sequence[sources_lib.Source],
    config: AutoencoderConfig,
    *,
    host: int,
    hosts: int,
  ):
    """Starts threads that work ahead; train.batch_images must divide by `hosts`."""
    assert config.train.batch_images % hosts == 0
    shape, threads = config.data.image_shape, config.data.threads
    order = [
      grain.MapDataset.range(len(source)).map(_Indexed(number))
      for number, source in enumerate(sources)
    ]
    images = (
      grain.MapDataset.concatenate(order)
      .seed(config.seed)
      .shuffle()
      .repeat(None)
      .random_map(_Load(tuple(sources), shape))
      .batch(config.train.batch_images // hosts)
    )
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(PREFETCHED_BATCHES, threads)
    )
    self._batches = iter(images[host::hosts].to_iter_dataset(options))

  def __iter__(self) -> "ImageBatches":
    return self

  def __next__(self) -> np.ndarray:
    return next(self._batches)

  def lane_states(self) -> dict[int, Any]:
    """What a checkpoint keeps: this host's index and `state`."""
    return {jax.process_index(): self.state()}

  def state(self) -> dict[str, Any]:
    """JSON-able; after the last batch given. The same on every host."""
    return self._batches.get_state()

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on behind the batch after which `state` was taken, on whichever host."""
    self._batches.set_state(state)


def heldout_images(
  sources: Sequence[sources_lib.Source], config: AutoencoderConfig
) -> np.ndarray:
  """f32[n, h, w, 3] in [-1, 1]: train.eval_images held-out ones, always the same;
  fewer if there are no more."""
  places = [(n, i) for n, source in enumerate(sources) for i in _some(source, config)]
  chosen = grain.MapDataset.source(places).shuffle(HELD_OUT_SEED)
  chosen = chosen[: config.train.eval_images]
  shape = config.data.image_shape
  return np.stack([_image(sources[n], shape, i) for n, i in chosen])


class _Indexed:
  """Document index -> (source, index)."""

  def __init__(self, number: int):
    self._number = number

  def __call__(self, index: int) -> tuple[int, int]:
    return self._number, index


class _Load(grain.transforms.RandomMap):
  """(source, index) -> image."""

  def __init__(self, sources, shape):
    self._sources, self._shape = sources, shape

  def random_map(self, place: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    number, index = place
    return _image(self._sources[number], self._shape, index, rng)


def _some(source: sources_lib.Source, config: AutoencoderConfig) -> Sequence[int]:
  """Indices of as many documents as may be needed, spread by a shuffle."""
  order = grain.MapDataset.range(len(source)).shuffle(HELD_OUT_SEED)
  return [int(i) for i in order[: config.train.eval_images]]


def _image(
  source: sources_lib.Source,
  shape: Sequence[int],
  index: int,
  rng: np.random.Generator | None = None,
) -> np.ndarray:
  """A image of a document, the first without `rng`; grey ones three times."""
  spans = [sequence.Image(s) if isinstance(s, np.ndarray) else s for s in source[index]]
  images = [span for span in spans if isinstance(span, sequence.Image)]
  if not images:
    raise ValueError(
      f"data.sources={source.name!r}: document {index} has no image; an autoencoder's"
      " sources need one in every document"
    )
  image = images[int(rng.integers(len(images))) if rng else 0]
  if image.latent.shape != tuple(shape) or image.std is not None:
    raise ValueError(
      f"data.sources={source.name!r}: document {index} has a image or latent of"
      f" {image.latent.shape}, not pixels of data.image_shape={tuple(shape)}"
    )
  return np.repeat(image.latent, CHANNELS // shape[2], axis=-1)
