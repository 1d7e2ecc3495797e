"""Promises of tfusion/autoencoder/images.py: an order that only the seed decides."""

import dataclasses

import numpy as np
import pytest

from tfusion import autoencoder_config, sequence
from tfusion.autoencoder.images import ImageBatches, heldout_images, open_images
from tfusion.autoencoder_config import AutoencoderConfig


def build(**changes) -> AutoencoderConfig:
  nested = dataclasses.asdict(AutoencoderConfig())
  values = dict(
    model__widths=(4, 8),
    model__groups=2,
    data__sources=("digits",),
    data__image_shape=(8, 8, 1),
    train__batch_images=4,
    train__eval_images=6,
  )
  for name, value in (values | changes).items():
    *section, key = name.split("__")
    (nested[section[0]] if section else nested)[key] = value
  return autoencoder_config.from_dict(nested)


@dataclasses.dataclass
class Few:
  """Document i holds images of the values in its row, told apart by eye."""

  rows: tuple[tuple[float, ...], ...]
  name: str = "few"
  has_images: bool = True

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, index):
    shape = (8, 8, 1)
    images = [np.full(shape, value, np.float32) for value in self.rows[index]]
    return ("words", *images[:1], *map(sequence.Image, images[1:]))


def batches(sources, config, *, count, host=0, hosts=1, skip=None):
  feed = ImageBatches(sources, config, host=host, hosts=hosts)
  if skip is not None:
    feed.restore(skip)
  return [next(feed) for _ in range(count)], feed.state()


@pytest.mark.slow
def test_pictures_come_in_three_channels_from_minus_one_to_one():
  config = build()
  source = open_images(config, "", split="train")
  (batch,), _ = batches(source, config, count=1)
  assert batch.shape == (4, 8, 8, 3) and batch.dtype == np.float32
  assert np.all(batch == batch[..., :1]) and -1 <= batch.min() < batch.max() <= 1


def test_every_epoch_shows_every_document_once_in_another_order():
  config = build(train__batch_images=5)
  sources = (Few(((0.0,), (0.1,), (0.2,))), Few(((0.3,), (0.4,))))
  epochs, _ = batches(sources, config, count=6)
  orders = [tuple(np.round(epoch[:, 0, 0, 0], 1)) for epoch in epochs]
  assert all(sorted(order) == [0.0, 0.1, 0.2, 0.3, 0.4] for order in orders)
  assert len(set(orders)) > 1
  other, _ = batches(sources, build(train__batch_images=5, seed=1), count=6)
  assert not np.array_equal(np.stack(epochs), np.stack(other))


def test_of_a_document_with_several_images_each_is_shown():
  sources = (Few(((0.0, 0.5, 1.0),)),)
  shown, _ = batches(sources, build(), count=10)
  assert set(np.unique(shown)) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_restored_feed_goes_on_exactly_with_any_number_of_threads(threads):
  config = build()
  sources = open_images(config, "", split="train")
  straight, _ = batches(sources, config, count=5)
  _, state = batches(sources, config, count=2)
  rest, _ = batches(sources, build(data__threads=threads), count=3, skip=state)
  assert np.array_equal(np.stack(rest), np.stack(straight[2:]))


def test_hosts_share_the_same_batches_out_and_have_the_same_state():
  config = build()
  sources = open_images(config, "", split="train")
  alone, state = batches(sources, config, count=3)
  shares = [batches(sources, config, count=3, host=h, hosts=2) for h in (0, 1)]
  for n, batch in enumerate(alone):
    assert np.array_equal(batch, np.concatenate([share[0][n] for share in shares]))
  assert shares[0][1] == shares[1][1] == state


def test_held_out_images_are_of_the_test_split_and_the_same_for_every_seed():
  test = open_images(build(), "", split="test")
  one, other = (heldout_images(test, build(seed=seed)) for seed in (0, 1))
  assert one.shape == (6, 8, 8, 3) and np.array_equal(one, other)
  unseen = {source.scans.tobytes() for source in test}
  whole = {((s[..., :1] + 1) * 8).astype(np.uint8).tobytes() for s in one}
  assert all(any(scan in scans for scans in unseen) for scan in whole)


def test_there_may_be_fewer_held_out_images_than_asked_for():
  found = heldout_images((Few(((0.0,), (0.1,))),), build())
  assert sorted(found[:, 0, 0, 0].round(1)) == [0.0, 0.1]  # each once


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(data__sources=("pydoc",)), "'pydoc': has no images in its train split"),
    (
      dict(data__image_shape=(16, 16, 3)),
      r"data.image_shape=\(16, 16, 3\): the scans of data.sources='digits' are",
    ),
  ],
)
def test_a_source_that_cannot_serve_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    open_images(build(**changes), "", split="train")


@pytest.mark.parametrize(
  "spans, words",
  [
    (("words",), "document 0 has no image"),
    (
      (np.zeros((8, 8, 4), np.float32),),
      r"\(8, 8, 4\), not pixels of data.image_shape",
    ),
    (
      (sequence.Image(np.zeros((8, 8, 1)), std=np.zeros((8, 8, 1))),),
      "image or latent",
    ),
  ],
)
def test_a_document_without_pixels_is_refused(spans, words):
  class Source(Few):
    def __getitem__(self, index):
      return spans

  with pytest.raises(ValueError, match=words):
    heldout_images((Source(((0.0,),)),), build())
