"""Promises of tfusion/startup.py; tests/test_cli.py has those of the whole command."""

import os
import pathlib
import subprocess
import sys

import pytest

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
