"""Templates of pages, and the engine that fills them.

Owns: how templates are opened: what they are given is escaped, and must be there. Not:
the pages (report/, inspect/row_page.py, generate/samples.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import jinja2


def environment(folder: Path) -> "jinja2.Environment":
  """Opens the templates in a folder.

  White space in front of a statement and the end of its line are no part of a page.
  """
  import jinja2  # not before a page is written

  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(folder),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
