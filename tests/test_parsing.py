"""Promises of tfusion/parsing.py: JSON becomes dataclasses, or the key is named."""

import dataclasses
import json

import pytest

from tfusion import parsing


@dataclasses.dataclass(frozen=True)
class Inner:
  """A part of the whole."""

  share: float
  note: str | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
  """One of each type that a field may have."""

  name: str
  size: int
  shown: bool
  sides: tuple[int, ...]
  parts: list[Inner]
  counts: dict[str, Inner] | None = None


WHOLE = Outer(
  "a", 3, True, (1, 2), [Inner(0.5), Inner(1.0, "b")], {"x": Inner(2.0, "c")}
)


def values(**changes) -> dict:
  """The fields of WHOLE as JSON has them, some of them changed."""
  return json.loads(json.dumps(dataclasses.asdict(WHOLE))) | changes


def refusal(*args, **kwargs) -> str:
  """What `build` says against values."""
  with pytest.raises(ValueError) as error:
    parsing.build(Outer, *args, **kwargs)
  return str(error.value)


def test_a_dataclass_comes_back_from_json_as_it_was():
  assert parsing.build(Outer, values()) == WHOLE
  built = parsing.build(Outer, values(parts=[{"share": 1, "note": None}]))
  assert type(built.parts[0].share) is float  # a whole number is one


def test_only_fields_that_default_to_none_may_lack():
  without = values()
  del without["counts"], without["parts"][0]["note"]
  assert parsing.build(Outer, without) == dataclasses.replace(WHOLE, counts=None)
  del without["size"]
  said = refusal(without | {"colour": 1}, whole="config")
  assert "config: unknown ['colour'], missing ['size']; known: ['counts'," in said


@pytest.mark.parametrize(
  "changes, says",
  [
    ({"size": "3"}, "size='3': expected int"),
    ({"size": True}, "size=True: expected int"),
    ({"size": 3.0}, "size=3.0: expected int"),
    ({"shown": 1}, "shown=1: expected bool"),
    ({"sides": 3}, "sides=3: expected a tuple of int"),
    ({"sides": [1, "2"]}, "sides[1]='2': expected int"),
    ({"parts": [{}]}, "parts[0]: unknown [], missing ['share']"),
    ({"parts": [3]}, "parts[0]=3: expected keys and values"),
    ({"counts": []}, "counts=[]: expected keys and values"),
    ({"counts": {"y": {"share": None}}}, "counts.y.share=None: expected float"),
    ({"counts": {"y": {"share": True}}}, "counts.y.share=True: expected float"),
    ({"counts": {"y": {"share": 10**400}}}, "too large for a float"),
    ({"counts": {"y": {"share": 1.0, "note": 3}}}, "counts.y.note=3: expected str"),
  ],
)
def test_what_is_wrong_is_named_by_its_key_with_the_type_that_is_right(changes, says):
  assert says in refusal(values(**changes))


@pytest.mark.parametrize("text", [[1], "a", None])
def test_values_that_are_no_object_at_all_are_refused(text):
  assert refusal(text, whole="manifest").startswith("manifest=")
  assert refusal(text, key="images").startswith("images=")


@pytest.mark.parametrize("kind", [str, str.encode])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_json_may_be_deep_but_not_so_deep_that_using_it_fails(kind, pair):
  def nested(levels: int):
    opened, closed = pair[:-1], pair[-1]
    return kind(opened * levels + "0" + closed * levels)

  read = parsing.parse_json(nested(parsing.DEEPEST))
  assert read == read and repr(read)
  for levels in (parsing.DEEPEST + 1, 900, 200_000):
    with pytest.raises(ValueError, match=f"deeper than {parsing.DEEPEST} levels"):
      parsing.parse_json(nested(levels))
  assert len(parsing.parse_json("[" + "[]," * 1000 + "[]]")) == 1001  # wide, not deep


@pytest.mark.parametrize("text", ["", "{", "[1,]", b"\xff"])
def test_what_is_no_json_is_a_value_error(text):
  with pytest.raises(ValueError):
    parsing.parse_json(text)


def test_a_key_that_stands_twice_is_an_error_and_no_value_is_lost():
  for text in ('{"a": 1, "b": 2, "a": 1}', b'[{"b": {"x": 0, "a": 1, "a": 2}}]'):
    with pytest.raises(ValueError, match="has 'a' twice; keep one"):
      parsing.parse_json(text)
  assert parsing.parse_json('{"a": {"a": 1}, "b": [{"a": 2}]}')["a"] == {"a": 1}
