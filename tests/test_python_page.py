"""docs/python.md: its blocks run as they stand, at the smallest size, in one go."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import tiny_experiments

import tfusion
from tfusion.training.step import Prediction

pytestmark = pytest.mark.slow  # whole runs are trained

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
RESUMING = (ROOT / "docs" / "resuming.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# As a notebook runs its cells: one after the other, in one namespace.
RUN = """
import sys
cells = {}
for number, block in enumerate(sys.stdin.read().split("# next block")):
  exec(compile(block, f"<block {number} of docs/python.md>", "exec"), cells)
"""


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path):
  (tmp_path / "experiments").mkdir()
  experiment = tiny_experiments.write(tmp_path, tiny_experiments.MODEL)
  experiment.rename(tmp_path / "experiments" / "digits.py")
  page = "# next block\n".join(BLOCKS)
  assert page.count("steps=400") == 2 and page.count("number % 20") == 1
  page = page.replace("steps=400", "steps=4").replace("number % 20", "number % 2")
  done = subprocess.run(
    [sys.executable, "-c", RUN],
    input=page,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr
  kept = {
    path.name + "/" * path.is_dir() for path in (tmp_path / "runs/python").iterdir()
  }
  assert {"report.html", "run.json", "samples/"} < kept
  assert kept <= set(re.findall(r"`([^`]+)`", RESUMING))
  assert len(list((tmp_path / "samples").glob("*.txt"))) == 4
  assert re.search(
    r"^step 4: text \d+\.\d+, image \d+\.\d+$", done.stdout, re.MULTILINE
  )
  assert done.stdout.endswith("(1, 8, 4, 64)\n")


def test_the_page_uses_every_function_that_tfusion_offers():
  offered = [name for name in tfusion.__all__ if name[0].islower()]
  assert len(offered) > 8
  for name in offered:
    assert f"tfusion.{name}" in PAGE, name


def test_every_name_of_tfusion_on_the_page_is_one():
  for name in set(re.findall(r"\btfusion\.(\w+)\(", PAGE)):
    assert name in tfusion.__all__, name


def test_the_page_names_what_predict_returns():
  for name in Prediction._fields:
    assert f"`{name}`" in PAGE, name
