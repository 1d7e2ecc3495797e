"""A model for lmms-eval (package lmms_eval, of the extra `eval`).

Owns: its interface of multimodal models, both ways of answering, its registration. Not:
its tasks and judges, sampling (generator.py).

Installed, it is found by itself:

  lmms-eval --model tfusion --model_args workdir=runs/x --tasks mmmu_val
  lmms-eval --model tfusion --model_args workdir=runs/x,mode=draw,out=made --tasks WISE
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image as Pillow

from tfusion import files
from tfusion.evaluate.adapters.generator import Generator, Part, Wishes, wishes
from tfusion.generate import png
from tfusion.generate.canvas import open_canvas
from tfusion.generate.trained import open_trained
from tfusion.workdir import load_config

MODES = ("read", "draw")
MARK = "<image>"  # where a task has an image in its text


def manifest() -> ModelManifest:
  """What lmms-eval reads of the entry point `lmms_eval.models`."""
  return ModelManifest(
    "tfusion", simple_class_path=f"{Multimodal.__module__}.Multimodal"
  )


class Multimodal(lmms):
  """A run that answers tasks of lmms-eval, in text or with an image.

  With mode `draw` an answer is what its tasks of generation and editing read: a JSON
  of `text` and of `images`, paths of PNG files.
  """

  is_simple = True

  def __init__(
    self, workdir: str = "", *, mode: str = "read", out: str = "", **more: Any
  ):
    """Opens a run at its newest checkpoint.

    Args:
      workdir: of the run.
      mode: of MODES: answer with text, or with an image.
      out: folder for images; empty: lmms_eval in the workdir's eval/.
      more: batch_size and device, which lmms-eval gives every model; not used.

    Raises:
      ValueError: another mode, an unknown argument, or there is no such run.
    """
    super().__init__()
    if mode not in MODES:
      raise ValueError(f"mode={mode!r}: choose one of {MODES}")
    if odd := set(more) - {"batch_size", "max_batch_size", "device"}:
      raise ValueError(f"model_args: {', '.join(sorted(odd))} is unknown")
    config = load_config(workdir)
    canvas = open_canvas(config, workdir, look_only=True)
    self.generator = Generator(open_trained(config, workdir), canvas)
    self.mode = mode
    self.out = files.to_path(out or files.to_path(workdir) / "eval" / "lmms_eval")

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Answers each request, in its order."""
    with tempfile.TemporaryDirectory() as folder:
      asked = [self._parts(one, Path(folder), i) for i, one in enumerate(requests)]
      if self.mode == "draw":
        made = self.generator.draw(asked)
        return [self._drawn(one, pixels) for one, pixels in zip(requests, made)]
      return self._say(requests, asked)

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Is not built: tasks of lmms-eval that ask for it say so in `output_type`."""
    raise NotImplementedError("tfusion answers tasks of lmms-eval by generate_until")

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
    """Is not built."""
    raise NotImplementedError("tfusion answers tasks of lmms-eval in one round")

  def _say(self, requests: Sequence[Any], asked: Sequence[list[Part]]) -> list[str]:
    groups: dict[Wishes, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(wishes(request.args[1]), []).append(i)
    found = [""] * len(requests)
    for wanted, own in groups.items():
      parts = [asked[i] for i in own]
      for i, text in zip(own, self.generator.say(parts, **wanted._asdict())):
        found[i] = text.strip()
    return found

  def _drawn(self, request: Any, pixels: np.ndarray) -> str:
    _, _, _, document, task, split = request.args
    path = self.out / f"{task}_{split}_{document}.png"
    png.write(pixels, path, enlarge=False)
    return json.dumps({"text": "", "images": [str(path)]})

  def _parts(self, request: Any, folder: Path, number: int) -> list[Part]:
    text, _, to_visual, document, task, split = request.args
    seen = to_visual(self.task_dict[task][split][document]) if to_visual else None
    paths = [
      _file(one, folder / f"{number}-{i}.png") for i, one in enumerate(seen or [])
    ]
    return interleave(text, paths)


def interleave(text: str, images: Sequence[Path]) -> list[Part]:
  """A task's text with its images where they are marked, or else in front of it.

  Raises:
    ValueError: there are marks, but not as many as images.
  """
  pieces = text.split(MARK)
  if len(pieces) == 1:
    return [*images, text.strip()]
  if len(pieces) != len(images) + 1:
    raise ValueError(
      f"a task has {len(pieces) - 1} marks {MARK} for {len(images)} images:"
      f" {text[:80]!r}"
    )
  parts: list[Part] = [pieces[0]]
  for image, piece in zip(images, pieces[1:]):
    parts += [image, piece]
  return [part for part in parts if part]


def _file(image: Any, path: Path) -> Path:
  """An image of a task as a file."""
  if isinstance(image, Pillow.Image):
    image.convert("RGB").save(path)
    return path
  return Path(image)
