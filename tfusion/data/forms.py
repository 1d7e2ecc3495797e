"""The form in which a document is shown to the model.

Owns: turning texts into tokens, whether caption or image comes first, dropping
captions, how noisy an image may be that text follows, drawing latents from posteriors.
Not: which document comes when (mixture.py), its layout (sequence.py).

All of it depends on (seed, source, showing) alone. Showing g of a source is document g
of its shuffled, repeated order, whichever lane, host or process meets it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from tfusion import sequence
from tfusion.config import Config
from tfusion.data.source import Span


def form(
  spans: Sequence[Span],
  encode: Callable[[str], np.ndarray],
  config: Config,
  *,
  name: str,
  showing: int,
) -> sequence.Document:
  """Turns what a source gave into a document.

  Args:
    spans: as the source gave them.
    encode: tokenises a text, to i32[length].
    config: reads seed, data.caption_* and diffusion.image_first_*.
    name: of the source.
    showing: the document's number in the order of that source.
  """
  document = _arrange(
    tuple(_as_span(span, encode, config) for span in spans), config, name, showing
  )
  document = _limit_noise(document, config, name, showing)
  return tuple(
    _draw_latent(span, span.std, f"{name}/std/{i}", config.seed, showing)
    if isinstance(span, sequence.Image) and span.std is not None
    else span
    for i, span in enumerate(document)
  )


def uniform(seed: int, stream: str, index: int) -> float:
  """A number in [0, 1) that depends on the arguments alone."""
  key = f"{seed}/{stream}/{index}".encode()
  return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest()) / 2**48


def image_of(span: np.ndarray | sequence.Image, config: Config) -> sequence.Image:
  """An image that knows its kind: where the source has not said, the first one of its
  shape."""
  image = sequence.Image(span) if isinstance(span, np.ndarray) else span
  if image.kind or not config.model.kinds:
    return image
  kinds = config.model.every_kind
  fitting = (n for n, kind in enumerate(kinds) if kind.shape == image.latent.shape)
  return dataclasses.replace(image, kind=next(fitting, 0))


def _as_span(
  span: Span, encode: Callable[[str], np.ndarray], config: Config
) -> sequence.Text | sequence.Image | sequence.Codes | sequence.Break:
  if isinstance(span, str):
    return sequence.Text(encode(span))
  if not isinstance(span, np.ndarray | sequence.Image):
    return span
  image = image_of(span, config)
  # What is only read is shown as in a prompt: without noise.
  return image if image.weight else dataclasses.replace(image, noise_cap=0.0)


def _arrange(
  document: sequence.Document, config: Config, name: str, showing: int
) -> sequence.Document:
  """Orders a captioned image, or drops its caption; leaves all else as it is.

  If one of the two is not learned, the source's order stays. The paper puts the caption
  first in 80 % of pairs (arXiv 2408.11039, section 4.1) and leaves dropout open.
  """
  if len(document) != 2:
    return document
  is_image_first, is_image_last = map(sequence.is_image, document)
  if is_image_first == is_image_last or not all(span.weight for span in document):
    return document
  if uniform(config.seed, f"{name}/order", showing) >= config.data.caption_first:
    return sequence.image_first(document)
  if uniform(config.seed, f"{name}/drop", showing) < config.data.caption_dropout:
    return sequence.drop_text(document)
  return document[::-1] if is_image_first else document


def _limit_noise(
  document: sequence.Document, config: Config, name: str, showing: int
) -> sequence.Document:
  """Bounds the noise of every image that learned text follows.

  The model is to read such an image as well. So a share of them is clean, as images are
  in a prompt (ours); for the others, t is at most a share of the schedule (arXiv
  2408.11039, section 4.3.4, for captioned images; we treat documents of several images
  alike).
  """
  diffusion, spans = config.diffusion, list(document)
  for nth, place in enumerate(sequence.images_to_read(document)):
    stream = f"{name}/clean/{nth}" if nth else f"{name}/clean"
    image = spans[place]
    assert isinstance(image, sequence.Image)
    clean = uniform(config.seed, stream, showing) < diffusion.image_first_clean
    cap = 0.0 if clean else min(image.noise_cap, diffusion.image_first_noise_cap)
    spans[place] = dataclasses.replace(image, noise_cap=cap)
  return tuple(spans)


def _draw_latent(
  image: sequence.Image, std: np.ndarray, stream: str, seed: int, showing: int
) -> sequence.Image:
  """Draws a latent from an autoencoder's posterior."""
  rng = np.random.default_rng(int(uniform(seed, stream, showing) * 2**48))
  normal = rng.standard_normal(image.latent.shape, np.float32)
  return dataclasses.replace(image, latent=image.latent + std * normal, std=None)
