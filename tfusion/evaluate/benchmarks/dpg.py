"""DPG-Bench: do images of long prompts hold all that these say?

Owns: its prompts, its 2 x 2 images, its scorer's results (arXiv 2403.05135). Not: the
model that answers its questions.

  ITEM.png   four images of a prompt, as the scorer crops them: two above, two below

Its scorer reads every file of the folder, drops one that it cannot read with a line,
and crops wrongly, without a word, if --resolution is not the side of one image.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from tfusion import files
from tfusion.evaluate import gallery
from tfusion.evaluate.benchmarks import benchmark
from tfusion.evaluate.benchmarks.benchmark import Benchmark
from tfusion.evaluate.gallery import Wanted
from tfusion.generate import png

FILE, RESULTS, GRIDS = "dpg_bench.csv", "results.txt", "grids"
EACH = 4  # images of a prompt
LINE = re.compile(r"(.+\.png)((?:, [-+.\deE]+)+)")
CATEGORY = re.compile(r"\t([^:]+): ([\d.]+)")


class DPG(Benchmark):
  """DPG-Bench, by the program of its authors."""

  name, prompts = "dpg", 1065
  remedy = (
    "DPG-Bench takes dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA in the"
    " folder `dpg` of --data"
  )

  def wanted(self, data: Path) -> list[Wanted]:
    return [
      Wanted(f"{item}_{n}.png", gallery.asked_for(text))
      for item, text in self._read(data).items()
      for n in range(EACH)
    ]

  def count(self, data: Path) -> int:
    return len(self._read(data))

  def finish(self, folder: Path, wanted: Sequence[Wanted]) -> None:
    names = [one.name for one in wanted]
    for start in range(0, len(names), EACH):
      path = folder / GRIDS / f"{names[start].rpartition('_')[0]}.png"
      own = [folder / benchmark.IMAGES / name for name in names[start : start + EACH]]
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_whole(path, png.encode(_grid(own)))
    items = dict.fromkeys(f"{name.rpartition('_')[0]}.png" for name in names)
    gallery.count(folder / GRIDS, list(items))

  def results(self, folder: Path) -> list[Path]:
    return [path for path in [folder / RESULTS] if path.is_file()]

  def how(self, folder: Path) -> str:
    first = next((folder / GRIDS).iterdir(), None)
    side = Pillow.open(first).size[0] // 2 if first else "SIDE"
    return (
      f"python dpg_bench/compute_dpg_bench.py --image-root-path {folder / GRIDS}"
      f" --resolution {side} --pic-num {EACH} --vqa-model mplug --csv"
      f" dpg_bench/dpg_bench.csv --res-path {folder / RESULTS}"
    )

  def score(self, data: Path, results: Sequence[Path]) -> dict[str, Any]:
    (path,) = results
    items, means, found = [], [], {}
    for line in path.read_text().splitlines():
      if match := LINE.fullmatch(line):
        items.append(Path(match[1]).stem)
        means.append(float(match[2].rpartition(", ")[2]))
      elif match := CATEGORY.fullmatch(line):
        if "-" not in match[1]:  # the five, and not their parts
          found[f"dpg_{match[1].strip()}"] = float(match[2])
    benchmark.check_same(items, list(self._read(data)), path=path, what="prompts")
    return {"dpg": 100 * float(np.mean(means))} | found

  def _read(self, data: Path) -> dict[str, str]:
    """Item -> its prompt, in the order of the file."""
    path = data / FILE
    if not path.is_file():
      raise ValueError(f"{path}: there is no such file; {self.remedy}")
    with path.open(newline="") as file:
      rows = list(csv.DictReader(file))
    if not rows or not {"item_id", "text"} <= set(rows[0]):
      raise ValueError(f"{path}: lacks the columns item_id and text; {self.remedy}")
    return {row["item_id"]: row["text"] for row in rows}


def _grid(paths: Sequence[Path]) -> np.ndarray:
  """Four images as one, u8[2h, 2w, 3]; they have to be square."""
  tiles = []
  for path in paths:
    with Pillow.open(path) as image:
      tiles.append(np.asarray(image.convert("RGB")))
  h, w, _ = tiles[0].shape
  if h != w:
    raise ValueError(
      f"{paths[0]}: is {h} x {w}, and DPG-Bench's scorer takes square images"
    )
  rows = (np.concatenate(tiles[i : i + 2], axis=1) for i in (0, 2))
  return np.concatenate(list(rows), axis=0)
