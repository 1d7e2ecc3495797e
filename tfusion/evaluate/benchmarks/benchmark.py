"""A benchmark whose scores another program gives: images for it, and what it found.

Owns: the contract, making the images as that program reads them, when its results are
read. Not: any benchmark (geneval.py and the others), the images (gallery.py).

  WORKDIR/eval/geneval@2000/images/   what the scorer reads, and nothing else
  WORKDIR/eval/geneval@2000/judge.txt one line: the judge and its version
  WORKDIR/eval/geneval@2000/...       what the scorer writes

An evaluation makes the images, counts them, and says how they are scored. Once there
are results, the same evaluation reads them, if a judge is named beside them.
"""

import abc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from tfusion import files
from tfusion.data.contents import hash_of
from tfusion.data.shards import manifest as manifest_lib
from tfusion.evaluate import gallery
from tfusion.evaluate.evaluation import Asked, Evaluation
from tfusion.evaluate.gallery import Wanted
from tfusion.generate.canvas import open_canvas
from tfusion.together import together

IMAGES, JUDGE = "images", "judge.txt"


class Benchmark(abc.ABC):
  """One prompt set and the program that scores its images.

  Attributes:
    name: of the evaluation, and of the set's folder in that of --data.
    prompts: how many the published set has; 0: it is not known here.
    remedy: where to get the set.
  """

  name: str
  prompts: int
  remedy: str

  @abc.abstractmethod
  def wanted(self, data: Path) -> list[Wanted]:
    """The images to be made, named as below the folder of images.

    Args:
      data: the set's folder.

    Raises:
      ValueError: something of the set is missing or of another form.
    """

  @abc.abstractmethod
  def results(self, folder: Path) -> list[Path]:
    """The files that the scorer has written; none: it has not run."""

  @abc.abstractmethod
  def score(self, data: Path, results: Sequence[Path]) -> dict[str, Any]:
    """The numbers in results, under the names that eval.json has.

    Raises:
      ValueError: they are of another prompt set, or of some of the images only.
    """

  @abc.abstractmethod
  def how(self, folder: Path) -> str:
    """The command that scores the images of a folder."""

  def beside(self, data: Path) -> dict[str, Path | str]:
    """What the scorer wants beside the images: name -> a file to copy, or a text."""
    return {}

  def count(self, data: Path) -> int:
    """How many prompts the set in a folder has."""
    return len(self.wanted(data))

  def finish(self, folder: Path, wanted: Sequence[Wanted]) -> None:
    """Puts images together, where a scorer reads several as one."""
    return


def evaluation(benchmark: Benchmark) -> Evaluation:
  """The entry of a benchmark in the table of evaluations."""
  return Evaluation(
    run=lambda asked: evaluate(asked, benchmark),
    knobs=gallery.KNOBS,
    unfit=_unfit,
    check=lambda asked: _check(asked, benchmark),
    depends=lambda asked: _depends(asked, benchmark),
  )


def evaluate(asked: Asked, benchmark: Benchmark) -> dict[str, Any]:
  """Makes the images, and reads the scorer's results if there are some."""
  data, folder = _data(asked, benchmark), _folder(asked, benchmark)
  wanted, beside = benchmark.wanted(data), benchmark.beside(data)
  canvas = open_canvas(asked.trained.config, asked.workdir)
  with together():
    if jax.process_index() == 0:
      for name, what in beside.items():
        path = folder / IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = what.read_bytes() if isinstance(what, Path) else what
        files.write_whole(path, content)
  gallery.make(
    asked.trained,
    canvas,
    wanted,
    folder / IMAGES,
    what=f"images of {benchmark.name}",
    beside=[name for name in beside if name.endswith(".png")],
    manifest=folder,
  )
  with together():
    if jax.process_index() == 0:
      benchmark.finish(folder, wanted)
  found: dict[str, Any] = {f"{benchmark.name}_images": len(wanted)}
  if not (results := benchmark.results(folder)):
    logging.info(
      "%s: score the images with\n  %s", benchmark.name, benchmark.how(folder)
    )
    return found | {f"{benchmark.name}_judge": "not yet scored"}
  judge = read_judge(folder)
  return found | benchmark.score(data, results) | {f"{benchmark.name}_judge": judge}


