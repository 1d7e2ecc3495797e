"""attend is for others too: it comes without the rest of tfusion."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ATTENTION = ROOT / "tfusion" / "attention"
REST = "flax optax orbax grain ml_collections sentencepiece PIL einops".split()


@pytest.mark.slow
def test_attend_imports_jax_and_its_own_room_alone():
  code = """
import sys
import absl.logging, jax, jax.numpy, numpy
before = set(sys.modules)
from tfusion.attention import attend
print(*sorted(name for name in set(sys.modules) - before))
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  names = [n for n in done.stdout.split() if n.partition(".")[0] in ["tfusion", *REST]]
  assert "tfusion.attention" in names
  others = [n for n in names if not n.startswith("tfusion.attention")]
  assert others == ["tfusion", "tfusion.version"]


def test_no_implementation_imports_from_another_room():
  for path in ATTENTION.rglob("*.py"):
    for module in re.findall(
      r"^\s*(?:from|import) (tfusion\S*)", path.read_text(), re.M
    ):
      assert module.startswith("tfusion.attention"), f"{path.name} imports {module}"
