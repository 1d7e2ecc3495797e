"""Promises of tfusion/progress.py."""

from tfusion import progress


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
