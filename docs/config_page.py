"""Writes docs/config.md: every knob, its default, what it may be and what it is.

Owns: the form of the page. Not: what is said of a knob, which stands in the comments
and docstrings of tfusion/config.py and tfusion/autoencoder_config.py.

  python docs/config_page.py
"""

import ast
import dataclasses
import inspect
import io
import pathlib
import tokenize
import types

from tfusion import autoencoder_config, config, workdir

PAGE = pathlib.Path(__file__).with_name("config.md")
HEAD = r"""# Every knob

This page lists every knob of `tfusion train` and `tfusion autoencoder`: its default,
the values it may have, and what it is. `python docs/config_page.py` writes it from the
comments in [config.py](../tfusion/config.py) and
[autoencoder_config.py](../tfusion/autoencoder_config.py): change those, not the page.

An experiment file, such as [digits.py](../experiments/digits.py), starts from these
defaults and changes some. The command line has the last word:

    tfusion train --config experiments/digits.py --workdir runs/long \
      --config.train.steps=4000

A tuple is written as in Python, in quotes that keep the shell from reading it:

    tfusion train --config experiments/digits.py --workdir runs/prose \
      --config.data.sources='("pydoc",)'

An unknown knob, a value of the wrong type and a value outside its bounds are refused
before any work. The message names the knob, the value and the remedy.

A knob marked **fixed** cannot change within a run: a workdir that holds a run with
another value is refused ([Stopping and resuming](resuming.md)). A fixed knob that names
a file or a folder may name another place if the same content lies there.

In the comments, "ours" marks a choice that the paper does not make
([The paper, and what we do](paper.md)). A section or table without a source is one of
the paper, arXiv 2408.11039.
"""
COMMANDS = (
  ("train", "", config, config.Config),
  (
    "autoencoder",
    " of an autoencoder",
    autoencoder_config,
    autoencoder_config.AutoencoderConfig,
  ),
)


def page() -> str:
  """The whole page."""
  parts = [HEAD]
  for command, whose, module, kind in COMMANDS:
    parts.append(f"## Knobs of `tfusion {command}`\n")
    parts += _sections(module, kind, whose)
  return "\n".join(parts)


def _sections(module: types.ModuleType, kind: type, whose: str) -> list[str]:
  """A table of the knobs outside of sections, then one for each section."""
  defaults, tables, alone = kind(), [], []
  run, notes = workdir.KINDS[kind], _notes(kind)
  for field in dataclasses.fields(kind):
    section = getattr(defaults, field.name)
    if not dataclasses.is_dataclass(section):
      alone.append((field.name, section, notes[field.name]))
      continue
    own = _notes(type(section))
    rows = [
      (f"{field.name}.{f.name}", getattr(section, f.name), own[f.name])
      for f in dataclasses.fields(section)
    ]
    about = f"{inspect.getdoc(type(section))}\n{notes[field.name]}".strip()
    tables.append(
      f"### `{field.name}`{whose}\n\n{about}\n\n{_table(module, run, rows)}"
    )
  return [_table(module, run, alone), *tables]


def _table(module: types.ModuleType, run: workdir.Kind, rows: list) -> str:
  lines = ["| knob | default | may be | fixed | what it is |", "|---|---|---|---|---|"]
  for key, default, note in rows:
    fixed = "fixed" if _is_fixed(key, run) else ""
    cells = f"`{key}`", f"`{default!r}`", _may_be(module, key), fixed, note
    text = " | ".join(cells).replace("<", "&lt;")  # GitHub would take it for a tag
    lines.append(f"| {text} |")
  return "\n".join(lines) + "\n"


def _is_fixed(key: str, run: workdir.Kind) -> bool:
  inside = any(key == own or key.startswith(f"{own}.") for own in run.bound)
  return inside and key not in run.unbound


def _may_be(module: types.ModuleType, key: str) -> str:
  if choices := getattr(module, "CHOICES", {}).get(key):
    return ", ".join(f"`{choice}`" for choice in choices)
  found = (words for words, (_, keys) in module.RANGES.items() if key in keys.split())
  return next(found, "").partition(":")[0]


def _notes(kind: type) -> dict[str, str]:
  """Field -> its comments: first those in lines above it, then the one beside it."""
  text = inspect.getsource(kind)
  comments, alone = {}, set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      comments[token.start[0]] = token.string.lstrip("# ")
      if token.line.lstrip().startswith("#"):
        alone.add(token.start[0])
  notes = {}
  for node in ast.parse(text).body[0].body:
    if isinstance(node, ast.AnnAssign):
      first = node.lineno
      while first - 1 in alone:
        first -= 1
      lines = range(first, node.end_lineno + 1)
      notes[node.target.id] = " ".join(comments[n] for n in lines if n in comments)
  return notes


if __name__ == "__main__":
  PAGE.write_text(page())
  print(PAGE)
