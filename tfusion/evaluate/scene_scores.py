"""How well a model makes scenes and says what they show, whatever it was trained on.

Owns: the protocol of `scenes:N`, its names. Not: the tasks (compositions.py), reading
an image (scenes.py), the measures (marks.py, cider.py, frechet.py), sampling
(answers.py).

`shapes` asks for documents of the run's own source. This asks every run the same, be
its images pixels, latents or codes: N images of each of GenEval's tasks, and of 6 N
captions one image each; both without guidance and at sample.guidance. The images of
captions are compared with those that the captions were written of, and those are shown
to the model to be captioned.

n images  h w pixels
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tfusion.data.scenes import captions
from tfusion.data.scenes.captions import claims_hold, claims_of
from tfusion.data.scenes.render import render
from tfusion.data.scenes.scene import Draws, Scene
from tfusion.data.scenes.source import SIDES_PX, open_shapes
from tfusion.data.source import TEST
from tfusion.evaluate import answers, compositions, frechet, gallery
from tfusion.evaluate.cider import cider, words_of
from tfusion.evaluate.evaluation import Asked
from tfusion.evaluate.marks import mark_caption, mean_marks
from tfusion.evaluate.scenes import read
from tfusion.generate import png
from tfusion.generate.canvas import Canvas, open_canvas
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Blank, Prompt
from tfusion.generate.rows import Generated
from tfusion.generate.trained import Trained
from tfusion.sequence import Codes, Image, Text

SCORER = "scenes 1"  # to be counted up with what is asked for
CAPTIONS = len(compositions.TASKS)  # for each image of a task
REFERENCES = 5  # captions of a scene that CIDEr compares with, as MS-COCO has
FIELDS = 4  # of an image, along each side, whose mean colours are its features
FEATURES = f"mean colours of {FIELDS} x {FIELDS} fields"
SHOWN, COLUMNS = 48, 12  # images on the sheet


class Scored(NamedTuple):
  """A scene that is asked for, and shown."""

  text: str
  scene: Scene
  references: tuple[str, ...]


def unfit(asked: Asked) -> str:
  """Why a run makes no scenes; empty: it does."""
  if not any(source.has_images for source in asked.corpus.test):
    return f"data.sources={asked.trained.config.data.sources} has no images"
  return ""


def check(asked: Asked) -> None:
  """Checks the number, the size of images, and that every prompt can be continued.

  Raises:
    ValueError: one of them does not do.
  """
  trained, canvas = asked.trained, open_canvas(asked.trained.config, asked.workdir)
  side = gallery.side_of(trained.config, canvas)
  if side not in [(px, px) for px in SIDES_PX]:
    raise ValueError(
      f"scenes: the run's images are of {side[0]} x {side[1]} pixels; scenes are of"
      f" {' or '.join(f'{px} x {px}' for px in SIDES_PX)}"
    )
  texts = [one.text for one in compositions.prompts(_count(asked))]
  texts += [one.text for one in scenes(side[0], CAPTIONS * _count(asked))]
  prompts = [_prompt(trained, text) for text in texts]
  check_prompts(trained.config, prompts, book=_book(trained, canvas))


def evaluate_scenes(asked: Asked) -> dict[str, Any]:
  """`scenes:N`: GenEval's tasks, images of captions, captions of images.

  `scenes_geneval` is the mean of the six tasks at sample.guidance, `..._best` at the
  better of that and none, which `scenes_guidance_best` is. `scenes_frechet` compares
  mean colours of fields, so it is no FID. `scenes_ceiling` is the share of the true
  images, coded and decoded as the run's are, that the classifier reads right: no model
  can do better. Writes eval/scenes-guidance-*.png.
  """
  trained, per_task = asked.trained, _count(asked)
  canvas = open_canvas(trained.config, asked.workdir)
  px = gallery.side_of(trained.config, canvas)[0]
  known = scenes(px, CAPTIONS * per_task)
  true = [render(one.scene, px) for one in known]
  shown = [canvas.read(pixels) for pixels in true]
  coded = canvas.show(shown)
  marks = [mark_caption(one.text, _things(image)) for one, image in zip(known, coded)]
  results: dict[str, Any] = {"scenes_ceiling": mean_marks(marks)["right"]}
  results |= _captions(trained, canvas, known, shown)
  by_scale = {}
  scales = sorted({1.0, trained.config.sample.guidance})
  for scale in scales:
    found, images = _draw(trained, canvas, known, scale, per_task)
    found["frechet"] = frechet.distance(_moments(images), _moments(coded))
    by_scale[f"{scale:g}"] = found
    if jax.process_index() == 0:
      path = asked.out / f"scenes-guidance-{scale:g}.png"
      png.write(png.sheet(images[:SHOWN], columns=COLUMNS), path, enlarge=False)
  best = max(by_scale, key=lambda scale: by_scale[scale]["geneval"])
  last = by_scale[f"{trained.config.sample.guidance:g}"]
  for name in last:
    results[f"scenes_{name}"] = last[name]
  results |= {
    "scenes_geneval_best": by_scale[best]["geneval"],
    "scenes_guidance_best": float(best),
    "scenes_frechet_best": min(found["frechet"] for found in by_scale.values()),
    "scenes_frechet_features": FEATURES,
    "scenes_images": len(known) + len(compositions.TASKS) * per_task,
    "scenes_by_guidance": by_scale,
  }
  return results


def scenes(px: int, count: int) -> list[Scored]:
  """Test scenes of one or two things, seen pairs alone, with captions of each."""
  source = open_shapes(
    f"pairs,things={compositions.THINGS}", split=TEST, image_shape=(px, px, 3)
  )
  found: list[Scored] = []
  for index in range(len(source)):
    if len(found) == count:
      break
    if source.part(index) == "seen":
      truth = source.truth(index)
      draws = Draws("references", index)
      others = [captions.caption(truth.scenes[0], draws) for _ in range(REFERENCES)]
      found.append(Scored(truth.texts[0], truth.scenes[0], tuple(others)))
  return found


def _captions(
  trained: Trained, canvas: Canvas, known: Sequence[Scored], shown: list[np.ndarray]
) -> dict[str, Any]:
  """What the model says of the true images."""
  texts = answers.caption(trained, shown, book=_book(trained, canvas))
  right, attributes = [], []
  for text, one in zip(texts, known):
    claims = claims_of(text)
    things = one.scene.things
    right.append(claims is not None and claims_hold(claims, things))
    marks = mark_caption(text, things) if claims else None
    said = [x for x in (marks.shape, marks.colour) if x is not None] if marks else []
    attributes.append(sum(said) / len(said) if said else 0.0)
  score, _ = cider(
    [words_of(text) for text in texts],
    [[words_of(text) for text in one.references] for one in known],
  )
  return {
    "scenes_captions_right": float(np.mean(right)),
    "scenes_captions_attributes": float(np.mean(attributes)),
    "scenes_cider": 100 * score,
  }


def _draw(
  trained: Trained,
  canvas: Canvas,
  known: Sequence[Scored],
  scale: float,
  per_task: int,
) -> tuple[dict[str, Any], list[np.ndarray]]:
  """What is right at one scale of guidance, and the images of captions u8[h, w, 3]."""
  sample = dataclasses.replace(trained.config.sample, guidance=scale)
  config = dataclasses.replace(trained.config, sample=sample)
  asked = compositions.prompts(per_task)
  texts = [one.text for one in known] + [one.text for one in asked]
  made = answers.answer(
    trained._replace(config=config),
    [_prompt(trained, text) for text in texts],
    f"scenes at guidance {scale:g}",
    book=_book(trained, canvas),
  )
  images = canvas.show([_image(one, trained) for one in made])
  seen = [_things(image) for image in images]
  marks = [mark_caption(one.text, things) for one, things in zip(known, seen)]
  of_captions = mean_marks(marks)
  found = {name: of_captions[name] for name in ("right", "shape", "colour", "count")}
  for task in compositions.TASKS:
    done = [
      compositions.is_shown(one, things)
      for one, things in zip(asked, seen[len(known) :])
      if one.task == task
    ]
    found[task] = float(np.mean(done))
  found["geneval"] = float(np.mean([found[task] for task in compositions.TASKS]))
  return found, images[: len(known)]


def _moments(images: Sequence[np.ndarray]) -> frechet.Moments:
  """Of mean colours of fields, in [-1, 1]."""
  fields = np.stack([_fields(image) for image in images])
  return frechet.moments_of(fields, network=FEATURES)


def _fields(pixels_hwc: np.ndarray) -> np.ndarray:
  h, w, c = pixels_hwc.shape
  split = pixels_hwc.reshape(FIELDS, h // FIELDS, FIELDS, w // FIELDS, c)
  return (split.mean((1, 3)) / 127.5 - 1).ravel()


def _things(pixels_hwc: np.ndarray):
  return read(pixels_hwc.astype(np.float32) / 127.5 - 1)


def _image(one: Generated, trained: Trained) -> np.ndarray:
  """The first image that was made; codes counted from 0."""
  own = (span for span, made in zip(one.spans, one.made) if made)
  span = next(span for span in own if isinstance(span, Image | Codes))
  vocabulary = trained.tokenizer.vocab_size
  return span.latent if isinstance(span, Image) else span.ids - vocabulary


def _prompt(trained: Trained, text: str) -> Prompt:
  return (Text(trained.tokenizer.encode(text)), Blank())


def _book(trained: Trained, canvas: Canvas):
  return canvas.book(trained.tokenizer.vocab_size)


def _count(asked: Asked) -> int:
  if not asked.argument.isdecimal() or int(asked.argument) < 1:
    raise ValueError(
      f"scenes:{asked.argument}: give the number of images of each task, such as 16"
    )
  return int(asked.argument)
