"""What came of prompts: text and images to look at, to use and to write to files.

Owns: prompts with their files -> Samples, the files of a Sample. Not: the walk
(interleaved.py), the written form of prompts (prompt.py), pixels (canvas.py).
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from PIL import Image as Pillow

from tfusion import files, templates
from tfusion.config import Config
from tfusion.data import numbers
from tfusion.data.forms import image_of
from tfusion.data.pairs import why_no_file
from tfusion.data.tokenizer import Tokenizer
from tfusion.generate import png
from tfusion.generate.canvas import Canvas
from tfusion.generate.interleaved import check_prompts, generate
from tfusion.generate.prompt import Prompt, mark_of, parse_prompt
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.kinds import FIRST, Kind
from tfusion.model.transfusion import Params
from tfusion.numerals import SEEDS
from tfusion.sequence import Codes, Image, Text

FOLDER = Path(__file__).parent
GIVEN = "(given)"  # stands for an image that is no file
# An image to show: its file, or itself, u8[h, w, 1 or 3] or of Pillow; an array of
# another kind.
Shown = str | Path | Pillow.Image | np.ndarray
# Text with marks; or parts in order, text with marks and images, where a str is text.
Asked = str | tuple[str | Path | Pillow.Image | np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sample:
  """One continuation of one prompt. A notebook shows it with its images in place.

  Attributes:
    prompt: as it was asked for.
    parts: the whole document in order, given and made: texts, and images
      u8[h, w, 1 or 3] at the size that they have.
    made: for each part, whether the model made it.
    marks: for each part, how a prompt asks for one of its kind: `<image>`; "" of text.
    arrays: what the model has for parts that are no images, f32, by their place among
      the parts, where they are drawn as one.
    finished: False if sample.max_elements stopped the model.
    number: of this sample among those of its prompt, from 0 on.
    call: what `sample` was asked for: enough to get the same again.
  """

  prompt: str
  parts: tuple[str | np.ndarray, ...]
  made: tuple[bool, ...]
  finished: bool
  number: int
  call: dict[str, Any]
  marks: tuple[str, ...] = ()
  arrays: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def text(self) -> str:
    """What the model itself wrote, with `<image>` where it made an image."""
    return made_text(self.parts, self.made, self.marks)

  @property
  def images(self) -> list[Pillow.Image]:
    """The images that the model made, in RGB, at the size that they have; what is no
    image comes as its drawing, and its numbers are in `arrays`."""
    pairs = zip(self.parts, self.made, strict=True)
    return [png.to_rgb(x) for x, made in pairs if made and not isinstance(x, str)]

  def save(self, folder: str | Path) -> list[Path]:
    """Writes the text, the images and what was asked for, beside earlier samples.

    That is sample_000.txt, with `<image:FILE>` where an image stands, the images as
    sample_000_image_0.png and so on, given ones too, small ones enlarged, and
    sample_000.json; an array of another kind is a .npy beside its drawing. The number
    goes on where those in the folder end.

    Args:
      folder: is made if it is not there.

    Returns:
      The files, the text behind the images and the .json last. Of several hosts the
      first writes; the others return nothing.

    Raises:
      OSError: the folder cannot be written.
    """
    if jax.process_index() != 0:
      return []
    folder = files.to_path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    about = _claim(folder)
    text = ""
    paths: list[Path] = []
    for place, part in enumerate(self.parts):
      if isinstance(part, str):
        text += part
        continue
      name = self.marks[place].strip("<>").partition(":")[0] if self.marks else "image"
      number = sum(path.suffix == ".png" for path in paths)
      paths.append(about.with_name(f"{about.stem}_{name}_{number}.png"))
      png.write(part, paths[-1])
      if place in self.arrays:
        paths.append(paths[-1].with_suffix(".npy"))
        np.save(paths[-1], self.arrays[place])
      text += f"<{name}:{paths[-1].name}>"
    if not self.finished:
      limit = self.call["sample"]["max_elements"]
      text += f" [stopped at sample.max_elements={limit}]"
    paths.append(about.with_suffix(".txt"))
    paths[-1].write_text(text + "\n")
    asked = {"prompt": self.prompt, "number_of_the_prompt": self.number}
    asked |= {"files": [path.name for path in paths], "call": self.call}
    about.write_text(json.dumps(asked, indent=2) + "\n")
    return [*paths, about]

  def __str__(self) -> str:
    """The whole document, with `<image>` where an image stands."""
    marks = self.marks or ("<image>",) * len(self.parts)
    pairs = zip(self.parts, marks, strict=True)
    return "".join(x if isinstance(x, str) else mark for x, mark in pairs)

  def __repr__(self) -> str:
    return f"Sample({self.prompt!r} -> {self.text!r})"

  def _repr_html_(self) -> str:
    parts = [
      {"text": part, "made": made}
      if isinstance(part, str)
      else {"src": png.data_url(part), "width": max(part.shape[1], png.LEAST_SIDE)}
      for part, made in zip(self.parts, self.made, strict=True)
    ]
    template = templates.environment(FOLDER).get_template("sample.html.j2")
    return template.render(parts=parts, finished=self.finished)


class Samples(tuple[Sample, ...]):
  """Several samples, those of one prompt one after the other."""

  def save(self, folder: str | Path) -> list[Path]:
    """Writes them all, as `Sample.save` does; returns the files in the same order."""
    return [path for sample in self for path in sample.save(folder)]

  def _repr_html_(self) -> str:
    return "".join(sample._repr_html_() for sample in self)


def sample(
  trained: Trained,
  prompts: Sequence[Asked],
  *,
  canvas: Canvas,
  count: int,
  seed: int | Sequence[int],
) -> Samples:
  """Continues every prompt `count` times. All hosts must call it.

  Args:
    trained: the model.
    prompts: text with marks, as in prompt.py; or parts, of which some are images.
    canvas: of the run.
    count: samples of each prompt.
    seed: of the noise and of text, in [0, 2**32); or one of each sample, which then is
      the one that its prompt gives alone with this seed.

  Raises:
    ValueError: `count` or `seed` is out of range, or what `read_prompts` raises.
  """
  if count < 1:
    raise ValueError(f"count={count}: must be at least 1")
  asked = [prompt for prompt in prompts for _ in range(count)]
  key = keys_of(seed, rows=len(asked))
  with jax.set_mesh(trained.mesh):
    made = continue_prompts(
      trained.config,
      trained.params,
      trained.tokenizer,
      asked,
      canvas=canvas,
      key=key,
    )
  return as_samples(trained, prompts, made, canvas=canvas, count=count, seed=seed)


def keys_of(seed: int | Sequence[int], *, rows: int) -> jax.Array:
  """The key of so many rows, or the keys of each.

  Raises:
    ValueError: a seed is out of range, or there are not as many as rows.
  """
  seeds = [seed] if isinstance(seed, int) else list(seed)
  for one in seeds:
    if not 0 <= one < SEEDS:
      raise ValueError(f"seed={one}: must be at least 0 and below {SEEDS}")
  if isinstance(seed, int):
    return jax.random.key(seed)
  if len(seeds) != rows:
    raise ValueError(
      f"seed={seeds}: {len(seeds)} seeds for {rows} samples; give one, or one of each"
    )
  keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
  return jax.vmap(jax.random.fold_in, (0, None))(keys, 0)  # each is the first row


def as_samples(
  trained: Trained,
  prompts: Sequence[Asked],
  made: Sequence[Generated],
  *,
  canvas: Canvas,
  count: int,
  seed: int | Sequence[int],
) -> Samples:
  """What came of prompts, of each `count` times, as it is shown and kept.

  A warning is logged if images have numbers that training images do not have.
  """
  config, tokenizer = trained.config, trained.tokenizer
  new = [image for generated in made for image in generated.made_images]
  if (said := numbers.warning(new, trained.numbers)) and jax.process_index() == 0:
    logging.warning("%s", said)
  written = [_written(prompt) for prompt in prompts]
  seeds = seed if isinstance(seed, int) else list(seed)
  call = {"prompts": written, "count": count, "seed": seeds, "step": trained.step}
  call["sample"] = dataclasses.asdict(config.sample)
  call["diffusion"] = {"clip": config.diffusion.clip}  # all else is the run's own
  kinds = config.model.every_kind
  asked = [prompt for prompt in written for _ in range(count)]
  return Samples(
    Sample(
      prompt,
      parts,
      one.made,
      one.finished,
      number % count,
      call,
      marks_of(one, kinds),
      _arrays(one, kinds),
    )
    for number, (prompt, one, parts) in enumerate(
      zip(asked, made, show(made, tokenizer, canvas), strict=True)
    )
  )


def marks_of(one: Generated, kinds: Sequence[Kind]) -> tuple[str, ...]:
  """Of every span how a prompt asks for one of its kind; "" for text."""
  return tuple(
    ""
    if isinstance(span, Text)
    else mark_of(kinds[span.kind if isinstance(span, Image) else 0])
    for span in one.spans
  )


def _arrays(one: Generated, kinds: Sequence[Kind]) -> dict[int, np.ndarray]:
  """The spans that are no images, by their places."""
  return {
    place: span.latent
    for place, span in enumerate(one.spans)
    if isinstance(span, Image) and kinds[span.kind].owner != FIRST
  }


def continue_prompts(
  config: Config,
  params: Params,
  tokenizer: Tokenizer,
  prompts: Sequence[Asked],
  *,
  canvas: Canvas,
  key: jax.Array,
) -> list[Generated]:
  """Continues prompts in their written form, on the mesh in use.

  Args:
    config: of the run.
    params: of the model.
    tokenizer: of the run.
    prompts: text with marks, or parts.
    canvas: reads the files in them.
    key: of the noise and of text.

  Raises:
    ValueError: as read_prompts.
  """
  read = read_prompts(config, tokenizer, prompts, canvas=canvas)
  book = canvas.book(tokenizer.vocab_size)
  return generate(config, params, read, special=tokenizer.special, key=key, book=book)


def read_prompts(
  config: Config, tokenizer: Tokenizer, prompts: Sequence[Asked], *, canvas: Canvas
) -> list[Prompt]:
  """Reads prompts and the files in them, and checks that they can be continued.

  Raises:
    ValueError: a prompt has an unknown mark, or nearly a known one, or too many images,
      or a file in it is not an image.
  """

  book = canvas.book(tokenizer.vocab_size)

  kinds = config.model.every_kind

  def load_image(shown: Shown, kind: int = 0) -> Image | Codes:
    path = shown if isinstance(shown, str | Path) else GIVEN
    try:
      if isinstance(shown, str | Path):
        shown = Path(shown).expanduser()  # no shell looks into a prompt
      read = canvas.read(_as_array(shown), kind)
      if book:
        return Codes(read + np.int32(book.first))
      return image_of(Image(read, kind=kind), config)
    except Exception as error:  # Pillow's decoders raise almost any kind
      reason = getattr(error, "strerror", None) or error or type(error).__name__
      if isinstance(error, FileNotFoundError):
        reason = why_no_file(str(path)) or "there is no such file"
      name, what, file = "image", "an image", "PNG or JPEG"
      if kinds[kind].owner != FIRST:
        name = kinds[kind].name
        what, file = f"one of {name}", ".npy"
      raise ValueError(
        f"<{name}:{path}>: not {what} that can be read ({reason}); give the path of a"
        f" whole {file} file"
      ) from error

  def read_part(part: str | Shown) -> Prompt:
    if isinstance(part, str):
      how: dict[str, Any] = dict(load_image=load_image, kinds=kinds)
      return parse_prompt(part, encode=tokenizer.encode, **how)
    shape = np.shape(part) if isinstance(part, np.ndarray) else None
    fitting = (n for n, k in enumerate(kinds) if k.owner != FIRST and k.shape == shape)
    return (load_image(part, next(fitting, 0)),)

  read = [
    tuple(span for part in _parts(prompt) for span in read_part(part))
    for prompt in prompts
  ]
  check_prompts(config, read, book=book)
  return read


def _parts(prompt: Asked) -> tuple[str | Shown, ...]:
  return (prompt,) if isinstance(prompt, str) else prompt


def _written(prompt: Asked) -> str:
  """A prompt as text, whatever was given."""
  return "".join(
    part
    if isinstance(part, str)
    else f"<image:{part if isinstance(part, Path) else GIVEN}>"
    for part in _parts(prompt)
  )


def _as_array(shown: Shown) -> Path | np.ndarray:
  """What a canvas reads: images of Pillow as their pixels."""
  if isinstance(shown, Pillow.Image):
    return np.asarray(shown.convert("RGB"))
  assert isinstance(shown, Path | np.ndarray)
  return shown


def show(
  made: Sequence[Generated], tokenizer: Tokenizer, canvas: Canvas
) -> list[tuple[str | np.ndarray, ...]]:
  """The spans of each as text and as pixels u8[h, w, 1 or 3]."""
  images = [
    span.latent if isinstance(span, Image) else span.ids - tokenizer.vocab_size
    for one in made
    for span in one.spans
    if not isinstance(span, Text)
  ]
  pixels = iter(canvas.show(images))
  return [
    tuple(
      tokenizer.decode(span.ids) if isinstance(span, Text) else next(pixels)
      for span in one.spans
    )
    for one in made
  ]


def made_text(
  parts: Sequence[str | np.ndarray], made: Sequence[bool], marks: Sequence[str] = ()
) -> str:
  """The text that the model itself wrote, with `<image>` where it made an image."""
  marks = marks or ("<image>",) * len(parts)
  own = (
    part if isinstance(part, str) else mark
    for part, is_made, mark in zip(parts, made, marks, strict=True)
    if is_made
  )
  return "".join(own).strip()


def _claim(folder: Path) -> Path:
  """Makes the .json of the next number; of two that ask at once each gets its own."""
  names = (re.match(r"sample_(\d+)", path.name) for path in folder.iterdir())
  number = max((int(name[1]) for name in names if name), default=-1) + 1
  while True:
    path = folder / f"sample_{number:03d}.json"
    try:
      path.touch(exist_ok=False)
      return path
    except FileExistsError:
      number += 1
