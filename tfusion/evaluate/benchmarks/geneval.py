"""GenEval: are the objects there that a prompt names, as many, and in its colours?

Owns: its prompts and folders, its scores of recorded detections (arXiv 2310.11513).
Not: the detector, which is another program's.

  00000/metadata.jsonl     the prompt's line of evaluation_metadata.jsonl
  00000/samples/0000.png   four images of each prompt
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tfusion.evaluate import gallery
from tfusion.evaluate.benchmarks import benchmark
from tfusion.evaluate.benchmarks.benchmark import Benchmark
from tfusion.evaluate.gallery import Wanted

FILE, RESULTS = "evaluation_metadata.jsonl", "results.jsonl"
EACH = 4  # images of a prompt
TASKS = "single_object two_object counting colors position color_attr".split()
APART = 0.1  # of the sizes of two boxes, until one counts as beside the other

Boxes = Mapping[
  str, Sequence[Sequence[float]]
]  # class -> x0, y0, x1, y1, ..., best first


class GenEval(Benchmark):
  """GenEval, by the program of its authors."""

  name, prompts = "geneval", 553
  remedy = (
    "GenEval takes evaluation_metadata.jsonl of github.com/djghosh13/geneval in the"
    " folder `geneval` of --data"
  )

  def wanted(self, data: Path) -> list[Wanted]:
    return [
      Wanted(f"{i:05d}/samples/{n:04d}.png", gallery.asked_for(one["prompt"]))
      for i, one in enumerate(self._read(data))
      for n in range(EACH)
    ]

  def beside(self, data: Path) -> dict[str, Path | str]:
    return {
      f"{i:05d}/metadata.jsonl": json.dumps(one)
      for i, one in enumerate(self._read(data))
    }

  def count(self, data: Path) -> int:
    return len(self._read(data))

  def results(self, folder: Path) -> list[Path]:
    return [path for path in [folder / RESULTS] if path.is_file()]

  def how(self, folder: Path) -> str:
    return (
      f"python evaluation/evaluate_images.py {folder / benchmark.IMAGES} --outfile"
      f" {folder / RESULTS} --model-path DETECTOR"
    )

  def score(self, data: Path, results: Sequence[Path]) -> dict[str, Any]:
    (path,) = results
    lines = benchmark.read_lines(path, remedy=self.remedy)
    try:
      found = [_place(one["filename"]) for one in lines]
      prompts = {place: json.loads(o["metadata"]) for place, o in zip(found, lines)}
    except (KeyError, ValueError, TypeError) as error:
      raise ValueError(
        f"{path}: is not written by GenEval's evaluate_images.py ({error!r})"
      ) from error
    known = self._read(data)
    wanted = [f"{i:05d}/{n:04d}.png" for i in range(len(known)) for n in range(EACH)]
    benchmark.check_same(found, wanted, path=path, what="images")
    for place, own in prompts.items():
      if own != known[int(place[:5])]:
        raise ValueError(
          f"{path}: {place} is of another prompt set: {own.get('prompt')!r} instead of"
          f" {known[int(place[:5])]['prompt']!r}"
        )
    odd = [one["filename"] for one in lines if _disagrees(one)]
    if odd:
      logging.warning(
        "geneval: of %d images, as %s, the recorded boxes say something else than"
        " `correct`: was it scored with other thresholds?",
        len(odd),
        odd[0],
      )
    return scores(lines) | {"geneval_odd": len(odd)}

  def _read(self, data: Path) -> list[dict[str, Any]]:
    found = benchmark.read_lines(data / FILE, remedy=self.remedy)
    for number, one in enumerate(found, 1):
      if not {"tag", "prompt", "include"} <= set(one):
        raise ValueError(
          f"{data / FILE}, line {number}: lacks tag, prompt or include; {self.remedy}"
        )
    return found


def scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The score of every task, and their mean, as GenEval's summary_scores.py has them.

  Args:
    lines: of results.jsonl, with `tag`, `correct` and `metadata`.
  """
  by_task: dict[str, list[bool]] = {}
  by_prompt: dict[str, list[bool]] = {}
  for one in lines:
    by_task.setdefault(one["tag"], []).append(bool(one["correct"]))
    by_prompt.setdefault(one["metadata"], []).append(bool(one["correct"]))
  means = {task: float(np.mean(found)) for task, found in by_task.items()}
  return {
    "geneval": float(np.mean(list(means.values()))),
    **{f"geneval_{task}": mean for task, mean in means.items()},
    "geneval_images_right": float(np.mean([bool(x["correct"]) for x in lines])),
    "geneval_prompts_right": float(np.mean([any(x) for x in by_prompt.values()])),
  }


def judge(
  metadata: Mapping[str, Any],
  boxes: Boxes,
  colours: Mapping[str, Sequence[str]] | None = None,
) -> bool:
  """Whether detections are what a prompt asks for, by GenEval's rules.

  Of each class only the surest detections count, as many as are asked for. `position`
  is met if each of them lies so of each of those of the clause it names; too many of a
  class fail by a clause of `exclude`.

  Args:
    metadata: of the prompt, with `include` and perhaps `exclude`.
    boxes: of each class, above the threshold, the surest first.
    colours: of the same boxes, where the prompt asks for colours.
  """
  right = True
  groups: list[Any] = []
  for clause in metadata.get("include", []):
    own = list(boxes.get(clause["class"], []))[: clause["count"]]
    fits = len(own) >= clause["count"]
    if fits and "color" in clause:
      assert colours is not None, "the prompt asks for colours"
      seen = list(colours.get(clause["class"], []))[: clause["count"]]
      fits = seen.count(clause["color"]) >= clause["count"]
    if fits and "position" in clause:
      where, number = clause["position"]
      target = groups[number]
      fits = target is not None and all(
        where in relations(box, other) for box in own for other in target
      )
    groups.append(own if fits else None)
    right &= fits
  return right and not any(
    len(boxes.get(clause["class"], [])) >= clause["count"]
    for clause in metadata.get("exclude", [])
  )


def relations(box: Sequence[float], other: Sequence[float]) -> set[str]:
  """Where a box lies of another: left of, right of, above, below, two of them, or none.

  What the boxes are apart, less a tenth of their sizes, is compared with the distance
  of their centres.
  """
  corners = np.asarray([box[:4], other[:4]], float).reshape(2, 2, 2)
  centres, sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
  offset = centres[0] - centres[1]
  clear = np.maximum(np.abs(offset) - APART * sizes.sum(axis=0), 0) * np.sign(offset)
  if np.all(np.abs(clear) < 1e-3):
    return set()
  dx, dy = clear / np.linalg.norm(offset)
  named = {"left of": dx < -0.5, "right of": dx > 0.5}
  named |= {"above": dy < -0.5, "below": dy > 0.5}
  return {name for name, holds in named.items() if holds}


def _disagrees(line: Mapping[str, Any]) -> bool:
  """Whether recorded boxes say something else than `correct`; colours are not there."""
  metadata = json.loads(line["metadata"])
  if any("color" in clause for clause in metadata["include"]) or "details" not in line:
    return False
  return judge(metadata, json.loads(line["details"])) != bool(line["correct"])


def _place(filename: str) -> str:
  """00000/0000.png of a path that ends in 00000/samples/0000.png."""
  *_, prompt, samples, name = Path(filename).parts
  if samples != "samples" or not prompt.isdigit():
    raise ValueError(f"{filename}: no image of a folder of GenEval")
  return f"{prompt}/{name}"
