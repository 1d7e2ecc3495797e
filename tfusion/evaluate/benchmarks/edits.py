"""GEdit-Bench and ImgEdit: is an image changed as it was told?

Owns: their instructions, folders, and the arithmetic of their scorers (arXiv
2504.17761, 2505.20275). Not: the judges.

  GEdit:    fullset/TASK/LANGUAGE/KEY.png, and KEY_SRCIMG.png with the image before
  ImgEdit:  KEY.png
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfusion.evaluate.benchmarks import benchmark
from tfusion.evaluate.benchmarks.benchmark import Benchmark
from tfusion.evaluate.gallery import Wanted
from tfusion.generate.prompt import escape


def told(image: Path, instruction: str) -> str:
  """The prompt that shows an image, says what to change, and asks for another."""
  return f"<image:{image}> {escape(instruction)} <image>"


class GEdit(Benchmark):
  """GEdit-Bench, by the program of its authors, test_gedit_score.py."""

  name, prompts = "gedit", 1212
  remedy = (
    "GEdit-Bench takes metadata.jsonl, with file_name, key, task_type, instruction and"
    " instruction_language of stepfun-ai/GEdit-Bench, and its images, in the folder"
    " `gedit` of --data; docs/evaluation.md has the lines that write it"
  )
  keys = {"file_name", "key", "task_type", "instruction", "instruction_language"}

  def wanted(self, data: Path) -> list[Wanted]:
    return [
      Wanted(f"{_gedit(one)}.png", told(data / one["file_name"], one["instruction"]))
      for one in self._read(data)
    ]

  def beside(self, data: Path) -> dict[str, Path | str]:
    found: dict[str, Path | str] = {}
    for one in self._read(data):
      source = data / one["file_name"]
      if source.suffix != ".png":
        raise ValueError(f"{source}: GEdit-Bench's images are written as PNG")
      found[f"{_gedit(one)}_SRCIMG.png"] = source
    return found

  def results(self, folder: Path) -> list[Path]:
    found = folder.glob(f"{benchmark.IMAGES}/*/eval_results_new/*_gpt_score.csv")
    return sorted(path for path in found if "combined" not in path.name)

  def how(self, folder: Path) -> str:
    return (
      f"python test_gedit_score.py --save_path {folder} --model_name"
      f" {benchmark.IMAGES} --backbone gpt4o"
    )

  def score(self, data: Path, results: Sequence[Path]) -> dict[str, Any]:
    known = {f"{_gedit(one)}.png": one for one in self._read(data)}
    rows = []
    for path in results:
      with path.open(newline="") as file:
        rows += list(csv.DictReader(file))
    names = ["/".join(Path(row["edited_image"]).parts[-4:]) for row in rows]
    where = results[0].parent
    benchmark.check_same(names, list(known), path=where, what="images")
    found: dict[str, Any] = {}
    for language in dict.fromkeys(o["instruction_language"] for o in known.values()):
      own = [
        (known[name]["task_type"], row)
        for name, row in zip(names, rows)
        if known[name]["instruction_language"] == language
      ]
      found |= {f"gedit_{language}_{k}": x for k, x in gedit_scores(own).items()}
    return found

  def _read(self, data: Path) -> list[dict[str, Any]]:
    found = benchmark.read_lines(data / "metadata.jsonl", remedy=self.remedy)
    for number, one in enumerate(found, 1):
      if missing := self.keys - set(one):
        raise ValueError(
          f"{data / 'metadata.jsonl'}, line {number}: lacks {sorted(missing)};"
          f" {self.remedy}"
        )
    return found


def gedit_scores(rows: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, float]:
  """Means over tasks of the means over their images, as calculate_statistics.py has
  them; an image's overall score is the root of the product of the other two.

  Args:
    rows: the task of an image, and its line of the scorer's file, where semantics are
      called `sementics_score`.
  """
  by_task: dict[str, list[tuple[float, float, float]]] = {}
  for task, row in rows:
    semantics, quality = float(row["sementics_score"]), float(row["quality_score"])
    by_task.setdefault(task, []).append(
      (semantics, quality, math.sqrt(semantics * quality))
    )
  means = np.mean([np.mean(found, axis=0) for found in by_task.values()], axis=0)
  return dict(zip(("semantics", "quality", "overall"), means.tolist()))


class ImgEdit(Benchmark):
  """The basic part of ImgEdit-Bench, by the program of its authors, basic_bench.py."""

  name, prompts = "imgedit", 0
  remedy = (
    "ImgEdit takes its basic_edit.json and, in `images`, its images of"
    " github.com/PKU-YuanGroup/ImgEdit in the folder `imgedit` of --data"
  )

  def wanted(self, data: Path) -> list[Wanted]:
    return [
      Wanted(f"{key}.png", told(data / "images" / one["id"], one["prompt"]))
      for key, one in self._read(data).items()
    ]

  def results(self, folder: Path) -> list[Path]:
    path = folder / benchmark.IMAGES / "result.json"
    return [path] if path.is_file() else []

  def how(self, folder: Path) -> str:
    return (
      f"python basic_bench.py --result_img_folder {folder / benchmark.IMAGES}"
      " --edit_json basic_edit.json --origin_img_root IMAGES --prompts_json"
      " prompts.json"
    )

  def score(self, data: Path, results: Sequence[Path]) -> dict[str, Any]:
    (path,) = results
    said = benchmark.read_json(path, remedy=self.remedy)
    known = self._read(data)
    benchmark.check_same(list(said), list(known), path=path, what="images")
    by_type: dict[str, list[float]] = {}
    for key, text in said.items():
      mean = imgedit_score(text) if isinstance(text, str) else None
      if mean is None:
        raise ValueError(f"{path}: the judge gave {key} no score: {str(text)[:80]!r}")
      by_type.setdefault(known[key]["edit_type"], []).append(mean)
    means = {name: round(sum(x) / len(x), 2) for name, x in by_type.items()}
    overall = float(np.mean(list(means.values())))
    return {"imgedit": overall} | {f"imgedit_{k}": x for k, x in means.items()}

  def _read(self, data: Path) -> dict[str, dict[str, str]]:
    path = data / "basic_edit.json"
    found = benchmark.read_json(path, remedy=self.remedy)
    for key, one in found.items():
      if not {"id", "prompt", "edit_type"} <= set(one):
        raise ValueError(f"{path}: {key} lacks id, prompt or edit_type; {self.remedy}")
    return found


def imgedit_score(text: str) -> float | None:
  """The mean of the whole numbers that a judge's lines end in, as in `Quality: 4`,
  rounded as step1_get_avgscore.py does; None: there is none."""
  parts = (line.strip().split(": ") for line in text.splitlines())
  found = [int(p[1]) for p in parts if len(p) == 2 and p[1].isdigit()]
  return round(sum(found) / len(found), 2) if found else None


def _gedit(one: Mapping[str, Any]) -> str:
  return f"fullset/{one['task_type']}/{one['instruction_language']}/{one['key']}"
