"""JSON text -> values -> dataclasses, whose fields say what has to be there.

Owns: how deep JSON may go, keys and types, naming the one that is wrong. Not: what the
values mean (config.py and whoever reads a file).
"""

import collections
import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

# Levels of lists and objects. Python takes about a thousand, and counts in them what
# has been called so far: below this, nothing that is done with the values can fail.
DEEPEST = 400

D = TypeVar("D")  # a dataclass


def parse_json(text: str | bytes) -> Any:
  """Reads JSON.

  Raises:
    ValueError: it is none, has a key twice, of which json would take the last, or is
      nested deeper than DEEPEST levels.
  """
  try:
    values = json.loads(text, object_pairs_hook=_unlike)
  except RecursionError:
    deep = True
  else:
    deep = _brackets(text) > DEEPEST and _is_deep(values)
  if deep:
    raise ValueError(f"nested deeper than {DEEPEST} levels")
  return values


def build(kind: type[D], values: Any, *, key: str = "", whole: str = "it") -> D:
  """Builds a dataclass from a dict, as `dataclasses.asdict` and JSON give it.

  Fields may be int, float, str, bool, `X | None`, a dataclass, or tuples, lists and
  dicts (by str) of these. A whole number is taken for a float.

  Args:
    kind: the dataclass.
    values: every field's, by name. Only those that default to None may lack.
    key: where in a file the values stand, for messages.
    whole: what messages call them where `key` is empty.

  Raises:
    ValueError: an unknown or missing key, or a wrong type; it names the key.
  """
  if not isinstance(values, dict):
    raise ValueError(f"{key or whole}={values!r}: expected keys and values")
  hints = typing.get_type_hints(kind)
  fields: tuple[dataclasses.Field, ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
  optional = {field.name for field in fields if field.default is None}
  unknown = sorted(values.keys() - hints.keys(), key=str)
  missing = sorted(hints.keys() - values.keys() - optional)
  if unknown or missing:
    raise ValueError(
      f"{key or whole}: unknown {unknown}, missing {missing}; known: {sorted(hints)}"
    )
  inside = f"{key}." if key else ""
  return kind(**{n: _value(hints[n], v, inside + n) for n, v in values.items()})


def _value(hint: Any, value: Any, key: str) -> Any:
  """A value of the type that a hint says."""
  arguments, container = typing.get_args(hint), typing.get_origin(hint)
  if isinstance(hint, types.UnionType):
    return None if value is None else _value(arguments[0], value, key)
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return build(hint, value, key=key)
  if container is dict:
    if not isinstance(value, dict):
      raise ValueError(f"{key}={value!r}: expected keys and values")
    return {k: _value(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
  if container in (tuple, list):
    if not isinstance(value, list | tuple):
      names = f"{container.__name__} of {getattr(arguments[0], '__name__', 'values')}"
      raise ValueError(f"{key}={value!r}: expected a {names}")
    items = enumerate(value)
    return container(_value(arguments[0], v, f"{key}[{i}]") for i, v in items)
  number = isinstance(value, int | float) and not isinstance(value, bool)
  good = number if hint is float else isinstance(value, hint)
  if not good or (hint is int and not number):
    raise ValueError(f"{key}={value!r}: expected {hint.__name__}")
  try:
    return hint(value)
  except OverflowError as error:  # a whole number that no float is near
    raise ValueError(f"{key}={value}: too large for a float") from error


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Keys and values as a dict; ValueError where a key is there twice."""
  values = dict(pairs)
  if len(values) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    (twice, _), *_ = counts.most_common(1)
    raise ValueError(f"has {twice!r} twice; keep one")
  return values


def _brackets(text: str | bytes) -> int:
  """How many lists and objects may begin in JSON: no level without one."""
  if isinstance(text, bytes):
    return text.count(b"[") + text.count(b"{")
  return text.count("[") + text.count("{")


def _is_deep(values: Any) -> bool:
  level = [values]
  for _ in range(DEEPEST):
    level = [
      inner
      for outer in level
      if isinstance(outer, list | dict)
      for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]
    if not level:
      return False
  return any(isinstance(value, list | dict) for value in level)
