"""The form in which a document is shown.

Owns: its texts as tokens, which of caption and image comes first, dropped captions, how
much noise an image may have that text is read from, samples of posteriors. Not: which
document comes when (mixture.py), its layout (sequence.py).

All of it depends on (seed, source, showing) alone: showing g of a source is document g
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
  """Makes a document of what a source gave.

  Args:
    spans: as the source gave them.
    encode: tokenises a text, to i32[length].
    config: reads seed, data.caption_* and diffusion.image_first_*.
    name: of the source.
    showing: the document's number in the order of that source.
  """
  document = _arrange(
    tuple(_as_span(span, encode) for span in spans), config, name, showing
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


def _as_span(
  span: Span, encode: Callable[[str], np.ndarray]
) -> sequence.Text | sequence.Image | sequence.Codes | sequence.Break:
  if isinstance(span, str):
    return sequence.Text(encode(span))
  if isinstance(span, np.ndarray):
    return sequence.Image(span)
  if isinstance(span, sequence.Image) and not span.weight:
    # What is only read is shown as in a prompt: without noise.
    return dataclasses.replace(span, noise_cap=0.0)
  return span


def _arrange(
  document: sequence.Document, config: Config, name: str, showing: int
) -> sequence.Document:
  """Orders a captioned image, or drops its caption; leaves all else as it is.

  Where one of the two is there to be read only, the order is the source's. arXiv
  2408.11039, section 4.1 (caption first in 80 %); the paper leaves dropout open.
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
  """Bounds the noise of every image that learned text follows, in whatever document.

  Such an image is there to be read as well: in a share of cases it is clean, as it is
  in a prompt (ours), else its t is at most a share of the schedule (arXiv 2408.11039,
  section 4.3.4, of captioned images; that pages of several images are treated alike is
  ours).
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
