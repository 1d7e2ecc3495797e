"""Promises of tfusion/evaluate/benchmarks/benchmark.py, and the folders of each."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_benchmarks
import tiny_trained
from PIL import Image

from tfusion.data.digits import Digits
from tfusion.data.pipeline import Corpus
from tfusion.evaluate import gallery, suite
from tfusion.evaluate.benchmarks import benchmark

DIGITS = Digits("digits", np.zeros((2, 4, 4, 1), np.uint8), np.asarray([3, 7]))
# What the scorer of each reads, below its folder; each image stands once.
FOLDERS = {
  "geneval": [
    f"images/0000{i}/{x}"
    for i in range(3)
    for x in ("metadata.jsonl", *(f"samples/000{n}.png" for n in range(4)))
  ],
  "dpg": [
    "grids/0.png",
    "grids/partiprompts12.png",
    *(f"images/{x}_{n}.png" for x in ("0", "partiprompts12") for n in range(4)),
  ],
  "wise": [f"images/{n}.png" for n in (1, 400, 401, 1000)],
  "gedit": [
    f"images/fullset/{x}{end}.png"
    for x in ("color_alter/en/key0", "color_alter/cn/key1", "ps_human/en/key2")
    for end in ("", "_SRCIMG")
  ],
  "imgedit": [f"images/{1000 + n}.png" for n in range(3)],
}
# What a scorer leaves -> where, in its folder.
RESULTS = {
  "geneval": "results.jsonl",
  "dpg": "results.txt",
  "wise": "a_scores.jsonl",
  "imgedit": "images/result.json",
  "gedit": "images/gpt4o/eval_results_new/images_ps_human_gpt_score.csv",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  for name, write in tiny_benchmarks.ALL.items():
    write(folder / name)
  return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("trained")) as trained:
    sample = dataclasses.replace(trained.config.sample, max_elements=48)
    own = dataclasses.replace(trained.config.eval, batch=4)
    config = dataclasses.replace(trained.config, sample=sample, eval=own)
    yield trained._replace(config=config)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


def evaluate(trained, workdir, data, name):
  corpus = Corpus((), (DIGITS,), trained.tokenizer)
  return suite.evaluate(trained, corpus, workdir, names=(name,), data=data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_as_its_scorer_reads_it_and_nothing_more(
  trained, workdir, data, name, monkeypatch
):
  found = evaluate(trained, workdir, data, name)
  folder = workdir / "eval" / f"{name}@1"
  there = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
  assert sorted(there) == sorted([*FOLDERS[name], "manifest.json"])
  entry = suite.EVALUATIONS[name]
  assert found[f"{name}_judge"] == "not yet scored"
  assert found[f"{name}_images"] > 0 and entry.knobs == gallery.KNOBS
  # Done: it is not made again, nor with another name of the same.
  monkeypatch.setattr(gallery, "generate", None)
  assert evaluate(trained, workdir, data, name) == found
  for path in folder.rglob("*.png"):
    with Image.open(path) as image:
      image.verify()


@pytest.mark.slow
def test_four_images_are_one_as_dpg_bench_crops_them(trained, workdir, data):
  evaluate(trained, workdir, data, "dpg")
  folder = workdir / "eval" / "dpg@1"
  with Image.open(folder / "grids" / "0.png") as image:
    grid = np.asarray(image)
  assert grid.shape == (8, 8, 3)
  for n, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
    with Image.open(folder / "images" / f"0_{n}.png") as image:
      tile = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(grid[top : top + 4, left : left + 4], tile)


@pytest.mark.slow
def test_the_image_before_stands_beside_the_edited_one(trained, workdir, data):
  evaluate(trained, workdir, data, "gedit")
  folder = workdir / "eval" / "gedit@1" / "images" / "fullset" / "ps_human" / "en"
  before = (data / "gedit" / "2.png").read_bytes()
  assert (folder / "key2_SRCIMG.png").read_bytes() == before


@pytest.mark.slow
def test_results_are_read_by_the_same_evaluation_once_a_judge_is_named(
  trained, workdir, data
):
  evaluate(trained, workdir, data, "wise")
  folder = workdir / "eval" / "wise@1"
  lines = [
    {"prompt_id": n, "consistency": 2, "realism": 1, "aesthetic_quality": 0}
    for n in (1, 400, 401, 1000)
  ]
  path = folder / "a_scores.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  with pytest.raises(ValueError, match=r"judge\.txt: write the judge of these results"):
    evaluate(trained, workdir, data, "wise")
  (folder / "judge.txt").write_text("gpt-4o-2024-05-13\n")
  found = evaluate(trained, workdir, data, "wise")
  assert found["wise_judge"] == "gpt-4o-2024-05-13"
  assert found["wise"] == pytest.approx((0.7 * 2 + 0.2) / 2)
  (folder / "judge.txt").write_text("another")
  assert evaluate(trained, workdir, data, "wise")["wise_judge"] == "another"
  path.unlink()
  (folder / "judge.txt").unlink()


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_set_lacks_is_named_and_so_is_where_to_get_it(
  trained, workdir, tmp_path, name
):
  with pytest.raises(ValueError, match="there is no such file; .* takes"):
    evaluate(trained, workdir, tmp_path, name)
  with pytest.raises(ValueError, match=f"{name}: --data is not given; .* takes"):
    evaluate(trained, workdir, None, name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_scorer_has_a_command_and_its_results_a_place(tmp_path, name):
  (one,) = (
    c() for c in benchmark.Benchmark.__subclasses__() if c.__name__.lower() == name
  )
  assert one.results(tmp_path) == []
  path = tmp_path / RESULTS[name]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("")
  assert one.results(tmp_path) == [path]
  (tmp_path / "grids").mkdir(exist_ok=True)
  assert str(tmp_path) in one.how(tmp_path) and ".py" in one.how(tmp_path)


def test_results_of_other_images_and_of_some_only_are_refused(tmp_path):
  def check(found):
    benchmark.check_same(found, ["a", "b"], path=tmp_path / "r", what="images")

  check(["b", "a"])
  with pytest.raises(ValueError, match="1 images are of another prompt set, as 'c'"):
    check(["a", "b", "c"])
  with pytest.raises(ValueError, match="holds 1 images, and 2 were made; it lacks b"):
    check(["a"])
  with pytest.raises(ValueError, match="it lacks some that stand twice"):
    check(["a", "b", "a"])


def test_a_model_of_text_alone_makes_no_images(trained, workdir, data):
  corpus = Corpus((), (), trained.tokenizer)
  with pytest.raises(ValueError, match="geneval: data.sources=.* has no images"):
    suite.evaluate(trained, corpus, workdir, names=("geneval",), data=data)
