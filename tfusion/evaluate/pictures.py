"""Pictures and texts to look at: sample grids while training, `tfusion sample`.

Owns: images to PNG, files in prompts, what is written. Not: generation and what latents
look like (generate/).
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from PIL import Image as Picture

from tfusion import workdir as workdir_lib
from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.generate.canvas import Canvas, open_canvas
from tfusion.generate.interleaved import Generated, check_prompts, generate
from tfusion.generate.prompt import Prompt, parse_prompt, split
from tfusion.model.transfusion import Params
from tfusion.numerals import SEEDS
from tfusion.sequence import Image, Text
from tfusion.training.trained import Trained

LEAST_SIDE = 128  # pixels of a picture that is written; smaller images are enlarged
COLUMNS, RECONSTRUCTIONS = 8, 16  # of pictures that an autoencoder is judged by
GRID_SEED = 0  # the same noise at every evaluation, so that pictures compare


def to_pixels(image_hwc: np.ndarray) -> np.ndarray:
  """f32[h, w, 1 or 3] in [-1, 1] to u8[h, w, 3]; what lies outside is clipped."""
  grey = np.round((np.clip(image_hwc, -1, 1) + 1) * 127.5).astype(np.uint8)
  return np.repeat(grey, 3, axis=-1) if grey.shape[-1] == 1 else grey


def write_png(image_hwc: np.ndarray, path: Path, *, enlarge: bool = True) -> int:
  """Writes an image; small ones with every pixel drawn as a square.

  Returns:
    The side of that square in pixels.
  """
  pixels = to_pixels(image_hwc)
  times = -(-LEAST_SIDE // min(pixels.shape[:2])) if enlarge else 1
  pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
  path.parent.mkdir(parents=True, exist_ok=True)
  Picture.fromarray(pixels).save(path)
  return times


def grid(images: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
  """Lays images f32[h, w, c] out in rows with one pixel between: f32[H, W, c]."""
  h, w, c = images[0].shape
  rows = -(-len(images) // columns)
  sheet = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1, c), np.float32)
  for number, image in enumerate(images):
    y, x = divmod(number, columns)
    sheet[1 + y * (h + 1) :, 1 + x * (w + 1) :][:h, :w] = image
  return sheet


def draw_prompts(
  config: Config,
  params: Params,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  canvas: Canvas,
  key: jax.Array,
) -> list[Generated]:
  """Generates from prompts as the command line takes them.

  Args:
    config: of the run.
    params: of the model.
    tokenizer: of the run.
    prompts: text with marks.
    canvas: reads the files in them.
    key: of the noise and of text.

  Raises:
    ValueError: as parse_prompts.
  """
  parsed = parse_prompts(config, tokenizer, prompts, canvas=canvas)
  return generate(config, params, parsed, special=tokenizer.special, key=key)


def parse_prompts(
  config: Config, tokenizer: Tokenizer, prompts: Sequence[str], *, canvas: Canvas
) -> list[Prompt]:
  """Reads prompts and the files in them, and checks that they can be continued.

  Raises:
    ValueError: a prompt with an unknown mark, or nearly a known one, or with too many
      images, or a file in it that is not an image.
  """

  def load_image(path: str) -> np.ndarray:
    try:
      return canvas.read(path)
    except Exception as error:  # Pillow's decoders raise almost any kind
      reason = error or type(error).__name__
      raise ValueError(
        f"<image:{path}>: not an image that can be read ({reason}); give the path of a"
        " whole PNG or JPEG file"
      ) from error

  parsed = [
    parse_prompt(p, encode=tokenizer.encode, load_image=load_image) for p in prompts
  ]
  check_prompts(config, parsed)
  return parsed


class SampleGrids:
  """Draws eval.prompts at every evaluation, all images of one in one picture."""

  def __init__(self, config: Config, workdir: Path):
    """Raises ValueError for a prompt with a mark that cannot be read."""
    self.config, self.workdir = config, workdir
    with _naming_prompts():  # now: opening the data may take hours
      for prompt in config.eval.prompts:
        split(prompt)

  def check(self, corpus: Corpus) -> None:
    """Raises ValueError for a prompt that cannot be drawn."""
    prompts = self.config.eval.prompts
    if prompts:
      with _naming_prompts(remedy="; or leave eval.prompts empty"):
        canvas = open_canvas(self.config, self.workdir)
      with _naming_prompts():
        parse_prompts(self.config, corpus.tokenizer, prompts, canvas=canvas)

  def __call__(self, step: int, params: Params, corpus: Corpus) -> None:
    """Writes workdir/samples/step_NNNNNNNN.json, and .png if there are images.

    The .json says of each prompt which text came and, in pixels of the .png, where its
    images are: left, top, right, bottom.
    """
    key, prompts = jax.random.key(GRID_SEED), self.config.eval.prompts
    if not prompts:
      return
    # Anew each time: between evaluations the device has no room for an autoencoder.
    canvas = open_canvas(self.config, self.workdir)
    made = draw_prompts(
      self.config, params, corpus.tokenizer, prompts, canvas=canvas, key=key
    )
    images = [s.latent for g in made for s in g.spans if isinstance(s, Image)]
    if jax.process_index() != 0:
      return
    known = numbers.kept(self.workdir)
    if said := numbers.warning([x for g in made for x in g.drawings], known):
      logging.warning("step %d: %s", step, said)
    path, boxes = self.workdir / "samples" / f"step_{step:08d}.png", iter(())
    if images:
      shown, columns = canvas.show(images), min(len(images), 10)
      times = write_png(grid(shown, columns=columns), path)
      boxes = _boxes(shown, columns, times)
    asked = []
    for prompt, generated in zip(prompts, made, strict=True):
      count = sum(isinstance(span, Image) for span in generated.spans)
      text = _text_made(corpus.tokenizer, generated)
      asked.append({"prompt": prompt, "text": text})
      asked[-1]["boxes"] = [next(boxes) for _ in range(count)]
    path.parent.mkdir(exist_ok=True)
    workdir_lib.write_json(path.parent, f"{path.stem}.json", {"prompts": asked})


@contextlib.contextmanager
def _naming_prompts(remedy: str = ""):
  """Says in a ValueError whose prompts they are, and what else can be done."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"eval.prompts: {error}{remedy}") from error


