"""The page on which one types a prompt and watches what comes of it.

Owns: its template, filled. Not: the colours (report/theme.css), what the page asks for
(application.py).
"""

from pathlib import Path
from typing import Any

from tfusion import report, templates

FOLDER = Path(__file__).parent
THEME = Path(report.__file__).parent / "theme.css"
# Knobs of section `sample` that have a field of their own, and their steps.
KNOBS = {
  "steps": "1",
  "guidance": "any",
  "temperature": "any",
  "top_p": "any",
}


def page(about: dict[str, Any]) -> str:
  """One page that needs no other file.

  Args:
    about: as GET /api/model answers.
  """
  template = templates.environment(FOLDER).get_template("page.html.j2")
  return template.render(
    about=about,
    knobs=KNOBS,
    theme=THEME.read_text(encoding="utf-8"),
    style=(FOLDER / "page.css").read_text(encoding="utf-8"),
    script=(FOLDER / "page.js").read_text(encoding="utf-8"),
  )
