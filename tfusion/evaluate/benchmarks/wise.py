"""WISE: do images show what a prompt means, and not only what it says?

Owns: its prompts, names of images, WiScore (arXiv 2503.07265). Not: the judge.

  1.png ... 1000.png   by prompt_id
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfusion.evaluate import gallery
from tfusion.evaluate.benchmarks import benchmark
from tfusion.evaluate.benchmarks.benchmark import Benchmark
from tfusion.evaluate.gallery import Wanted

FILES = (
  "cultural_common_sense.json",
  "spatio-temporal_reasoning.json",
  "natural_science.json",
)
# Category -> its first prompt_id and its share of the overall score (README of WISE).
CATEGORIES = {
  "culture": (1, 0.4),
  "time": (401, 0.167),
  "space": (568, 0.133),
  "biology": (701, 0.1),
  "physics": (801, 0.1),
  "chemistry": (901, 0.1),
}
# Of a score: shares of what the judge gives from 0 to 2.
SHARES = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}


class Wise(Benchmark):
  """WISE, by the programs of its authors, gpt_eval.py."""

  name, prompts = "wise", 1000
  remedy = (
    f"WISE takes {', '.join(FILES)} of github.com/PKU-YuanGroup/WISE (WISE_legacy/data)"
    " in the folder `wise` of --data"
  )

  def wanted(self, data: Path) -> list[Wanted]:
    return [
      Wanted(f"{number}.png", gallery.asked_for(text))
      for number, text in sorted(self._read(data).items())
    ]

  def results(self, folder: Path) -> list[Path]:
    return sorted(folder.glob("*scores*.jsonl"))

  def how(self, folder: Path) -> str:
    return (
      f"python gpt_eval.py --json_path FILE.json --image_dir"
      f" {folder / benchmark.IMAGES} --output_dir {folder} --result_scores"
      " FILE_scores.jsonl --result_full FILE.json --model JUDGE --api_key KEY, once for"
      " each of the three files"
    )

  def score(self, data: Path, results: Sequence[Path]) -> dict[str, Any]:
    lines = [
      one for path in results for one in benchmark.read_lines(path, remedy=self.remedy)
    ]
    for one in lines:
      if not {"prompt_id", *SHARES} <= set(one):
        raise ValueError(f"{results[0]}: {one} lacks prompt_id or a score")
    numbers = [one["prompt_id"] for one in lines]
    wanted = list(self._read(data))
    benchmark.check_same(numbers, wanted, path=results[0].parent, what="prompts")
    return scores(lines)

  def _read(self, data: Path) -> dict[int, str]:
    """prompt_id -> prompt."""
    found: dict[int, str] = {}
    for file in FILES:
      try:
        own = benchmark.read_json(data / file, remedy=self.remedy)
        found |= {int(one["prompt_id"]): one["Prompt"] for one in own}
      except (KeyError, TypeError) as error:
        raise ValueError(
          f"{data / file}: lacks {error} in a prompt; {self.remedy}"
        ) from error
    return found


def scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """WiScore by category and overall; categories without a prompt are left out.

  Args:
    lines: with prompt_id and what the judge gave, from 0 to 2.
  """
  found: dict[str, list[float]] = {}
  for one in lines:
    own = sum(share * one[name] for name, share in SHARES.items()) / 2
    found.setdefault(category(one["prompt_id"]), []).append(own)
  means = {name: float(np.mean(found[name])) for name in CATEGORIES if name in found}
  total = sum(CATEGORIES[name][1] for name in means)
  overall = sum(CATEGORIES[name][1] * mean for name, mean in means.items()) / total
  return {"wise": overall} | {f"wise_{name}": mean for name, mean in means.items()}


def category(prompt_id: int) -> str:
  """The category of a prompt.

  Raises:
    ValueError: there is no such prompt.
  """
  if not 1 <= prompt_id <= 1000:
    raise ValueError(f"prompt_id={prompt_id}: WISE has 1 to 1000")
  return [name for name, (first, _) in CATEGORIES.items() if first <= prompt_id][-1]
