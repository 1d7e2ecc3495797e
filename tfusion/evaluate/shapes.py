"""Does a model make the scenes that words ask for? Metrics of runs on source `shapes`.

Owns: what is asked, the marks of images, edits and captions, those of seen pairs of
colour and shape and of held-out ones apart. Not: reading an image (scenes.py), a mark
(marks.py), sampling (answers.py).
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tfusion.config import Config
from tfusion.data.pipeline import Corpus
from tfusion.data.scenes.captions import claims_hold, claims_of
from tfusion.data.scenes.source import KINDS, Shapes, Truth
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers
from tfusion.evaluate.marks import Marks, mark_caption, mark_scene, mean_marks
from tfusion.evaluate.scenes import read
from tfusion.generate import png
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Blank, Prompt
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text

PARTS = ("seen", "held_out")
COLUMNS = 10  # of the sheet of images


class Task(NamedTuple):
  """A test document without its last image, which the model is to make."""

  prompt: Prompt
  truth: Truth  # the document's scenes and texts
  image_hwc: np.ndarray  # the true last image


def find_tasks(
  source: Shapes, tokenizer: Tokenizer, *, part: str, count: int
) -> list[Task]:
  """Takes the first test documents of a part that ask for colours and shapes.

  Args:
    source: the test split of any kind.
    tokenizer: encodes texts.
    part: of PARTS.
    count: documents at most.
  """
  tasks: list[Task] = []
  for index in range(len(source)):
    if len(tasks) == count:
      break
    truth = source.truth(index)
    # "a star" may be of any colour: it asks for no pair, held out or not.
    claims = claims_of(truth.texts[0]) if source.kind == "pairs" else None
    vague = claims and not all(c.colour and c.shape for c in claims.things)
    if source.part(index) != part or vague:
      continue
    *given, image = source[index]
    assert isinstance(image, np.ndarray), "the image to make is pixels"
    spans = (
      Text(tokenizer.encode(span))
      if isinstance(span, str)
      else span
      if isinstance(span, Image)
      else Image(span)
      for span in given
    )
    tasks.append(Task((*spans, Blank()), truth, image))
  return tasks


def check_shapes(config: Config, corpus: Corpus) -> None:
  """Raises ValueError if what is asked for here does not fit sample.max_elements."""
  for source in _sources(corpus):
    _check_source(config, corpus, source)


def _check_source(config: Config, corpus: Corpus, source: Shapes) -> None:
  for part in PARTS:
    check_prompts(
      config, [task.prompt for task in _tasks(source, config, corpus, part)]
    )


def source_of(corpus: Corpus, kind: str) -> Shapes:
  """The test documents of a kind, which the run need not have been trained on.

  Without that kind they have the options of the run's first source of scenes, such as
  the number of things in one.

  Raises:
    ValueError: the kind is unknown.
  """
  if kind not in KINDS:
    raise ValueError(
      f"shapes_of:{kind}: is no kind of scenes; known: {', '.join(KINDS)}"
    )
  sources = _sources(corpus)
  own = [source for source in sources if source.kind == kind]
  name = f"shapes:{kind}"
  return own[0] if own else dataclasses.replace(sources[0], name=name, kind=kind)


def check_kind(config: Config, corpus: Corpus, kind: str) -> None:
  """As `check_shapes`, of one kind, which may be none of the run's."""
  _check_source(config, corpus, source_of(corpus, kind))


def evaluate_kind(
  trained: Trained, corpus: Corpus, kind: str, out: Path
) -> dict[str, float]:
  """As `evaluate_shapes`, of one kind, which may be none of the run's."""
  return _evaluate_source(trained, corpus, source_of(corpus, kind), out)


def evaluate_shapes(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """Has the model make and caption the images of test documents; marks both.

  eval.samples_per_class documents of each kind and part. The image of a pair has to
  show what the caption says, that of an edit or a story the next scene, which is known
  but for jitter. Writes out/KIND.png: images, a part after the other.
  """
  results: dict[str, float] = {}
  for source in _sources(corpus):
    results |= _evaluate_source(trained, corpus, source, out)
  return results


def _evaluate_source(
  trained: Trained, corpus: Corpus, source: Shapes, out: Path
) -> dict[str, float]:
  results: dict[str, float] = {}
  images: list[np.ndarray] = []
  for part in PARTS:
    tasks = _tasks(source, trained.config, corpus, part)
    prompts = [task.prompt for task in tasks]
    made = answers.answer(trained, prompts, f"{source.kind} {part}")
    # The first after those that stories and edits begin with.
    all_of = [[s.latent for s in one.spans if isinstance(s, Image)] for one in made]
    own = [np.clip(all_[len(_given(t))], -1, 1) for t, all_ in zip(tasks, all_of)]
    images += own
    marks = [_mark(source.kind, t, image) for t, image in zip(tasks, own)]
    name = f"{source.kind}_{part}"
    results |= {f"{name}_{mark}": x for mark, x in mean_marks(marks).items()}
    results[f"{name}_images"] = len(tasks)
    truth = [_mark(source.kind, t, t.image_hwc) for t in tasks]
    results[f"{name}_classifier_right"] = mean_marks(truth)["right"]
    if source.kind == "pairs":
      results[f"{name}_captions_right"] = _captions_right(trained, tasks)
  if jax.process_index() == 0:
    sheet = png.sheet([png.to_pixels(x) for x in images], columns=COLUMNS)
    png.write(sheet, out / f"{source.kind}.png", enlarge=False)
  return results


def _sources(corpus: Corpus) -> list[Shapes]:
  """One source of each kind.

  Told by its class, not by its name as the others: what is asked for here takes
  `kind`, `part` and `truth`, which no other source has.
  """
  found = [source for source in corpus.test if isinstance(source, Shapes)]
  return list({source.kind: source for source in found}.values())


def _tasks(source: Shapes, config: Config, corpus: Corpus, part: str) -> list[Task]:
  count = config.eval.samples_per_class
  return find_tasks(source, corpus.tokenizer, part=part, count=count)


def _given(task: Task) -> list[Image]:
  return [span for span in task.prompt if isinstance(span, Image)]


def _mark(kind: str, task: Task, image_hwc: np.ndarray) -> Marks:
  seen = read(image_hwc)
  if kind == "pairs":
    return mark_caption(task.truth.texts[0], seen)
  return mark_scene(task.truth.scenes[-1].things, seen)


def _captions_right(trained: Trained, tasks: list[Task]) -> float:
  """The share of true images whose caption, written greedily, is true."""
  texts = answers.caption(trained, np.stack([t.image_hwc for t in tasks]))
  claims = [claims_of(text) for text in texts]
  right = [
    c is not None and claims_hold(c, t.truth.scenes[0].things)
    for c, t in zip(claims, tasks)
  ]
  return float(np.mean(right))
