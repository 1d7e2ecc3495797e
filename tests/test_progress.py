"""Promises of tfusion/progress.py."""

import os
import subprocess
import sys
from pathlib import Path

from tfusion import progress

SAID = """
import sys
from tfusion import cli, progress
def work(argv):
  {work}
  return 0
cli._run = work
sys.exit(cli.main([]))
"""


def unread(work: str) -> subprocess.CompletedProcess:
  """A command that does this while nobody reads its output."""
  reader, writer = os.pipe()
  os.close(reader)
  try:
    return subprocess.run(
      [sys.executable, "-c", SAID.format(work=work)],
      # Buffered, or each print fails by itself.
      env=os.environ
      | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": ""},
      stdout=writer,
      stderr=subprocess.PIPE,
      text=True,
      timeout=60,
    )
  finally:
    os.close(writer)


def test_what_is_said_to_nobody_is_noticed_once_and_then_goes_nowhere():
  work = "sys.exit([progress.say('a'), print('b', flush=True), progress.say('c')]"
  run = unread(f"{work} != [False, None, True])")
  assert (run.returncode, run.stderr) == (0, "")


def test_output_that_was_not_written_yet_is_missed_at_the_end():
  assert unread("pass").returncode == 0
  run = unread("print('a')")
  assert (run.returncode, run.stderr) == (141, "")


def test_another_pipe_that_breaks_is_not_taken_for_the_output():
  # The output goes nowhere by then, so it shows no fault any more.
  run = unread("progress.say('a'); raise progress.ReaderGone")
  assert (run.returncode, run.stderr) == (141, "")
  assert not progress.is_reader_gone(BrokenPipeError(32, "Broken pipe"))
  assert not progress.is_reader_gone(ValueError())


def test_progress_is_silent_at_first_then_says_rate_and_time_left(monkeypatch, capsys):
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  shown = progress.Progress("images", 1000)
  now[0] += 2.9
  shown.show(290)
  assert capsys.readouterr().out == ""
  now[0] += 0.1
  shown.show(300)
  assert capsys.readouterr().out == "images 300 of 1,000, 100.0/s, left 0:07\n"
  now[0] += 1.0
  shown.show(400)
  assert capsys.readouterr().out == ""
