"""The notebooks of experiments/colab: in git without outputs, run here at the smallest
size, as they stand but for the values of their forms."""

import json
import pathlib
import re

import pytest

nbclient = pytest.importorskip("nbclient", reason="pip install '.[test]' brings it")
nbformat = pytest.importorskip("nbformat", reason="pip install '.[test]' brings it")

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
FIELD = re.compile(r"^(\w+) = (.+?)  # @param (.+)$", re.MULTILINE)


def opened(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  return notebook


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fields(notebook):
  """Name -> (value, choices) of all forms."""
  found = (FIELD.findall(cell.source) for cell in code(notebook))
  return {name: (value, choices) for some in found for name, value, choices in some}


def with_values(notebook, **values):
  """The notebook with other values in its forms."""
  for cell in code(notebook):
    cell.source = FIELD.sub(
      lambda m: f"{m[1]} = {values[m[1]]!r}" if m[1] in values else m[0], cell.source
    )
  return notebook


def run(path, runs):
  """The notebook after all of its cells ran at the smallest size, in its own folder."""
  notebook = with_values(opened(path), size="smoke", seeds=1, runs=str(runs))
  client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3")
  return client.execute(cwd=str(path.parent))


def outputs(notebook):
  return [out for cell in code(notebook) for out in cell.outputs]


def test_there_is_a_notebook():
  assert FOLDER / "quickstart.ipynb" in NOTEBOOKS


@each
def test_a_notebook_lies_in_git_as_if_it_had_never_run(path):
  notebook = opened(path)
  for cell in code(notebook):
    assert cell.outputs == [] and cell.execution_count is None, cell.source
  assert set(notebook.metadata) <= {
    "accelerator",
    "colab",
    "kernelspec",
    "language_info",
  }


@each
def test_a_notebook_begins_with_its_button_and_its_times(path):
  notebook = opened(path)
  first = notebook.cells[0].source
  place = path.relative_to(ROOT).as_posix()
  assert first.startswith("[![Open in Colab](https://colab.research.google.com/")
  assert f"/OWNER/tfusion/blob/main/{place})" in first  # whose it is, nobody knows
  assert len(notebook.cells) <= 20
  # Times are of what has been run, and all else says that it has not.
  assert "| T4 | TPU |" in first
  rows = re.findall(r"^\| (?!-|cell)(.+) \|$", first, re.MULTILINE)
  assert rows and all(row.endswith("| not run | not run") for row in rows)


@each
def test_a_notebook_has_the_fields_that_this_file_and_a_reader_set(path):
  found = fields(opened(path))
  assert found["repository"][0] == '"https://github.com/OWNER/tfusion"'
  assert found["keep_on_drive"][0] == "False"  # nothing is mounted unasked
  assert json.loads(found["size"][1])[0] == "smoke"
  assert found["runs"][0] == '"runs"'


@pytest.mark.slow
@each
def test_a_notebook_runs_from_top_to_bottom_and_again_where_it_stopped(
  path, tmp_path, monkeypatch
):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  made = run(path, tmp_path)
  kinds = {kind for out in outputs(made) for kind in out.get("data", {})}
  assert {"image/png", "text/html"} <= kinds  # plots and samples, in their places
  metrics = list(tmp_path.rglob("metrics.jsonl"))
  before = [file.read_text() for file in metrics]
  assert metrics and all(before)
  if path.stem == "ablations":  # test_runner.py stops a suite and goes on with it
    return
  # After a disconnect all cells are run again: what is trained is not trained anew.
  run(path, tmp_path)
  assert [file.read_text() for file in metrics] == before
