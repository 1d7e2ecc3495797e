"""Prompt sets of benchmarks, of the published forms but tiny.

Not a test: shared by the tests of benchmarks.
"""

import csv
import json
import pathlib

from PIL import Image

GENEVAL = [
  {
    "tag": "single_object",
    "include": [{"class": "bench", "count": 1}],
    "prompt": "a seven",
  },
  {
    "tag": "counting",
    "include": [{"class": "clock", "count": 2}],
    "exclude": [{"class": "clock", "count": 3}],
    "prompt": "some more",
  },
  {
    "tag": "position",
    "include": [
      {"class": "dog", "count": 1},
      {"class": "cup", "count": 1, "position": ["left of", 0]},
    ],
    "prompt": "and text",
  },
]


def geneval(folder: pathlib.Path) -> None:
  """evaluation_metadata.jsonl of three prompts."""
  folder.mkdir(parents=True, exist_ok=True)
  text = "\n".join(map(json.dumps, GENEVAL)) + "\n"
  (folder / "evaluation_metadata.jsonl").write_text(text)


def dpg(folder: pathlib.Path) -> None:
  """dpg_bench.csv of two prompts, of two questions and of one."""
  folder.mkdir(parents=True, exist_ok=True)
  columns = "item_id text keywords proposition_id dependency category_broad"
  columns += " category_detailed tuple question_natural_language"
  rows = [("0", 1), ("0", 2), ("partiprompts12", 1)]
  texts = {"0": "a handwritten seven, and more", "partiprompts12": "some text"}
  with (folder / "dpg_bench.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns.split())
    for item, number in rows:
      own = ("k", number, "0", "entity", "whole", "entity - whole (x)", "Is it?")
      writer.writerow([item, texts[item], *own])


def wise(folder: pathlib.Path) -> None:
  """The three files of WISE, of four prompts in all."""
  folder.mkdir(parents=True, exist_ok=True)
  for file, numbers in (
    ("cultural_common_sense.json", (1, 400)),
    ("spatio-temporal_reasoning.json", (401,)),
    ("natural_science.json", (1000,)),
  ):
    found = [
      {"Prompt": f"seven {n}", "Explanation": "text", "prompt_id": n} for n in numbers
    ]
    (folder / file).write_text(json.dumps(found))


def gedit(folder: pathlib.Path) -> None:
  """metadata.jsonl and images: two tasks, two languages."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for n, (task, language) in enumerate(
    [("color_alter", "en"), ("color_alter", "cn"), ("ps_human", "en")]
  ):
    Image.new("RGB", (9, 7), (80 * n, 0, 0)).save(folder / f"{n}.png")
    one = {"file_name": f"{n}.png", "key": f"key{n}", "task_type": task}
    one |= {"instruction": "seven", "instruction_language": language}
    lines.append(json.dumps(one))
  (folder / "metadata.jsonl").write_text("\n".join(lines))


def imgedit(folder: pathlib.Path) -> None:
  """basic_edit.json and images: three edits of two types."""
  (folder / "images" / "animal").mkdir(parents=True, exist_ok=True)
  found = {}
  for n, kind in enumerate(("add", "remove", "add")):
    name = f"animal/{n}.jpg"
    Image.new("RGB", (9, 7), (80 * n, 0, 0)).save(folder / "images" / name)
    found[str(1000 + n)] = {"id": name, "prompt": "more <text>", "edit_type": kind}
  (folder / "basic_edit.json").write_text(json.dumps(found))


ALL = {f.__name__: f for f in (geneval, dpg, wise, gedit, imgedit)}
