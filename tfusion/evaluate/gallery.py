"""Images of many prompts as files of a folder, resumable, and counted at the end.

Owns: the folder and its manifest, what is made again. Not: which prompts and names
those are (pictured.py, benchmarks/), sampling (generate/).

  FOLDER/manifest.json   what the images depend on, and which are done
  FOLDER/NAME            a PNG for each prompt, written whole

Prompts are sampled eval.batch at a time, always the same ones together: so an image
depends on its place in the list and not on when the work was interrupted.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image as Pillow

from tfusion import files
from tfusion.config import Config
from tfusion.data.contents import hash_of
from tfusion.evaluate import record
from tfusion.generate import png
from tfusion.generate.canvas import Canvas
from tfusion.generate.interleaved import generate
from tfusion.generate.prompt import escape
from tfusion.generate.rows import Generated
from tfusion.generate.samples import read_prompts
from tfusion.generate.trained import Trained
from tfusion.progress import Progress
from tfusion.sequence import Codes, Image, is_image
from tfusion.sharding import gather_json
from tfusion.together import together

MANIFEST = "manifest.json"
KNOBS = ("seed", "model", "diffusion", "sample", "eval.batch")


class Wanted(NamedTuple):
  """An image to be made."""

  name: str  # of its file in the folder, as in "00000/samples/0000.png"
  prompt: str  # in the written form of generate/prompt.py


def asked_for(text: str) -> str:
  """The prompt that asks for an image of a text, whatever signs are in it."""
  return f"{escape(text)} <image>"


def check(trained: Trained, canvas: Canvas, wanted: Sequence[Wanted]) -> None:
  """Raises ValueError if a prompt cannot be continued, or a name stands twice."""
  names = [one.name for one in wanted]
  if len(set(names)) < len(names):
    raise ValueError(f"{len(names) - len(set(names))} file names stand twice")
  prompts = [one.prompt for one in wanted]
  read_prompts(trained.config, trained.tokenizer, prompts, canvas=canvas)


def make(
  trained: Trained,
  canvas: Canvas,
  wanted: Sequence[Wanted],
  folder: Path,
  *,
  what: str,
  beside: Sequence[str] = (),
  manifest: Path | None = None,
) -> None:
  """Makes the images that are not there; all hosts must call it, on the mesh in use.

  Args:
    trained: the model; sample. of its config says how images are made.
    canvas: of the run.
    wanted: all images of the folder, in order.
    folder: where; images of before that depend on something else are made anew.
    what: is made, as the progress line calls it.
    beside: names of PNG files in the folder that are not made here.
    manifest: the folder of the manifest; None: that of the images.

  Raises:
    ValueError: the folder holds images that nobody asked for, or, at the end, lacks
      some that were.
  """
  of = depends_on(trained, wanted)
  place = (manifest or folder) / MANIFEST
  done = set(gather_json(_open(place, folder, of, wanted))[0])
  size, progress = trained.config.eval.batch, Progress(what, len(wanted))
  for start in range(0, len(wanted), size):
    part = wanted[start : start + size]
    if not done.issuperset(one.name for one in part):
      made = _sample(trained, canvas, part, start=start)
      done |= {one.name for one in part}
      with together():  # a full disk ends all hosts
        if jax.process_index() == 0:
          for one, pixels in zip(part, made):
            _write(pixels, folder / one.name)
          _save(place, of, done)
    progress.show(min(start + size, len(wanted)))
  count(folder, [*(one.name for one in wanted), *beside])


def count(folder: Path, names: Sequence[str]) -> None:
  """Checks that a folder holds the PNG files of these names and no others.

  Raises:
    ValueError: names the first that is missing or too many.
  """
  there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
  if missing := [name for name in names if name not in there]:
    raise ValueError(
      f"{folder / missing[0]}: is missing, and so are {len(missing) - 1} more of"
      f" {len(names)} images; start again"
    )
  if more := sorted(there - set(names)):
    raise ValueError(
      f"{folder / more[0]}: nobody asked for it, nor for {len(more) - 1} more images of"
      " this folder, which scores would count; delete them, or the folder"
    )


def read(
  folder: Path, names: Sequence[str], *, part: int
) -> Iterator[list[np.ndarray]]:
  """Yields the images u8[h, w, 3], so many at a time, in the order of the names.

  Raises:
    ValueError: a file is damaged.
  """
  for start in range(0, len(names), part):
    yield [_read(folder / name) for name in names[start : start + part]]


def depends_on(trained: Trained, wanted: Sequence[Wanted]) -> dict[str, Any]:
  """What the images depend on, as JSON."""
  return {
    "step": trained.step,
    "weights": record.hash_of_weights(trained.params),
    "knobs": json.loads(json.dumps(record.knobs_of(trained.config, KNOBS))),
    "prompts": hash_of(part for one in wanted for part in one)[:16],
  }


def side_of(config: Config, canvas: Canvas) -> tuple[int, int]:
  """Height and width in pixels of the images that the canvas shows."""
  (first,) = canvas.show([np.zeros(_shape(config, canvas), np.float32)])
  return first.shape[0], first.shape[1]


def _shape(config: Config, canvas: Canvas) -> tuple[int, ...]:
  book = canvas.book(0)
  return config.model.image_shape if book is None else (book.per_image,)


def _open(
  path: Path, folder: Path, of: dict[str, Any], wanted: Sequence[Wanted]
) -> list[str]:
  """The names that are done, of these prompts and this model."""
  if jax.process_index() != 0:
    return []
  names = {one.name for one in wanted}
  try:
    known = json.loads(path.read_text()) if path.is_file() else {}
  except ValueError:  # written whole, so altered by someone: made anew
    known = {}
  done = [name for name in known.get("done", []) if (folder / name).is_file()]
  if known.get("of") == of:
    return [name for name in done if name in names]
  for name in done:  # of another model: they must not stay among the new ones
    (folder / name).unlink()
  return []


def _save(path: Path, of: dict[str, Any], done: set[str]) -> None:
  values = {"of": of, "done": sorted(done)}
  files.write_whole(path, json.dumps(values, indent=1) + "\n")


def _sample(
  trained: Trained, canvas: Canvas, part: Sequence[Wanted], *, start: int
) -> list[np.ndarray]:
  """The first image that is made for each prompt, u8[h, w, 1 or 3]."""
  config, tokenizer = trained.config, trained.tokenizer
  prompts = [one.prompt for one in part]
  read_ = read_prompts(config, tokenizer, prompts, canvas=canvas)
  filled = read_ + read_[:1] * (config.eval.batch - len(part))
  made = generate(
    config,
    trained.params,
    filled,
    special=tokenizer.special,
    key=jax.random.fold_in(jax.random.key(config.seed), start),
    book=canvas.book(tokenizer.vocab_size),
  )
  first = [_first_image(one, tokenizer.vocab_size) for one in made[: len(part)]]
  return canvas.show(first)


def _first_image(one: Generated, vocabulary: int) -> np.ndarray:
  own = (span for span, made in zip(one.spans, one.made) if made and is_image(span))
  span = next(own)
  assert isinstance(span, Image | Codes)
  return span.latent if isinstance(span, Image) else span.ids - vocabulary


def _write(pixels_hwc: np.ndarray, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_whole(path, png.encode(pixels_hwc))


def _read(path: Path) -> np.ndarray:
  try:
    with files.local(path) as here, Pillow.open(here) as image:
      return np.asarray(image.convert("RGB"))
  except OSError as error:
    raise ValueError(f"{path}: is no whole PNG ({error}); delete it") from error
