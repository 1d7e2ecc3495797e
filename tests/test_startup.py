"""Promises of tfusion/startup.py; tests/test_cli.py has those of the whole command."""

import os
import pathlib
import subprocess
import sys

import pytest

from tfusion import startup

ROOT = pathlib.Path(__file__).parents[1]
BODY = "startup.check_script(workers={workers})\nprint('went on')\n"


def run(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *args],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize(
  ("text", "workers", "refused"),
  [
    ("{body}", 1, True),
    ("{body}", 0, False),
    ("if __name__ == '__main__':\n{indented}", 1, False),
    ("def main():\n{indented}\nif __name__ == '__main__':\n  main()", 1, False),
    ("def main():\n{indented}\nmain()", 1, True),
    ("if workers:\n{indented}", 2, True),
    ("if __name__ == '__main__':\n  pass\n{body}", 1, True),
  ],
)
def test_a_script_that_its_data_workers_would_run_again_is_refused(
  tmp_path, text, workers, refused
):
  body = BODY.format(workers=workers)
  indented = "\n".join(f"  {line}" for line in body.splitlines())
  script = tmp_path / "mine.py"
  lines = text.format(body=body, indented=indented)
  script.write_text(f"from tfusion import startup\nworkers = {workers}\n{lines}\n")
  done = run(str(script))
  assert (done.returncode != 0) == refused and ("went on" in done.stdout) != refused
  if refused:
    assert f"ValueError: {script}, line " in done.stderr
    assert f"data.workers={workers} imports this script" in done.stderr


def test_what_is_no_script_is_not_asked_for_a_guard():
  code = "from tfusion import startup\n" + BODY.format(workers=1)
  assert "went on" in run("-c", code).stdout
  lines = f"exec(compile({code!r}, '<cell>', 'exec'), dict(__name__='__main__'))"
  assert "went on" in run("-c", lines).stdout


def test_programs_are_kept_in_the_workdir_unless_another_place_is_named(
  tmp_path, monkeypatch
):
  name = "JAX_COMPILATION_CACHE_DIR"
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  monkeypatch.setenv(name, "chosen")
  startup.keep_programs(str(tmp_path))
  assert os.environ[name] == "chosen"
  monkeypatch.delenv(name)
  startup.keep_programs("gs://bucket/run")
  assert name not in os.environ
  startup.keep_programs(str(tmp_path))
  assert pathlib.Path(os.environ[name]).parent == tmp_path / "programs"


@pytest.mark.slow
def test_a_second_start_finds_what_the_first_has_compiled(tmp_path):
  code = (
    "import sys; from tfusion import startup; startup.keep_programs(sys.argv[1])\n"
    "import jax\n"
    "jax.monitoring.register_event_listener(lambda name, **_: print(name))\n"
    "jax.jit(lambda x: x * 2 + 1)(1.0)\n"
  )
  first, second = (run("-c", code, str(tmp_path)).stdout for _ in range(2))
  hit = "/jax/compilation_cache/cache_hits"
  assert hit not in first and hit in second
