"""Promises of the step benchmark: rows and cores as for all, honest arithmetic."""

import os
import sys

import pytest
from bench import step_table

SMALL = ["--depth", "1", "--heads", "2", "--steps", "1"]
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
LINUX = pytest.mark.skipif(not CORES, reason="binding to cores needs Linux")


def measure(script: str, *arguments: str) -> dict:
  """The line of a small program."""
  return step_table.run([sys.executable, script, *SMALL, *arguments], cores=CORES)


@pytest.mark.long
@pytest.mark.slow
@LINUX
def test_our_program_trains_on_the_rows_that_it_says():
  values = measure("step_ours.py", "--dim", "32")
  assert values["positions_per_row"] == 387
  assert values["elements_per_step"] == 4 * 384 and values["peak_rss_gb"] > 0
  assert 0 < values["min_ms"] <= values["median_ms"]
  assert 0 < values["loss_last"] != values["loss_first"] > 0


@LINUX
@pytest.mark.parametrize("program", ["plain", "package"])
def test_a_torch_program_trains_on_as_many_elements_and_the_twin_has_our_size(program):
  pytest.importorskip("torch", reason="peers_torch.py runs in PyTorch, not installed")
  if program == "package":
    reason = "the package transfusion-pytorch is not installed"
    pytest.importorskip("transfusion_pytorch", reason=reason)
  values = measure("peers_torch.py", "--program", program, "--dim", "32")
  assert values["elements_per_step"] == 4 * 384 and values["peak_rss_gb"] > 0
  assert 0 < values["min_ms"] <= values["median_ms"]
  assert 0 < values["loss_last"] != values["loss_first"] > 0
  if program == "plain":
    ours = measure("step_ours.py", "--dim", "32")
    for key in ("params", "positions_per_row", "batch", "vocab"):
      assert values[key] == ours[key]
  params = str(values["params"])
  matched = measure("peers_torch.py", "--program", program, "--match-params", params)
  assert (matched["dim"], matched["params"]) == (32, values["params"])


@LINUX
def test_a_program_runs_on_the_cores_of_the_table_and_no_others(tmp_path):
  script = tmp_path / "cores.py"
  script.write_text("import json, os; print(json.dumps([*os.sched_getaffinity(0)]))")
  for core in CORES[:2]:
    assert step_table.run([sys.executable, str(script)], cores=[core]) == [core]
  assert sorted(os.sched_getaffinity(0)) == CORES


@pytest.mark.slow
@LINUX
def test_a_program_that_fails_stops_the_table_with_what_it_said():
  with pytest.raises(RuntimeError, match=r"step_ours.py --dim x:\n(.|\n)*invalid int"):
    step_table.run([sys.executable, "step_ours.py", "--dim", "x"], cores=CORES)


@LINUX
def test_rows_compare_runs_that_were_neighbours(monkeypatch, capsys):
  # Milliseconds of each round, on a machine that grows slower.
  rounds = {
    "ours": [100, 200, 400],
    "plain": [300, 200, 500],
    "package": [100, 100, 800],
  }
  calls = []

  def canned(command, *, cores):
    assert cores == CORES[:1]
    script, arguments = command[1], command[2:]
    name = "ours"
    if script == "peers_torch.py":
      name = arguments[arguments.index("--program") + 1]
      assert arguments[arguments.index("--threads") + 1] == "1"
    matched = "--match-params" in arguments
    assert not matched or arguments[-1] == "3000000"
    done = calls.count((name, matched)) - (name == "ours")  # once for its size
    calls.append((name, matched))
    return {
      "params": 2_000_000 if name == "package" and not matched else 3_000_000,
      "elements_per_step": 1536,
      "median_ms": rounds[name][done % 3],
      "gflop_per_step": 10.0,  # in 100 ms: 100 GFLOP/s
      "matmul_gflops": 200.0,
      "cpu": "a CPU",
      "vectors": "avx2",
      "peak_rss_gb": 0.5 + done / 4,
    }

  monkeypatch.setattr(step_table, "run", canned)
  monkeypatch.setattr(step_table, "SIZES", ((256, 4),))
  monkeypatch.setattr(sys, "argv", ["step_table.py", "--cores", "1"])
  step_table.main()
  ours, plain, package, matched = [
    line.split() for line in capsys.readouterr().out.splitlines()[5:]
  ]
  assert ours == "256 4 ours 3.0M 200 7,680 1.00x 25% 1.00".split()
  # Ratios 3, 1 and 1.25; that of the medians would be 1.5.
  assert plain == "256 4 plain 3.0M 300 5,120 1.25x 17% 1.00".split()
  assert package == "256 4 package 2.0M 100 15,360 1.00x - 1.00".split()
  assert matched[2:] == "package, our params 3.0M 100 15,360 1.00x - 1.00".split()
  turn = [("ours", False), ("plain", False), ("package", False), ("package", True)]
  assert calls == [("ours", False), *turn * 3]
