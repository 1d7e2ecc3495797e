"""Does a model draw what scenes' words ask for? Metrics of runs on the source `shapes`.

Owns: what is asked, marks of drawings, edits and captions, seen and held-out apart.
Not: reading a picture (scenes.py), a mark (marks.py), generation.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tfusion.config import Config
from tfusion.data.pipeline import Corpus
from tfusion.data.scenes.captions import claims_hold, claims_of
from tfusion.data.scenes.source import Drawn, Shapes
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate.digits import caption_scans, generate_all
from tfusion.evaluate.marks import Marks, mark_caption, mark_scene, mean_marks
from tfusion.evaluate.pictures import grid, write_png
from tfusion.evaluate.scenes import read
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Draw, Prompt
from tfusion.sequence import Image, Text
from tfusion.training.trained import Trained

PARTS = ("seen", "held_out")
COLUMNS = 10  # of the sheet of drawings


class Task(NamedTuple):
  """A test document without its last picture, which is to be drawn."""

  prompt: Prompt
  drawn: Drawn
  picture_hwc: np.ndarray  # the true last picture


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
    drawn = source.drawn(index)
    # "a star" may be of any colour: it asks for no pair, held out or not.
    claims = claims_of(drawn.texts[0]) if source.kind == "pairs" else None
    vague = claims and not all(c.colour and c.shape for c in claims.things)
    if source.part(index) != part or vague:
      continue
    *given, picture = source[index]
    spans = (
      Text(tokenizer.encode(span))
      if isinstance(span, str)
      else span
      if isinstance(span, Image)
      else Image(span)
      for span in given
    )
    tasks.append(Task((*spans, Draw()), drawn, picture))
  return tasks


def check_shapes(config: Config, corpus: Corpus) -> None:
  """Raises ValueError if what is asked for here does not fit sample.max_elements."""
  for source in _sources(corpus):
    for part in PARTS:
      check_prompts(
        config, [task.prompt for task in _tasks(source, config, corpus, part)]
      )


def evaluate_shapes(trained: Trained, corpus: Corpus, out: Path) -> dict[str, float]:
  """Draws and captions test documents of each kind and part; judges both.

  eval.samples_per_class documents of each part. A drawing of a pair has to show what
  the caption says, one of an edit or a story the next scene, which is known but for
  jitter.
  Writes out/KIND.png: drawings, a part after the other.
  """
  results: dict[str, float] = {}
  for source in _sources(corpus):
    pictures: list[np.ndarray] = []
    for part in PARTS:
      tasks = _tasks(source, trained.config, corpus, part)
      made = generate_all(trained, [t.prompt for t in tasks], f"{source.kind} {part}")
      # The last image: stories and edits begin with images that are given.
      last = [[s.latent for s in g.spans if isinstance(s, Image)] for g in made]
      drawn = [np.clip(images[len(_given(t))], -1, 1) for t, images in zip(tasks, last)]
      pictures += drawn
      marks = [_mark(source.kind, t, picture) for t, picture in zip(tasks, drawn)]
      name = f"{source.kind}_{part}"
      results |= {f"{name}_{mark}": x for mark, x in mean_marks(marks).items()}
      results[f"{name}_pictures"] = len(tasks)
      truth = [_mark(source.kind, t, t.picture_hwc) for t in tasks]
      results[f"{name}_judge_right"] = mean_marks(truth)["right"]
      if source.kind == "pairs":
        results[f"{name}_captions_right"] = _captions_right(trained, tasks)
    if jax.process_index() == 0:
      sheet = grid(pictures, columns=COLUMNS)
      write_png(sheet, out / f"{source.kind}.png", enlarge=False)
  return results


def _sources(corpus: Corpus) -> list[Shapes]:
  """One source of each kind."""
  found = [source for source in corpus.test if isinstance(source, Shapes)]
  return list({source.kind: source for source in found}.values())


def _tasks(source: Shapes, config: Config, corpus: Corpus, part: str) -> list[Task]:
  count = config.eval.samples_per_class
  return find_tasks(source, corpus.tokenizer, part=part, count=count)


def _given(task: Task) -> list[Image]:
  return [span for span in task.prompt if isinstance(span, Image)]


def _mark(kind: str, task: Task, picture_hwc: np.ndarray) -> Marks:
  seen = read(picture_hwc)
  if kind == "pairs":
    return mark_caption(task.drawn.texts[0], seen)
  return mark_scene(task.drawn.scenes[-1].things, seen)


def _captions_right(trained: Trained, tasks: list[Task]) -> float:
  """The share of true pictures whose caption, written greedily, is true."""
  texts = caption_scans(trained, np.stack([t.picture_hwc for t in tasks]))
  claims = [claims_of(text) for text in texts]
  right = [
    c is not None and claims_hold(c, t.drawn.scenes[0].things)
    for c, t in zip(claims, tasks)
  ]
  return float(np.mean(right))
