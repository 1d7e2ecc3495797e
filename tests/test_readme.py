"""The README's promises to a newcomer; links, commands and files are test_docs.py's."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_what_a_newcomer_types_first_is_run_for_every_change():
  script = (ROOT / ".ci" / "run").read_text().replace("--quiet ", "")
  installs = re.findall(r"^    (pip install .+)$", README + CONTRIBUTING, re.MULTILINE)
  assert len(installs) == 2
  for install in installs:
    assert install.replace("-e ", "") in script, install
  assert "experiments/digits.py:smoke" in README and ":smoke --workdir" in script
  assert re.search(r"^pytest", script, re.MULTILINE)


def test_what_has_not_been_run_is_said_before_the_first_command():
  before = README.partition("pip install")[0]
  (not_run,) = re.findall(r"\*\*Not run yet:\*\*([^.]+)\.", before)
  assert "TPU" in not_run and "GPU" in not_run and "host" in not_run
  assert "U-Net" in before.partition("**Built and tested, but not run:**")[2]


def test_the_first_three_commands_install_train_and_sample():
  first = re.search(r"(?:^    .+\n)+", README, re.MULTILINE)[0].split("\n")
  programs = [line.split()[:2] for line in first if line]
  assert programs == [["pip", "install"], ["tfusion", "train"], ["tfusion", "sample"]]
  trained, sampled = (re.search(r"--workdir (\S+)", line)[1] for line in first[1:3])
  assert trained == sampled
