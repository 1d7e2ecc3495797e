"""Promises of the page that compares runs."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny_pages import EVAL, STEPS, Page, write_image, write_run

from tfusion import cli, report
from tfusion.report import comparison


@pytest.fixture
def no_plots(monkeypatch):
  """Plots take most of the time of a page."""
  monkeypatch.setattr("tfusion.report.comparison.plot", lambda *_, **__: "data:,")


def two(folder):
  """Runs that differ in a knob, in their losses and in their time."""
  a = write_run(folder / "a", lines=4)
  b = write_run(folder / "b", lines=4, loss=2.0)
  config = {"seed": 0, "model": {"width": 256}, "train": {"steps": STEPS}}
  (b / "config.json").write_text(json.dumps(config))
  goodput = {"seconds": {"step": 90.0, "save": 10.0}, "starts": [{}]}
  (b / "goodput.json").write_text(json.dumps(goodput))
  (b / "eval.json").write_text(json.dumps(EVAL | {"captions_right": 280}))
  return [a, b]


def words(page: Page) -> str:
  return " ".join(page.text.split())


@pytest.mark.slow
def test_curves_of_all_runs_lie_over_each_other_in_their_colours(tmp_path):
  page = Page(report.write_comparison(two(tmp_path), tmp_path / "page.html"))
  assert "Cannot be shown" not in page.text and "Nothing yet" not in page.text
  assert len(page.plots()) == 12
  for plot in page.plots():
    assert {"hue1", "hue2"} == set(re.findall(r"stroke: var\(--(hue\d)\)", plot))
    assert not re.findall(r"stroke: var\(--(text|image|ink|known)\)", plot)
  cards = [attrs.get("class") for tag, attrs in page.tags if tag == "i"]
  assert cards[:2] == ["chip hue1", "chip hue2"]


@pytest.mark.slow
def test_the_page_needs_nothing_from_outside_and_runs_no_script(tmp_path):
  page = Page(report.write_comparison(two(tmp_path), tmp_path / "page.html"))
  assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "base", "a"}
  assert "http" not in page.source and "@import" not in page.source


def test_only_the_knobs_that_differ_are_shown(tmp_path, no_plots):
  page = Page(report.write_comparison(two(tmp_path), tmp_path / "page.html"))
  assert "Knobs that differ: 1. The other 2 are the same in all runs." in words(page)
  assert "Config model.width 192 256" in words(page)
  assert "train.steps" not in words(page)


def test_a_knob_that_a_run_lacks_differs(tmp_path):
  runs = two(tmp_path)
  (runs[1] / "config.json").write_text('{"seed": 0, "model": {"width": 192}}')
  found = comparison.differing(comparison.read(runs))
  (group,) = found["groups"]
  assert [(row.name, [cell.value for cell in row.cells]) for row in group["rows"]] == [
    ("train.steps", [str(STEPS), "-"])
  ]


def test_machines_are_shown_where_they_differ(tmp_path, no_plots):
  runs = two(tmp_path)
  run = json.loads((runs[1] / "run.json").read_text())
  (runs[1] / "run.json").write_text(json.dumps(run | {"devices": 8}))
  page = Page(report.write_comparison(runs, tmp_path / "page.html"))
  assert "Machine devices 1 8" in words(page) and "Some CPU" not in page.text


def test_the_newest_numbers_stand_side_by_side(tmp_path, no_plots):
  page = words(Page(report.write_comparison(two(tmp_path), tmp_path / "page.html")))
  assert "Updates 480 of 480 480 of 480" in page and "Time minutes 2.0 2.0" in page
  # Smoothed, as on the page of one run: here the mean of the last and the one before.
  assert "Text loss nats per token 1.01 update 480 2.01 update 480" in page
  assert "Text loss nats per token 1.10 update 480 2.10 update 480" in page  # held out
  assert "98.0% 291 of 297 98.0% 280 of 297" in page


def test_a_number_that_no_run_has_takes_no_row(tmp_path, no_plots):
  page = words(Page(report.write_comparison(two(tmp_path), tmp_path / "page.html")))
  assert "images per second" not in page


def test_the_time_of_each_run_is_a_bar_and_a_column(tmp_path, no_plots):
  page = Page(report.write_comparison(two(tmp_path), tmp_path / "page.html"))
  assert "a: 100.0 s over 2 starts, 60 % of it updates" in words(page)
  assert "b: 100.0 s over 1 start, 90 % of it updates" in words(page)
  assert "Updates training itself 60.0 s 60 % 90.0 s 90 %" in words(page)
  assert "10.0 s 10 % - " in words(page)  # only the first compiled
  bars = [attrs for _, attrs in page.tags if attrs.get("class") == "parts"]
  assert len(bars) == 2


def test_samples_of_a_prompt_stand_side_by_side(tmp_path, no_plots):
  runs = two(tmp_path)
  for workdir, level, prompts in zip(runs, (10, 200), (["one", "two"], ["two"])):
    pixels = np.full((40, 60, 3), level, np.uint8)
    write_image(workdir / "samples" / "step_00000480.png", pixels)
    asked = [
      {"prompt": prompt, "text": "", "boxes": [[30 * i, 0, 30 * i + 30, 40]]}
      for i, prompt in enumerate(prompts)
    ]
    path = workdir / "samples" / "step_00000480.json"
    path.write_text(json.dumps({"prompts": asked}))
  found = comparison.grids(comparison.read(runs))
  rows = {row["name"]: row["cells"] for row in found["rows"]}
  assert list(rows) == ["one", "two", "eval/digits.png"]
  assert rows["one"][1] is None and rows["one"][0]["images"][0]["name"] == "one"
  first, second = (cell["images"][0]["source"] for cell in rows["two"])
  assert first != second
  page = Page(report.write_comparison(runs, tmp_path / "page.html"))
  assert "one - two eval/digits.png" in words(page)
  alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
  assert alts[-5:] == ["one", "two", "two", "digits", "digits"]


@pytest.mark.slow
def test_eight_large_grids_stay_a_page_of_a_few_megabytes(tmp_path, no_plots):
  noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
  first = write_run(tmp_path / "0", lines=4)
  write_image(first / "samples" / "step_00000480.png", noise)
  runs = [first] + [shutil.copytree(first, tmp_path / f"{i}") for i in range(1, 8)]
  path = report.write_comparison(runs, tmp_path / "page.html")
  assert path.stat().st_size < 3_000_000
  assert "Cannot be shown" not in Page(path).text


def test_a_run_of_the_same_name_is_told_apart_by_its_folder(tmp_path):
  a, b = two(tmp_path)
  b = shutil.copytree(b, tmp_path / "other" / "a")
  assert [each.name for each in comparison.read([a, b])] == [
    f"{tmp_path.name}/a",
    "other/a",
  ]


def test_a_run_of_which_little_is_there_is_compared_all_the_same(tmp_path, no_plots):
  a, b = two(tmp_path)
  for path in b.iterdir():
    if path.name not in ("config.json", "metrics.jsonl"):
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  page = Page(report.write_comparison([a, b], tmp_path / "page.html"))
  assert "Cannot be shown" not in page.text
  assert "Updates training itself 60.0 s 60 % -" in words(page)


def test_names_and_knobs_are_escaped(tmp_path, no_plots):
  a, b = two(tmp_path)
  b = b.rename(tmp_path / "<script>b")
  (b / "config.json").write_text('{"<script>": 1}')
  page = Page(report.write_comparison([a, b], tmp_path / "page.html"))
  assert page.source.count("<script") == 0 and "<script>b" in page.text


# What cannot be compared or shown.


def refusal(capsys, *words_of: str) -> str:
  assert cli.main(["report", *words_of]) == 2
  out, err = capsys.readouterr()
  assert out == "" and "Traceback" not in err
  return err


@pytest.mark.parametrize("more", [(), ("a",)])
def test_a_folder_that_is_no_run_and_a_run_without_metrics_are_refused(
  tmp_path, capsys, monkeypatch, more
):
  two(tmp_path)
  monkeypatch.chdir(tmp_path)
  before = sorted(tmp_path.rglob("*"))
  assert "b/none: is no run, as it holds no config.json; name the workdir" in (
    refusal(capsys, *more, "b/none")
  )
  (tmp_path / "b" / "metrics.jsonl").unlink()
  assert "b: has no metrics yet; the first line of metrics.jsonl comes after" in (
    refusal(capsys, *more, "b")
  )
  (tmp_path / "b" / "config.json").write_text("{")
  assert "b/config.json: is damaged" in refusal(capsys, *more, "b")
  assert set(tmp_path.rglob("*")) < set(before)  # nothing was written


def test_runs_that_cannot_be_compared_are_named(tmp_path, capsys, monkeypatch):
  two(tmp_path)
  monkeypatch.chdir(tmp_path)
  assert "a: is given twice" in refusal(capsys, "a", "b", "./a")
  assert "9 runs: from 2 to 8 can be compared" in refusal(capsys, *"aaaaaaaaa")
  (tmp_path / "b" / "config.json").write_text('{"command": "autoencoder"}')
  assert "b: is a run of `tfusion autoencoder`, and a is not" in refusal(
    capsys, "a", "b"
  )


def test_the_command_writes_the_page_of_one_run_or_of_several(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr("tfusion.report.curves.plot", lambda *_, **__: "data:,")
  monkeypatch.setattr("tfusion.report.comparison.plot", lambda *_, **__: "data:,")
  two(tmp_path)
  monkeypatch.chdir(tmp_path)
  assert cli.main(["report", "a"]) == 0
  whole = report.write_report("a").read_text()
  assert capsys.readouterr().out == f"{tmp_path / 'a' / 'report.html'}\n"
  assert cli.main(["report", "a", "--out", "one.html"]) == 0
  assert (tmp_path / "one.html").read_text() == whole
  assert cli.main(["report", "a", "b"]) == 0
  assert capsys.readouterr().out == "one.html\ncomparison.html\n"
  both = (tmp_path / "comparison.html").read_text()
  assert cli.main(["report", "a", "b", "--out", "both.html"]) == 0
  assert (tmp_path / "both.html").read_text() == both and "<h1>2 runs</h1>" in both
