"""Promises of tfusion/evaluate/suite.py."""

import json
import pathlib

import numpy as np
import pytest
import tiny

from tfusion.data.digits import Digits
from tfusion.data.pipeline import Corpus
from tfusion.data.prose import Prose
from tfusion.evaluate import suite
from tfusion.evaluate.evaluation import Asked, Evaluation
from tfusion.evaluate.suite import sampler
from tfusion.generate.trained import Trained

PROSE = Prose("prose", ("text",))
ROOT = pathlib.Path(__file__).parents[2]
DIGITS = Digits("digits", np.zeros((2, 8, 8, 1), np.uint8), np.asarray([3, 7]))


def test_how_images_are_made_is_said_of_patches_of_codes_and_not_of_text_alone():
  config = tiny.config(sample__steps=7)
  assert sampler(config, codes=False) == "ddpm 7 steps, guidance 3"
  text = tiny.config(model__patches="none")
  said = "codes, guidance 3 and 1.2, temperature 0.7, top-p 0.9"
  assert sampler(text, codes=True) == sampler(config, codes=True) == said
  assert sampler(text, codes=False) == ""


@pytest.mark.parametrize(
  "asked, says",
  [
    ("los", "'los' is unknown; known: the suites own, small"),
    ("loss,", "'' is unknown"),
    ("ppl", "write ppl:SOURCE instead of 'ppl'"),
    ("ppl:", "write ppl:SOURCE instead of 'ppl:'"),
    ("loss:x", "loss takes nothing behind a colon"),
    ("small:x", "'small:x' is unknown"),
  ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(asked, says):
  with pytest.raises(ValueError) as caught:
    suite.parse(asked)
  assert says in str(caught.value)


def test_names_are_taken_apart_and_each_is_done_once():
  found = suite.parse("loss, small,ppl:shards:/a/b,loss")
  assert found == ("loss", "small", "ppl:shards:/a/b")
  assert suite.parse("") == ()


class Oracle:
  """Stands in the table: counts how often it is asked, and may fail."""

  def __init__(self, **values):
    self.values, self.times, self.fails = values, 0, False

  def __call__(self, asked):
    if self.fails:
      raise KeyboardInterrupt
    self.times += 1
    return self.values


@pytest.fixture
def table(monkeypatch):
  """Three evaluations that cost nothing."""
  oracles = {"one": Oracle(x=1.0), "two": Oracle(y=2.0), "of": Oracle(z=3.0)}
  entries = {name: Evaluation(o, ("sample",)) for name, o in oracles.items()}
  entries["of"] = entries["of"]._replace(argument="WHAT")
  monkeypatch.setattr(suite, "EVALUATIONS", entries)
  suites = {"own": ("one",), "all": ("one", "two")}
  monkeypatch.setattr(suite, "SUITES", suites)
  return oracles


def evaluate(mesh, workdir, *names, step=4, seed=0, data=None, **changes):
  config = tiny.config(**changes)
  params = {"w": np.full((2, 2), 1.0 + seed, np.float32)}
  trained = Trained(config, step, params, None, mesh)
  corpus = Corpus((), (PROSE,), None)
  return suite.evaluate(trained, corpus, workdir, names=names, data=data)


def times(table):
  return [oracle.times for oracle in table.values()]


def test_what_is_finished_is_kept_and_not_done_again(mesh, table, tmp_path):
  found = evaluate(mesh, tmp_path, "one")
  assert (found["step"], found["x"]) == (4, 1.0) and times(table) == [1, 0, 0]
  found = evaluate(mesh, tmp_path, "all", "of:b", "one")
  assert times(table) == [1, 1, 1]
  assert (found["x"], found["y"], found["z"]) == (1.0, 2.0, 3.0)
  assert found == json.loads((tmp_path / "eval.json").read_text())
  assert "x" in suite.table(found) and "finished" not in suite.table(found)


@pytest.mark.parametrize("change", [dict(step=5), dict(seed=1), dict(sample__steps=9)])
def test_another_checkpoint_other_weights_and_other_knobs_are_measured_anew(
  mesh, table, tmp_path, change
):
  evaluate(mesh, tmp_path, "all")
  evaluate(mesh, tmp_path, "one", optim__peak_lr=2e-3)  # of which nothing depends
  assert times(table) == [1, 1, 0]
  evaluate(mesh, tmp_path, "all", **change)
  assert times(table) == [2, 2, 0]


def test_checkpoints_do_not_push_each_other_out(mesh, table, tmp_path):
  evaluate(mesh, tmp_path, "one", step=4)
  assert "y" not in evaluate(mesh, tmp_path, "one", step=5)
  found = evaluate(mesh, tmp_path, "all", step=4)
  assert times(table) == [2, 1, 0]
  assert set(found["finished"]) == {"one@4", "one@5", "two@4"}


def test_an_interrupted_suite_goes_on(mesh, table, tmp_path):
  table["two"].fails = True
  with pytest.raises(KeyboardInterrupt):
    evaluate(mesh, tmp_path, "all")
  assert json.loads((tmp_path / "eval.json").read_text())["x"] == 1.0
  table["two"].fails = False
  assert evaluate(mesh, tmp_path, "all")["y"] == 2.0
  assert times(table) == [1, 1, 0]


def test_without_a_name_the_suite_of_the_run_is_measured_anew(mesh, table, tmp_path):
  evaluate(mesh, tmp_path, "all")
  found = evaluate(mesh, tmp_path)
  assert times(table) == [2, 1, 0] and found["y"] == 2.0


def test_a_folder_of_data_that_is_not_there_is_named(mesh, table, tmp_path):
  with pytest.raises(ValueError, match="--data=.*none: there is no such folder"):
    evaluate(mesh, tmp_path, "one", data=tmp_path / "none")


def asked(*sources, **changes):
  trained = Trained(tiny.config(**changes), 1, None, None, None)
  return Asked(trained, Corpus((), sources, None), None)


def names(chosen):
  return [one.name for one in chosen]


def test_a_suite_of_the_run_is_what_fits_and_a_name_must_fit(monkeypatch):
  monkeypatch.setattr(suite, "check_digits", lambda config, corpus: None)
  assert names(suite.choose(asked(PROSE), ["small"])) == ["text"]
  both = asked(PROSE, DIGITS)
  assert names(suite.choose(both, ["small"])) == ["text", "loss", "digits"]
  with pytest.raises(ValueError) as caught:
    suite.choose(asked(PROSE), ["small", "digits", "loss"])
  lines = str(caught.value).splitlines()
  assert [line.partition(":")[0] for line in lines] == ["loss", "digits"]


def test_a_knob_that_is_too_small_is_no_reason_to_leave_one_out(monkeypatch):
  def refuse(config, corpus):
    raise ValueError("sample.max_elements=3: too small")

  monkeypatch.setattr(suite, "check_digits", refuse)
  with pytest.raises(ValueError, match="sample.max_elements=3"):
    suite.choose(asked(DIGITS), ["small"])


def test_the_page_lists_every_evaluation_and_suite():
  page = (ROOT / "docs" / "evaluation.md").read_text()
  rows = [line for line in page.splitlines() if line.startswith("| `")]
  named = " ".join(row.split("|")[1] for row in rows)
  for name, one in suite.EVALUATIONS.items():
    shown = f"{name}:{one.argument}" if one.argument else name
    assert f"`{shown}`" in named, shown
  assert all(f"| `{name}` |" in page for name in suite.SUITES)
