"""Promises of geneval.py, dpg.py, wise.py and edits.py: what their scorers say."""

import csv
import json

import numpy as np
import pytest
import tiny_benchmarks

from tfusion.evaluate.benchmarks import edits, geneval, wise
from tfusion.evaluate.benchmarks.dpg import DPG
from tfusion.evaluate.benchmarks.edits import GEdit, ImgEdit
from tfusion.evaluate.benchmarks.geneval import GenEval
from tfusion.evaluate.benchmarks.wise import Wise

# GenEval.

DOG, CUP, OTHER = (50, 50, 70, 70, 0.9), (10, 50, 30, 70, 0.8), (50, 55, 60, 65, 0.7)


@pytest.mark.parametrize(
  "box, other, found",
  [
    ((0, 0, 10, 10), (50, 0, 60, 10), {"left of"}),
    ((50, 0, 60, 10), (0, 0, 10, 10), {"right of"}),
    ((0, 0, 10, 10), (0, 50, 10, 60), {"above"}),
    ((0, 50, 10, 60), (0, 0, 10, 10), {"below"}),
    ((0, 0, 10, 10), (50, 50, 60, 60), {"left of", "above"}),
    # Apart by no more than a tenth of their sizes.
    ((0, 0, 10, 10), (2, 0, 12, 10), set()),
    ((0, 0, 10, 10), (0, 0, 10, 10), set()),
    # Half of the distance is the least: 50 of 111.
    ((0, 0, 10, 10), (50, 100, 60, 110), {"above"}),
  ],
)
def test_where_a_box_lies_of_another(box, other, found):
  assert geneval.relations(box, other) == found


def clauses(*include, **more):
  return {"include": list(include)} | more


def one(name, count=1, **more):
  return {"class": name, "count": count} | more


@pytest.mark.parametrize(
  "metadata, boxes, right",
  [
    (clauses(one("dog")), {"dog": [DOG]}, True),
    (clauses(one("dog")), {"cup": [CUP]}, False),
    (clauses(one("dog"), one("cup")), {"dog": [DOG], "cup": [CUP]}, True),
    (clauses(one("dog", 2)), {"dog": [DOG]}, False),
    (clauses(one("dog", 2), exclude=[one("dog", 3)]), {"dog": [DOG, OTHER]}, True),
    (
      clauses(one("dog", 2), exclude=[one("dog", 3)]),
      {"dog": [DOG, OTHER, CUP]},
      False,
    ),
    (
      clauses(one("dog"), one("cup", position=["left of", 0])),
      {"dog": [DOG], "cup": [CUP]},
      True,
    ),
    (
      clauses(one("dog"), one("cup", position=["right of", 0])),
      {"dog": [DOG], "cup": [CUP]},
      False,
    ),
    # The surest counts: the second lies elsewhere.
    (
      clauses(one("dog"), one("cup", position=["left of", 0])),
      {"dog": [DOG], "cup": [CUP, OTHER]},
      True,
    ),
    (clauses(one("dog"), one("cup", position=["left of", 0])), {"cup": [CUP]}, False),
  ],
)
def test_detections_are_judged_by_class_number_and_place(metadata, boxes, right):
  assert geneval.judge(metadata, boxes) is right


def test_colours_are_counted_among_the_surest():
  metadata = clauses(one("dog", 2, color="red"))
  boxes = {"dog": [DOG, OTHER, CUP]}
  assert geneval.judge(metadata, boxes, {"dog": ["red", "red", "blue"]})
  assert not geneval.judge(metadata, boxes, {"dog": ["red", "blue", "red"]})


def recorded(right):
  """Lines of results.jsonl of tiny_benchmarks, right as told for every image."""
  boxes = [
    {"bench": [DOG]},
    {"clock": [DOG, CUP]},
    {"dog": [DOG], "cup": [CUP]},
  ]
  lines = []
  for i, metadata in enumerate(tiny_benchmarks.GENEVAL):
    for n in range(4):
      own = right[i][n]
      lines.append(
        {
          "filename": f"x/images/0000{i}/samples/000{n}.png",
          "tag": metadata["tag"],
          "prompt": metadata["prompt"],
          "correct": own,
          "reason": "",
          "metadata": json.dumps(metadata),
          "details": json.dumps(boxes[i] if own else {}),
        }
      )
  return lines


