"""Promises of `tfusion scaling` (tfusion/evaluate/families.py), on made-up runs."""

import base64
import json
import math

import pytest
import tiny

import tfusion
from tfusion import cli, workdir
from tfusion import config as config_lib
from tfusion.evaluate import families

SIZES = {1: 1e6, 2: 4e6, 3: 16e6}  # layers -> parameters
STEPS, ELEMENTS = 20, 500.0


def flops(layers: int) -> float:
  return 6 * SIZES[layers] * STEPS * ELEMENTS


def run(root, layers=1, *, factor=20.0, slope=-0.1, evaluation=None, **knobs):
  """A finished run whose loss of text is factor FLOPs^slope."""
  root.mkdir(parents=True)
  config = tiny.config(model__layers=layers, train__steps=STEPS, **knobs)
  workdir.save_config(config, root)
  loss = factor * flops(layers) ** slope
  files = {
    "run.json": {"parameters": int(SIZES[layers])},
    "eval.json": {"step": STEPS, "fid": 10.0 ** (4 - layers)} | (evaluation or {}),
  }
  for name, values in files.items():
    (root / name).write_text(json.dumps(values))
  lines = {  # two are logged
    "metrics": [{"step": s, "elements": ELEMENTS + d} for s, d in ((10, 5), (20, -5))],
    "speed": [{"step": s, "flops_per_element": 1e3 * layers} for s in (10, 20)],
    "validation": [
      {"step": 10, "loss_text": 9.0, "loss_image": 1.0},
      {"step": 20, "loss_text": loss, "loss_image": None},
    ],
  }
  for name, own in lines.items():
    text = "".join(json.dumps(line) + "\n" for line in own)
    (root / f"{name}.jsonl").write_text(text)
  return root


def two_families(root, **less):
  """Linear patches; and images whose patches are causal, with other numbers."""
  return [
    *(run(root / f"both{n}", n) for n in SIZES),
    *(
      run(root / f"causal{n}", n, model__image_attention="causal", **less)
      for n in SIZES
    ),
  ]


def test_the_laws_of_two_families_and_their_parity_are_found_again(tmp_path):
  # The first needs a third of the FLOPs at every loss.
  runs = two_families(tmp_path, factor=20.0 * 3**0.1)
  found = tfusion.scaling(runs)
  assert [family.name for family in found.families] == [
    "model.image_attention=bidirectional",
    "model.image_attention=causal",
  ]
  one, other = found.fits["loss_text"]
  assert [point.flops for point in one.points] == [flops(n) for n in SIZES]
  for fit, factor in ((one, 20.0), (other, 20.0 * 3**0.1)):
    assert fit.law.slope == pytest.approx(-0.1, rel=1e-6)
    assert math.exp(fit.law.intercept) == pytest.approx(factor, rel=1e-5)
    assert fit.slope.low == pytest.approx(fit.slope.high, rel=1e-6)
  assert one.parity is None
  assert other.parity.value == pytest.approx(1 / 3, rel=1e-5)
  assert other.parity.low == pytest.approx(other.parity.high, rel=1e-5)
  # No run has a loss of images at its end; that of an earlier update does not count.
  assert set(found.fits) == {"loss_text", "fid"}


def test_the_papers_filters_leave_out_what_cannot_draw(tmp_path):
  found = tfusion.scaling([run(tmp_path / f"{n}", n) for n in SIZES])
  (fit,) = found.fits["fid"]
  assert [point.value for point in fit.points] == [100.0, 10.0] and fit.left_out == 1
  # Two points lie on their line whatever is drawn: no interval.
  assert fit.law and fit.slope is None
  assert [family.name for family in found.families] == ["all runs"]
  assert str(found).startswith("Over 6 N D.\n\nloss_text") and "fid" in str(found)
  assert "-0.1 (-0.1 to -0.1)" in str(found)


def test_exact_flops_are_those_that_the_run_has_counted(tmp_path):
  runs = [run(tmp_path / f"{n}", n) for n in SIZES]
  (fit,) = tfusion.scaling(runs, flops="exact").fits["loss_text"]
  assert [p.flops for p in fit.points] == [1e3 * n * STEPS * ELEMENTS for n in SIZES]