def read_judge(folder: Path) -> str:
  """The judge beside results, in a line.

  Raises:
    ValueError: nobody has named it.
  """
  path = folder / JUDGE
  text = path.read_text().strip() if path.is_file() else ""
  if not text or "\n" in text:
    raise ValueError(
      f"{path}: write the judge of these results there and its version, in one line,"
      " as in `gpt-4o-2024-05-13` or `Mask2Former swin-s, mmdet 2.28.2`; numbers of"
      " different judges do not compare"
    )
  return text


def check_same(
  found: Sequence[Any], wanted: Sequence[Any], *, path: Path, what: str
) -> None:
  """Raises ValueError unless results are of these images or prompts, each once.

  Args:
    found: what the results are of.
    wanted: what they have to be of.
    path: of the results.
    what: these are, in a word.
  """
  extra, missing = set(found) - set(wanted), set(wanted) - set(found)
  if extra:
    raise ValueError(
      f"{path}: {len(extra)} {what} are of another prompt set, as"
      f" {min(map(str, extra))!r}; score the images of this folder"
    )
  if missing or len(found) != len(wanted):
    first = min(map(str, missing)) if missing else "some that stand twice"
    raise ValueError(
      f"{path}: holds {len(found)} {what}, and {len(wanted)} were made; it lacks"
      f" {first}: score them all, or the mean is of others"
    )


def read_lines(path: Path, *, remedy: str) -> list[dict[str, Any]]:
  """The objects of a .jsonl file.

  Raises:
    ValueError: it is missing or is none.
  """
  if not path.is_file():
    raise ValueError(f"{path}: there is no such file; {remedy}")
  found = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    if line.strip():
      try:
        found.append(json.loads(line))
      except ValueError as error:
        raise ValueError(f"{path}, line {number}: is no JSON ({error})") from error
  return found


def read_json(path: Path, *, remedy: str) -> Any:
  """What a .json file holds.

  Raises:
    ValueError: it is missing or is none.
  """
  if not path.is_file():
    raise ValueError(f"{path}: there is no such file; {remedy}")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path}: is no JSON ({error}); {remedy}") from error


def _unfit(asked: Asked) -> str:
  if not any(source.has_images for source in asked.corpus.test):
    return f"data.sources={asked.trained.config.data.sources} has no images"
  return ""


def _check(asked: Asked, benchmark: Benchmark) -> None:
  data = _data(asked, benchmark)
  canvas = open_canvas(asked.trained.config, asked.workdir)
  gallery.check(asked.trained, canvas, benchmark.wanted(data))
  if benchmark.prompts not in (0, found := benchmark.count(data)):
    logging.warning(
      "%s: %s holds %d prompts, and the published set %d: no other number compares",
      benchmark.name,
      data,
      found,
      benchmark.prompts,
    )
  if benchmark.results(folder := _folder(asked, benchmark)):
    read_judge(folder)


def _depends(asked: Asked, benchmark: Benchmark) -> Any:
  wanted = benchmark.wanted(_data(asked, benchmark))
  results = benchmark.results(folder := _folder(asked, benchmark))
  return {
    "prompts": hash_of(part for one in wanted for part in one)[:16],
    "results": {path.name: manifest_lib.sha256(path)[:16] for path in results},
    "judge": read_judge(folder) if results else "",
  }


def _data(asked: Asked, benchmark: Benchmark) -> Path:
  if asked.data is None:
    raise ValueError(f"{benchmark.name}: --data is not given; {benchmark.remedy}")
  return asked.data / benchmark.name


def _folder(asked: Asked, benchmark: Benchmark) -> Path:
  return asked.out / f"{benchmark.name}@{asked.trained.step}"
