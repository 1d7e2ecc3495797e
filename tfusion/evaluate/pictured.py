"""What MS-COCO says of a model: FID and CLIP score of images, CIDEr of captions.

Owns: the protocols, `fid:N`, `clip:N`, `sweep:N` and `cider`. Not: the measures
(frechet.py, clip_score.py, cider.py), the data (coco.py), the images (gallery.py).

N captions of the images of val2014 are drawn, always the same, and an image is made of
each; the paper draws 30,000 (arXiv 2408.11039, section 4.1), tables of ablations 5,000.
FID compares them with all images of val2014, cut to their middle and to the same size,
which is ours.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tfusion.data.images import decode
from tfusion.evaluate import answers, clip_score, coco, frechet, gallery
from tfusion.evaluate.cider import cider, words_of
from tfusion.evaluate.evaluation import Asked
from tfusion.evaluate.gallery import Wanted
from tfusion.evaluate.networks.clip import Clip, open_clip
from tfusion.evaluate.networks.inception import REMEDY as INCEPTION
from tfusion.evaluate.networks.inception import open_inception
from tfusion.evaluate.networks.network import Network
from tfusion.evaluate.networks.weights import named
from tfusion.generate.canvas import Canvas, open_canvas
from tfusion.generate.trained import Trained
from tfusion.progress import Progress
from tfusion.sharding import gather_json
from tfusion.together import together

IMAGES = "val2014"
KARPATHY = "test"
KARPATHY_IMAGES = 5_000  # of that split
READ = 64  # images at a time
# Guidance that a sweep tries; the paper's tables have 3, its largest model 5.
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
WEIGHTS = ("inception.safetensors", "inception.npz")


def unfit(asked: Asked) -> str:
  """Why a run makes no images; empty: it does."""
  test = asked.corpus.test
  if not any(source.has_images for source in test):
    return f"data.sources={asked.trained.config.data.sources} has no images"
  return ""


def check_images(asked: Asked) -> None:
  """Checks all that `fid:N` and `sweep:N` need."""
  check_prompts(asked)
  coco.check_images(coco.read(coco.folder_of(asked.data), images=IMAGES))
  open_network(asked)


def check_clip(asked: Asked) -> None:
  """Checks all that `clip:N` needs."""
  check_prompts(asked)
  _clip(asked)


def check_prompts(asked: Asked) -> None:
  """Checks the number behind the colon, and that every caption can be continued."""
  gallery.check(asked.trained, _canvas(asked), _wanted(asked))


def check_cider(asked: Asked) -> None:
  """Checks that all images of the split are there."""
  coco.check_images(coco.read(coco.folder_of(asked.data), split=KARPATHY))


def depends(asked: Asked) -> Any:
  """The captions and the networks, by their hashes."""
  data = coco.folder_of(asked.data)
  head = {"captions": coco.contents(coco.read(data, images=IMAGES))}
  networks = [_weights(asked), coco.folder_of(asked.data).parent / "clip" / _MODEL]
  return head | {path.name: named("", path) for path in networks if path.is_file()}


def depends_cider(asked: Asked) -> Any:
  """The captions, by their hash."""
  return coco.contents(coco.read(coco.folder_of(asked.data), split=KARPATHY))


def evaluate_fid(asked: Asked) -> dict[str, Any]:
  """`fid:N`: the FID of N images."""
  network, canvas = open_network(asked), _canvas(asked)
  real = real_moments(asked, network, canvas)
  found = _fid(asked.trained, asked, network, real, canvas)
  return {
    "fid": found,
    "fid_images": _count(asked),
    "fid_real_images": real.images,
    "fid_network": network.name,
  }


def evaluate_clip(asked: Asked) -> dict[str, Any]:
  """`clip:N`: both CLIP scores of N images, those of `fid:N` too."""
  clip, wanted, canvas = _clip(asked), _wanted(asked), _canvas(asked)
  folder = _make(asked.trained, asked, canvas)
  parts = gallery.read(folder, [one.name for one in wanted], part=READ)
  found = clip_score.score(clip, parts, _captions(asked))
  return found._asdict() | {"clip_images": len(wanted), "clip_network": clip.name}


def evaluate_sweep(asked: Asked) -> dict[str, Any]:
  """`sweep:N`: the FID of N images at every scale of guidance, and the best of them."""
  network, canvas = open_network(asked), _canvas(asked)
  real = real_moments(asked, network, canvas)
  found = {}
  for scale in SCALES:
    config = asked.trained.config
    sample = dataclasses.replace(config.sample, guidance=scale)
    trained = asked.trained._replace(config=dataclasses.replace(config, sample=sample))
    found[scale] = _fid(trained, asked, network, real, canvas)
    logging.info("guidance %g: FID %.2f", scale, found[scale])
  best = min(found, key=lambda scale: found[scale])
  return {
    "fid_best_of_sweep": found[best],
    "fid_best_guidance": best,
    "fid_sweep_images": _count(asked),
    "fid_network": network.name,
    "fid_by_guidance": {f"{scale:g}": value for scale, value in found.items()},
  }


def evaluate_cider(asked: Asked) -> dict[str, Any]:
  """`cider`: 100 times the CIDEr of greedy captions of the split's images."""
  found = coco.read(coco.folder_of(asked.data), split=KARPATHY)
  if len(found) != KARPATHY_IMAGES:
    logging.warning(
      "cider: the split has %d images here, and 5,000 elsewhere: no other number"
      " compares",
      len(found),
    )
  canvas, captions = _canvas(asked), []
  size = asked.trained.config.eval.batch
  progress = Progress("captions", len(found))
  for start in range(0, len(found), size):
    images = [canvas.read(one.path) for one in found[start : start + size]]
    captions += answers.caption(
      asked.trained, images, book=canvas.book(asked.trained.tokenizer.vocab_size)
    )
    progress.show(len(captions))
  score, _ = cider(
    [words_of(text) for text in captions],
    [[words_of(text) for text in one.captions] for one in found],
  )
  return {"cider": 100 * score, "cider_images": len(found)}


