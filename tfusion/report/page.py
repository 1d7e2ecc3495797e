"""Fills the page: a template around sections, each from a macro of its own.

Owns: the filling, and that a section which cannot be shown costs no other. Not:
the values (the other files of this room), the words around them (the templates).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tfusion import templates

FOLDER = Path(__file__).parent
ERROR = 300  # characters that are shown of one


class Section(NamedTuple):
  """A part of the page."""

  title: str  # "": stands without a heading
  macro: str  # of sections.html.j2
  values: Callable[[], Any]  # for the macro; nothing where nothing is known yet


def fill(title: str, sections: list[Section]) -> str:
  """Returns the page, HTML that needs nothing beside it.

  Args:
    title: of the browser's window.
    sections: from the top down. One whose values or macro fail says so in its place.
  """
  environment = templates.environment(FOLDER)
  macros = environment.get_template("sections.html.j2").module
  return environment.get_template("page.html.j2").render(
    title=title,
    theme=_read("theme.css"),
    style=_read("style.css"),
    sections=[_filled(section, macros) for section in sections],
  )


def _filled(section: Section, macros: Any) -> dict[str, Any]:
  body, error = "", ""
  try:
    if values := section.values():
      body = getattr(macros, section.macro)(values)
  except Exception as exception:  # whatever stands in the files must not stop a run
    error = repr(exception)[:ERROR]
  return {"title": section.title, "body": body, "error": error}


def _read(name: str) -> str:
  return (FOLDER / name).read_text(encoding="utf-8")