RIGHT = [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


def write(path, lines):
  path.write_text("\n".join(map(json.dumps, lines)))
  return [path]


def test_scores_of_geneval_are_means_of_tasks(tmp_path):
  tiny_benchmarks.geneval(tmp_path)
  results = write(
    tmp_path / "results.jsonl", recorded(np.asarray(RIGHT, bool).tolist())
  )
  found = GenEval().score(tmp_path, results)
  assert found["geneval_single_object"] == 0.75
  assert found["geneval_counting"] == 0.0 and found["geneval_position"] == 0.5
  assert found["geneval"] == pytest.approx((0.75 + 0 + 0.5) / 3)
  assert found["geneval_images_right"] == pytest.approx(5 / 12)
  assert found["geneval_prompts_right"] == pytest.approx(2 / 3)
  assert found["geneval_odd"] == 0


def test_scores_of_geneval_are_those_of_its_own_arithmetic(tmp_path):
  pandas = pytest.importorskip("pandas", reason="GenEval's summary takes pandas")
  rng = np.random.default_rng(0)
  lines = [
    {"tag": tag, "correct": bool(rng.integers(2)), "metadata": f"{tag} {i // 4}"}
    for tag in geneval.TASKS
    for i in range(40)
  ]
  path = tmp_path / "r.jsonl"
  write(path, lines)
  frame = pandas.read_json(path, orient="records", lines=True)
  found = geneval.scores(lines)
  by_tag = frame.groupby("tag", sort=False)["correct"].mean()
  assert len(by_tag) == 6
  for tag, mean in by_tag.items():
    assert found[f"geneval_{tag}"] == pytest.approx(mean)
  assert found["geneval"] == pytest.approx(by_tag.mean())
  by_prompt = frame.groupby("metadata")["correct"].any().mean()
  assert found["geneval_prompts_right"] == pytest.approx(by_prompt)


def test_results_of_another_prompt_set_are_refused(tmp_path):
  tiny_benchmarks.geneval(tmp_path)
  path, lines = tmp_path / "results.jsonl", recorded([[True] * 4] * 3)
  with pytest.raises(ValueError, match="holds 11 images, and 12 were made"):
    GenEval().score(tmp_path, write(path, lines[:-1]))
  other = json.dumps(tiny_benchmarks.GENEVAL[0] | {"prompt": "a dog"})
  odd = [*lines[:3], lines[3] | {"metadata": other}, *lines[4:]]
  with pytest.raises(ValueError, match="is of another prompt set: 'a dog' instead of"):
    GenEval().score(tmp_path, write(path, odd))
  more = [*lines, lines[0] | {"filename": "x/00007/samples/0000.png"}]
  with pytest.raises(ValueError, match="1 images are of another prompt set"):
    GenEval().score(tmp_path, write(path, more))
  with pytest.raises(ValueError, match="is not written by GenEval's"):
    GenEval().score(tmp_path, write(path, [{"tag": "a"}]))


def test_recorded_boxes_that_say_something_else_are_counted(tmp_path):
  tiny_benchmarks.geneval(tmp_path)
  lines = recorded([[True] * 4] * 3)
  lines[5]["correct"] = False
  found = GenEval().score(tmp_path, write(tmp_path / "results.jsonl", lines))
  assert found["geneval_odd"] == 1


# DPG-Bench.


def test_the_score_of_dpg_bench_is_the_mean_over_its_prompts(tmp_path):
  tiny_benchmarks.dpg(tmp_path)
  path = tmp_path / "results.txt"
  lines = [
    "a, b/grids/0.png, 1.0, 0.5, 0.5, 0.0, 0.5",
    "a, b/grids/partiprompts12.png, 1.0, 1.0, 1.0, 1.0, 1.0",
    "Model: grids",
    "L1 category scores:",
    "\tentity: 66.0",
    "L2 category scores:",
    "\tentity - whole: 50.0",
    "DPG-Bench score: 75.0",
  ]
  path.write_text("\n".join(lines))
  assert DPG().score(tmp_path, [path]) == {"dpg": 75.0, "dpg_entity": 66.0}
  path.write_text("\n".join(lines[:1] + lines[2:]))
  with pytest.raises(ValueError, match="holds 1 prompts, and 2 were made; it lacks pa"):
    DPG().score(tmp_path, [path])


# WISE.


def test_wiscore_is_weighed_by_aspect_and_by_category(tmp_path):
  tiny_benchmarks.wise(tmp_path)
  given = {1: (2, 2, 2), 400: (0, 0, 0), 401: (1, 2, 0), 1000: (2, 0, 1)}
  names = ("consistency", "realism", "aesthetic_quality")
  lines = [{"prompt_id": n} | dict(zip(names, x)) for n, x in given.items()]
  one, other = tmp_path / "a_scores.jsonl", tmp_path / "b_scores.jsonl"
  results = [*write(one, lines[:1]), *write(other, lines[1:])]
  found = Wise().score(tmp_path, results)
  assert found["wise_culture"] == pytest.approx(0.5)
  assert found["wise_time"] == pytest.approx((0.7 + 0.4) / 2)
  assert found["wise_chemistry"] == pytest.approx((1.4 + 0.1) / 2)
  # Of the categories that there are; with all six the shares add up to 1.
  want = (0.4 * 0.5 + 0.167 * 0.55 + 0.1 * 0.75) / (0.4 + 0.167 + 0.1)
  assert found["wise"] == pytest.approx(want)
  assert sum(share for _, share in wise.CATEGORIES.values()) == pytest.approx(1)
  edges = {400: "culture", 567: "time", 568: "space", 701: "biology", 900: "physics"}
  assert {n: wise.category(n) for n in edges} == edges
  with pytest.raises(ValueError, match="prompt_id=1001: WISE has 1 to 1000"):
    wise.category(1001)
  with pytest.raises(ValueError, match="holds 3 prompts, and 4 were made; it lacks 1:"):
    Wise().score(tmp_path, results[1:])
  with pytest.raises(ValueError, match="lacks prompt_id or a score"):
    Wise().score(tmp_path, write(one, [{"prompt_id": 1}]))


# GEdit and ImgEdit.


def test_scores_of_gedit_are_means_of_tasks_by_language(tmp_path):
  tiny_benchmarks.gedit(tmp_path)
  given = {
    "color_alter/en/key0": (4, 9),
    "color_alter/cn/key1": (1, 1),
    "ps_human/en/key2": (9, 4),
  }
  results = []
  for task in ("color_alter", "ps_human"):
    results.append(tmp_path / f"images_{task}_gpt_score.csv")
    with results[-1].open("w", newline="") as file:
      writer = csv.writer(file)
      writer.writerow(["edited_image", "sementics_score", "quality_score"])
      for name, (semantics, quality) in given.items():
        if name.startswith(task):
          writer.writerow([f"x/fullset/{name}.png", semantics, quality])
  found = GEdit().score(tmp_path, results)
  assert found["gedit_en_semantics"] == 6.5 and found["gedit_en_quality"] == 6.5
  assert found["gedit_en_overall"] == 6.0 and found["gedit_cn_overall"] == 1.0
  with pytest.raises(ValueError, match="holds 2 images, and 3 were made; it lacks"):
    GEdit().score(tmp_path, results[:1])


def test_scores_of_imgedit_are_means_of_types_as_it_rounds_them(tmp_path):
  tiny_benchmarks.imgedit(tmp_path)
  text = "Brief reasoning: good\nPrompt Compliance: {}\nVisual: 4\n Physical: 5"
  path = tmp_path / "result.json"
  said = {"1000": text.format(4), "1001": text.format(1), "1002": text.format(5)}
  path.write_text(json.dumps(said))
  found = ImgEdit().score(tmp_path, [path])
  assert found["imgedit_add"] == round((4.33 + 4.67) / 2, 2)
  assert found["imgedit_remove"] == 3.33
  assert found["imgedit"] == pytest.approx((4.5 + 3.33) / 2)
  path.write_text(json.dumps(said | {"1002": {"error": "no answer"}}))
  with pytest.raises(ValueError, match="the judge gave 1002 no score"):
    ImgEdit().score(tmp_path, [path])
  assert edits.imgedit_score("no number: here") is None


def test_an_instruction_is_text_whatever_signs_are_in_it(tmp_path):
  prompt = edits.told(tmp_path / "a.png", "make it <red>")
  assert prompt == rf"<image:{tmp_path / 'a.png'}> make it \<red\> <image>"