def open_network(asked: Asked) -> Network:
  """Inception, from --data.

  Raises:
    ValueError: its weights are missing, or not its own.
  """
  return open_inception(_weights(asked))


def real_moments(asked: Asked, network: Network, canvas: Canvas) -> frechet.Moments:
  """Those of all images of val2014 at the run's size; kept in the workdir's eval/."""
  found = coco.read(coco.folder_of(asked.data), images=IMAGES)
  h, w = gallery.side_of(asked.trained.config, canvas)
  tag = network.name.replace(" ", "-")
  path = asked.out / f"coco-{coco.contents(found)}-{h}x{w}-{tag}.npz"
  if gather_json(path.is_file())[0]:  # as the first host sees it
    kept = frechet.load(path)
    if (kept.network, kept.images) == (network.name, len(found)):
      return kept
  made = frechet.stream(
    network.stream(_real([one.path for one in found], (h, w, 3))), network=network.name
  )
  with together():
    if jax.process_index() == 0:
      frechet.save(made, path)
  return made


def _real(paths: Sequence[Path], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
  progress = Progress("images of MS-COCO", len(paths))
  for start in range(0, len(paths), READ):
    part = paths[start : start + READ]
    yield np.stack([decode(path, shape) for path in part])
    progress.show(start + len(part))


def _fid(
  trained: Trained,
  asked: Asked,
  network: Network,
  real: frechet.Moments,
  canvas: Canvas,
) -> float:
  folder = _make(trained, asked, canvas)
  names = [one.name for one in _wanted(asked)]
  parts = (np.stack(some) for some in gallery.read(folder, names, part=READ))
  made = frechet.stream(network.stream(parts), network=network.name)
  return frechet.distance(made, real)


def _make(trained: Trained, asked: Asked, canvas: Canvas) -> Path:
  """Makes the images, which `fid:N` and `clip:N` share; returns their folder."""
  scale = f"{trained.config.sample.guidance:g}"
  folder = asked.out / f"coco-{_count(asked)}@{trained.step}-guidance-{scale}"
  what = f"images at guidance {scale}"
  gallery.make(trained, canvas, _wanted(asked), folder, what=what)
  return folder


def _wanted(asked: Asked) -> list[Wanted]:
  return [
    Wanted(f"{i:05d}.png", gallery.asked_for(text))
    for i, text in enumerate(_captions(asked))
  ]


def _captions(asked: Asked) -> list[str]:
  found = coco.read(coco.folder_of(asked.data), images=IMAGES)
  return coco.draw(found, _count(asked))


def _count(asked: Asked) -> int:
  text = asked.argument
  if not text.isdecimal() or int(text) < 2:
    raise ValueError(f"{text}: give the number of images, such as 5000 or 30000")
  return int(text)


def _weights(asked: Asked) -> Path:
  if asked.data is None:
    raise ValueError(f"--data is not given; {INCEPTION}, in the folder of --data")
  paths = [asked.data / name for name in WEIGHTS]
  return next((path for path in paths if path.is_file()), paths[0])


_MODEL = "model.safetensors"


def _clip(asked: Asked) -> Clip:
  return _open_clip(coco.folder_of(asked.data).parent / "clip")


@functools.lru_cache(1)
def _open_clip(folder: Path) -> Clip:
  return open_clip(folder)


def _canvas(asked: Asked) -> Canvas:
  return open_canvas(asked.trained.config, asked.workdir)