def test_what_suits_a_size_and_what_only_rounds_makes_no_other_family(tmp_path):
  assert set(families.OF_SIZE) <= set(config_lib.flatten(tiny.config()))
  how = dict(seed=3, optim__peak_lr=1e-3, model__width=64, model__attention="dense")
  runs = [run(tmp_path / "a", 1), run(tmp_path / "b", 2, **how)]
  assert len(tfusion.scaling(runs).families) == 1


def test_the_command_prints_the_table_and_writes_one_page_with_plots(tmp_path, capsys):
  runs, out = two_families(tmp_path, slope=-0.2), tmp_path / "out.html"
  asked = ["scaling", *map(str, runs), "--metric", "loss_text", "--out", str(out)]
  assert cli.main(asked) == 0
  said = capsys.readouterr().out
  assert said.startswith("Over 6 N D. Parity:") and said.endswith(f"{out}\n")
  assert "model.image_attention=causal" in said and "-0.2 (-0.2 to -0.2)" in said
  page = out.read_text()
  assert page.count("<img") == 1 and "<script" not in page and "http" not in page
  assert "Cannot be shown" not in page and "Nothing yet" not in page
  drawn = base64.b64decode(page.partition("base64,")[2].partition('"')[0]).decode()
  assert "training FLOPs" in drawn
  assert {"var(--hue1)", "var(--hue2)"} <= {
    part[:11] for part in drawn.replace("var(--hue", "|var(--hue").split("|")
  }


def test_a_family_of_one_run_is_refused(tmp_path):
  runs = two_families(tmp_path)[:4]
  with pytest.raises(
    ValueError, match=r"causal1: its family \(.*causal\) has no run of"
  ):
    tfusion.scaling(runs)
  with pytest.raises(ValueError, match="both1: is given twice"):
    tfusion.scaling([*runs, runs[0]])


@pytest.mark.parametrize(
  "file, text, says",
  [
    ("validation.jsonl", "", "bad: has no evaluation of its last update, 20; repeat"),
    ("validation.jsonl", '{"step": 10, "loss_text": 1.0}', "no evaluation of its last"),
    ("metrics.jsonl", '{"step": 10, "elements": 5}', "bad: is at update 10 of 20"),
    ("run.json", "{}", "its run.json does not say its parameters.*--flops=exact"),
    ("config.json", "{}", "damaged or of another version"),
  ],
)
def test_a_run_without_what_is_needed_is_refused(tmp_path, file, text, says):
  runs = [run(tmp_path / "good", 1), run(tmp_path / "bad", 2)]
  (runs[1] / file).write_text(text)
  if "update 10" in says:
    (runs[1] / "validation.jsonl").write_text("")
  with pytest.raises(ValueError, match=says):
    tfusion.scaling(runs)


def test_older_runs_say_how_their_flops_can_be_counted(tmp_path):
  runs = [run(tmp_path / f"{n}", n) for n in SIZES]
  (runs[2] / "speed.jsonl").write_text('{"step": 20, "mfu": 0.5}\n')
  with pytest.raises(ValueError, match="3: its speed.jsonl does not.*--flops=6nd"):
    tfusion.scaling(runs, flops="exact")


def test_a_metric_that_no_run_has_is_refused_with_those_that_there_are(tmp_path):
  runs = [run(tmp_path / f"{n}", n) for n in SIZES]
  with pytest.raises(
    ValueError, match="--metric=clip: no run has it; there are fid, l"
  ):
    tfusion.scaling(runs, metrics=["clip"])
  with pytest.raises(ValueError, match="--flops=7nd: choose one of 6nd, exact"):
    tfusion.scaling(runs, flops="7nd")
  (runs[0] / "eval.json").write_text('{"clip": 30.0}')
  with pytest.raises(ValueError, match="clip: no family has two runs of different"):
    tfusion.scaling(runs, metrics=["clip"])
