"""What `import tfusion` offers, and that it costs nothing before it is used."""

import ast
import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import pytest

import tfusion

ROOT = pathlib.Path(__file__).parents[1]
INIT = ROOT / "tfusion" / "__init__.py"


def python(code: str) -> str:
  """Runs a program in a new process; returns what it printed."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_importing_tfusion_imports_itself_alone():
  before, after = python(
    "import sys; before = set(sys.modules); import tfusion; print(len(before));"
    " print(*sorted(set(sys.modules) - before))"
  ).splitlines()
  assert int(before) > 10
  assert after == "tfusion tfusion.version"


@pytest.mark.slow
def test_a_name_imports_what_it_needs_when_it_is_first_used():
  code = (
    "import sys, tfusion; tfusion.experiment;"
    " print('jax' in sys.modules, 'experiment' in vars(tfusion));"
    " tfusion.load; print('jax' in sys.modules)"
  )
  assert python(code).split() == ["False", "True", "True"]


@pytest.mark.parametrize("name", tfusion.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
  found = getattr(tfusion, name)
  assert name in dir(tfusion)
  if name != "__version__":
    assert inspect.getdoc(found) and found.__name__ == name


def test_type_checkers_see_the_same_names_from_the_same_modules():
  tree = ast.parse(INIT.read_text())
  (typed,) = (node for node in tree.body if isinstance(node, ast.If))
  assert ast.unparse(typed.test) == "TYPE_CHECKING"
  seen = {alias.name: node.module for node in typed.body for alias in node.names}
  assert sorted([*seen, "__version__"]) == sorted(tfusion.__all__)
  for name, module in seen.items():
    assert getattr(tfusion, name) is getattr(importlib.import_module(module), name)
    # Where it is made, not one of the modules that import it.
    assert getattr(tfusion, name).__module__ == module


def test_a_name_that_is_not_there_is_an_attribute_error():
  with pytest.raises(AttributeError, match="'tfusion' has no attribute 'trian'"):
    _ = tfusion.trian
  with pytest.raises(ImportError):
    exec("from tfusion import trian")


def test_the_mark_of_a_typed_package_is_installed_with_it(tmp_path):
  done = subprocess.run(
    [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "tfusion" / "run.py").is_file()
  assert (tmp_path / "tfusion" / "py.typed").is_file()
