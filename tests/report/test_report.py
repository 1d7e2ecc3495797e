"""Promises of tfusion/report/, on small workdirs written here."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pages import EVAL, FILES, STEPS, Page, write_image, write_run

from tfusion import report
from tfusion.report import facts


@pytest.mark.slow
def test_page_shows_all_there_is_of_a_run(tmp_path):
  page = Page(report.write_report(write_run(tmp_path / "seven")))
  assert "Finished: update 480 of 480, 2.0 minutes" in page.text
  assert "2 updates skipped" in page.text
  assert "Nothing yet" not in page.text and "Cannot be shown" not in page.text
  assert len(page.plots()) == 12 and len(page.images) == 12 + 3
  for text in ("98.0%", "291 of 297", "496 of 500", "3.25", "30,000 tokens"):
    assert text in page.text
  for text in ("Some CPU", "12,345,678", "width", "broken.png"):
    assert text in page.text
  assert page.text.index("step 240") < page.text.index("step 480")


def test_page_needs_nothing_from_outside(tmp_path):
  path = report.write_report(write_run(tmp_path / "run"))
  page = Page(path)
  assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "base", "a"}
  assert "http" not in page.source and "@import" not in page.source
  assert all(
    attrs["src"].startswith("data:image/") for t, attrs in page.tags if t == "img"
  )
  for plot in page.plots():
    assert not re.findall(r"(?:href=\"|url\()(?!#)", plot)
  assert path.stat().st_size < 1_000_000


def test_plots_take_the_colours_of_the_readers_theme(tmp_path):
  page = Page(report.write_report(write_run(tmp_path / "run")))
  names = ("Text loss, nats per token", "Image loss, squared error")
  text, image = (page.images[f"Training loss: {x}"][1].decode() for x in names)
  assert "stroke: var(--text)" in text and "stroke: var(--image)" in image
  assert "var(--image)" not in text and "var(--text)" not in image
  for plot in page.plots():
    assert "prefers-color-scheme: dark" in plot and "#0000" not in plot
    used = set(re.findall(r"var\((--\w+)\)", plot))
    assert used and used <= set(re.findall(r"(--\w+):", plot))


def test_an_empty_workdir_gives_a_page_that_says_so(tmp_path):
  known, empty = write_run(tmp_path / "known", lines=4), tmp_path / "empty"
  report.save_reference(known, tmp_path / "known.json")
  empty.mkdir()
  for reference in (None, tmp_path / "missing.json", tmp_path / "known.json"):
    page = Page(report.write_report(empty, reference=reference))
    assert page.text.count("Nothing yet") == 8 and not page.images
    assert "Cannot be shown" not in page.text


@pytest.mark.slow
def test_a_half_written_last_line_is_left_out(tmp_path):
  workdir = write_run(tmp_path / "run")
  whole = report.write_report(workdir).read_text()
  for name in FILES[5:]:
    with (workdir / name).open("a") as file:
      file.write('{"step": 481, "loss": 1.5, "loss_te')
  assert report.write_report(workdir).read_text() == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_half_written_file_costs_no_more_than_itself(tmp_path, name):
  workdir = write_run(tmp_path / "run", lines=4)
  data = (workdir / name).read_bytes()
  (workdir / name).write_bytes(data[: len(data) // 2])
  page = Page(report.write_report(workdir))
  lost = {"metrics.jsonl": 0, "speed.jsonl": 0, "validation.jsonl": 0, "eval.json": 1}
  assert page.text.count("Nothing yet") == lost.get(name, 0)
  assert "Cannot be shown" not in page.text and len(page.plots()) == 12


def test_half_written_images_are_named(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  for name in ("samples/step_00000240.png", "samples/step_00000480.png"):
    data = (workdir / name).read_bytes()
    (workdir / name).write_bytes(data[: 1 if "240" in name else len(data) // 2])
  page = Page(report.write_report(workdir))
  assert "step_00000240.png cannot be read yet" in page.text
  assert "step_00000480.png cannot be read yet" in page.text
  assert len(page.images) == 12 + 1


def test_odd_content_costs_one_section(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  (workdir / "skipped.json").write_text('{"folder": 3}')
  page = Page(report.write_report(workdir))
  assert page.text.count("Cannot be shown") == 1 and len(page.plots()) == 12


def test_text_from_files_is_escaped(tmp_path):
  bad = "<script>alert('a &amp; b')</script>"
  workdir = write_run(tmp_path / "a <script> run", lines=4)
  for name in FILES[1:5]:
    values = json.loads((workdir / name).read_text())
    nested = {bad: {f"{bad} of {name}": bad}}
    if name == "data.json":  # of which known keys alone are shown
      nested = {"sources": {f"{bad} of {name}": {}}}
    (workdir / name).write_text(json.dumps(values | nested))
  config = json.loads((workdir / "config.json").read_text())
  (workdir / "config.json").write_text(json.dumps(config | {bad: {bad: [bad]}}))
  known = {"name": bad, "metrics": [{"step": 1, "loss": 1.0}], "eval": {bad: bad}}
  (tmp_path / "known.json").write_text(json.dumps(known))
  page = Page(report.write_report(workdir, reference=tmp_path / "known.json"))
  assert "script" not in {tag for tag, _ in page.tags}
  assert page.source.count("<script") == 0
  for name in FILES[1:5]:
    assert f"{bad} of {name}" in page.text


def write_prompts(workdir: Path, *asked: tuple[str, str, list]) -> None:
  values = [dict(zip(("prompt", "text", "boxes"), one)) for one in asked]
  (workdir / "samples").mkdir(exist_ok=True)
  path = workdir / "samples" / "step_00000480.json"
  path.write_text(json.dumps({"prompts": values}))


def test_prompts_stand_beside_the_samples_that_they_gave(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
  write_image(workdir / "samples" / "step_00000480.png", pixels)
  boxes = [[0, 0, 30, 40], [30, 0, 60, 40], [60, 0, 90, 40]]
  write_prompts(
    workdir,
    ("a <b> & seven <image>", "<image>", boxes[:1]),
    ("two", "<image>and<image>", boxes[1:]),
    ("what is this", "a seven", []),
  )
  page = Page(report.write_report(workdir))
  for prompt in ("a <b> & seven <image>", "two", "what is this"):
    assert page.text.count(f"{prompt}\n") == 1
  assert "a seven\n" in page.text and "<image>and<image>" in page.text
  kind, data = page.images["a <b> & seven <image>"]
  shown = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(shown, pixels[:, :30])
  alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
  assert alts.count("two") == 2 and "step 480" not in alts and "step 240" in alts


def test_texts_are_samples_too_where_no_image_was_sampled(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  shutil.rmtree(workdir / "samples")
  write_prompts(workdir, ("once upon", "a time", []))
  page = Page(report.write_report(workdir))
  assert "once upon\na time\n" in page.text


@pytest.mark.parametrize(
  "content", ['{"prompts": [{"pro', "[]", '{"prompts": [3]}', "{}"]
)
def test_without_whole_prompts_the_samples_are_shown_all_the_same(tmp_path, content):
  workdir = write_run(tmp_path / "run", lines=4)
  (workdir / "samples" / "step_00000480.json").write_text(content)
  page = Page(report.write_report(workdir))
  assert "step 480" in page.images and "Cannot be shown" not in page.text


PHOTOS = "folder:/very/long/path/photos"


def write_data(workdir: Path, **more) -> None:
  held = lambda n: dict(documents=n, images=n, texts=2 * n, exact=True)  # noqa: E731
  read = dict(documents=70, elements=900, epochs=1.5, rejected=1, lost_share=0.98)
  values = {
    "sources": {
      PHOTOS: read | {"share": 0.9999, "damaged": 3},
      "pydoc": read | {"share": 0.0001, "rejected": 0},
    },
    "contents": {
      PHOTOS: {"train": held(1234), "test": held(56)},
      "pydoc": {
        "train": {"documents": 9, "images": 0, "texts": 7, "exact": False},
        "test": {"documents": 1, "images": 0, "texts": 1, "exact": True},
      },
    },
    "row_fill": 0.987,
  }
  (workdir / "data.json").write_text(json.dumps(values | more))


def test_the_data_table_says_what_is_held_and_agrees_with_what_is_skipped(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  write_data(workdir)
  skipped = {"a.png": "no caption: no .txt", "b.png": "cannot be decoded: half"}
  skipped |= {f"{i}.png": "no caption: no .txt" for i in range(150)}
  (workdir / "skipped.json").write_text(json.dumps({PHOTOS: skipped}))
  page = Page(report.write_report(workdir))
  words = " ".join(page.text.split())
  assert "photos to train on 1,234 1,234 2,468 152" in words
  assert "held out 56 56 112" in words
  assert "pydoc to train on 9 0 about 7 0 held out 1 0 1 0" in words
  # The same numbers over the list as in the table.
  assert "151 no caption; 1 cannot be decoded" in words
  assert "Skipped of photos : 152 (151 no caption, 1 cannot be decoded)" in words
  assert "The first 100" in words and words.count("no .txt") == 99
  # Sources by the end of their paths, whole where the reader points at them.
  assert PHOTOS not in page.text.partition("Machine and config")[0]
  assert ("span", {"title": PHOTOS}) in page.tags
  # A small share is none, and a large one not all.
  assert ">99.9 %" in page.text and "<0.1 %" in page.text and "\n0 %" not in page.text
  assert "1 98 % of its elements" in words and "98.7 % of the positions" in words


@pytest.mark.slow
def test_what_preparing_left_out_stands_in_the_table_too(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  (workdir / "skipped.json").unlink()
  amount = lambda n: dict(documents=n, images=n, texts=n)  # noqa: E731
  split = dict(found=amount(50), used=amount(40), skipped={"no text": amount(10)})
  write_data(workdir, found={PHOTOS: {"train": split, "test": None}})
  words = " ".join(Page(report.write_report(workdir)).text.split())
  assert "photos to train on 40 40 40 10 10 no text held out 56 56 112" in words


def test_what_was_skipped_stands_in_the_row_of_its_split(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  amount = lambda n: dict(documents=n, images=n, texts=n)  # noqa: E731
  split = lambda used, **why: dict(  # noqa: E731
    found=amount(used + sum(why.values())),
    used=amount(used),
    skipped={reason: amount(n) for reason, n in why.items()},
  )
  skipped = {PHOTOS: {f"{i}.png": "blank: no .txt" for i in range(3)}}
  skipped[PHOTOS] |= {"notes.csv": "other: neither"}
  (workdir / "skipped.json").write_text(json.dumps(skipped))
  found = {"train": split(40, blank=2, other=0), "test": split(9, blank=1)}
  write_data(workdir, found={PHOTOS: found})
  words = " ".join(Page(report.write_report(workdir)).text.split())
  assert "photos to train on 40 40 40 2 2 blank held out 9 9 9 1 1 blank" in words
  assert "Skipped of photos : 4 (3 blank, 1 other)" in words


@pytest.mark.parametrize(
  "names, short",
  [
    (["folder:/data/photos"], ["photos"]),
    (["folder:photos", "pydoc", "shapes:pairs,px=32"], ["photos", "pydoc", None]),
    (["folder:/a/photos", "folder:/b/photos"], ["a/photos", "b/photos"]),
    (["folder:/a/x/photos", "folder:/b/x/photos"], ["a/x/photos", "b/x/photos"]),
    (["folder:/a/photos", "shards:/a/photos"], [None, None]),
    (["folder:photos", "folder:/b/photos"], [None, "b/photos"]),
    (["folder:/a/photos", "folder:/b/c", "shards:/b/photos"], ["a/photos", "c", None]),
    (["folder:/x/digits", "digits"], ["x/digits", "digits"]),
    (["folder:.", "folder:..", "folder:/", "folder:"], [None] * 4),
    (["folder:photos/"], ["photos"]),
    ([], []),
  ],
)
def test_short_names_tell_sources_apart(names, short):
  made = facts.short_names(names)
  wanted = [s or name for name, s in zip(names, short)]
  if "shards:/b/photos" in names:
    wanted[-1] = "b/photos"
  assert list(made.values()) == wanted and len(set(wanted)) == len(names)


def test_undecodable_file_names_do_not_stop_the_page(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  (workdir / "skipped.json").write_text('{"folder": {"caf\\udce9.png": "truncated"}}')
  assert "caf?.png" in Page(report.write_report(workdir)).text


@pytest.mark.slow
def test_reference_is_plotted_behind_and_listed_beside(tmp_path):
  known, path = write_run(tmp_path / "known", loss=2.0), tmp_path / "results.json"
  (known / "eval.json").write_text(json.dumps(EVAL | {"captions_right": 280}))
  report.save_reference(known, path)
  workdir = write_run(tmp_path / "run")
  alone = Page(report.write_report(workdir))
  page = Page(report.write_report(workdir, reference=path))
  assert not any("stroke: var(--known)" in plot for plot in alone.plots())
  plotted = [plot for plot in page.plots() if "stroke: var(--known)" in plot]
  assert len(plotted) == 6  # three training losses, two held-out ones, the noise bins
  for plot in plotted:
    own = re.search(r"stroke: var\(--(text|image|ink)\)", plot)
    assert plot.index("stroke: var(--known)") < own.start()
  assert "In grey: the reference run known, 1 x cpu, 2 cores of Some CPU" in page.text
  assert "291 of 297" in page.text and "280 of 297" in page.text
  assert "ref 2.10" in page.text and "1.10" in page.text  # held-out text


@pytest.mark.slow
def test_a_reference_in_the_workdir_is_plotted_unless_it_is_of_another_model(tmp_path):
  workdir, path = write_run(tmp_path / "run"), tmp_path / "run" / "reference.json"
  report.save_reference(write_run(tmp_path / "known", loss=2.0), path)
  page = Page(report.write_report(workdir))
  assert "In grey: the reference run known" in page.text and "reference\n" in page.text
  assert sum("stroke: var(--known)" in plot for plot in page.plots()) == 6
  path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {"width": 256}}))
  other = Page(report.write_report(workdir)).source
  path.unlink()
  assert other == Page(report.write_report(workdir)).source != page.source


def test_reference_is_thinned_and_rounded(tmp_path):
  workdir = write_run(tmp_path / "run", lines=STEPS)
  report.save_reference(workdir, tmp_path / "known.json")
  text = (tmp_path / "known.json").read_text()
  known = json.loads(text)
  assert set(known) >= {"name", "command", "hardware", "commit", "validation", "eval"}
  assert len(known["metrics"]) == 400 and len(known["validation"]) == 2
  assert [known["metrics"][i]["step"] for i in (0, -1)] == [1, STEPS]
  assert known["metrics"][6]["loss_text"] == float(f"{1 + 5 / 8:.5g}")
  digits = re.findall(r"\d+\.\d+", text)
  assert digits and max(len(x.replace(".", "").strip("0")) for x in digits) <= 5


def test_reference_of_an_unfinished_run_is_refused(tmp_path):
  workdir = write_run(tmp_path / "run")
  config = {"train": {"steps": STEPS + 1}}
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="at update 480 of 481"):
    report.save_reference(workdir, tmp_path / "known.json")
  assert not (tmp_path / "known.json").exists()


def test_newest_figure_is_a_mean_over_the_last_updates(tmp_path):
  workdir = write_run(tmp_path / "run")
  lines = [{"step": step, "loss_text": float(step % 7)} for step in range(1, 49)]
  (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  page = Page(report.write_report(workdir))
  newest = np.mean([46 % 7, 47 % 7, 48 % 7])  # half of 48 / 12, and the last itself
  assert f"Text loss\n{newest:.2f}\n" in page.text


def test_time_of_a_restarted_run_is_added_up(tmp_path):
  workdir = write_run(tmp_path / "run")
  seconds = (10, 60, 5, 125)  # the second process began at 0 again
  lines = [{"step": i + 1, "seconds": s} for i, s in enumerate(seconds)]
  (workdir / "speed.jsonl").write_text("\n".join(map(json.dumps, lines)))
  assert "3.1 minutes" in Page(report.write_report(workdir)).text  # 60 + 125 s


def test_values_that_are_not_numbers_leave_gaps(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  with (workdir / "metrics.jsonl").open("a") as file:
    for value in ("NaN", "Infinity", "null", '"?"'):
      file.write(f'{{"step": 480, "loss": {value}, "loss_text": {value}}}\n')
  line = {"step": 480, "loss_text": 1.0, "loss_image": None}
  bins = {"loss_image_bins": [None, 0.5] * 5}
  (workdir / "validation.jsonl").write_text(json.dumps(line | bins) + "\n")
  page = Page(report.write_report(workdir))
  assert "Cannot be shown" not in page.text and "nan" not in page.text
  assert len(page.plots()) == 11  # all but the held-out image loss


@pytest.mark.slow
def test_page_stays_small_beside_large_images_and_long_runs(tmp_path):
  workdir = write_run(tmp_path / "run")
  noise = np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8)
  write_image(workdir / "samples" / "step_00000001.png", noise)
  data = (workdir / "samples" / "step_00000001.png").read_bytes()
  for i in range(2, 9):
    (workdir / "samples" / f"step_0000100{i}.png").write_bytes(data)
    (workdir / "eval" / f"{i}.png").write_bytes(data)
  lines = (f'{{"step": {i}, "loss": {i % 97}, "lr": {i % 31}}}' for i in range(20_000))
  (workdir / "metrics.jsonl").write_text("\n".join(lines))
  path = report.write_report(workdir)
  page = Page(path)
  assert "Cannot be shown" not in page.text and "cannot be read" not in page.text
  assert [kind for kind, _ in page.images.values()].count("data:image/jpeg") > 8
  assert path.stat().st_size < 3_000_000


@pytest.mark.slow
def test_a_failed_write_leaves_the_last_page(tmp_path, monkeypatch):
  workdir = write_run(tmp_path / "run", lines=4)
  path = report.write_report(workdir)
  before, write = path.read_text(), Path.write_bytes

  def write_half(self, data):
    write(self, data[: len(data) // 2])
    raise OSError("No space left on device")

  monkeypatch.setattr(Path, "write_bytes", write_half)
  with pytest.raises(OSError, match="No space left"):
    report.write_report(workdir)
  assert path.read_text() == before


@pytest.mark.slow
def test_keys_of_older_workdirs_are_read_under_the_names_of_today(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  older = EVAL | {"judge_accuracy": 0.875, "judge_right": 7, "judge_scans": 8}
  older = {k: x for k, x in older.items() if not k.startswith("classifier_")}
  (workdir / "eval.json").write_text(json.dumps(older))
  save_speed = lambda key: (workdir / "speed.jsonl").write_text(  # noqa: E731
    "".join(json.dumps({"step": i, key: 33.0}) + "\n" for i in (1, 2))
  )
  save_speed("pictures_per_s")
  page = Page(report.write_report(workdir))
  assert "The classifier itself\n" in page.text and "87.5%\n7 of 8\n" in page.text
  assert "judge" not in page.text
  assert "Optimiser and speed: Speed, images per second" in page.images
  save_speed("images_per_s")
  assert Page(report.write_report(workdir)).source == page.source
  # So is a reference of then.
  report.save_reference(workdir, tmp_path / "known.json")
  known = json.loads((tmp_path / "known.json").read_text())
  (tmp_path / "known.json").write_text(json.dumps(known | {"eval": older}))
  page = Page(report.write_report(workdir, reference=tmp_path / "known.json"))
  assert page.text.count("87.5%\n7 of 8\n") == 2


# From the sources of a release, as from a wheel: this much of an installation is ours.
INSTALLED = """
import sys
from tfusion import report
assert report.__file__.startswith(sys.argv[1]), report.__file__
page = report.write_report(sys.argv[2]).read_text()
assert "<h2>Training loss</h2>" in page and "prefers-color-scheme" in page
assert "Cannot be shown" not in page
"""


@pytest.mark.slow
def test_an_installed_package_has_the_templates_and_the_style(tmp_path):
  root = Path(__file__).parents[2]
  tree, out = tmp_path / "tree", tmp_path / "out"
  copied = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
  tree.mkdir()
  for name in copied:
    shutil.copy(root / name, tree)
  shutil.copytree(
    root / "tfusion", tree / "tfusion", ignore=shutil.ignore_patterns("__pycache__")
  )
  setup = [sys.executable, "setup.py", "--quiet"]
  subprocess.run([*setup, "sdist", "--dist-dir", out], cwd=tree, check=True)
  (archive,) = out.glob("*.tar.gz")
  shutil.unpack_archive(archive, tmp_path / "release")
  (release,) = (tmp_path / "release").iterdir()
  built = tmp_path / "built"
  subprocess.run([*setup, "build", "--build-lib", built], cwd=release, check=True)
  assert (built / "tfusion" / "inspect" / "row_page.html.j2").is_file()
  workdir = write_run(tmp_path / "run", lines=4)
  subprocess.run(
    [sys.executable, "-c", INSTALLED, built, workdir],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(built)},
    check=True,
  )


@pytest.mark.slow
def test_import_is_light_and_global_plot_state_is_left_alone(tmp_path):
  workdir = write_run(tmp_path / "run", lines=4)
  code = f"""
import sys
from tfusion import report
from tfusion.report import facts
early = {{"matplotlib", "PIL", "jax", "jinja2"}} & set(sys.modules)
assert not early, early
import matplotlib
names = [x for x in matplotlib.rcParams if x != "backend"]
before = [matplotlib.rcParams[x] for x in names]  # "backend" would import pyplot
report.write_report({str(workdir)!r})
assert "matplotlib.pyplot" not in sys.modules
assert [matplotlib.rcParams[x] for x in names] == before
"""
  root = Path(report.__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
