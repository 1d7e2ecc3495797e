"""The README says what is there: commands, files and sources of its figures."""

import dataclasses
import json
import pathlib
import re
import shlex

import pytest
from PIL import Image

from tfusion import autoencoder_config, cli
from tfusion import config as config_lib
from tfusion.prepare import job, readers, runner

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (tfusion .+)$", README, re.MULTILINE)


def test_every_kind_of_command_is_in_the_readme():
  assert {c.split()[1] for c in COMMANDS} == {
    "train",
    "autoencoder",
    "sample",
    "eval",
    "inspect",
    "prepare",
    "bench",
  }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_commands_are_read_without_an_error(command, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "experiments").symlink_to(ROOT / "experiments")
  (tmp_path / "photos").mkdir()
  for name in ("a", "b"):
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / f"{name}.txt").write_text(f"a picture, {name}")
  args, rest = cli._parser().parse_known_args(shlex.split(command)[1:])
  if args.command == "prepare":
    pytest.importorskip("apache_beam")
    runner.parse(rest)
    assert args.source.partition(":")[0] in readers.PLANS
  elif "data=shards" in (getattr(args, "config", None) or ""):
    pytest.importorskip("apache_beam")
    job.prepare(job.Request("folder:photos", args.config.partition("data=")[2]))
    cli.read_config(args.config, rest)
  elif getattr(args, "config", None):
    kind = autoencoder_config if args.command == "autoencoder" else config_lib
    cli.read_config(args.config, rest, kind=kind)
  else:
    digits = cli.read_config("experiments/digits.py", [])
    known = config_lib.flatten(digits)
    for override in rest:
      key = re.fullmatch(r"--config\.([\w.]+)=.+", override).group(1)
      assert key in known


def test_what_a_new_user_types_is_what_is_run_for_every_change():
  script = (ROOT / ".ci" / "run").read_text().replace("--quiet ", "").splitlines()
  installs = re.findall(r"^    (pip install .+)$", README, re.MULTILINE)
  assert len(installs) == 2 and "    pytest\n" in README
  assert [line for line in script if line.startswith("pip ")] == installs
  assert script[-1] == "pytest"


def test_every_picture_exists():
  paths = re.findall(r"!\[.*?\]\((.+?)\)", README)
  assert paths
  for path in paths:
    assert min(Image.open(ROOT / path).size) > 100, path


def test_the_known_good_run_is_of_todays_digits_and_gave_the_readmes_figures():
  known = json.loads((ROOT / "experiments" / "results" / "digits.json").read_text())
  config = cli.read_config(str(ROOT / "experiments" / "digits.py"), [])
  assert known["model"] == json.loads(json.dumps(dataclasses.asdict(config.model)))
  assert known["eval"]["step"] == known["metrics"][-1]["step"] == config.train.steps
  assert known["command"] in README and known["commit"] in README
  for right, count in (("images_right", "images"), ("captions_right", "captions")):
    assert f"{known['eval'][right]} of {known['eval'][count]}" in README


def test_every_path_of_the_map_exists():
  house = README.split("## The house")[1].split("Conventions")[0]
  paths = re.findall(r"^    (?:  )?([\w/]+(?:\.py|/)) ", house, re.MULTILINE)
  assert len(paths) > 12
  for path in paths:
    inside = ROOT / "tfusion" / path
    assert inside.exists() or (ROOT / path).exists(), path