def _boxes(
  images: Sequence[np.ndarray], columns: int, times: int
) -> Iterator[list[int]]:
  """Where `grid` and `write_png` put images: left, top, right, bottom in pixels."""
  h, w, _ = images[0].shape
  for number in range(len(images)):
    y, x = divmod(number, columns)
    left, top = 1 + x * (w + 1), 1 + y * (h + 1)
    yield [times * side for side in (left, top, left + w, top + h)]


def _text_made(tokenizer: Tokenizer, generated: Generated) -> str:
  """What the model itself wrote, with `<image>` where it drew."""
  text = ""
  for span, made in zip(generated.spans, generated.made, strict=True):
    if made:
      text += tokenizer.decode(span.ids) if isinstance(span, Text) else "<image>"
  return text.strip()


class Reconstructions:
  """Draws what an autoencoder makes of held-out pictures, below each of them."""

  def __init__(self, folder: Path):
    self.folder = folder

  def __call__(self, step: int, x_bhwc: np.ndarray, made_bhwc: np.ndarray) -> None:
    """Writes folder/step_NNNNNNNN.png with the first of the pictures."""
    pairs = []
    for start in range(0, min(len(x_bhwc), RECONSTRUCTIONS), COLUMNS):
      pairs += [*x_bhwc[start : start + COLUMNS], *made_bhwc[start : start + COLUMNS]]
    sheet = grid(pairs, columns=min(len(x_bhwc), COLUMNS))
    write_png(sheet, self.folder / f"step_{step:08d}.png")


def sample(
  trained: Trained,
  prompts: Sequence[str],
  *,
  workdir: str | Path,
  out: Path,
  count: int,
  seed: int,
) -> list[Path]:
  """Continues every prompt `count` times and writes what came.

  Writes out/sample_000.txt, with `<image:FILE>` where an image stands, the images
  beside it as out/sample_000_image_0.png, and in out/sample_000.json what was asked
  for: enough to ask for the same again. Numbers go on where those in `out` end.

  Args:
    trained: the model.
    prompts: as parse_prompts.
    workdir: of the run; holds the autoencoder, if it has one.
    out: folder, is made.
    count: of samples of each prompt.
    seed: of the noise and of text, in [0, 2**32).

  Returns:
    The paths of all files.

  Raises:
    ValueError: `count` is below 1, `seed` is outside, a prompt cannot be parsed or does
      not fit, or there is no autoencoder to see latents with.
    OSError: `out` cannot be written.
  """
  if count < 1:
    raise ValueError(f"--count={count}: must be at least 1")
  if not 0 <= seed < SEEDS:
    raise ValueError(f"--seed={seed}: must be at least 0 and below {SEEDS}")
  workdir_lib.check_writable(out, option="--out")  # to know before the work
  canvas = open_canvas(trained.config, workdir)
  asked = [prompt for prompt in prompts for _ in range(count)]
  with jax.set_mesh(trained.mesh):
    made = draw_prompts(
      trained.config,
      trained.params,
      trained.tokenizer,
      asked,
      canvas=canvas,
      key=jax.random.key(seed),
    )
  if jax.process_index() != 0:
    return []
  if said := numbers.warning([x for g in made for x in g.drawings], trained.numbers):
    logging.warning("%s", said)
  call = {"prompts": list(prompts), "count": count, "seed": seed, "step": trained.step}
  call["sample"] = dataclasses.asdict(trained.config.sample)
  paths = []
  for number, (prompt, generated) in enumerate(zip(asked, made, strict=True)):
    about = _claim(out)
    written = _write(trained, generated, canvas, about.with_suffix(".txt"))
    this = {"prompt": prompt, "number_of_the_prompt": number % count}
    this["files"] = [path.name for path in written]
    about.write_text(json.dumps(this | {"call": call}, indent=2) + "\n")
    paths += [*written, about]
  return paths


def _claim(out: Path) -> Path:
  """Makes the .json of the next number; of two that ask at once each gets its own."""
  names = (re.match(r"sample_(\d+)", path.name) for path in out.iterdir())
  number = max((int(name[1]) for name in names if name), default=-1) + 1
  while True:
    path = out / f"sample_{number:03d}.json"
    try:
      path.touch(exist_ok=False)
      return path
    except FileExistsError:
      number += 1


def _write(
  trained: Trained, generated: Generated, canvas: Canvas, path: Path
) -> list[Path]:
  """Writes one text and its images; returns their paths, the text last."""
  text, paths = "", []
  images = [span.latent for span in generated.spans if isinstance(span, Image)]
  shown = iter(canvas.show(images))
  for span in generated.spans:
    if isinstance(span, Text):
      text += trained.tokenizer.decode(span.ids)
      continue
    paths.append(path.with_name(f"{path.stem}_image_{len(paths)}.png"))
    write_png(next(shown), paths[-1])
    text += f"<image:{paths[-1].name}>"
  if not generated.finished:
    text += f" [stopped at sample.max_elements={trained.config.sample.max_elements}]"
  path.write_text(text + "\n")
  return [*paths, path]
