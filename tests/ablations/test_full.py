"""The arms at the paper's sizes, as commands that launch them."""

import json
import shlex
from pathlib import Path

import pytest

from tfusion import cli
from tfusion.ablations import ablate, full, plan, suites
from tfusion.ablations.suites import SUITES
from tfusion.config_file import read_config

ROOT = Path(__file__).parents[2]
ARMS = plan.arms(SUITES.values())


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_config_of_the_papers_size(arm):
  config, *knobs = full.config_of(arm)
  found = read_config(config.removeprefix("--config="), knobs)
  sizes = {"xs": 16, "s": 24, "m": 24}
  assert found.model.layers == sizes[arm.size]
  assert found.train.steps == 250_000
  patches = arm.knobs.get("model.patches")
  assert patches is None or found.model.patches == patches
  assert found.model.patch == arm.knobs.get("model.patch", 2)
  for name, value in arm.knobs.items():
    if name.startswith("diffusion."):
      assert getattr(found.diffusion, name.partition(".")[2]) == value


def test_each_line_starts_one_run_and_nothing_starts_by_itself():
  lines = full.lines([suites.TABLE5])
  commands = [line for line in lines if line and not line.startswith("#")]
  assert len(commands) == len(suites.TABLE5.arms)
  for line in commands:
    words = shlex.split(line)
    assert words[0] == "launch/tpu_vm.sh" and (ROOT / words[0]).is_file()
    assert words[words.index("--") + 1 :][:2] == ["tfusion", "train"]


def test_one_model_that_is_sampled_in_many_ways_is_launched_once():
  lines = full.lines([suites.GUIDANCE])
  assert sum(line.startswith("launch/") for line in lines) == 1
  assert "# guidance 8: the run of guidance 1.5, sampled otherwise" in lines


def test_days_are_those_that_were_compiled_and_are_said_to_lack_otherwise(tmp_path):
  table = tmp_path / "compile.json"
  line = ["v5p:4x4x4", "", "", "", "", "", "", "", "", "2.6", "10.5", "abc1234"]
  table.write_text(json.dumps({f"0.76b {full.SLICE}": line}))
  lines = full.lines([suites.TABLE5], compiled=table)
  plain = [s for s in lines if s.startswith("# linear, bidirectional:")]
  assert plain == [
    "# linear, bidirectional: v5p-128, 64 chips, 2.6 days as predicted, compiled at"
    " abc1234"
  ]
  causal = next(s for s in lines if s.startswith("# linear, causal:"))
  assert "its days are not known, compile it" in causal


def test_the_table_of_compiled_programs_is_read_as_it_is_written():
  table = json.loads((ROOT / full.COMPILED).read_text())
  line = table[f"0.76b {full.SLICE}"]
  head = (ROOT / full.COMPILED.with_suffix(".md")).read_text()
  row = " | ".join(line)
  assert f"| {row} |" in head
  columns = next(x for x in head.splitlines() if x.startswith("| topology"))
  names = [x.strip() for x in columns.strip("|").split("|")]
  assert names[full.DAYS] == "days for 0.5T" and names[-1] == "commit"


def test_the_command_prints_them_and_trains_nothing(capsys, tmp_path):
  arguments = ["ablate", "table5,table8", "--scale", "full", "--folder", str(tmp_path)]
  assert cli.main(arguments) == 0
  assert "# table8" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())
  assert ablate.launch("table5") == full.lines([suites.TABLE5])
